//! The network around the node, and the node itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nodenet_agent::diff::Journal;
use nodenet_agent::filter::InsideMarks;
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::netlink::{Namespace, NetlinkKernel};
use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_agent::state::Scope;
use nodenet_crds::{NodeNetStateSpec, Sysctl};

use crate::convergence;
use crate::plans::{self, NODE};
use crate::support::{Neighbour, available, has_dummy, has_ipvs, in_namespace, kernel, run};

/// How long an answer may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Addresses of one family.
pub struct Plan {
    pub v6: bool,
    pub node: &'static str,
    pub client: &'static str,
    /// Of the node, on the link to `far`'s node.
    pub towards_far: &'static str,
    pub beside_far: &'static str,
    pub gateway: &'static str,
    pub a: &'static str,
    pub b: &'static str,
    pub far: &'static str,
    pub pods: &'static str,
    /// Those of them on the node.
    pub own_pods: &'static str,
    pub range: &'static str,
    pub cluster_ip: &'static str,
    pub without_endpoints: &'static str,
    pub unassigned: &'static str,
}

pub const V4: Plan = Plan {
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
    own_pods: "10.244.5.0/24",
    range: "10.243.0.0/16",
    cluster_ip: "10.243.21.14",
    without_endpoints: "10.243.21.15",
    unassigned: "10.243.99.99",
};

pub const V6: Plan = Plan {
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
    own_pods: "fd00:244:5::/64",
    range: "fd00:243::/112",
    cluster_ip: "fd00:243::14",
    without_endpoints: "fd00:243::15",
    unassigned: "fd00:243::99",
};

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Answers with its name and the address that it sees, on TCP and UDP, until the process ends.
pub fn serve(namespace: &Namespace, name: &'static str, address: &str, port: u16) {
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
pub fn connect(namespace: &Namespace, to: SocketAddr, times: usize) -> BTreeMap<String, usize> {
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

pub fn seen(answers: &[(&str, &str, usize)]) -> BTreeMap<String, usize> {
    answers.iter().map(|(name, source, times)| (format!("{name} {source}"), *times)).collect()
}

pub fn refused() -> BTreeMap<String, usize> {
    BTreeMap::from([("ConnectionRefused".to_owned(), 1)])
}

pub struct Node {
    pub kernel: NetlinkKernel,
    pub resolver: Resolver,
    pub journal: Journal,
}

impl Node {
    pub fn settle(&mut self) -> usize {
        let desired = self.resolver.desired().clone();
        let rounds = convergence::apply(&mut self.kernel, &desired, &mut self.journal, 8).unwrap();
        rounds.iter().map(Vec::len).sum()
    }
}

pub fn spec(p: &Plan) -> NodeNetStateSpec {
    let mut spec = plans::spec();
    spec.service_addresses.cidrs = vec![p.range.into()];
    spec.cluster_cidrs = vec![p.pods.into()];
    spec.pod_cidrs = vec![p.own_pods.into()];
    // Answers between two pods of one bridge pass the node's packet filter only with this.
    spec.kernel.modules = vec!["br_netfilter".into()];
    let name = if p.v6 { "ip6tables" } else { "iptables" };
    spec.kernel.sysctls =
        vec![Sysctl { name: format!("net.bridge.bridge-nf-call-{name}"), value: "1".into() }];
    spec
}

/// The network around the node, whose own namespace is this thread's.
pub struct World {
    pub client: Neighbour,
    pub far: Neighbour,
    pub a: Neighbour,
    pub b: Neighbour,
    pub here: Namespace,
}

pub fn world(p: &Plan) -> World {
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
    World { client, far, a, b, here }
}

/// The node's agent, as far as packets are concerned, with nothing to do yet.
pub fn node(p: &Plan) -> Node {
    let mut kernel = kernel();
    // What one family does with the usual bits of packet marks the other does with bits that were chosen.
    let inside = if p.v6 { InsideMarks::new(0x1000_0000, 16, 12).unwrap() } else { InsideMarks::default() };
    let mut resolver = Resolver::new(Options { node: NODE.into(), inside, ..Options::default() });
    resolver.put_observed(&kernel.observe(&Scope { addresses: true, ..Scope::default() }).unwrap());
    resolver.put_spec(&spec(p), Origin::Api);
    Node { kernel, resolver, journal: Journal::default() }
}

/// Whether this kernel can carry the packets.
pub fn able() -> bool {
    let mut able = false;
    in_namespace(|| {
        able = has_ipvs()
            && has_dummy()
            && available("modprobe", "br_netfilter", "the kernel has no packet filter for bridges");
    });
    able
}
