//! The lab: a real control plane and a real kernel on one machine, without containers, and the
//! developer commands (`cargo xtask`) and tests that run in it.
//!
//! [`lab`] is what tests use: [`lab::Lab`] starts a control plane, boots a guest kernel and lays out
//! nodes, pods and clients in it. [`tool`] is the small multi-call program that runs inside of the lab
//! (the guest's init, the process guard, backends and probers). [`xtask`] holds the developer commands.

pub mod lab;
pub mod tool;
pub mod xtask;
