//! One number on several protocols.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};

use nodenet_agent::kernel::netlink::Namespace;
use nodenet_crds::{FrontendKind, Protocol, TrafficPolicy};
use socket2::{Domain, Socket, Type};

use crate::plans::{NODE, endpoint, frontend, plan, port, slice};
use crate::support::{available, in_namespace};
use crate::world::{PATIENCE, Plan, V4, V6, World, able, at, connect, node, seen, world};

/// Answers an SCTP association with a name, until the process ends.
fn serve_sctp(namespace: &Namespace, name: &'static str, address: &str, port: u16) {
    let here = at(address, port);
    let listener = namespace
        .run(|| {
            let socket = sctp(here);
            socket.bind(&here.into()).unwrap();
            socket.listen(16).unwrap();
            socket
        })
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((peer, from)) = listener.accept() {
            let from = from.as_socket().unwrap().ip().to_canonical();
            let _ = peer.send(format!("{name} {from}").as_bytes());
            // The other side has read it when it closes.
            let _ = peer.recv(&mut [std::mem::MaybeUninit::uninit(); 16]);
        }
    });
}

fn sctp(of: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(of), Type::STREAM, Some(socket2::Protocol::from(132))).unwrap()
}

fn associate(namespace: &Namespace, to: SocketAddr, times: usize) -> BTreeMap<String, usize> {
    let once = || -> std::io::Result<String> {
        let mut socket = sctp(to);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let mut bytes = [0; 64];
        let length = socket.read(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let answer = namespace.run(once).unwrap().unwrap_or_else(|error| format!("{:?}", error.kind()));
        *answers.entry(answer).or_default() += 1;
    }
    answers
}

/// One number on three protocols, each with its own traffic policy.
fn protocols(p: &Plan) {
    let World { client, far: far_pod, a, b: _b, here } = world(p);
    let mut node = node(p);
    serve_sctp(&a.namespace(), "a", p.a, 8080);
    serve_sctp(&far_pod.namespace(), "far", p.far, 8080);
    let frontends = || {
        vec![
            frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80),
            frontend(FrontendKind::NodePort, None, 30_080),
        ]
    };
    let endpoints = || vec![endpoint(p.a, 8080, NODE), endpoint(p.far, 8080, "node-2")];
    let local = |protocol, number| nodenet_crds::PortPlan {
        external_traffic_policy: TrafficPolicy::Local,
        inside_number: Some(number),
        ..port(protocol, frontends(), endpoints())
    };
    let mut put = |revision, ports| {
        node.resolver.put_slice("a", &slice(revision, vec![plan("web", revision, ports)]));
        assert!(node.settle() > 0);
        assert_eq!(node.settle(), 0, "all is right already");
    };

    put(
        1,
        vec![port(Protocol::SCTP, frontends(), endpoints()), port(Protocol::TCP, frontends(), endpoints())],
    );
    let everywhere = [("a", p.gateway, 1), ("far", p.towards_far, 1)];
    assert_eq!(
        associate(&client.namespace(), at(p.node, 30_080), 2),
        seen(&everywhere),
        "SCTP by the node port"
    );
    assert_eq!(associate(&here, at(p.cluster_ip, 80), 2), seen(&everywhere), "SCTP from the node");
    assert_eq!(connect(&client.namespace(), at(p.node, 30_080), 2), seen(&everywhere), "TCP beside it");

    put(
        2,
        vec![
            local(Protocol::SCTP, 1),
            local(Protocol::UDP, 2),
            port(Protocol::TCP, frontends(), endpoints()),
        ],
    );
    let only_here = seen(&[("a", p.client, 2)]);
    assert_eq!(
        associate(&client.namespace(), at(p.node, 30_080), 2),
        only_here,
        "SCTP with the policy Local"
    );
    assert_eq!(associate(&here, at(p.node, 30_080), 2), seen(&everywhere), "but not from the node");
    assert_eq!(
        connect(&client.namespace(), at(p.node, 30_080), 2),
        seen(&everywhere),
        "TCP has its own policy"
    );
    let ask = |from: &Namespace| {
        from.run(|| {
            let any = if p.v6 { "::" } else { "0.0.0.0" };
            let socket = UdpSocket::bind(at(any, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(at(p.node, 30_080)).unwrap();
            socket.send(b"?").unwrap();
            let mut bytes = [0; 64];
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        })
        .unwrap()
    };
    let answers: Vec<String> = (0..2).map(|_| ask(&client.namespace())).collect();
    assert_eq!(answers, vec![format!("a {}", p.client); 2], "UDP with the policy Local");
    let answers: BTreeSet<String> = (0..2).map(|_| ask(&here)).collect();
    let both = [format!("a {}", p.gateway), format!("far {}", p.towards_far)];
    assert_eq!(answers, both.into(), "but not from the node");
}

fn has_sctp() -> bool {
    let mut able = false;
    in_namespace(|| able = available("modprobe", "sctp", "the kernel has no SCTP"));
    able
}

#[test]
fn each_protocol_of_a_port_has_its_own_answer_in_ipv4() {
    if able() && has_sctp() {
        in_namespace(|| protocols(&V4));
    }
}

#[test]
fn each_protocol_of_a_port_has_its_own_answer_in_ipv6() {
    if able() && has_sctp() {
        in_namespace(|| protocols(&V6));
    }
}
