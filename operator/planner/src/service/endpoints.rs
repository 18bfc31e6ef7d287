//! EndpointSlices, and which endpoints of a port serve.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice};
use nodenet_crds::{Endpoint, LABEL_SERVICE_NAME, Protocol, TrafficPolicy};

use super::{Named, ServiceInfo, ServicePort, port_number, protocol};

/// How good an endpoint is. Worse ones serve only where there is no better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Takes new connections.
    Ready,
    /// Terminates, but still serves.
    ServingTerminating,
    /// Takes none.
    Out,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EndpointInfo {
    address: IpAddr,
    node: Option<Arc<str>>,
    standing: Standing,
    hints: Hints,
}

/// Who should use an endpoint, by its EndpointSlice. Whether all are to be followed is found on each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hints {
    zones: Box<[Arc<str>]>,
    nodes: Box<[Arc<str>]>,
}

/// Most hints of a kind that an endpoint has (EndpointSlice v1).
const HINTS_MAX: usize = 8;

impl Hints {
    fn new(hints: Option<&EndpointHints>, intern: &mut impl FnMut(&str) -> Arc<str>) -> Self {
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        Self {
            zones: zones.iter().take(HINTS_MAX).map(|zone| intern(&zone.name)).collect(),
            nodes: nodes.iter().take(HINTS_MAX).map(|node| intern(&node.name)).collect(),
        }
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointsInfo {
    pub(crate) service: Named,
    ports: Vec<(Box<str>, Protocol, u16)>,
    endpoints: Vec<EndpointInfo>,
}

impl EndpointsInfo {
    /// `None` for a slice that belongs to no Service or holds no IP addresses.
    pub(crate) fn new(slice: &EndpointSlice, intern: &mut impl FnMut(&str) -> Arc<str>) -> Option<Self> {
        let service = slice.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME)?;
        let v6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or("default");
        let ports = slice.ports.as_deref().unwrap_or_default().iter().filter_map(|p| {
            let name = p.name.as_deref().unwrap_or_default().into();
            Some((name, protocol(p.protocol.as_deref())?, port_number(p.port?)?))
        });
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for e in &slice.endpoints {
            // Further addresses of an endpoint have no defined meaning (EndpointSlice v1).
            let Some(address) = e.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else { continue };
            if address.is_ipv6() != v6 || address.is_unspecified() {
                continue;
            }
            let c = e.conditions.as_ref();
            let ready = c.and_then(|c| c.ready).unwrap_or(true);
            let serving = c.and_then(|c| c.serving).unwrap_or(ready);
            let terminating = c.and_then(|c| c.terminating).unwrap_or(false);
            let standing = if ready {
                Standing::Ready
            } else if serving && terminating {
                Standing::ServingTerminating
            } else {
                Standing::Out
            };
            endpoints.push(EndpointInfo {
                address,
                node: e.node_name.as_deref().map(&mut *intern),
                standing,
                hints: Hints::new(e.hints.as_ref(), intern),
            });
        }
        Some(Self { service: Named::new(namespace, service), ports: ports.collect(), endpoints })
    }

    /// Addresses of all endpoints.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.iter().map(|e| e.address)
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }
}

/// Who serves a port. Of the endpoints of a port the ready ones serve; where there is none, those that terminate but
/// still serve. Where a traffic policy is `Local` these are named too, because single nodes may have no other.
pub(super) fn endpoints_of<'a>(
    service: &ServiceInfo,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointsInfo>,
) -> Vec<Endpoint> {
    let mut found: BTreeMap<(IpAddr, u16), &EndpointInfo> = BTreeMap::new();
    let standing = |e: &EndpointInfo| if service.publish_not_ready { Standing::Ready } else { e.standing };
    for slice in slices {
        for (name, protocol, number) in &slice.ports {
            if *name != port.name || *protocol != port.protocol {
                continue;
            }
            for e in &slice.endpoints {
                // A pod may stand in two slices while its controller moves it: the better word counts.
                let best = found.entry((e.address, *number)).or_insert(e);
                if (standing(e), e.node.is_none()) < (standing(best), best.node.is_none()) {
                    *best = e;
                }
            }
        }
    }
    // Where a node answers by its own endpoints, each node finds for itself whether it has a ready one.
    let local = TrafficPolicy::Local;
    let each_node = service.internal_traffic_policy == local || service.external_traffic_policy == local;
    let ready = found.values().any(|e| standing(e) == Standing::Ready);
    let serves = |standing: Standing| match standing {
        Standing::Ready => true,
        Standing::ServingTerminating => each_node || !ready,
        Standing::Out => false,
    };
    let names = |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect();
    let chosen = found.iter().filter(|(_, e)| serves(standing(e)));
    chosen
        .map(|((address, port), e)| Endpoint {
            address: address.to_string(),
            port: (*port).into(),
            node: e.node.as_ref().map(ToString::to_string),
            weight: service.scheduling.weight(*address, e.node.as_deref()),
            terminating: each_node && standing(e) == Standing::ServingTerminating,
            for_zones: names(&e.hints.zones),
            for_nodes: names(&e.hints.nodes),
        })
        .collect()
}
