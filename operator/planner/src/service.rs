//! Services and their endpoints in the small form that the index keeps, and the plan of one Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nodenet_crds::{
    Endpoint, Frontend, FrontendKind, LABEL_HEADLESS, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, PortPlan,
    Protocol,
};

/// Most frontends in one [`PortPlan`] (the schema's bound); a port with more stands there several times.
const FRONTENDS_MAX: usize = 256;

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
    pub(crate) left_alone: Option<LeftAlone>,
    cluster_ips: Vec<IpAddr>,
    publish_not_ready: bool,
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
        Some(_) => None,
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
            left_alone,
            cluster_ips,
            publish_not_ready: spec.is_some_and(|s| s.publish_not_ready_addresses == Some(true)),
            ports: ports.collect(),
        }
    }
}

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
            });
        }
        Some(Self { service: Named::new(namespace, service), ports: ports.collect(), endpoints })
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }
}

/// A place where a port of a Service answers because of a VirtualIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BoundFrontend {
    pub(crate) protocol: Protocol,
    /// Port of the Service whose endpoints answer.
    pub(crate) service_port: u16,
    pub(crate) frontend: Frontend,
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
) -> Option<Vec<PortPlan>> {
    if service.left_alone.is_some() || service.ports.is_empty() {
        return None;
    }
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
                scheduler: scheduler.map(str::to_owned),
                frontends: chunk.to_vec(),
                endpoints: endpoints.clone(),
            });
        }
    }
    plans.sort_by(|a, b| (&a.name, a.protocol, &a.frontends).cmp(&(&b.name, b.protocol, &b.frontends)));
    (!plans.is_empty()).then_some(plans)
}

