//! Nodes in the form that the index keeps, and the spec of a NodeNetState.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use nodenet_crds::{
    ALLOWED_MODULES, AssignedVirtualIP, KernelRequirements, LABEL_ZONE, NodeNetStateSpec, NodeNetStateStatus,
    ServiceAddressMode, ServiceAddresses, TAINT_TO_BE_DELETED, VirtualIPState,
};

pub(crate) use self::state::{InFlight, StateInfo, address_of};
use crate::{NodePortAddresses, Settings};

/// Most ranges of one list (the schema's bound).
const CIDRS_MAX: usize = 16;

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    pub(crate) uid: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// False where the Node says so or says Unknown; a Node that says nothing is not contradicted.
    pub(crate) ready: bool,
    /// Since when `ready` is what it is (monotonic).
    pub(crate) since: Duration,
    pub(crate) cordoned: bool,
    /// It is being deleted, or the cluster autoscaler says that it will be.
    being_deleted: bool,
    /// Internal and external addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Of each family the first internal one.
    primary: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl NodeInfo {
    pub(crate) fn new(node: &Node, before: Option<&Self>, now: Duration) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready").is_none_or(|c| c.status == "True");
        let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
        let internal: Vec<IpAddr> = internal.filter_map(|a| a.address.parse().ok()).collect();
        let first = |v6: bool| internal.iter().find(|a| a.is_ipv6() == v6).copied();
        let addresses = addresses.iter().filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP");
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
        let cidrs = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
        let single = spec.and_then(|s| s.pod_cidr.as_ref()).filter(|_| cidrs.is_empty());
        Self {
            uid: node.metadata.uid.clone(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            ready,
            since: before.filter(|b| b.ready == ready).map_or(now, |b| b.since),
            cordoned: spec.is_some_and(|s| s.unschedulable == Some(true)),
            being_deleted: node.metadata.deletion_timestamp.is_some()
                || taints.iter().any(|taint| taint.key == TAINT_TO_BE_DELETED),
            addresses: addresses.filter_map(|a| a.address.parse().ok()).collect(),
            primary: [false, true].into_iter().filter_map(first).collect(),
            pod_cidrs: cidrs.iter().chain(single).filter_map(|c| c.parse().ok()).collect(),
        }
    }
}

impl NodeInfo {
    /// Its addresses, and its pod networks.
    pub(crate) fn ranges(&self) -> BTreeSet<IpNet> {
        self.addresses.iter().copied().map(IpNet::from).chain(self.pod_cidrs.iter().copied()).collect()
    }
}

/// Whether a node can carry the addresses of a virtual IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It can.
    Yes {
        /// Name of an interface that is down now.
        down: Option<String>,
    },
    /// The named interface is not there (or carries no address of its own).
    NoInterface,
    /// No interface has a subnet that holds this address.
    NoSubnet(IpNet),
}

/// Whether `node` can carry `addresses`, by what its agent reported; before the first report, by the Node's addresses.
pub(crate) fn fit(
    node: Option<&NodeInfo>,
    state: Option<&StateInfo>,
    addresses: &[IpNet],
    interface: Option<&str>,
) -> Fit {
    let Some(status) = state.and_then(StateInfo::reported) else {
        if interface.is_some() {
            return Fit::Yes { down: None };
        }
        let own = node.map(|n| n.addresses.as_slice()).unwrap_or_default();
        let missing = addresses.iter().find(|net| !own.iter().any(|a| net.contains(a)));
        return missing.map_or(Fit::Yes { down: None }, |net| Fit::NoSubnet(*net));
    };
    if let Some(name) = interface {
        return match status.interfaces.iter().find(|i| i.name == name) {
            Some(i) => Fit::Yes { down: (!i.up).then(|| name.to_owned()) },
            None if addresses.iter().all(|net| carries(status, net.addr())) => Fit::Yes { down: None },
            None => Fit::NoInterface,
        };
    }
    let mut down = None;
    for net in addresses {
        let on_link = status.interfaces.iter().filter(|i| has_subnet(&i.addresses, net.addr()));
        match on_link.max_by_key(|i| i.up) {
            Some(best) if best.up => {}
            Some(best) => down = Some(best.name.clone()),
            None if carries(status, net.addr()) => {}
            None => return Fit::NoSubnet(*net),
        }
    }
    Fit::Yes { down }
}

/// Whether the node has `address` as a virtual IP's. It then has the subnet too, also where its own address is gone and
/// the virtual IP was promoted: agents report subnets by the other addresses only.
fn carries(status: &NodeNetStateStatus, address: IpAddr) -> bool {
    status.virtual_ips.iter().filter(|v| v.state == VirtualIPState::Active).any(|v| {
        let mut there =
            v.addresses.iter().filter(|a| a.role.is_some()).filter_map(|a| address_of(&a.address));
        there.any(|a| a == address)
    })
}

/// Whether one of the interface's subnets holds `address`.
pub(crate) fn has_subnet(subnets: &[String], address: IpAddr) -> bool {
    subnets.iter().filter_map(|s| s.parse::<IpNet>().ok()).any(|net| net.contains(&address))
}

