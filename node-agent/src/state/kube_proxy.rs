//! What kube-proxy's ipvs mode has on a node: whether it runs or what it left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Family, Forwarding, NodeState, Protocol, VirtualServer, VirtualServerKey};

/// The interface that carries every service address of kube-proxy.
pub const INTERFACE: &str = "kube-ipvs0";

/// Longest name of a set in the kernel; kube-proxy cuts the names of its IPv6 sets there.
const SET_NAME_MAX: usize = 31;

/// Its sets, without their prefix. Tools of other projects have sets and chains whose names begin with `KUBE-` too.
const SETS: &[&str] = &[
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP",
    "NODE-PORT-LOCAL-SCTP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// Whether a set is kube-proxy's, by its name.
pub fn is_set(name: &str) -> bool {
    let whole = |prefix: &str| {
        SETS.iter().any(|rest| {
            let set = format!("{prefix}{rest}");
            set.get(..SET_NAME_MAX).unwrap_or(&set) == name
        })
    };
    whole("KUBE-") || whole("KUBE-6-")
}

/// The protocol of the node ports in one of its sets; the other sets say nothing of node ports.
pub fn node_ports_of(set: &str) -> Option<Protocol> {
    match set.strip_prefix("KUBE-6-").or_else(|| set.strip_prefix("KUBE-"))? {
        "NODE-PORT-TCP" => Some(Protocol::TCP),
        "NODE-PORT-UDP" => Some(Protocol::UDP),
        "NODE-PORT-SCTP" | "NODE-PORT-SCTP-HASH" => Some(Protocol::SCTP),
        _ => None,
    }
}

/// What there is of kube-proxy, by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeProxy {
    /// [`INTERFACE`] exists.
    pub interface: bool,
    /// Addresses on it.
    pub addresses: BTreeSet<IpAddr>,
    /// Its sets.
    pub sets: BTreeSet<String>,
    /// Node ports, by the sets that name them.
    pub node_ports: BTreeSet<(Protocol, u16)>,
    /// Its chains in either packet filter, as `TABLE CHAIN`.
    pub chains: BTreeMap<Family, BTreeSet<String>>,
    /// Packets are led to its chains.
    pub jumps: bool,
    /// Packets are led to chains that only its iptables mode has.
    pub iptables_mode: bool,
}

impl KubeProxy {
    /// Whether there is nothing of it.
    pub fn is_empty(&self) -> bool {
        !self.interface && self.sets.is_empty() && self.chains.values().all(BTreeSet::is_empty)
    }

    /// Whether packets are treated by what there is: otherwise it is in nobody's way.
    pub fn in_force(&self) -> bool {
        !self.addresses.is_empty() || self.jumps || self.iptables_mode
    }

    /// The same with what another look found of rules.
    pub fn with_rules_of(self, other: &Self) -> Self {
        let (chains, jumps) = (other.chains.clone(), other.jumps);
        Self { chains, jumps, iptables_mode: other.iptables_mode, ..self }
    }

    /// Whether a virtual server is kube-proxy's: at an address that it has bound, or at one of its node ports, which it
    /// always forwards by masquerading. IPVS itself does not say whose a virtual server is.
    pub fn serves(&self, key: &VirtualServerKey, server: &VirtualServer) -> bool {
        let VirtualServerKey::Address(protocol, address, port) = key else { return false };
        let masquerades = || server.real_servers.values().all(|r| r.forwarding == Forwarding::Masquerade);
        self.addresses.contains(address) || (self.node_ports.contains(&(*protocol, *port)) && masquerades())
    }

    /// The virtual servers that nobody but kube-proxy can have made: of those that [`Self::serves`] names, the ones at an
    /// address that it has bound, and at a node port only those at an address of the node with a scheduler that it uses
    /// for the others. `observed`: all virtual servers and addresses of the node.
    pub fn surely_serves(&self, observed: &NodeState) -> BTreeSet<VirtualServerKey> {
        let at_bound = |key: &VirtualServerKey| matches!(key, VirtualServerKey::Address(_, address, _) if self.addresses.contains(address));
        let (bound, others): (Vec<_>, Vec<_>) = observed
            .virtual_servers
            .iter()
            .filter(|(key, server)| self.serves(key, server))
            .partition(|(key, _)| at_bound(key));
        let schedulers: BTreeSet<&str> = bound.iter().map(|(_, server)| server.scheduler.as_str()).collect();
        let of_node = |key: &VirtualServerKey| {
            let VirtualServerKey::Address(_, address, _) = key else { return false };
            address.is_loopback() || observed.addresses.keys().any(|of| of.address == *address)
        };
        let node_ports = others
            .into_iter()
            .filter(|(key, server)| of_node(key) && schedulers.contains(server.scheduler.as_str()));
        bound.iter().copied().chain(node_ports).map(|(key, _)| *key).collect()
    }

