//! node-agent/wire: skeleton.
