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

mod text;

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::state::{Family, IpSet, PREFIX, PREFIX6, Ruleset, SetKind};

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
    /// Whether source ports are chosen at random (`--random-fully`): needs iptables 1.6.2 and kernel 3.13.
    pub random_fully: bool,
    /// Pod networks of the whole cluster: a source within them keeps its address on the way to a ClusterIP. Where none
    /// is given, only the node's own traffic is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            masquerade_all: false,
            mark: 0x4000,
            mask: 0x4000,
            random_fully: true,
            cluster_cidrs: Vec::new(),
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
    /// Virtual IP and port.
    LoadBalancer,
    /// Node ports, TCP.
    NodePortTcp,
    /// Node ports, UDP.
    NodePortUdp,
    /// Service ranges: all addresses that are local only for the sake of Services.
    IpvsIps,
}

impl SetName {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::LoadBalancer,
        Self::NodePortTcp,
        Self::NodePortUdp,
        Self::IpvsIps,
    ];

    /// Its name in the kernel.
    pub fn name(self, family: Family) -> String {
        let prefix = match family {
            Family::V4 => PREFIX,
            Family::V6 => PREFIX6,
        };
        let rest = match self {
            Self::LoopBack => "LOOP-BACK",
            Self::ClusterIp => "CLUSTER-IP",
            Self::LoadBalancer => "LOAD-BALANCER",
            Self::NodePortTcp => "NODE-PORT-TCP",
            Self::NodePortUdp => "NODE-PORT-UDP",
            Self::IpvsIps => "IPVS-IPS",
        };
        format!("{prefix}{rest}")
    }

    /// Its type.
    pub const fn kind(self) -> SetKind {
        match self {
            Self::LoopBack => SetKind::HashIpPortIp,
            Self::ClusterIp | Self::LoadBalancer => SetKind::HashIpPort,
            Self::NodePortTcp | Self::NodePortUdp => SetKind::BitmapPort,
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
    let chain = |rest: &str| format!("{PREFIX}{rest}");
    let (loopback, reject) = match family {
        Family::V4 => ("127.0.0.0/8", "icmp-port-unreachable"),
        Family::V6 => ("::1/128", "icmp6-port-unreachable"),
    };

    let mut cluster_ip = Vec::new();
    if !config.masquerade_all {
        // The node's own traffic may carry any of its addresses, even one of the pod network.
        cluster_ip.push(format!("-m addrtype --src-type LOCAL -j {}", chain("MARK-MASQ")));
        let mut cidrs: Vec<IpNet> = config.cluster_cidrs.iter().map(IpNet::trunc).collect();
        cidrs.retain(|c| Family::of(c.addr()) == family);
        cidrs.sort();
        cidrs.dedup();
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
                // Neither a Service nor an unassigned address of the ranges is for the chains behind ours: a host port
                // (`--dst-type LOCAL`) would take it.
                format!("-m set --match-set {} dst,dst -j ACCEPT", set(SetName::LoadBalancer)),
                format!("-m set --match-set {} dst -j ACCEPT", set(SetName::IpvsIps)),
                format!("-m addrtype --dst-type LOCAL -j {}", chain("NODE-PORT")),
            ],
        ),
        (chain("LOAD-BALANCER"), vec![format!("-j {}", chain("MARK-MASQ"))]),
        (chain("CLUSTER-IP"), cluster_ip),
        (
            chain("NODE-PORT"),
            vec![
                format!(
                    "-p tcp -m set --match-set {} dst -j {}",
                    set(SetName::NodePortTcp),
                    chain("MARK-MASQ")
                ),
                format!(
                    "-p udp -m set --match-set {} dst -j {}",
                    set(SetName::NodePortUdp),
                    chain("MARK-MASQ")
                ),
            ],
        ),
        (chain("MARK-MASQ"), vec![format!("-j MARK --set-xmark {mark:#x}/{mask:#x}")]),
        (
            chain("POSTROUTING"),
            vec![
                format!("-m set --match-set {} dst,dst,src -j MASQUERADE", set(SetName::LoopBack)),
                format!("-m mark ! --mark {mark:#x}/{mask:#x} -j RETURN"),
                format!("-j MARK --set-xmark 0x0/{mask:#x}"),
                if config.random_fully {
                    "-j MASQUERADE --random-fully".into()
                } else {
                    "-j MASQUERADE".into()
                },
            ],
        ),
    ]);
    let filter = BTreeMap::from([
        (
            chain("IPVS-FILTER"),
            vec![
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::LoadBalancer)),
                format!("-m set --match-set {} dst,dst -j RETURN", set(SetName::ClusterIp)),
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
    let jump = |table: &str, from: &str, to: &str| {
        ((table.to_owned(), from.to_owned()), vec![format!("-j {}", chain(to))])
    };
    Ruleset {
        chains: BTreeMap::from([("nat".to_owned(), nat), ("filter".to_owned(), filter)]),
        jumps: BTreeMap::from([
            jump("nat", "PREROUTING", "SERVICES"),
            jump("nat", "OUTPUT", "SERVICES"),
            jump("nat", "POSTROUTING", "POSTROUTING"),
            jump("filter", "INPUT", "IPVS-FILTER"),
            jump("filter", "FORWARD", "FORWARD"),
        ]),
    }
}
