//! node-agent: skeleton.
