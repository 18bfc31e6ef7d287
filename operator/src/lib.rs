//! The operator: watches what users write, lets the planner decide, and publishes.
//!
//! Everything that decides is in `nodenet-planner`, which has no clock, no client and no runtime. Here is what
//! surrounds it: watches, a queue, writes, leadership, metrics.

pub mod api_server;
pub mod election;
pub mod queue;
