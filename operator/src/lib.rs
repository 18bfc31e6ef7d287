//! The operator: watches what users write, lets the planner decide, and publishes.
//!
//! Everything that decides is in `nodenet-planner`, which has no clock, no client and no runtime. Here is what
//! surrounds it:
//!
//! ```text
//! watch ─► control ─► queue ─► planner ─► lanes ─► publish ─► API server
//!             ▲ the only owner of the planner's index │
//!             └────────────── answers ◄───────────────┘
//! election: may we write?     health, http, metrics: what the probes see
//! render: the planner without a cluster     cleanup: what an uninstall removes
//! ```

pub mod cleanup;
pub mod cli;
pub mod control;
pub mod election;
pub mod health;
pub mod http;
pub mod lanes;
pub mod metrics;
pub mod publish;
pub mod queue;
pub mod render;
pub mod run;
pub mod watch;
