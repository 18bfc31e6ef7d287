//! The packet filter: constant rules whatever the number of Services; what grows are the sets that they name.
//!
//! What the rules lean on:
//! * IPVS takes a packet for one of its virtual servers at LOCAL_IN *after* filter INPUT and, for the node's own
//!   traffic, at LOCAL_OUT *after* nat OUTPUT. nat PREROUTING and OUTPUT therefore still see the service address, and a
//!   mark set there stays on the packet.
//! * It sends the packet on through LOCAL_OUT and POSTROUTING with the real server as destination: filter FORWARD never
//!   sees a request, nat POSTROUTING does, and can masquerade it where `net.ipv4.vs.conntrack` is 1.
//! * The local routes of the service ranges make every address of them local to the host, so its sockets would answer
//!   there: what is not a known address:port is kept from the nat chains behind ours and rejected in filter INPUT.

mod inside;
pub mod kube_proxy;
mod text;

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::state::{Family, IpSet, PREFIX, PREFIX6, Ruleset, SetKind};

pub use inside::{INSIDE_NUMBERS, InsideError, InsideMarks};
pub use text::{parse, restore_text};

/// Entries that a hash set takes at least (the kernel's own default).
pub const MIN_MAX_ENTRIES: u32 = 65_536;

/// Settings of the packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Masquerade all traffic to ClusterIPs, pods' included.
    pub masquerade_all: bool,
    /// Mark of packets that are to be masqueraded.
    pub mark: u32,
    /// The bits of the mark that are ours.
    pub mask: u32,
    /// Marks of packets of the node's own clients.
    pub inside: InsideMarks,
    /// Whether source ports are chosen at random (`--random-fully`): needs iptables 1.6.2 and kernel 3.13.
    pub random_fully: bool,
    /// Pod networks of the whole cluster: a source within them keeps its address on the way to a ClusterIP. Where none
    /// is given, only the node's own traffic is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// Pod networks of this node: its own clients, beside itself.
    pub pod_cidrs: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            masquerade_all: false,
            mark: 0x4000,
            mask: 0x4000,
            inside: InsideMarks::default(),
            random_fully: true,
            cluster_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
        }
    }
}

/// Sets that the rules name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    /// Local endpoint address, port and the same address again: a pod that reaches itself through a Service.
    LoopBack,
    /// ClusterIP and port.
    ClusterIp,
    /// One of a Service's `externalIPs` and port.
    ExternalIp,
    /// Those of them that answer clients from outside by endpoints of this node only: they see the client's address.
    ExternalIpLocal,
    /// Virtual IP, or address that a load balancer was given, and port.
    LoadBalancer,
    /// Those of them that answer clients from outside by endpoints of this node only: they see the client's address.
    LoadBalancerLocal,
    /// Those of the load balancers' that let only some sources in.
    LoadBalancerFw,
    /// The sources that each of them lets in. Its name comes before that of the former: entries are added in this order.
    LoadBalancerAllowed,
    /// Those of them that do not let the node itself in.
    LoadBalancerFwNode,
    /// Node ports, TCP.
    NodePortTcp,
    /// Those of them that answer clients from outside by endpoints of this node only.
    NodePortLocalTcp,
    /// Node ports, UDP.
    NodePortUdp,
    /// Those of them that answer clients from outside by endpoints of this node only.
    NodePortLocalUdp,
    /// Addresses of the node with node ports, SCTP.
    NodePortSctp,
    /// Those of them that answer clients from outside by endpoints of this node only.
    NodePortLocalSctp,
    /// Ports on which load balancers ask whether the node has endpoints of a Service (`healthCheckNodePort`), TCP.
    HealthCheckNodePort,
    /// Addresses and ports that answer the node's own clients by all endpoints and those from outside by endpoints of this
    /// node only, with the mark ([`InsideMarks`]) of the virtual server that the former come to.
    Inside,
    /// Service ranges and single addresses from outside: all that are local only for the sake of Services.
    IpvsIps,
}

