//! Services and their endpoints in the small form that the index keeps, and the plan of one Service.

mod endpoints;
mod plan;
mod scheduling;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::{
    ANNOTATION_SOURCE_RANGES, FrontendKind, LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME, NOBODY, Protocol,
    TrafficPolicy,
};

pub(crate) use self::endpoints::EndpointsInfo;
pub(crate) use self::plan::{BoundFrontend, Planned, plan_service};
use self::scheduling::Scheduling;
pub(crate) use self::scheduling::Unusable;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Named {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why nodenet programs nothing for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftAlone {
    /// `clusterIP: None` or the label.
    Headless,
    /// Type `ExternalName`.
    ExternalName,
    /// The label gives it to another proxy.
    OtherProxy,
}

impl LeftAlone {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Headless => "headless",
            Self::ExternalName => "of type ExternalName",
            Self::OtherProxy => {
                "given to another proxy by its label service.kubernetes.io/service-proxy-name"
            }
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceInfo {
    pub(crate) uid: Arc<str>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) left_alone: Option<LeftAlone>,
    cluster_ips: Vec<IpAddr>,
    /// Addresses from outside the cluster, as they are written: they are judged elsewhere.
    pub(crate) external: Vec<(FrontendKind, IpAddr)>,
    publish_not_ready: bool,
    scheduling: Scheduling,
    /// Sources that load balancers let in; empty: all. Sorted, without bits behind the prefix.
    source_ranges: Vec<IpNet>,
    internal_traffic_policy: TrafficPolicy,
    external_traffic_policy: TrafficPolicy,
    /// Of type LoadBalancer with `externalTrafficPolicy: Local` only.
    health_check_node_port: Option<u16>,
    pub(crate) ports: Vec<ServicePort>,
}

/// A port of a Service, of a protocol that is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP" | "") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(_) => None,
    }
}

/// Most addresses from outside of one Service: the API has no bound.
const EXTERNAL_MAX: usize = 64;

/// `externalIPs`, and the addresses that a load balancer was given unless it delivers packets by itself.
fn external(service: &Service) -> Vec<(FrontendKind, IpAddr)> {
    let spec = service.spec.as_ref();
    let written = spec.and_then(|s| s.external_ips.as_deref()).unwrap_or_default().iter();
    let written = written.filter_map(|text| Some((FrontendKind::ExternalIP, text.parse().ok()?)));
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balancer = balancer.filter(|_| spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer")));
    let given = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default().iter();
    let given = given
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| Some((FrontendKind::LoadBalancer, ingress.ip.as_deref()?.parse().ok()?)));
    let mut all: Vec<(FrontendKind, IpAddr)> = written.chain(given).collect();
    // What is both answers once, as the load balancer's: its source ranges count.
    all.sort_unstable_by_key(|(kind, address)| (*address, std::cmp::Reverse(*kind)));
    all.dedup_by_key(|(_, address)| *address);
    all.truncate(EXTERNAL_MAX);
    all
}

/// Most source ranges of a Service (the schema's bound).
const SOURCE_RANGES_MAX: usize = 256;

/// Sources that a Service of type LoadBalancer lets in, by its field or, where that says nothing, its older annotation.
fn source_ranges(service: &Service) -> Vec<IpNet> {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
    else {
        return Vec::new();
    };
    let field = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let annotations = service.metadata.annotations.as_ref();
    let annotation =
        annotations.and_then(|all| all.get(ANNOTATION_SOURCE_RANGES)).filter(|_| field.is_empty());
    let written =
        field.iter().map(String::as_str).chain(annotation.into_iter().flat_map(|text| text.split(',')));
    let mut written = written.peekable();
    let restricted = written.peek().is_some();
    let mut ranges: Vec<IpNet> =
        written.filter_map(|text| text.trim().parse().ok()).map(|range: IpNet| range.trunc()).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges.truncate(SOURCE_RANGES_MAX);
    if restricted && ranges.is_empty() {
        // What cannot be read lets nobody in, not everybody.
        ranges.extend(NOBODY.map(IpNet::from));
    }
    ranges
}

fn traffic_policy(name: Option<&str>) -> TrafficPolicy {
    match name {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

/// A port number that a server can have.
fn port_number(value: i32) -> Option<u16> {
    u16::try_from(value).ok().filter(|p| *p != 0)
}

impl ServiceInfo {
    pub(crate) fn new(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let label = |name: &str| service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(name));
        let addresses = || {
            let list = spec.and_then(|s| s.cluster_ips.as_deref()).unwrap_or_default();
            let single = spec.and_then(|s| s.cluster_ip.as_ref()).into_iter();
            list.iter().chain(single.filter(|_| list.is_empty()))
        };
        let left_alone = if spec.is_some_and(|s| s.type_.as_deref() == Some("ExternalName")) {
            Some(LeftAlone::ExternalName)
        } else if label(LABEL_SERVICE_PROXY_NAME) {
            Some(LeftAlone::OtherProxy)
        } else if label(LABEL_HEADLESS) || addresses().any(|a| a == "None") {
            Some(LeftAlone::Headless)
        } else {
            None
        };
        let mut cluster_ips: Vec<IpAddr> = addresses().filter_map(|a| a.parse().ok()).collect();
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        let external_traffic_policy = traffic_policy(spec.and_then(|s| s.external_traffic_policy.as_deref()));
        let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let ports = ports.iter().filter_map(|p| {
            Some(ServicePort {
                name: p.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(p.protocol.as_deref())?,
                port: port_number(p.port)?,
                node_port: p.node_port.and_then(port_number),
            })
        });
        Self {
            uid: service.metadata.uid.as_deref().unwrap_or("-").into(),
            created: service.metadata.creation_timestamp.as_ref().map(|time| time.0),
            external: if left_alone.is_none() { external(service) } else { Vec::new() },
            left_alone,
            cluster_ips,
            publish_not_ready: spec.is_some_and(|s| s.publish_not_ready_addresses == Some(true)),
            scheduling: Scheduling::new(service),
            source_ranges: source_ranges(service),
            internal_traffic_policy: traffic_policy(spec.and_then(|s| s.internal_traffic_policy.as_deref())),
            external_traffic_policy,
            health_check_node_port: spec
                .filter(|s| s.type_.as_deref() == Some("LoadBalancer"))
                .filter(|_| external_traffic_policy == TrafficPolicy::Local)
                .and_then(|s| s.health_check_node_port)
                .and_then(port_number),
            ports: ports.collect(),
        }
    }

    /// What of the Service's annotations makes no sense; it is left out.
    pub(crate) fn unusable(&self) -> &[Unusable] {
        &self.scheduling.unusable
    }
}

#[cfg(test)]
mod tests;
