//! The developer commands, a module each.

pub mod cargo;
pub mod cluster;
pub mod guest;
pub mod setup;