impl SetName {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::LoadBalancerFw,
        Self::LoadBalancerAllowed,
        Self::LoadBalancerFwNode,
        Self::NodePortTcp,
        Self::NodePortLocalTcp,
        Self::NodePortUdp,
        Self::NodePortLocalUdp,
        Self::NodePortSctp,
        Self::NodePortLocalSctp,
        Self::HealthCheckNodePort,
        Self::Inside,
        Self::IpvsIps,
    ];

    /// Its name in the kernel, at most 31 characters.
    pub fn name(self, family: Family) -> String {
        let prefix = match family {
            Family::V4 => PREFIX,
            Family::V6 => PREFIX6,
        };
        let rest = match self {
            Self::LoopBack => "LOOP-BACK",
            Self::ClusterIp => "CLUSTER-IP",
            Self::ExternalIp => "EXTERNAL-IP",
            Self::ExternalIpLocal => "EXTERNAL-IP-LOCAL",
            Self::LoadBalancer => "LOAD-BALANCER",
            Self::LoadBalancerLocal => "LOAD-BALANCER-LOCAL",
            Self::LoadBalancerFw => "LOAD-BALANCER-FW",
            Self::LoadBalancerAllowed => "LOAD-BALANCER-ALLOWED",
            Self::LoadBalancerFwNode => "LOAD-BALANCER-FW-NODE",
            Self::NodePortTcp => "NODE-PORT-TCP",
            Self::NodePortLocalTcp => "NODE-PORT-LOCAL-TCP",
            Self::NodePortUdp => "NODE-PORT-UDP",
            Self::NodePortLocalUdp => "NODE-PORT-LOCAL-UDP",
            Self::NodePortSctp => "NODE-PORT-SCTP",
            Self::NodePortLocalSctp => "NODE-PORT-LOCAL-SCTP",
            Self::HealthCheckNodePort => "HEALTH-CHECK-NODE-PORT",
            Self::Inside => "INSIDE",
            Self::IpvsIps => "IPVS-IPS",
        };
        format!("{prefix}{rest}")
    }

    /// Its type.
    pub const fn kind(self) -> SetKind {
        match self {
            Self::LoopBack => SetKind::HashIpPortIp,
            Self::ClusterIp
            | Self::ExternalIp
            | Self::ExternalIpLocal
            | Self::LoadBalancer
            | Self::LoadBalancerLocal
            | Self::LoadBalancerFw
            | Self::LoadBalancerFwNode
            | Self::NodePortSctp
            | Self::NodePortLocalSctp => SetKind::HashIpPort,
            Self::LoadBalancerAllowed => SetKind::HashIpPortNet,
            Self::Inside => SetKind::HashIpPortMark,
            Self::NodePortTcp
            | Self::NodePortLocalTcp
            | Self::NodePortUdp
            | Self::NodePortLocalUdp
            | Self::HealthCheckNodePort => SetKind::BitmapPort,
            Self::IpvsIps => SetKind::HashNet,
        }
    }

    /// The set, empty.
    pub fn empty(self, family: Family) -> IpSet {
        IpSet {
            kind: self.kind(),
            family,
            max_entries: max_entries(self.kind(), 0),
            entries: Default::default(),
        }
    }
}

/// Size that a set needs for so many entries: a power of two, so that growth is rare, because it makes the set anew.
/// 0 for types without a size.
pub fn max_entries(kind: SetKind, entries: usize) -> u32 {
    match kind {
        SetKind::BitmapPort => 0,
        _ => u32::try_from(entries)
            .unwrap_or(u32::MAX)
            .checked_next_power_of_two()
            .unwrap_or(u32::MAX)
            .max(MIN_MAX_ENTRIES),
    }
}

