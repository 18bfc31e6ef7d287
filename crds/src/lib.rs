//! crds: skeleton.
