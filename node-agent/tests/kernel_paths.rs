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

mod convergence;
mod plans;
#[allow(dead_code)]
#[path = "kernel_netlink/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nodenet_agent::diff::Journal;
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::netlink::{Namespace, NetlinkKernel};
use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_agent::state::Scope;
use nodenet_crds::{FrontendKind, NodeNetStateSpec, Protocol, Sysctl};
use plans::{NODE, endpoint, frontend, plan, port, slice};
use support::{Neighbour, available, has_dummy, has_ipvs, in_namespace, kernel, run};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Addresses of one family.
struct Plan {
    v6: bool,
    node: &'static str,
    client: &'static str,
    /// Of the node, on the link to `far`'s node.
    towards_far: &'static str,
    beside_far: &'static str,
    gateway: &'static str,
    a: &'static str,
    b: &'static str,
    far: &'static str,
    pods: &'static str,
    range: &'static str,
    cluster_ip: &'static str,
    without_endpoints: &'static str,
    unassigned: &'static str,
}

const V4: Plan = Plan {
    v6: false,
    node: "172.16.20.120",
    client: "172.16.20.50",
    towards_far: "172.16.21.120",
    beside_far: "172.16.21.121",
    gateway: "10.244.5.1",
    a: "10.244.5.23",
    b: "10.244.5.24",
    far: "10.244.3.32",
    pods: "10.244.0.0/16",
    range: "10.243.0.0/16",
    cluster_ip: "10.243.21.14",
    without_endpoints: "10.243.21.15",
    unassigned: "10.243.99.99",
};

const V6: Plan = Plan {
    v6: true,
    node: "fd00:20::120",
    client: "fd00:20::50",
    towards_far: "fd00:21::120",
    beside_far: "fd00:21::121",
    gateway: "fd00:244:5::1",
    a: "fd00:244:5::23",
    b: "fd00:244:5::24",
    far: "fd00:244:3::32",
    pods: "fd00:244::/32",
    range: "fd00:243::/112",
    cluster_ip: "fd00:243::14",
    without_endpoints: "fd00:243::15",
    unassigned: "fd00:243::99",
};

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Answers with its name and the address that it sees, on TCP and UDP, until the process ends.
fn serve(namespace: &Namespace, name: &'static str, address: &str, port: u16) {
    let here = at(address, port);
    let (tcp, udp) =
        namespace.run(|| (TcpListener::bind(here).unwrap(), UdpSocket::bind(here).unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = (&stream).write_all(format!("{name} {peer}").as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((_, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(format!("{name} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
}

/// Connects so many times; the answers, or why there was none, with how often.
fn connect(namespace: &Namespace, to: SocketAddr, times: usize) -> BTreeMap<String, usize> {
    let once = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let answer = namespace.run(once).unwrap().unwrap_or_else(|error| format!("{:?}", error.kind()));
        *answers.entry(answer).or_default() += 1;
    }
    answers
}

fn seen(answers: &[(&str, &str, usize)]) -> BTreeMap<String, usize> {
    answers.iter().map(|(name, source, times)| (format!("{name} {source}"), *times)).collect()
}

fn refused() -> BTreeMap<String, usize> {
    BTreeMap::from([("ConnectionRefused".to_owned(), 1)])
}

struct Node {
    kernel: NetlinkKernel,
    resolver: Resolver,
    journal: Journal,
}

impl Node {
    fn settle(&mut self) -> usize {
        let desired = self.resolver.desired().clone();
        let rounds = convergence::apply(&mut self.kernel, &desired, &mut self.journal, 8).unwrap();
        rounds.iter().map(Vec::len).sum()
    }
}

fn spec(p: &Plan) -> NodeNetStateSpec {
    let mut spec = plans::spec();
    spec.service_addresses.cidrs = vec![p.range.into()];
    spec.cluster_cidrs = vec![p.pods.into()];
    // Answers between two pods of one bridge pass the node's packet filter only with this.
    spec.kernel.modules = vec!["br_netfilter".into()];
    let name = if p.v6 { "ip6tables" } else { "iptables" };
    spec.kernel.sysctls =
        vec![Sysctl { name: format!("net.bridge.bridge-nf-call-{name}"), value: "1".into() }];
    spec
}

fn paths(p: &Plan) {
    let (subnet, host, flags) = if p.v6 { (64, 128, "nodad") } else { (24, 32, "") };
    let address = |address: &str, length: u8, device: &str| {
        format!("address add {address}/{length} dev {device} {flags}")
    };

    let client = Neighbour::new();
    client.cable("eth0", "eth0");
    run("ip", &address(p.node, subnet, "eth0"));
    client.run("ip", &address(p.client, subnet, "eth0"));

    let far = Neighbour::new();
    far.cable("eth1", "eth0");
    run("ip", &address(p.towards_far, subnet, "eth1"));
    far.run("ip", &address(p.beside_far, subnet, "eth0"));
    far.run("ip", &address(p.far, host, "lo"));
    far.run("ip", &format!("route add default via {}", p.towards_far));
    run("ip", &format!("route add {}/{host} via {}", p.far, p.beside_far));

    run("ip", "link add cni0 type bridge");
    run("ip", "link set cni0 up");
    run("ip", &address(p.gateway, subnet, "cni0"));
    let pod = |name: &str, of_pod: &str| {
        let pod = Neighbour::new();
        let near = format!("veth{name}");
        pod.cable(&near, "eth0");
        run("ip", &format!("link set {near} master cni0"));
        run("ip", &format!("link set {near} type bridge_slave hairpin on"));
        pod.run("ip", &address(of_pod, subnet, "eth0"));
        pod.run("ip", &format!("route add default via {}", p.gateway));
        pod
    };
    let (a, b) = (pod("a", p.a), pod("b", p.b));
    serve(&a.namespace(), "a", p.a, 8080);
    serve(&b.namespace(), "b", p.b, 8080);
    serve(&far.namespace(), "far", p.far, 8080);
    let any = if p.v6 { "::" } else { "0.0.0.0" };
    // The node's own namespace is that of this thread, which other threads do not share.
    let here = Namespace::at(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()));
    serve(&here, "host", any, 9999);

    let mut kernel = kernel();
    let mut resolver = Resolver::new(Options { node: NODE.into(), ..Options::default() });
    resolver.put_observed(&kernel.observe(&Scope { addresses: true, ..Scope::default() }).unwrap());
    resolver.put_spec(&spec(p), Origin::Api);
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
    resolver.put_slice("a", &slice(1, vec![web.clone(), none.clone()]));
    let mut node = Node { kernel, resolver, journal: Journal::default() };
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

fn able() -> bool {
    let mut able = false;
    in_namespace(|| {
        able = has_ipvs()
            && has_dummy()
            && available("modprobe", "br_netfilter", "the kernel has no packet filter for bridges");
    });
    able
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
