//! Traffic policies and affinity: who is answered by which endpoints.

use nodenet_crds::{FrontendKind, Protocol, TrafficPolicy};

use crate::plans::{NODE, endpoint, frontend, plan, port, slice};
use crate::support::in_namespace;
use crate::world::{Plan, V4, V6, World, able, at, connect, node, refused, seen, world};

/// One address and port answers the node's own clients by all endpoints, those from outside by its own only.
fn policies(p: &Plan) {
    let World { client, far: _far, a, b: _b, here } = world(p);
    let mut node = node(p);
    let near = |address| endpoint(address, 8080, NODE);
    let far = || endpoint(p.far, 8080, "node-2");
    let of = |protocol, number: i32, endpoints: Vec<nodenet_crds::Endpoint>| {
        let frontends = vec![
            frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), number - 30_000),
            frontend(FrontendKind::NodePort, None, number),
        ];
        nodenet_crds::PortPlan {
            external_traffic_policy: TrafficPolicy::Local,
            inside_number: Some(number - 30_000),
            ..port(protocol, frontends, endpoints)
        }
    };
    let mut put = |revision, ports| {
        node.resolver.put_slice("a", &slice(revision, vec![plan("web", revision, ports)]));
        assert!(node.settle() > 0);
        assert_eq!(node.settle(), 0, "all is right already");
    };
    let all = || vec![near(p.a), near(p.b), far()];
    put(1, vec![of(Protocol::TCP, 30_080, all()), of(Protocol::TCP, 30_081, vec![far()])]);

    assert_eq!(
        connect(&client.namespace(), at(p.node, 30_080), 6),
        seen(&[("a", p.client, 3), ("b", p.client, 3)]),
        "a client outside is answered by the node's own pods, which see its address"
    );
    let everywhere = [("a", p.gateway, 2), ("b", p.gateway, 2), ("far", p.towards_far, 2)];
    assert_eq!(connect(&here, at(p.node, 30_080), 6), seen(&everywhere), "the node itself reaches all");
    assert_eq!(
        connect(&a.namespace(), at(p.node, 30_080), 6),
        seen(&[("a", p.gateway, 2), ("b", p.a, 2), ("far", p.a, 2)]),
        "so does a pod, and is seen as it is"
    );
    assert_eq!(connect(&here, at(p.cluster_ip, 80), 6), seen(&everywhere), "and by the ClusterIP");
    let answers = connect(&client.namespace(), at(p.node, 30_081), 1);
    assert_eq!(answers, refused(), "no endpoint on this node: a client outside is refused");
    let answers = connect(&a.namespace(), at(p.node, 30_081), 2);
    assert_eq!(answers, seen(&[("far", p.a, 2)]), "but not a pod");

    // A pod that terminates serves as long as the node has no other, whatever other nodes have.
    let leaving = nodenet_crds::Endpoint { terminating: true, ..near(p.a) };
    put(2, vec![of(Protocol::TCP, 30_080, vec![leaving.clone(), far()])]);
    assert_eq!(connect(&client.namespace(), at(p.node, 30_080), 2), seen(&[("a", p.client, 2)]));
    assert_eq!(connect(&here, at(p.node, 30_080), 2), seen(&[("far", p.towards_far, 2)]));
    put(3, vec![of(Protocol::TCP, 30_080, vec![leaving, near(p.b), far()])]);
    assert_eq!(connect(&client.namespace(), at(p.node, 30_080), 2), seen(&[("b", p.client, 2)]));

    // Inside the cluster: only this node's endpoints answer by the ClusterIP.
    let internal = |endpoints| nodenet_crds::PortPlan {
        internal_traffic_policy: TrafficPolicy::Local,
        ..port(Protocol::TCP, vec![frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80)], endpoints)
    };
    put(4, vec![internal(vec![near(p.b), far()])]);
    assert_eq!(connect(&a.namespace(), at(p.cluster_ip, 80), 2), seen(&[("b", p.a, 2)]));
    put(5, vec![internal(vec![far()])]);
    assert_eq!(connect(&a.namespace(), at(p.cluster_ip, 80), 1), refused());

    // A client stays with its real server.
    let sticky = nodenet_crds::PortPlan { persistence_seconds: Some(60), ..of(Protocol::TCP, 30_080, all()) };
    put(6, vec![sticky]);
    for (from, name) in [(&client.namespace(), "a client outside"), (&a.namespace(), "a pod")] {
        assert_eq!(connect(from, at(p.node, 30_080), 6).len(), 1, "{name} has one real server");
    }
    put(7, vec![of(Protocol::TCP, 30_080, all())]);
    assert_eq!(connect(&client.namespace(), at(p.node, 30_080), 6).len(), 2, "affinity ends live");
}

#[test]
fn clients_inside_and_outside_get_different_answers_in_ipv4() {
    if able() {
        in_namespace(|| policies(&V4));
    }
}

#[test]
fn clients_inside_and_outside_get_different_answers_in_ipv6() {
    if able() {
        in_namespace(|| policies(&V6));
    }
}
