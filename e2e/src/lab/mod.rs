//! A lab: control plane and clients on the host, nodes in a guest kernel.

pub mod cache;
pub mod client_tools;
pub mod cluster;
pub mod control_plane_build;
pub mod error;
pub mod forwarder;
pub mod guest;
pub mod prerequisites;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod site;
