//! operator/planner: skeleton.
