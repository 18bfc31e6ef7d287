//! What one Service asks of this node: virtual servers and entries of sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nodenet_crds::FrontendKind;

use super::plans::{Plan, Port};
use crate::filter::SetName;
use crate::state::{
    Family, Forwarding, Protocol, RealServer, RealServerKey, SetEntry, VirtualServer, VirtualServerKey,
};

/// Which entry of which set.
pub(super) type Entry = (SetName, Family, SetEntry);

/// What the node adds to a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Addresses on which node ports answer.
    pub node_port_addresses: Vec<IpAddr>,
    /// Addresses of virtual IPs that this node holds or may hold.
    pub virtual_addresses: BTreeSet<IpAddr>,
    /// IPv6 sets and rules exist.
    pub ipv6: bool,
}

#[derive(Debug, Default)]
pub(super) struct Derived {
    pub servers: BTreeMap<VirtualServerKey, VirtualServer>,
    pub entries: BTreeSet<Entry>,
}

/// What of the node a plan depends on.
pub(super) struct Dependence {
    pub on_node_addresses: bool,
    pub on_virtual_addresses: bool,
}

pub(super) fn dependence(plan: &Plan) -> Dependence {
    let mut found = Dependence { on_node_addresses: false, on_virtual_addresses: false };
    for frontend in plan.ports().flat_map(|port| port.frontends.iter()) {
        match frontend.kind {
            FrontendKind::ClusterIP => {}
            FrontendKind::NodePort => found.on_node_addresses = true,
            FrontendKind::VirtualIP | FrontendKind::VirtualIPNodePort => found.on_virtual_addresses = true,
        }
    }
    found
}

pub(super) fn derive(plan: &Plan, view: &View, default_scheduler: &str) -> Derived {
    let mut derived = Derived::default();
    for port in plan.ports() {
        let families = families(port);
        let mut answer = |address: IpAddr, number: u16| {
            let key = VirtualServerKey::Address(port.protocol, address, number);
            let server = derived.servers.entry(key).or_insert_with(|| VirtualServer {
                scheduler: port.scheduler.as_deref().unwrap_or(default_scheduler).to_owned(),
                flags: 0,
                persistence: 0,
                real_servers: BTreeMap::new(),
            });
            server.real_servers.extend(real_servers(port, Family::of(address)));
        };
        let mut entries = Vec::new();
        for frontend in &port.frontends {
            let number = frontend.port;
            match (frontend.kind, frontend.address) {
                (FrontendKind::NodePort, _) => {
                    for address in
                        view.node_port_addresses.iter().filter(|a| families.contains(&Family::of(**a)))
                    {
                        answer(*address, number);
                    }
                    for family in &families {
                        entries.extend(
                            node_port(port.protocol).map(|set| (set, *family, SetEntry::Port(number))),
                        );
                    }
                }
                (FrontendKind::ClusterIP, Some(address)) => {
                    answer(address, number);
                    let entry = SetEntry::IpPort(address, port.protocol, number);
                    entries.push((SetName::ClusterIp, Family::of(address), entry));
                }
                (FrontendKind::VirtualIP, Some(address)) if view.virtual_addresses.contains(&address) => {
                    answer(address, number);
                    let entry = SetEntry::IpPort(address, port.protocol, number);
                    entries.push((SetName::LoadBalancer, Family::of(address), entry));
                }
                (FrontendKind::VirtualIPNodePort, Some(address))
                    if view.virtual_addresses.contains(&address) =>
                {
                    answer(address, number);
                    let family = Family::of(address);
                    entries.extend(node_port(port.protocol).map(|set| (set, family, SetEntry::Port(number))));
                }
                _ => {}
            }
        }
        for endpoint in port.endpoints.iter().filter(|endpoint| endpoint.local) {
            let entry = SetEntry::IpPortIp(endpoint.address, port.protocol, endpoint.port, endpoint.address);
            entries.push((SetName::LoopBack, Family::of(endpoint.address), entry));
        }
        derived
            .entries
            .extend(entries.into_iter().filter(|(_, family, _)| *family == Family::V4 || view.ipv6));
    }
    derived
}

/// Families in which a port's node port answers: those of its ClusterIPs, else of its endpoints.
fn families(port: &Port) -> BTreeSet<Family> {
    let of_cluster_ips: BTreeSet<Family> = port
        .frontends
        .iter()
        .filter(|frontend| frontend.kind == FrontendKind::ClusterIP)
        .filter_map(|frontend| frontend.address)
        .map(Family::of)
        .collect();
    if !of_cluster_ips.is_empty() {
        return of_cluster_ips;
    }
    port.endpoints.iter().map(|endpoint| Family::of(endpoint.address)).collect()
}

fn real_servers(port: &Port, family: Family) -> impl Iterator<Item = (RealServerKey, RealServer)> {
    port.endpoints.iter().filter(move |endpoint| Family::of(endpoint.address) == family).map(|endpoint| {
        let key = RealServerKey { address: endpoint.address, port: endpoint.port };
        let server = RealServer {
            weight: 1,
            forwarding: Forwarding::Masquerade,
            active_connections: 0,
            inactive_connections: 0,
        };
        (key, server)
    })
}

fn node_port(protocol: Protocol) -> Option<SetName> {
    match protocol {
        Protocol::TCP => Some(SetName::NodePortTcp),
        Protocol::UDP => Some(SetName::NodePortUdp),
        Protocol::SCTP => None,
    }
}
