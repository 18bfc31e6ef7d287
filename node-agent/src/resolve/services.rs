//! What one Service asks of this node: virtual servers and entries of sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::FrontendKind;

use super::plans::{Endpoint, Plan, Port, Zones};
use crate::filter::{InsideMarks, SetName};
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
    /// Addresses that the node has by another hand.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Next hops of its default routes: made local, one of them cuts the node off.
    pub gateways: BTreeSet<IpAddr>,
    /// The node's own zone; none where it is not known.
    pub zone: Zones,
    /// IPv6 sets and rules exist.
    pub ipv6: bool,
    /// Marks of packets of the node's own clients.
    pub inside: InsideMarks,
}

#[derive(Debug, Default)]
pub(super) struct Derived {
    pub servers: BTreeMap<VirtualServerKey, VirtualServer>,
    pub entries: BTreeSet<Entry>,
    /// Addresses from outside that are made local.
    pub addresses: BTreeSet<IpAddr>,
}

/// What of the node a plan depends on.
pub(super) struct Dependence {
    pub on_node_addresses: bool,
    pub on_virtual_addresses: bool,
}

pub(super) fn dependence(plan: &Plan) -> Dependence {
    let mut found = Dependence { on_node_addresses: false, on_virtual_addresses: false };
    found.on_node_addresses = plan.ports().any(|port| !port.source_ranges.is_empty());
    for frontend in plan.ports().flat_map(|port| port.frontends.iter()) {
        match frontend.kind {
            FrontendKind::ClusterIP | FrontendKind::Unknown => {}
            FrontendKind::ExternalIP | FrontendKind::LoadBalancer => {
                found.on_node_addresses = true;
                found.on_virtual_addresses = true;
            }
            FrontendKind::NodePort => found.on_node_addresses = true,
            FrontendKind::VirtualIP | FrontendKind::VirtualIPNodePort => found.on_virtual_addresses = true,
        }
    }
    found
}

/// One place where a port answers on this node.
#[derive(Clone, Copy)]
struct Place {
    kind: FrontendKind,
    address: IpAddr,
    port: u16,
}

impl Place {
    fn is_internal(&self) -> bool {
        self.kind == FrontendKind::ClusterIP
    }
}

pub(super) fn derive(plan: &Plan, view: &View, default_scheduler: &str) -> Derived {
    let mut derived = Derived::default();
    let standing = Standing::of(plan, view.zone);
    for port in plan.ports() {
        let places = places(port, view);
        for place in &places {
            let key = VirtualServerKey::Address(port.protocol, place.address, place.port);
            let local = if place.is_internal() { port.internal_local } else { port.external_local };
            let family = Family::of(place.address);
            answer(&mut derived, key, port, default_scheduler, standing.pool(port, family, local));
            entries(&mut derived.entries, port, place);
            if matches!(place.kind, FrontendKind::LoadBalancer | FrontendKind::VirtualIP) {
                firewall(&mut derived.entries, port, place, view);
            }
            if matches!(place.kind, FrontendKind::ExternalIP | FrontendKind::LoadBalancer)
                && !view.virtual_addresses.contains(&place.address)
                && !view.own_addresses.contains(&place.address)
            {
                derived.addresses.insert(place.address);
                derived.entries.insert((SetName::IpvsIps, family, SetEntry::Net(place.address.into())));
            }
            // The node itself and its pods reach every endpoint, whatever clients from outside do.
            if let Some(number) = port.inside_number.filter(|_| port.external_local && !place.is_internal()) {
                let mark = view.inside.mark(number, port.protocol);
                let key = VirtualServerKey::FirewallMark(family, mark);
                answer(&mut derived, key, port, default_scheduler, standing.pool(port, family, false));
                let entry = SetEntry::IpPortMark(place.address, port.protocol, place.port, mark);
                derived.entries.insert((SetName::Inside, family, entry));
            }
        }
        for endpoint in port.endpoints.iter().filter(|endpoint| endpoint.local) {
            let entry = SetEntry::IpPortIp(endpoint.address, port.protocol, endpoint.port, endpoint.address);
            derived.entries.insert((SetName::LoopBack, Family::of(endpoint.address), entry));
        }
    }
    if let Some(port) = plan.health_check_node_port() {
        for family in [Family::V4, Family::V6] {
            derived.entries.insert((SetName::HealthCheckNodePort, family, SetEntry::Port(port)));
        }
    }
    let possible = |family: Family| family == Family::V4 || view.ipv6;
    derived.entries.retain(|(_, family, _)| possible(*family));
    derived.addresses.retain(|address| possible(Family::of(*address)));
    derived
}

