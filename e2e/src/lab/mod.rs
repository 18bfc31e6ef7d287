//! A lab: control plane and clients on the host, nodes in a guest kernel.

pub mod error;
pub mod guest;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod site;
