//! Endpoints that leave, come back or take no new connections: what becomes of the connections that they have.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nodenet_agent::kernel::netlink::Namespace;
use nodenet_crds::{Endpoint, FrontendKind, PortPlan, Protocol, TrafficPolicy};

use crate::plans::{NODE, endpoint, frontend, plan, port, slice};
use crate::support::in_namespace;
use crate::world::{PATIENCE, Plan, V4, V6, World, able, at, node, world};

/// Answers each byte with its name, for as long as the client stays.
fn stay(namespace: &Namespace, name: u8, address: &str) {
    let listener = namespace.run(|| TcpListener::bind(at(address, 8081)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[name]).is_ok() {}
            });
        }
    });
}

fn open(namespace: &Namespace, address: &str, port: u16) -> TcpStream {
    let stream = namespace.run(|| TcpStream::connect_timeout(&at(address, port), PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream) -> char {
    let mut byte = [0];
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut byte).unwrap();
    byte[0].into()
}

fn draining(p: &Plan) {
    let World { client: _client, far: _far, a, b, here } = world(p);
    stay(&a.namespace(), b'a', p.a);
    stay(&b.namespace(), b'b', p.b);
    let mut node = node(p);
    let near = |address| endpoint(address, 8081, NODE);
    let of = |policy, endpoints: Vec<Endpoint>| PortPlan {
        external_traffic_policy: policy,
        inside_number: (policy == TrafficPolicy::Local).then_some(5),
        ..port(
            Protocol::TCP,
            vec![
                frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80),
                frontend(FrontendKind::NodePort, None, 30_080),
            ],
            endpoints,
        )
    };
    let mut revision = 0;
    let mut put = |policy, endpoints| {
        revision += 1;
        let plans = vec![plan("web", revision, vec![of(policy, endpoints)])];
        node.resolver.put_slice("a", &slice(revision, plans));
        node.settle();
        assert_eq!(node.settle(), 0, "all is right already");
    };
    let cluster = TrafficPolicy::Cluster;
    put(cluster, vec![near(p.a), near(p.b)]);
    let streams = [open(&here, p.cluster_ip, 80), open(&here, p.cluster_ip, 80)];
    let held = streams.iter().find(|stream| ask(stream) == 'a').expect("one of two goes to each");
    let new = || -> String {
        let streams: Vec<TcpStream> = (0..4).map(|_| open(&here, p.cluster_ip, 80)).collect();
        let mut names: Vec<char> = streams.iter().map(ask).collect();
        names.sort_unstable();
        names.into_iter().collect()
    };

    put(cluster, vec![near(p.b)]);
    assert_eq!((ask(held), &*new()), ('a', "bbbb"), "it leaves: old connections only");
    put(cluster, vec![near(p.a), near(p.b)]);
    assert_eq!((ask(held), &*new()), ('a', "aabb"), "it is back, with the connection it had");
    put(cluster, vec![Endpoint { weight: Some(0), ..near(p.a) }, near(p.b)]);
    assert_eq!((ask(held), &*new()), ('a', "bbbb"), "its Service gives it weight 0");
    put(cluster, vec![near(p.a), near(p.b)]);
    assert_eq!((ask(held), &*new()), ('a', "aabb"));

    // The node's own clients come by another virtual server while the policy is Local.
    put(TrafficPolicy::Local, vec![near(p.a), near(p.b)]);
    let inside = open(&here, p.node, 30_080);
    let name = ask(&inside);
    put(cluster, vec![near(p.a), near(p.b)]);
    assert_eq!(ask(&inside), name, "the policy changes, the connection stays");
    ask(&open(&here, p.node, 30_080));
    assert_eq!(ask(held), 'a');
}

#[test]
fn connections_outlive_the_leave_and_the_return_of_their_endpoint_in_ipv4() {
    if able() {
        in_namespace(|| draining(&V4));
    }
}

#[test]
fn connections_outlive_the_leave_and_the_return_of_their_endpoint_in_ipv6() {
    if able() {
        in_namespace(|| draining(&V6));
    }
}
