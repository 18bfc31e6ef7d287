//! What the agent says about its node: status, conditions, Events, Lease, metrics, health.
//!
//! The lanes state facts ([`facts`]); [`status`] makes a status of them (pure); [`publisher`] writes it, and only when it
//! says something new.

pub mod events;
pub mod facts;
pub mod health;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod operator;
pub mod publisher;
pub mod status;
