//! Addresses from outside: `externalIPs`, and those that a load balancer was given.

use std::collections::BTreeMap;

use nodenet_agent::kernel::Kernel;
use nodenet_agent::state::Scope;
use nodenet_crds::{FrontendKind, PortPlan, Protocol, TrafficPolicy};

use crate::plans::{NODE, endpoint, frontend, plan, port, slice};
use crate::support::in_namespace;
use crate::world::{Plan, V4, V6, World, able, at, connect, node, refused, seen, world};

fn external(p: &Plan) {
    let World { client, far: _far, a, b: _b, here } = world(p);
    let mut node = node(p);
    let (balanced, named) =
        if p.v6 { ("fd00:51::9", "fd00:51::10") } else { ("198.51.100.9", "198.51.100.10") };
    for address in [balanced, named] {
        let length = if p.v6 { 128 } else { 32 };
        client.run("ip", &format!("route add {address}/{length} via {}", p.node));
    }
    let endpoints = || vec![endpoint(p.a, 8080, NODE), endpoint(p.far, 8080, "node-2")];
    let frontends = || {
        vec![
            frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80),
            frontend(FrontendKind::LoadBalancer, Some(balanced), 80),
            frontend(FrontendKind::ExternalIP, Some(named), 80),
        ]
    };
    let before = node.kernel.observe(&Scope { routes: true, ..Scope::default() }).unwrap().routes;
    let mut put = |revision, ports: Vec<PortPlan>| {
        node.resolver.put_slice("a", &slice(revision, vec![plan("web", revision, ports)]));
        assert!(node.settle() > 0);
        assert_eq!(node.settle(), 0, "all is right already");
        node.kernel.observe(&Scope { routes: true, ..Scope::default() }).unwrap().routes
    };

    let routes = put(1, vec![port(Protocol::TCP, frontends(), endpoints())]);
    assert_eq!(routes.len(), before.len() + 3, "the range and two single addresses: {routes:?}");
    let everywhere = [("a", p.gateway, 1), ("far", p.towards_far, 1)];
    for address in [balanced, named] {
        assert_eq!(
            connect(&client.namespace(), at(address, 80), 2),
            seen(&everywhere),
            "a client: {address}"
        );
        assert_eq!(connect(&here, at(address, 80), 2), seen(&everywhere), "the node: {address}");
        for (who, from) in [("a client", &client.namespace()), ("a pod", &a.namespace()), ("the node", &here)]
        {
            let answers = connect(from, at(address, 9999), 1);
            assert_eq!(answers, refused(), "{who}: a port of the node at {address}");
        }
    }

    let local = PortPlan {
        external_traffic_policy: TrafficPolicy::Local,
        inside_number: Some(9),
        ..port(Protocol::TCP, frontends(), endpoints())
    };
    put(2, vec![local]);
    for address in [balanced, named] {
        let answers = connect(&client.namespace(), at(address, 80), 2);
        assert_eq!(answers, seen(&[("a", p.client, 2)]), "a client with the policy Local: {address}");
        assert_eq!(connect(&here, at(address, 80), 2), seen(&everywhere), "the node: {address}");
        let answers = connect(&a.namespace(), at(address, 80), 2);
        assert_eq!(answers, seen(&[("a", p.gateway, 1), ("far", p.a, 1)]), "a pod: {address}");
    }

    // Only the client's network, and the node itself.
    let from = |ranges: &[&str]| PortPlan {
        source_ranges: ranges.iter().map(ToString::to_string).collect(),
        ..port(Protocol::TCP, frontends(), endpoints())
    };
    let host = |address: &str| format!("{address}/{}", if p.v6 { 128 } else { 32 });
    let timed_out = || BTreeMap::from([("TimedOut".to_owned(), 1)]);
    put(3, vec![from(&[&host(p.client), &host(p.node)])]);
    assert_eq!(
        connect(&client.namespace(), at(balanced, 80), 2),
        seen(&everywhere),
        "a source that is let in"
    );
    assert_eq!(connect(&here, at(balanced, 80), 2), seen(&everywhere), "so is the node");
    assert_eq!(connect(&a.namespace(), at(balanced, 80), 1), timed_out(), "a pod is not");
    assert_eq!(connect(&a.namespace(), at(p.cluster_ip, 80), 2).len(), 2, "but has the ClusterIP");
    put(4, vec![from(&[p.own_pods])]);
    assert_eq!(connect(&client.namespace(), at(balanced, 80), 1), timed_out(), "the client is not any more");
    assert_eq!(connect(&a.namespace(), at(balanced, 80), 2).len(), 2, "a pod is");
    // The node has an address in its pods' network, but none that a range of single hosts holds.
    put(5, vec![from(&[&host(p.b)])]);
    assert_eq!(connect(&here, at(balanced, 80), 1), timed_out(), "the node is not");
    let everybody = if p.v6 { "::/0" } else { "0.0.0.0/0" };
    put(6, vec![from(&[everybody])]);
    assert_eq!(connect(&client.namespace(), at(balanced, 80), 2), seen(&everywhere), "everybody is");

    let inside = vec![frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80)];
    node.resolver.list_started();
    node.resolver
        .put_slice("a", &slice(7, vec![plan("web", 7, vec![port(Protocol::TCP, inside, endpoints())])]));
    node.resolver.list_completed(&["a".to_owned()].into());
    assert!(node.settle() > 0);
    let routes = node.kernel.observe(&Scope { routes: true, ..Scope::default() }).unwrap().routes;
    assert_eq!(routes.len(), before.len() + 1, "only the range is left: {routes:?}");
    assert_eq!(connect(&here, at(p.cluster_ip, 80), 2), seen(&everywhere));
}

#[test]
fn addresses_from_outside_are_served_in_ipv4() {
    if able() {
        in_namespace(|| external(&V4));
    }
}

#[test]
fn addresses_from_outside_are_served_in_ipv6() {
    if able() {
        in_namespace(|| external(&V6));
    }
}
