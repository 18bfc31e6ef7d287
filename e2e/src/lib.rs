//! e2e: skeleton.
