//! Real packets on the paths that a node must serve, through what the resolver, the comparison and the kernel make of a
//! spec and a slice: nothing is set up by hand but the network around the node.
//!
//! ```text
//!   client ── eth0 [node] eth1 ── far (another node's pod)
//!                    │ cni0
//!                  a   b          (pods of the node)
//! ```

// Helpers of tests are no production code either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../convergence/mod.rs"]
mod convergence;
#[path = "../plans/mod.rs"]
mod plans;
#[allow(dead_code)]
#[path = "../kernel_netlink/support.rs"]
mod support;

mod draining;
mod external;
mod health_checks;
mod policies;
mod protocols;
mod world;

use std::net::UdpSocket;
use std::time::Duration;

use nodenet_crds::{FrontendKind, Protocol};
use plans::{NODE, endpoint, frontend, plan, port, slice};
use support::in_namespace;
use world::{Plan, V4, V6, World, able, at, connect, node, refused, seen, world};

fn paths(p: &Plan) {
    let World { client, far: _far, a, b: _b, here } = world(p);
    let mut node = node(p);
    let endpoints =
        || vec![endpoint(p.a, 8080, NODE), endpoint(p.b, 8080, NODE), endpoint(p.far, 8080, "node-2")];
    let frontends = |cluster_ip: &str, node_port: i32| {
        vec![
            frontend(FrontendKind::ClusterIP, Some(cluster_ip), 80),
            frontend(FrontendKind::NodePort, None, node_port),
        ]
    };
    let web = plan("web", 1, vec![port(Protocol::TCP, frontends(p.cluster_ip, 30_080), endpoints())]);
    let none = plan("none", 1, vec![port(Protocol::TCP, frontends(p.without_endpoints, 30_081), vec![])]);
    node.resolver.put_slice("a", &slice(1, vec![web.clone(), none.clone()]));
    assert!(node.settle() > 0);
    assert_eq!(node.settle(), 0, "all is right already");

    let masqueraded = [("a", p.gateway, 2), ("b", p.gateway, 2), ("far", p.towards_far, 2)];
    assert_eq!(
        connect(&client.namespace(), at(p.node, 30_080), 6),
        seen(&masqueraded),
        "a client outside reaches every pod by the node port, whose answers come back the same way"
    );
    assert_eq!(
        connect(&here, at(p.cluster_ip, 80), 6),
        seen(&masqueraded),
        "the node's own address stands in"
    );
    assert_eq!(connect(&here, at(p.node, 30_080), 6), seen(&masqueraded), "also by its own node port");
    assert_eq!(
        connect(&a.namespace(), at(p.cluster_ip, 80), 6),
        seen(&[("a", p.gateway, 2), ("b", p.a, 2), ("far", p.a, 2)]),
        "pods are seen as they are, except by themselves"
    );

    for (who, from) in [("the node", &here), ("a pod", &a.namespace())] {
        let answers = connect(from, at(p.without_endpoints, 80), 1);
        assert_eq!(answers, refused(), "{who}: a Service without endpoints");
        for address in [p.unassigned, p.cluster_ip] {
            let answers = connect(from, at(address, 9999), 1);
            assert_eq!(answers, refused(), "{who}: ports of the node at the service address {address}");
        }
    }
    let answers = connect(&client.namespace(), at(p.node, 9999), 1);
    assert_eq!(answers, seen(&[("host", p.client, 1)]), "the node's own ports are its own");

    // A client that began to send before there was a virtual server, and keeps sending.
    let socket = client
        .namespace()
        .run(|| {
            let socket = UdpSocket::bind(at(p.client, 0)).unwrap();
            socket.connect(at(p.node, 30_053)).unwrap();
            socket
        })
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let ask = || {
        let mut bytes = [0; 64];
        // An ICMP error to the datagram before is told at the next one.
        let _ = socket.send(b"?");
        socket.recv(&mut bytes).ok().map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned())
    };
    assert_eq!(ask(), None);
    let only_far = vec![endpoint(p.far, 8080, "node-2")];
    let dns = plan("dns", 2, vec![port(Protocol::UDP, frontends(p.cluster_ip, 30_053), only_far)]);
    node.resolver.put_slice("a", &slice(2, vec![web, none, dns]));
    assert!(node.settle() > 0);
    let answer = (0..20).find_map(|_| ask());
    assert_eq!(answer, Some(format!("far {}", p.towards_far)), "answered, and masqueraded");
}

#[test]
fn packets_take_every_path_in_ipv4() {
    if able() {
        in_namespace(|| paths(&V4));
    }
}

#[test]
fn packets_take_every_path_in_ipv6() {
    if able() {
        in_namespace(|| paths(&V6));
    }
}
