//! Slices by an operator that is newer than the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_crds::NodeNetSliceSpec;
use plans::{Agent, slice, spec, tcp, web};
use serde_json::json;

#[test]
fn what_the_agent_does_not_know_is_left_out_and_said_and_its_neighbours_go_on() {
    let newer: NodeNetSliceSpec = serde_json::from_value(json!({
        "revision": 2, "services": [
            { "namespace": "default", "name": "new", "uid": "new", "revision": 2, "part": 0, "parts": 1, "ports": [
                { "protocol": "QUIC", "frontends": [{ "kind": "ClusterIP", "address": "10.96.0.9", "port": 443 }] },
                { "protocol": "TCP", "externalTrafficPolicy": "Zone",
                  "frontends": [{ "kind": "ClusterIP", "address": "10.96.0.9", "port": 81 }] },
                { "protocol": "TCP", "scheduler": "mh", "schedulerFlags": ["Sticky"], "frontends": [
                    { "kind": "ClusterIP", "address": "10.96.0.9", "port": 80 },
                    { "kind": "Anycast", "address": "10.96.0.10", "port": 80 }
                ], "endpoints": [{ "address": "10.244.1.1", "port": 8080 }] }
            ] }
        ]
    }))
    .unwrap();
    let mut both = newer;
    both.services.extend(slice(2, vec![web("one", 2, "10.96.0.1", &[("10.244.1.1", "n1")])]).services);
    let mut agent = Agent::new();
    agent.read(&spec(), &[("a", both)]);
    agent.settle_all();
    let servers: Vec<_> = agent.kernel.state().virtual_servers.into_keys().collect();
    assert_eq!(servers, [tcp("10.96.0.1", 80), tcp("10.96.0.9", 80)]);
    let said: Vec<String> = agent.resolver.problems().iter().map(ToString::to_string).collect();
    for what in
        ["the protocol of a port", "the traffic policy", "an address of a port", "a flag of the scheduler"]
    {
        assert!(
            said.iter().any(|words| words.contains(what) && words.contains("default/new")),
            "{what}: {said:?}"
        );
    }
}
