//! The whole agent, on a kernel in memory and an API server in memory. Tests wait for conditions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // What helpers of tests meet fails the test.

mod addresses;
mod api;
mod health_checks;
mod kube_proxy;
mod lifecycle;
mod node;
mod reporting;
mod services;

use api::Api;
use node::{Node, until};

const VIP: &str = "192.168.0.15";

async fn synced(api: &Api, node: &Node, servers: usize) {
    until("virtual servers", || node.servers() == servers).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
}

fn vip(api: &Api) -> serde_json::Value {
    api.status()["virtualIPs"][0].clone()
}
