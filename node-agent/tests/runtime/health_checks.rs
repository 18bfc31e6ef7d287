//! What load balancers ask the node, by HTTP on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use nodenet_agent::agent::runtime::Config;
use nodenet_agent::health_server::{Listen, listen};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::Api;
use crate::node::{NODE, Node, slice, spec, until};

/// Listens on loopback only, whatever the address.
fn on_loopback() -> Listen {
    Arc::new(|address: SocketAddr| match address {
        SocketAddr::V4(address) => listen((Ipv4Addr::LOCALHOST, address.port()).into()),
        SocketAddr::V6(_) => Err(std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status line's number and body; `None` where nobody listens.
async fn ask(port: u16, path: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n")?.1;
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Waits until the node answers so.
async fn answers(what: &str, port: u16, wanted: Option<(u16, usize)>) {
    for _ in 0..6000 {
        let answer = ask(port, "/healthz").await;
        let seen = answer.map(|(status, body)| {
            assert_eq!(body["service"], json!({"namespace": "default", "name": "web"}));
            assert_eq!(body["serviceProxyHealthy"], true);
            (status, usize::try_from(body["localEndpoints"].as_u64().unwrap()).unwrap())
        });
        if seen == wanted {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("not in 30 s: {what}: {wanted:?}");
}

/// A Service with these endpoints: address, node, whether it terminates.
fn service(revision: i64, port: Option<u16>, endpoints: &[(&str, &str, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, terminating)| {
            json!({"address": address, "port": 80, "node": node, "terminating": terminating})
        })
        .collect();
    let policy = if port.is_some() { "Local" } else { "Cluster" };
    json!({
        "revision": revision,
        "services": [{
            "namespace": "default", "name": "web", "uid": "uid-web", "revision": revision, "part": 0, "parts": 1,
            "healthCheckNodePort": port,
            "ports": [{
                "protocol": "TCP", "externalTrafficPolicy": policy,
                "frontends": [{"kind": "ClusterIP", "address": "10.96.0.1", "port": 80}, {"kind": "NodePort", "port": 30001}],
                "endpoints": endpoints,
            }],
        }],
    })
}

#[tokio::test]
async fn load_balancers_are_told_whether_the_node_has_endpoints_that_are_ready() {
    let (api, mut node) = (Api::start().await, Node::new());
    node.listen = Some(on_loopback());
    let port = free_port();
    let (here, there) = (NODE, "other");
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let mut revision = 0;
    let mut put = |port, endpoints: &[(&str, &str, bool)]| {
        revision += 1;
        api.put("nodenetslices", "s1", revision, service(revision, port, endpoints));
    };
    put(Some(port), &[("10.244.1.1", there, false)]);
    let agent = node.start(&api).await;
    answers("none here", port, Some((503, 0))).await;
    let set = "NODENET-HEALTH-CHECK-NODE-PORT";
    assert_eq!(node.kernel.state().sets[set].entries.len(), 1, "the packet filter lets the question in");

    put(
        Some(port),
        &[("10.244.1.1", there, false), ("10.244.5.1", here, false), ("10.244.5.2", here, false)],
    );
    answers("two here", port, Some((200, 2))).await;
    put(Some(port), &[("10.244.5.1", here, true), ("10.244.5.2", here, false)]);
    answers("one terminates", port, Some((200, 1))).await;
    put(Some(port), &[("10.244.5.1", here, true)]);
    answers("what is left terminates", port, Some((503, 0))).await;

    let other = free_port();
    put(Some(other), &[("10.244.5.1", here, false)]);
    answers("another port", other, Some((200, 1))).await;
    answers("the first is given back", port, None).await;
    put(None, &[("10.244.5.1", here, false)]);
    answers("the policy changed", other, None).await;
    until("the packet filter knows", || node.kernel.state().sets[set].entries.is_empty()).await;
    put(Some(port), &[("10.244.5.1", here, false)]);
    answers("and back", port, Some((200, 1))).await;
    api.put("nodenetslices", "s2", 1, slice(2, 9, &["10.244.1.1"]));
    until("the other Service", || node.servers() == 4).await;
    api.delete("nodenetslices", "s1");
    answers("the Service is gone", port, None).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_named_and_tried_again() {
    let (api, mut node) = (Api::start().await, Node::new());
    node.listen = Some(on_loopback());
    let another = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = another.local_addr().unwrap().port();
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, service(1, Some(port), &[("10.244.5.1", NODE, false)]));
    let agent = node.start(&api).await;
    until("the condition", || api.condition("HealthChecksReady")["status"] == "False").await;
    let condition = api.condition("HealthChecksReady");
    assert_eq!(condition["reason"], "PortInUse");
    let words = condition["message"].as_str().unwrap();
    assert!(
        words.contains("Service default/web: healthCheckNodePort") && words.contains(&port.to_string()),
        "{words}"
    );
    let ready = api.condition("Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("True"), &json!("PortInUse")), "{ready}");
    assert_eq!(api.status()["failures"][0]["object"], "Service default/web");
    assert_eq!(node.servers(), 2, "everything else is done");
    drop(another);
    answers("as soon as it is free", port, Some((200, 1))).await;
    until("the condition", || api.condition("Ready")["reason"] == "Ready").await;
    agent.stop().await;
}

#[tokio::test]
async fn the_proxys_health_is_where_kube_proxy_has_it_as_soon_as_that_is_gone() {
    let (api, mut node) = (Api::start().await, Node::new());
    node.listen = Some(on_loopback());
    let kube_proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = kube_proxy.local_addr().unwrap();
    let config =
        Config { healthz_address: Some((Ipv4Addr::UNSPECIFIED, address.port()).into()), ..node.config() };
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent =
        node.start_with(&api, config, Box::new(node.kernel.clone()), Box::new(node.kernel.clone())).await;
    until("services are programmed all the same", || node.servers() == 2).await;
    until("it is said", || api.condition("HealthChecksReady")["reason"] == "PortInUse").await;
    let words = api.condition("HealthChecksReady")["message"].as_str().unwrap().to_owned();
    assert!(words.contains("kube-proxy?"), "{words}");
    drop(kube_proxy);
    until("Ready", || api.condition("Ready")["reason"] == "Ready").await;
    let (status, body) = ask(address.port(), "/healthz").await.unwrap();
    assert_eq!((status, &body["nodeEligible"]), (200, &json!(true)));

    let mut going = spec("Backup");
    going["beingDeleted"] = json!(true);
    api.put("nodenetstates", NODE, 2, going);
    until("the spec is read", || api.status()["observedGeneration"] == 2).await;
    until("and said", || api.condition("Ready")["observedGeneration"] == 2).await;
    let (status, body) = ask(address.port(), "/healthz").await.unwrap();
    assert_eq!((status, &body["nodeEligible"]), (503, &json!(false)));
    assert_eq!(ask(address.port(), "/livez").await.unwrap().0, 200);
    agent.stop().await;
}
