//! The developer commands, a module each.

pub mod cargo;
pub mod guest;