fn endpoints_of<'a>(
    service: &ServiceInfo,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointsInfo>,
) -> Vec<Endpoint> {
    /// How good the endpoint is, and on which node.
    type Word<'a> = (Standing, Option<&'a Arc<str>>);
    let mut found: BTreeMap<(IpAddr, u16), Word<'_>> = BTreeMap::new();
    for slice in slices {
        for (name, protocol, number) in &slice.ports {
            if *name != port.name || *protocol != port.protocol {
                continue;
            }
            for e in &slice.endpoints {
                let standing = if service.publish_not_ready { Standing::Ready } else { e.standing };
                // A pod may stand in two slices while its controller moves it: the better word counts.
                let best = found.entry((e.address, *number)).or_insert((standing, e.node.as_ref()));
                if standing < best.0 || (standing == best.0 && best.1.is_none()) {
                    *best = (standing, e.node.as_ref());
                }
            }
        }
    }
    let serves = if found.values().any(|(s, _)| *s == Standing::Ready) {
        Standing::Ready
    } else {
        Standing::ServingTerminating
    };
    let chosen = found.iter().filter(|(_, (standing, _))| *standing == serves);
    chosen
        .map(|((address, port), (_, node))| Endpoint {
            address: address.to_string(),
            port: (*port).into(),
            node: node.map(|n| n.to_string()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ServicePort as ApiPort, ServiceSpec};
    use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointConditions, EndpointPort};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn port(name: &str, protocol: &str, port: i32, node_port: Option<i32>) -> ApiPort {
        ApiPort {
            name: Some(name.into()),
            protocol: Some(protocol.into()),
            port,
            node_port,
            ..Default::default()
        }
    }

    fn service(ips: &[&str], ports: Vec<ApiPort>) -> Service {
        Service {
            metadata: ObjectMeta { name: Some("web".into()), uid: Some("u1".into()), ..Default::default() },
            spec: Some(ServiceSpec {
                cluster_ip: ips.first().map(|i| (*i).to_owned()),
                cluster_ips: Some(ips.iter().map(|i| (*i).to_owned()).collect()),
                ports: Some(ports),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// `(address, ready, serving, terminating)`
    type Pod = (&'static str, Option<bool>, Option<bool>, Option<bool>);

    fn slice(address_type: &str, ports: &[(&str, &str, i32)], pods: &[Pod]) -> EndpointsInfo {
        let slice = EndpointSlice {
            metadata: ObjectMeta {
                namespace: Some("default".into()),
                labels: Some(BTreeMap::from([(LABEL_SERVICE_NAME.to_owned(), "web".to_owned())])),
                ..Default::default()
            },
            address_type: address_type.into(),
            endpoints: pods
                .iter()
                .map(|(address, ready, serving, terminating)| ApiEndpoint {
                    addresses: vec![(*address).to_owned()],
                    conditions: Some(EndpointConditions {
                        ready: *ready,
                        serving: *serving,
                        terminating: *terminating,
                    }),
                    ..Default::default()
                })
                .collect(),
            ports: Some(
                ports
                    .iter()
                    .map(|(name, protocol, number)| EndpointPort {
                        name: Some((*name).to_owned()),
                        protocol: Some((*protocol).to_owned()),
                        port: Some(*number),
                        ..Default::default()
                    })
                    .collect(),
            ),
        };
        EndpointsInfo::new(&slice, &mut |n| n.into()).unwrap()
    }

    fn plan(service: &Service, slices: &[EndpointsInfo]) -> Vec<PortPlan> {
        plan_service(&ServiceInfo::new(service), slices.iter(), &[], None).unwrap_or_default()
    }

    fn addresses(plan: &PortPlan) -> Vec<String> {
        plan.endpoints.iter().map(|e| format!("{}:{}", e.address, e.port)).collect()
    }

    const T: Option<bool> = Some(true);
    const F: Option<bool> = Some(false);

    #[test]
    fn ready_endpoints_serve_and_unready_ones_do_not() {
        let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        let pods = slice(
            "IPv4",
            &[("http", "TCP", 8080)],
            &[
                ("10.1.0.1", T, T, F),
                ("10.1.0.2", F, F, F),
                ("10.1.0.3", None, None, None),
                ("10.1.0.4", F, T, T),
                ("10.1.0.5", F, T, F),
            ],
        );
        assert_eq!(addresses(&plan(&web, &[pods])[0]), ["10.1.0.1:8080", "10.1.0.3:8080"]);
    }

    #[test]
    fn where_none_is_ready_those_that_terminate_and_still_serve_do() {
        let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        let pods = slice(
            "IPv4",
            &[("http", "TCP", 8080)],
            &[("10.1.0.1", F, T, T), ("10.1.0.2", F, F, T), ("10.1.0.3", F, T, F)],
        );
        assert_eq!(addresses(&plan(&web, &[pods])[0]), ["10.1.0.1:8080"]);
    }

    #[test]
    fn publish_not_ready_addresses_takes_every_endpoint_for_ready() {
        let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        web.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let pods = slice("IPv4", &[("http", "TCP", 8080)], &[("10.1.0.1", F, F, F), ("10.1.0.2", T, T, F)]);
        assert_eq!(addresses(&plan(&web, &[pods])[0]).len(), 2);
    }

    #[test]
    fn a_service_without_endpoints_keeps_its_frontends_so_that_clients_are_refused() {
        let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, Some(30080))]);
        let ports = plan(&web, &[]);
        assert_eq!(ports[0].frontends.len(), 2);
        assert!(ports[0].endpoints.is_empty());
    }

    #[test]
    fn a_named_target_port_may_be_another_number_in_another_slice() {
        let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None), port("dns", "UDP", 53, None)]);
        let old = slice("IPv4", &[("http", "TCP", 8080), ("dns", "UDP", 5353)], &[("10.1.0.1", T, T, F)]);
        let new = slice("IPv4", &[("http", "TCP", 9090)], &[("10.1.0.2", T, T, F)]);
        let ports = plan(&web, &[old, new]);
        assert_eq!((ports[0].name.as_str(), ports[1].name.as_str()), ("dns", "http"));
        assert_eq!(addresses(&ports[0]), ["10.1.0.1:5353"]);
        assert_eq!(addresses(&ports[1]), ["10.1.0.1:8080", "10.1.0.2:9090"]);
    }

    #[test]
    fn one_number_on_two_protocols_makes_two_ports() {
        let web = service(&["10.96.0.1"], vec![port("a", "UDP", 53, None), port("b", "TCP", 53, None)]);
        let protocols: Vec<Protocol> = plan(&web, &[]).iter().map(|p| p.protocol).collect();
        assert_eq!(protocols, [Protocol::UDP, Protocol::TCP]);
    }

    #[test]
    fn ports_of_a_protocol_that_is_not_planned_are_left_out() {
        let web = service(&["10.96.0.1"], vec![port("s", "SCTP", 80, None), port("t", "TCP", 81, None)]);
        assert_eq!(plan(&web, &[]).len(), 1);
    }

    #[test]
    fn both_families_stand_in_one_port_and_a_slice_of_names_is_ignored() {
        let web = service(&["10.96.0.1", "fd00:96::1"], vec![port("http", "TCP", 80, None)]);
        let v4 = slice("IPv4", &[("http", "TCP", 8080)], &[("10.1.0.1", T, T, F), ("fd00::9", T, T, F)]);
        let v6 = slice("IPv6", &[("http", "TCP", 8080)], &[("fd00:1::1", T, T, F)]);
        let ports = plan(&web, &[v4, v6]);
        let frontends: Vec<_> = ports[0].frontends.iter().filter_map(|f| f.address.clone()).collect();
        assert_eq!(frontends, ["10.96.0.1", "fd00:96::1"]);
        assert_eq!(addresses(&ports[0]), ["10.1.0.1:8080", "fd00:1::1:8080"]);
        let names = EndpointSlice {
            metadata: ObjectMeta {
                labels: Some(BTreeMap::from([(LABEL_SERVICE_NAME.to_owned(), "web".to_owned())])),
                ..Default::default()
            },
            address_type: "FQDN".into(),
            ..Default::default()
        };
        assert_eq!(EndpointsInfo::new(&names, &mut |n| n.into()), None);
    }

    #[test]
    fn a_pod_in_two_slices_is_one_endpoint_and_the_better_word_counts() {
        let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        let a = slice("IPv4", &[("http", "TCP", 8080)], &[("10.1.0.1", F, F, F)]);
        let b = slice("IPv4", &[("http", "TCP", 8080)], &[("10.1.0.1", T, T, F)]);
        assert_eq!(addresses(&plan(&web, &[a.clone(), b.clone()])[0]), ["10.1.0.1:8080"]);
        assert_eq!(plan(&web, &[a.clone(), b.clone()]), plan(&web, &[b, a]), "in any order");
    }

    #[test]
    fn headless_external_and_foreign_services_are_left_alone() {
        let labelled = |label: &str| {
            let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
            web.metadata.labels = Some(BTreeMap::from([(label.to_owned(), "x".to_owned())]));
            web
        };
        let headless = service(&["None"], vec![port("http", "TCP", 80, None)]);
        let mut external = service(&[], vec![port("http", "TCP", 80, None)]);
        external.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
        let cases = [
            (headless, LeftAlone::Headless),
            (labelled(LABEL_HEADLESS), LeftAlone::Headless),
            (labelled(LABEL_SERVICE_PROXY_NAME), LeftAlone::OtherProxy),
            (external, LeftAlone::ExternalName),
        ];
        for (service, why) in cases {
            let info = ServiceInfo::new(&service);
            assert_eq!(info.left_alone, Some(why));
            assert_eq!(plan_service(&info, [].iter(), &[], None), None);
        }
    }
}
