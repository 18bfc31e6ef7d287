//! operator: skeleton.