/// Where a port answers on this node.
fn places(port: &Port, view: &View) -> Vec<Place> {
    let families = families(port);
    let mut places = Vec::new();
    for frontend in &port.frontends {
        let mut add = |address| places.push(Place { kind: frontend.kind, address, port: frontend.port });
        match (frontend.kind, frontend.address) {
            (FrontendKind::NodePort, _) => {
                let addresses = view.node_port_addresses.iter().copied();
                addresses.filter(|address| families.contains(&Family::of(*address))).for_each(add);
            }
            (FrontendKind::ClusterIP, Some(address)) => add(address),
            // Whatever was planned before it was one.
            (FrontendKind::ExternalIP | FrontendKind::LoadBalancer, Some(address))
                if view.gateways.contains(&address) => {}
            // What the node itself has is no Service's, whatever was planned before it got it. Of a load balancer it may
            // be what draws the packets here.
            (FrontendKind::ExternalIP, Some(address)) if !view.own_addresses.contains(&address) => {
                add(address)
            }
            (FrontendKind::LoadBalancer, Some(address)) => add(address),
            (FrontendKind::VirtualIP | FrontendKind::VirtualIPNodePort, Some(address))
                if view.virtual_addresses.contains(&address) =>
            {
                add(address);
            }
            _ => {}
        }
    }
    places
}

fn answer<'a>(
    derived: &mut Derived,
    key: VirtualServerKey,
    port: &Port,
    default_scheduler: &str,
    pool: impl Iterator<Item = &'a Endpoint>,
) {
    let server = derived.servers.entry(key).or_insert_with(|| VirtualServer {
        scheduler: port.scheduler.as_deref().unwrap_or(default_scheduler).to_owned(),
        flags: port.scheduler_flags,
        persistence: port.persistence,
        drain_timeout: port.drain_timeout,
        real_servers: BTreeMap::new(),
    });
    server.real_servers.extend(pool.map(|endpoint| {
        let key = RealServerKey { address: endpoint.address, port: endpoint.port };
        let server = RealServer {
            weight: endpoint.weight.into(),
            forwarding: Forwarding::Masquerade,
            active_connections: 0,
            inactive_connections: 0,
        };
        (key, server)
    }));
}

/// Entries of the sets that the rules look a place up in.
fn entries(entries: &mut BTreeSet<Entry>, port: &Port, place: &Place) {
    let family = Family::of(place.address);
    let whole = SetEntry::IpPort(place.address, port.protocol, place.port);
    let mut add = |set: SetName, entry: SetEntry| _ = entries.insert((set, family, entry));
    match place.kind {
        FrontendKind::Unknown => {}
        FrontendKind::ClusterIP => add(SetName::ClusterIp, whole),
        FrontendKind::ExternalIP => {
            add(SetName::ExternalIp, whole);
            if port.external_local {
                add(SetName::ExternalIpLocal, whole);
            }
        }
        FrontendKind::VirtualIP | FrontendKind::LoadBalancer => {
            add(SetName::LoadBalancer, whole);
            if port.external_local {
                add(SetName::LoadBalancerLocal, whole);
            }
        }
        // The kernel's set of port numbers knows TCP and UDP only.
        FrontendKind::NodePort | FrontendKind::VirtualIPNodePort => {
            let number = SetEntry::Port(place.port);
            let (all, local, entry) = match port.protocol {
                Protocol::TCP => (SetName::NodePortTcp, SetName::NodePortLocalTcp, number),
                Protocol::UDP => (SetName::NodePortUdp, SetName::NodePortLocalUdp, number),
                Protocol::SCTP => (SetName::NodePortSctp, SetName::NodePortLocalSctp, whole),
            };
            add(all, entry);
            if port.external_local {
                add(local, entry);
            }
        }
    }
}

