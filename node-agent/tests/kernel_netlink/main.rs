//! The real kernel behind the agent's kernel trait: each test in a network namespace of its own.
//!
//! Needs root. What a kernel lacks (IPVS and dummy interfaces on some, nftables on others) is told as `SKIP:`.

// Helpers of tests are no production code either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod address;
mod announce;
mod conntrack;
mod convergence;
mod events;
mod ipset;
mod ipvs;
mod kube_proxy;
mod link;
mod modules;
mod route;
mod rules;
mod support;
mod traffic;

#[path = "../convergence/mod.rs"]
mod cases;
