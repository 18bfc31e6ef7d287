//! What is said: status, health, metrics.

use std::time::Duration;

use crate::api::Api;
use crate::node::{NODE, Node, slice, spec, until};
use crate::{synced, vip};

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_is_reported_and_stops_nothing() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    std::fs::write(node.path().join("state"), b"a file where the folder should be").unwrap();
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("the failure is listed", || {
        api.status()["failures"].as_array().is_some_and(|f| {
            f.iter().any(|f| f["object"].as_str().unwrap_or_default().contains("copy of the desired state"))
        })
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_status_that_says_nothing_new_is_not_written() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    let leases = api.leases().len();
    until("a renewal", || api.leases().len() > leases).await;
    let (writes, leases) = (api.status_writes(), api.leases().len());
    // Ten times the coalescing time, and many renewals of the address.
    until("more renewals", || api.leases().len() > leases + 1).await;
    assert_eq!(api.status_writes(), writes);
    agent.stop().await;
}

#[tokio::test]
async fn an_operator_that_is_silent_is_said_to_be() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let mut config = node.config();
    (config.operator_look, config.operator_limit) = (Duration::from_millis(100), Duration::from_millis(500));
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("OperatorSilent", || api.condition("OperatorSilent")["status"] == "True").await;
    let words = api.condition("OperatorSilent")["message"].to_string();
    assert!(words.contains("nodenet-system/nodenet-operator"), "{words}");
    until("Ready stays", || api.condition("Ready")["status"] == "True").await;
    assert_eq!(api.condition("Ready")["reason"], "OperatorSilent");
    agent.stop().await;
}

/// What `path` answers.
async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let (api, node) = (Api::start().await, Node::new());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = node.config();
    config.http_address = Some(port);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("the port", || std::net::TcpStream::connect(port).is_ok()).await;
    let answer = get(port, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("nothing is synchronised yet"), "{answer}");
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    synced(&api, &node, 2).await;
    until("the address", || agent.metrics.addresses_held.get() == 1).await;
    for path in ["/readyz", "/livez", "/healthz"] {
        let answer = get(port, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let metrics = get(port, "/metrics").await;
    for name in [
        "nodenet_agent_kernel_operations_total{operation=\"add_virtual_server\"} 2",
        "nodenet_agent_network_programming_duration_seconds_count 1",
        "nodenet_agent_addresses_held 1",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    agent.stop().await;
}