/// The rules of one family.
pub fn rules(family: Family, config: &Config) -> Ruleset {
    let set = |name: SetName| name.name(family);
    let (mark, mask) = (config.mark, config.mask);
    let inside = config.inside.in_common();
    let chain = |rest: &str| format!("{PREFIX}{rest}");
    let (loopback, reject) = match family {
        Family::V4 => ("127.0.0.0/8", "icmp-port-unreachable"),
        Family::V6 => ("::1/128", "icmp6-port-unreachable"),
    };

    let masquerade = if config.random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
    let mark_inside = format!("-j SET --map-set {} dst,dst --map-mark", set(SetName::Inside));

    let mut cluster_ip = Vec::new();
    if !config.masquerade_all {
        // The node's own traffic may carry any of its addresses, even one of the pod network.
        cluster_ip.push(format!("-m addrtype --src-type LOCAL -j {}", chain("MARK-MASQ")));
        let cidrs = of_family(&config.cluster_cidrs, family);
        cluster_ip.extend(cidrs.iter().map(|cidr| format!("-s {cidr} -j RETURN")));
        if !cidrs.is_empty() {
            cluster_ip.push(format!("-j {}", chain("MARK-MASQ")));
        }
    } else {
        cluster_ip.push(format!("-j {}", chain("MARK-MASQ")));
    }

    let nat = BTreeMap::from([
        (
            chain("SERVICES"),
            vec![
                format!("-s {loopback} -j RETURN"),
                format!(
                    "-m set --match-set {} dst,dst -j {}",
                    set(SetName::LoadBalancer),
                    chain("LOAD-BALANCER")
                ),
                format!("-m set --match-set {} dst,dst -j {}", set(SetName::ClusterIp), chain("CLUSTER-IP")),
                format!(
                    "-m set --match-set {} dst,dst -j {}",
                    set(SetName::ExternalIp),
                    chain("EXTERNAL-IP")
                ),
                // Neither a Service nor an unassigned address of the ranges is for the chains behind ours: a host port
                // (`--dst-type LOCAL`) would take it.
                format!("-m set --match-set {} dst,dst -j ACCEPT", set(SetName::LoadBalancer)),
                format!("-m set --match-set {} dst,dst -j ACCEPT", set(SetName::ExternalIp)),
                format!("-m set --match-set {} dst -j ACCEPT", set(SetName::IpvsIps)),
                format!("-m addrtype --dst-type LOCAL -j {}", chain("NODE-PORT")),
            ],
        ),
        (
            chain("LOAD-BALANCER"),
            vec![
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::LoadBalancerLocal)),
                format!("-j {}", chain("MARK-MASQ")),
            ],
        ),
        (chain("CLUSTER-IP"), cluster_ip),
        (
            chain("EXTERNAL-IP"),
            vec![
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::ExternalIpLocal)),
                format!("-j {}", chain("MARK-MASQ")),
            ],
        ),
        (
            chain("NODE-PORT"),
            [
                ("tcp", "dst", SetName::NodePortLocalTcp, SetName::NodePortTcp),
                ("udp", "dst", SetName::NodePortLocalUdp, SetName::NodePortUdp),
                ("sctp", "dst,dst", SetName::NodePortLocalSctp, SetName::NodePortSctp),
            ]
            .into_iter()
            .flat_map(|(protocol, what, local, all)| {
                let of = |name| format!("-p {protocol} -m set --match-set {} {what}", set(name));
                [format!("{} -j RETURN", of(local)), format!("{} -j {}", of(all), chain("MARK-MASQ"))]
            })
            .collect(),
        ),
        (chain("MARK-MASQ"), vec![format!("-j MARK --set-xmark {mark:#x}/{mask:#x}")]),
        (
            chain("POSTROUTING"),
            vec![
                format!("-m set --match-set {} dst,dst,src -j MASQUERADE", set(SetName::LoopBack)),
                // The node's own packets carry the service address as their source; its pods' keep theirs.
                format!(
                    "-m mark --mark {:#x}/{:#x} -m addrtype --src-type LOCAL -j {masquerade}",
                    inside.0, inside.1
                ),
                format!("-m mark ! --mark {mark:#x}/{mask:#x} -j RETURN"),
                format!("-j MARK --set-xmark 0x0/{mask:#x}"),
                format!("-j {masquerade}"),
            ],
        ),
    ]);
    let filter = BTreeMap::from([
        (
            chain("PROXY-FIREWALL"),
            vec![
                format!("-m set --match-set {} dst,dst,src -j RETURN", set(SetName::LoadBalancerAllowed)),
                format!("-m set --match-set {} dst,dst -j DROP", set(SetName::LoadBalancerFw)),
            ],
        ),
        (
            chain("HEALTH-CHECK"),
            // By a load balancer's address too, where it sends packets on as they are.
            vec![format!("-p tcp -m set --match-set {} dst -j ACCEPT", set(SetName::HealthCheckNodePort))],
        ),
        (
            chain("IPVS-FILTER"),
            vec![
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::LoadBalancer)),
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::ClusterIp)),
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::ExternalIp)),
                // Answers to the node's own connections come to a service address too (the kernel chose it as their
                // source): only new ones are refused.
                format!(
                    "-m set --match-set {} dst -m conntrack --ctstate NEW -j REJECT --reject-with {reject}",
                    set(SetName::IpvsIps)
                ),
            ],
        ),
        (
            chain("FORWARD"),
            vec![
                format!("-m mark --mark {mark:#x}/{mask:#x} -j ACCEPT"),
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
            ],
        ),
    ]);
    // Marked before IPVS looks, and before the nat chains, which leave these packets alone.
    let pods = of_family(&config.pod_cidrs, family);
    let mangle = BTreeMap::from([
        (chain("INSIDE-PODS"), pods.iter().map(|cidr| format!("-s {cidr} {mark_inside}")).collect()),
        (chain("INSIDE-NODE"), vec![mark_inside]),
        // The node's own packets never come to filter INPUT with the service address, nor is their source the node's.
        (
            chain("FIREWALL-NODE"),
            vec![format!("-m set --match-set {} dst,dst -j DROP", set(SetName::LoadBalancerFwNode))],
        ),
    ]);
    let jumps = |table: &str, from: &str, to: &[&str]| {
        let rules: Vec<String> = to.iter().map(|to| format!("-j {}", chain(to))).collect();
        ((table.to_owned(), from.to_owned()), rules)
    };
    let jump = |table: &str, from: &str, to: &str| jumps(table, from, &[to]);
    Ruleset {
        chains: BTreeMap::from([
            ("nat".to_owned(), nat),
            ("filter".to_owned(), filter),
            ("mangle".to_owned(), mangle),
        ]),
        jumps: BTreeMap::from([
            jump("nat", "PREROUTING", "SERVICES"),
            jump("nat", "OUTPUT", "SERVICES"),
            jump("nat", "POSTROUTING", "POSTROUTING"),
            jumps("filter", "INPUT", &["PROXY-FIREWALL", "HEALTH-CHECK", "IPVS-FILTER"]),
            jump("filter", "FORWARD", "FORWARD"),
            jump("mangle", "PREROUTING", "INSIDE-PODS"),
            jumps("mangle", "OUTPUT", &["FIREWALL-NODE", "INSIDE-NODE"]),
        ]),
    }
}

fn of_family(networks: &[IpNet], family: Family) -> Vec<IpNet> {
    let mut found: Vec<IpNet> =
        networks.iter().map(IpNet::trunc).filter(|network| Family::of(network.addr()) == family).collect();
    found.sort();
    found.dedup();
    found
}
