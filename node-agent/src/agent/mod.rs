//! The lanes.

pub mod clock;