    /// Whether it has something that was not there `before`: somebody makes it.
    pub fn grew(&self, before: &Self) -> bool {
        let chains = |of: &Self| -> BTreeSet<(Family, String)> {
            let all = of.chains.iter();
            all.flat_map(|(family, chains)| chains.iter().map(|chain| (*family, chain.clone()))).collect()
        };
        (self.interface && !before.interface)
            || !self.addresses.is_subset(&before.addresses)
            || !self.sets.is_subset(&before.sets)
            || !self.node_ports.is_subset(&before.node_ports)
            || !chains(self).is_subset(&chains(before))
            || (self.jumps && !before.jumps)
            || (self.iptables_mode && !before.iptables_mode)
    }
}

impl std::fmt::Display for KubeProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.interface {
            parts.push(format!("interface {INTERFACE} with {} addresses", self.addresses.len()));
        }
        let mut named = |what: &str, names: Vec<&str>| {
            let first = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            match names.len() {
                0 => {}
                1..=3 => parts.push(format!("{} {what} ({first})", names.len())),
                n => parts.push(format!("{n} {what} ({first}, …)")),
            }
        };
        let chains: BTreeSet<&str> =
            self.chains.values().flatten().filter_map(|chain| chain.split(' ').nth(1)).collect();
        named("sets", self.sets.iter().map(String::as_str).collect());
        named("chains", chains.into_iter().collect());
        if self.iptables_mode {
            parts.push("rules of its iptables mode".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{RealServer, RealServerKey};

    #[test]
    fn sets_are_known_by_their_whole_names() {
        for name in [
            "KUBE-CLUSTER-IP",
            "KUBE-6-CLUSTER-IP",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
            "KUBE-IPVS-IPS",
        ] {
            assert!(is_set(name), "{name}");
        }
        // kube-router's network policies, and others.
        for name in ["KUBE-SRC-2A6TZWM", "KUBE-DST-XYZ", "KUBE-6-", "KUBE-", "CLUSTER-IP", "KUBE-CLUSTER-IP2"]
        {
            assert!(!is_set(name), "{name}");
        }
        assert_eq!(node_ports_of("KUBE-6-NODE-PORT-TCP"), Some(Protocol::TCP));
        assert_eq!(node_ports_of("KUBE-NODE-PORT-LOCAL-TCP"), None);
    }

    #[test]
    fn a_virtual_server_is_kube_proxys_by_its_address_or_its_node_port() {
        let seen = KubeProxy {
            addresses: ["10.96.0.1".parse().unwrap()].into(),
            node_ports: [(Protocol::TCP, 30080)].into(),
            ..KubeProxy::default()
        };
        let real =
            |forwarding| RealServer { weight: 1, forwarding, active_connections: 0, inactive_connections: 0 };
        let server = |forwarding| VirtualServer {
            scheduler: "rr".into(),
            flags: 0,
            persistence: 0,
            drain_timeout: None,
            real_servers: [(
                RealServerKey { address: "10.0.0.1".parse().unwrap(), port: 80 },
                real(forwarding),
            )]
            .into(),
        };
        let at = |protocol, address: &str, port| {
            VirtualServerKey::Address(protocol, address.parse().unwrap(), port)
        };
        let masquerade = server(Forwarding::Masquerade);
        assert!(seen.serves(&at(Protocol::TCP, "10.96.0.1", 443), &masquerade));
        assert!(seen.serves(&at(Protocol::TCP, "192.168.0.11", 30080), &masquerade));
        assert!(!seen.serves(&at(Protocol::UDP, "192.168.0.11", 30080), &masquerade));
        assert!(!seen.serves(&at(Protocol::TCP, "192.168.0.11", 30080), &server(Forwarding::DirectRoute)));
        assert!(!seen.serves(&at(Protocol::TCP, "192.168.0.200", 8443), &masquerade));
        assert!(!seen.serves(&VirtualServerKey::FirewallMark(Family::V4, 30080), &masquerade));
    }

    #[test]
    fn only_what_comes_says_that_somebody_makes_it() {
        let few =
            KubeProxy { interface: true, sets: ["KUBE-CLUSTER-IP".into()].into(), ..KubeProxy::default() };
        let none = KubeProxy::default();
        assert!(few.grew(&none) && !none.grew(&few) && !few.grew(&few));
    }
}