/// The spec of a node's NodeNetState. `virtual_ips` in any order.
pub(crate) fn plan_node(
    node: &NodeInfo,
    mut virtual_ips: Vec<AssignedVirtualIP>,
    settings: &Settings,
) -> NodeNetStateSpec {
    virtual_ips.sort_by(|a, b| a.name.cmp(&b.name));
    let ranges = |list: &[IpNet]| {
        let mut list: Vec<IpNet> = list.iter().map(IpNet::trunc).collect();
        list.sort_unstable();
        list.dedup();
        list.iter().take(CIDRS_MAX).map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut modules = settings.modules.clone();
    if let Some(scheduler) = &settings.scheduler {
        let module = format!("ip_vs_{scheduler}");
        if ALLOWED_MODULES.contains(&module.as_str()) && !modules.contains(&module) {
            modules.push(module);
        }
    }
    NodeNetStateSpec {
        virtual_ips,
        service_addresses: ServiceAddresses {
            mode: ServiceAddressMode::Route,
            cidrs: ranges(&settings.service_cidrs),
        },
        node_port_addresses: match &settings.node_port_addresses {
            NodePortAddresses::All => None,
            NodePortAddresses::Primary => {
                Some(node.primary.iter().map(|address| IpNet::from(*address).to_string()).collect())
            }
            NodePortAddresses::Within(ranges) => Some(ranges.iter().map(|r| r.trunc().to_string()).collect()),
        },
        zone: node.labels.get(LABEL_ZONE).filter(|zone| (1..=63).contains(&zone.len())).cloned(),
        kernel: KernelRequirements { modules, sysctls: settings.sysctls.clone() },
        cluster_cidrs: ranges(&settings.cluster_cidrs),
        pod_cidrs: ranges(&node.pod_cidrs),
        being_deleted: node.being_deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::state::tests::reports;
    use super::*;

    #[test]
    fn a_promoted_virtual_ip_stays_although_the_nodes_own_address_is_gone() {
        let net: IpNet = "192.168.0.15/24".parse().unwrap();
        let fits = |role, interface| {
            let mut object = reports(false);
            let status = object.status.as_mut().unwrap();
            status.interfaces = vec![nodenet_crds::InterfaceOnNode {
                name: "cni0".into(),
                up: true,
                addresses: vec!["10.244.5.1/24".into()],
            }];
            status.virtual_ips[0].state = VirtualIPState::Active;
            status.virtual_ips[0].addresses = vec![nodenet_crds::AddressOnNode {
                address: "192.168.0.15/24".into(),
                interface: "ens33".into(),
                role,
            }];
            let mut state = StateInfo::default();
            state.observe(object, false, Duration::ZERO);
            fit(None, Some(&state), &[net], interface)
        };
        let primary = Some(nodenet_crds::KernelAddressRole::Primary);
        assert_eq!(fits(primary, None), Fit::Yes { down: None });
        assert_eq!(fits(primary, Some("ens33")), Fit::Yes { down: None });
        assert_eq!(fits(None, None), Fit::NoSubnet(net), "it is not in the kernel");
        assert_eq!(fits(None, Some("ens33")), Fit::NoInterface);
    }

    #[test]
    fn load_balancers_are_to_leave_a_node_that_goes() {
        use k8s_openapi::api::core::v1::{NodeSpec, Taint};
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let planned = |taint: &str, deleted: bool| {
            let taint = Taint { key: taint.to_owned(), ..Taint::default() };
            let mut node = Node {
                spec: Some(NodeSpec { taints: Some(vec![taint]), ..Default::default() }),
                ..Default::default()
            };
            node.metadata.deletion_timestamp =
                deleted.then_some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
            let node = NodeInfo::new(&node, None, Duration::ZERO);
            plan_node(&node, Vec::new(), &Settings::default()).being_deleted
        };
        assert!(!planned("node.kubernetes.io/unschedulable", false), "it is cordoned, and serves on");
        assert!(planned("ToBeDeletedByClusterAutoscaler", false));
        assert!(planned("node.kubernetes.io/unschedulable", true));
    }

    #[test]
    fn node_ports_are_where_the_administrator_wants_them() {
        let address = |type_: &str, address: &str| k8s_openapi::api::core::v1::NodeAddress {
            type_: type_.into(),
            address: address.into(),
        };
        let node = Node {
            status: Some(k8s_openapi::api::core::v1::NodeStatus {
                addresses: Some(vec![
                    address("ExternalIP", "203.0.113.7"),
                    address("InternalIP", "192.168.0.11"),
                    address("InternalIP", "192.168.1.11"),
                    address("InternalIP", "fd00::11"),
                ]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let node = NodeInfo::new(&node, None, Duration::ZERO);
        let planned = |node_port_addresses| {
            let settings = Settings { node_port_addresses, ..Settings::default() };
            plan_node(&node, Vec::new(), &settings).node_port_addresses
        };
        assert_eq!(planned(NodePortAddresses::All), None);
        let primary = ["192.168.0.11/32", "fd00::11/128"].map(str::to_owned).to_vec();
        assert_eq!(planned(NodePortAddresses::Primary), Some(primary));
        let within = NodePortAddresses::Within(vec!["10.9.0.7/24".parse().unwrap()]);
        assert_eq!(planned(within), Some(vec!["10.9.0.0/24".to_owned()]));
    }
}
