//! The plan of one Service.

use nodenet_crds::{Frontend, FrontendKind, PortPlan, Protocol};

use super::ServiceInfo;
use super::endpoints::{EndpointsInfo, endpoints_of};

/// Most frontends in one [`PortPlan`] (the schema's bound); a port with more stands there several times.
const FRONTENDS_MAX: usize = 256;

/// A place where a port of a Service answers because of a VirtualIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BoundFrontend {
    pub(crate) protocol: Protocol,
    /// Port of the Service whose endpoints answer.
    pub(crate) service_port: u16,
    pub(crate) frontend: Frontend,
}

/// What every node must do for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Port on which nodes tell load balancers whether they have endpoints.
    pub(crate) health_check_node_port: Option<i32>,
    pub(crate) ports: Vec<PortPlan>,
}

/// What every node must do for one Service: its ports with where they answer and who answers, in a fixed order.
/// `None` where nothing is to be programmed for it.
///
/// An endpoint serves a port if its slice has a port of that name and protocol; the number is the slice's, so pods of
/// one Service may listen on different ones. Of the endpoints of a port the ready ones serve; where there is none,
/// those that terminate but still serve.
pub(crate) fn plan_service<'a>(
    service: &ServiceInfo,
    slices: impl Iterator<Item = &'a EndpointsInfo> + Clone,
    bound: &[BoundFrontend],
    scheduler: Option<&str>,
) -> Option<Planned> {
    if service.left_alone.is_some() || service.ports.is_empty() {
        return None;
    }
    let scheduling = &service.scheduling;
    let source_ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    let mut plans = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let mut frontends: Vec<Frontend> = service
            .cluster_ips
            .iter()
            .map(|address| Frontend {
                kind: FrontendKind::ClusterIP,
                address: Some(address.to_string()),
                port: port.port.into(),
            })
            .collect();
        if let Some(node_port) = port.node_port {
            frontends.push(Frontend { kind: FrontendKind::NodePort, address: None, port: node_port.into() });
        }
        let of_port = |b: &&BoundFrontend| b.protocol == port.protocol && b.service_port == port.port;
        frontends.extend(bound.iter().filter(of_port).map(|b| b.frontend.clone()));
        frontends.sort_unstable();
        frontends.dedup();
        let endpoints = endpoints_of(service, port, slices.clone());
        for chunk in frontends.chunks(FRONTENDS_MAX) {
            plans.push(PortPlan {
                name: port.name.to_string(),
                protocol: port.protocol,
                scheduler: scheduling.scheduler(scheduler).map(str::to_owned),
                scheduler_flags: scheduling.flags(scheduler),
                persistence_seconds: scheduling.persistence_seconds,
                drain_timeout_seconds: scheduling.drain_timeout_seconds,
                source_ranges: source_ranges.clone(),
                internal_traffic_policy: service.internal_traffic_policy,
                external_traffic_policy: service.external_traffic_policy,
                inside_number: None,
                frontends: chunk.to_vec(),
                endpoints: endpoints.clone(),
            });
        }
    }
    plans.sort_by(|a, b| (&a.name, a.protocol, &a.frontends).cmp(&(&b.name, b.protocol, &b.frontends)));
    let health_check_node_port = service.health_check_node_port.map(i32::from);
    (!plans.is_empty()).then_some(Planned { health_check_node_port, ports: plans })
}