/// Who may use an address of a load balancer. Ranges of the other family say nothing about this one.
fn firewall(entries: &mut BTreeSet<Entry>, port: &Port, place: &Place, view: &View) {
    let family = Family::of(place.address);
    let ranges: Vec<&IpNet> =
        port.source_ranges.iter().filter(|range| Family::of(range.addr()) == family).collect();
    // A set takes no range of everybody, and there is nothing to keep out then.
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return;
    }
    let whole = SetEntry::IpPort(place.address, port.protocol, place.port);
    entries.insert((SetName::LoadBalancerFw, family, whole));
    for range in &ranges {
        let entry = SetEntry::IpPortNet(place.address, port.protocol, place.port, **range);
        entries.insert((SetName::LoadBalancerAllowed, family, entry));
    }
    let lets_node_in =
        view.own_addresses.iter().any(|address| ranges.iter().any(|range| range.contains(address)));
    if !lets_node_in {
        entries.insert((SetName::LoadBalancerFwNode, family, whole));
    }
}

/// Which endpoints of a port are good enough. A port's endpoints may stand in several parts of a plan, so this is found
/// for the whole plan.
struct Standing<'a> {
    ports: BTreeMap<(PortName<'a>, Family), Found>,
    zone: Zones,
}

/// What is found among the endpoints of a port, of those that do not terminate.
#[derive(Clone, Copy, Default)]
struct Found {
    any: bool,
    on_this_node: bool,
    /// One of them says nothing of nodes, or of zones.
    without_nodes: bool,
    without_zones: bool,
    for_this_node: bool,
    for_this_zone: bool,
}

type PortName<'a> = (Protocol, &'a [super::plans::Frontend]);

impl<'a> Standing<'a> {
    fn of(plan: &'a Plan, zone: Zones) -> Self {
        let mut ports: BTreeMap<(PortName<'a>, Family), Found> = BTreeMap::new();
        for port in plan.ports() {
            for endpoint in port.endpoints.iter().filter(|endpoint| !endpoint.terminating) {
                let found = ports.entry((name(port), Family::of(endpoint.address))).or_default();
                found.any = true;
                found.on_this_node |= endpoint.local;
                found.without_nodes |= endpoint.for_nodes.is_none();
                found.without_zones |= endpoint.for_zones.is_none();
                found.for_this_node |= endpoint.for_nodes == Some(true);
                found.for_this_zone |= endpoint.for_zones.meets(zone);
            }
        }
        Self { ports, zone }
    }

    /// The endpoints of a port that serve: of this node where `local`, otherwise of the cluster. Of the latter those
    /// that are meant for this node, or for its zone, where each says whom it is for and one is. Endpoints that
    /// terminate serve only where there is no other one.
    fn pool<'p>(
        &self,
        port: &'p Port,
        family: Family,
        local: bool,
    ) -> impl Iterator<Item = &'p Endpoint> + use<'p> {
        let found = self.ports.get(&(name(port), family)).copied().unwrap_or_default();
        let ready = if local { found.on_this_node } else { found.any };
        let by_node = !local && found.for_this_node && !found.without_nodes;
        let by_zone = !local && !by_node && found.for_this_zone && !found.without_zones;
        let zone = self.zone;
        port.endpoints.iter().filter(move |endpoint| {
            Family::of(endpoint.address) == family
                && (endpoint.local || !local)
                && !(endpoint.terminating && ready)
                && (!by_node || endpoint.for_nodes == Some(true))
                && (!by_zone || endpoint.for_zones.meets(zone))
        })
    }
}

/// Parts of one port have the same frontends.
fn name(port: &Port) -> PortName<'_> {
    (port.protocol, &port.frontends)
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
