//! The real kernel behind the agent's kernel trait: each test in a network namespace of its own.
//!
//! Needs root. What a kernel lacks (IPVS and dummy interfaces on some, nftables on others) is told as `SKIP:`.

mod address;
mod announce;
mod conntrack;
mod convergence;
mod events;
mod ipset;
mod ipvs;
mod link;
mod modules;
mod route;
mod rules;
mod support;
mod traffic;

#[path = "../convergence/mod.rs"]
mod cases;
