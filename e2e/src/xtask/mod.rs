//! The developer commands, a module each.

pub mod bench;
pub mod cargo;
pub mod cluster;
pub mod crds;
pub mod demo;
pub mod enter;
pub mod guest;
pub mod operator_bench;
pub mod setup;
pub mod test;
