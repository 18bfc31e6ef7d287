use std::collections::BTreeMap;

use super::*;
use k8s_openapi::api::core::v1::{
    ClientIPConfig, ServicePort as ApiPort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint as ApiEndpoint, EndpointConditions, EndpointPort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nodenet_crds::{
    ANNOTATION_DRAIN_TIMEOUT, ANNOTATION_ENDPOINT_WEIGHTS, ANNOTATION_SCHEDULER, ANNOTATION_SCHEDULER_FLAGS,
    LABEL_SERVICE_NAME, PortPlan, SchedulerFlag,
};

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
    slice_on(None, address_type, ports, pods)
}

fn slice_on(
    node: Option<&str>,
    address_type: &str,
    ports: &[(&str, &str, i32)],
    pods: &[Pod],
) -> EndpointsInfo {
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
                node_name: node.map(str::to_owned),
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
    let planned = plan_service(&ServiceInfo::new(service), slices.iter(), &[], None);
    planned.map(|planned| planned.ports).unwrap_or_default()
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
fn sctp_is_planned_and_a_protocol_that_nobody_knows_is_left_out() {
    let web = service(&["10.96.0.1"], vec![port("s", "SCTP", 80, None), port("t", "DCCP", 81, None)]);
    let protocols: Vec<Protocol> = plan(&web, &[]).iter().map(|p| p.protocol).collect();
    assert_eq!(protocols, [Protocol::SCTP]);
}

#[test]
fn affinity_by_client_address_is_persistence_of_its_timeout() {
    let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
    let seconds = |web: &Service| plan(web, &[])[0].persistence_seconds;
    assert_eq!(seconds(&web), None);
    let spec = |web: &mut Service, affinity: &str, timeout: Option<i32>| {
        let spec = web.spec.as_mut().unwrap();
        spec.session_affinity = Some(affinity.to_owned());
        spec.session_affinity_config = timeout
            .map(|t| SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds: Some(t) }) });
    };
    spec(&mut web, "None", None);
    assert_eq!(seconds(&web), None);
    spec(&mut web, "ClientIP", None);
    assert_eq!(seconds(&web), Some(10_800));
    spec(&mut web, "ClientIP", Some(60));
    assert_eq!(seconds(&web), Some(60));
    spec(&mut web, "None", Some(60));
    assert_eq!(seconds(&web), None);
}

#[test]
fn a_service_may_name_its_scheduler() {
    let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
    let planned = |web: &Service, default: &str| {
        let info = ServiceInfo::new(web);
        let port = plan_service(&info, [].iter(), &[], Some(default)).unwrap().ports.remove(0);
        (port.scheduler.unwrap(), port.scheduler_flags, info.unusable().len())
    };
    let annotate = |web: &mut Service, name: &str, value: &str| {
        web.metadata.annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
    };
    assert_eq!(planned(&web, "rr"), ("rr".to_owned(), vec![], 0));
    assert_eq!(planned(&web, "mh"), ("mh".to_owned(), vec![SchedulerFlag::Port], 0));
    annotate(&mut web, ANNOTATION_SCHEDULER, "lc");
    assert_eq!(planned(&web, "rr"), ("lc".to_owned(), vec![], 0));
    annotate(&mut web, ANNOTATION_SCHEDULER_FLAGS, "Port, Fallback");
    assert_eq!(planned(&web, "rr"), ("lc".to_owned(), vec![], 0), "lc has no flags");
    annotate(&mut web, ANNOTATION_SCHEDULER, "mh");
    let both = vec![SchedulerFlag::Fallback, SchedulerFlag::Port];
    assert_eq!(planned(&web, "rr"), ("mh".to_owned(), both, 0));
    annotate(&mut web, ANNOTATION_SCHEDULER_FLAGS, "");
    assert_eq!(planned(&web, "rr"), ("mh".to_owned(), vec![], 0));
    annotate(&mut web, ANNOTATION_SCHEDULER, "fastest");
    annotate(&mut web, ANNOTATION_SCHEDULER_FLAGS, "port");
    assert_eq!(planned(&web, "rr"), ("rr".to_owned(), vec![], 2));
    let words = ServiceInfo::new(&web).unusable()[0].to_string();
    assert!(words.contains("\"fastest\"") && words.contains("wlc"), "{words}");
}

#[test]
fn a_service_may_say_how_long_its_endpoints_take_to_leave() {
    let planned = |text: &str| {
        let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        let annotation = (ANNOTATION_DRAIN_TIMEOUT.to_owned(), text.to_owned());
        web.metadata.annotations = Some(BTreeMap::from([annotation]));
        let words: Vec<String> = ServiceInfo::new(&web).unusable().iter().map(ToString::to_string).collect();
        (plan(&web, &[])[0].drain_timeout_seconds, words)
    };
    for (text, seconds) in
        [("90s", 90), ("0s", 0), ("5m", 300), ("1m 30s", 90), (" 1h30m ", 5400), ("24h", 86_400)]
    {
        assert_eq!(planned(text), (Some(seconds), vec![]), "{text}");
    }
    for text in ["", "90", "-5s", "1500ms", "25h", "soon"] {
        let (seconds, words) = planned(text);
        assert_eq!((seconds, words.len()), (None, 1), "{text}");
        assert!(words[0].contains("nodenet.dev/drain-timeout") && words[0].contains("90s"), "{words:?}");
    }
}

#[test]
fn a_service_may_weigh_its_endpoints_by_address_and_by_node() {
    let planned = |text: &str| {
        let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
        let annotation = (ANNOTATION_ENDPOINT_WEIGHTS.to_owned(), text.to_owned());
        web.metadata.annotations = Some(BTreeMap::from([annotation]));
        let words: Vec<String> = ServiceInfo::new(&web).unusable().iter().map(ToString::to_string).collect();
        let pods = [("10.1.0.1", T, T, F), ("10.1.0.2", T, T, F)];
        let a = slice_on(Some("big"), "IPv4", &[("http", "TCP", 8080)], &pods);
        let b = slice("IPv4", &[("http", "TCP", 8080)], &[("10.1.0.3", T, T, F)]);
        let weights: Vec<_> = plan(&web, &[a, b])[0].endpoints.iter().map(|e| e.weight).collect();
        (weights, words)
    };
    assert_eq!(planned("big=3, 10.1.0.2=0,"), (vec![Some(3), Some(0), None], vec![]));
    assert_eq!(planned("10.1.0.3=65535,big=1"), (vec![None, None, Some(65_535)], vec![]));
    let (weights, words) = planned("big=65536,big,=3,10.1.0.1=-1,10.1.0.2=2");
    assert_eq!((weights, words.len()), (vec![None, Some(2), None], 4));
    assert!(words[0].contains("big=65536") && words[0].contains("0 to 65535"), "{words:?}");
    let many: Vec<String> = (0..300).map(|i| format!("n{i}=2")).collect();
    assert_eq!(planned(&many.join(",")).1.len(), 1);
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

#[test]
fn only_a_load_balancer_has_source_ranges() {
    let mut web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
    let ranges = |web: &Service| plan(web, &[])[0].source_ranges.clone();
    let spec = web.spec.as_mut().unwrap();
    spec.load_balancer_source_ranges =
        Some(vec![" 192.0.2.7/24".into(), "fd00::/64".into(), "10.0.0.0/8".into()]);
    assert_eq!(ranges(&web), Vec::<String>::new());
    web.spec.as_mut().unwrap().type_ = Some("LoadBalancer".into());
    assert_eq!(ranges(&web), ["10.0.0.0/8", "192.0.2.0/24", "fd00::/64"]);
    let annotation = (ANNOTATION_SOURCE_RANGES.to_owned(), "203.0.113.0/24, 10.0.0.0/8".to_owned());
    web.metadata.annotations = Some(BTreeMap::from([annotation]));
    assert_eq!(ranges(&web).len(), 3, "the field counts");
    web.spec.as_mut().unwrap().load_balancer_source_ranges = None;
    assert_eq!(ranges(&web), ["10.0.0.0/8", "203.0.113.0/24"]);
}

#[test]
fn hints_of_an_endpoint_are_told_to_the_nodes() {
    use k8s_openapi::api::discovery::v1::{EndpointHints, ForNode, ForZone};
    let web = service(&["10.96.0.1"], vec![port("http", "TCP", 80, None)]);
    let object = EndpointSlice {
        metadata: ObjectMeta {
            labels: Some(BTreeMap::from([(LABEL_SERVICE_NAME.to_owned(), "web".to_owned())])),
            ..Default::default()
        },
        address_type: "IPv4".into(),
        endpoints: vec![ApiEndpoint {
            addresses: vec!["10.1.0.1".into()],
            hints: Some(EndpointHints {
                for_zones: Some(vec![ForZone { name: "a".into() }, ForZone { name: "b".into() }]),
                for_nodes: Some(vec![ForNode { name: "n1".into() }]),
            }),
            ..Default::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some("http".into()),
            protocol: Some("TCP".into()),
            port: Some(8080),
            ..Default::default()
        }]),
    };
    let info = EndpointsInfo::new(&object, &mut |n| n.into()).unwrap();
    let endpoint = &plan(&web, &[info])[0].endpoints[0];
    assert_eq!(endpoint.for_zones, ["a", "b"]);
    assert_eq!(endpoint.for_nodes, ["n1"]);
}

#[test]
fn load_balancers_are_told_where_endpoints_are_only_with_the_policy_local() {
    let health_check = |type_: &str, policy: &str| {
        let mut service = service(&["10.96.0.1"], vec![port("http", "TCP", 80, Some(30_080))]);
        let spec = service.spec.as_mut().unwrap();
        spec.type_ = Some(type_.to_owned());
        spec.external_traffic_policy = Some(policy.to_owned());
        spec.health_check_node_port = Some(32_000);
        plan_service(&ServiceInfo::new(&service), [].iter(), &[], None).unwrap().health_check_node_port
    };
    assert_eq!(health_check("LoadBalancer", "Local"), Some(32_000));
    assert_eq!(health_check("LoadBalancer", "Cluster"), None);
    assert_eq!(health_check("NodePort", "Local"), None, "the API server clears it, a moment later");
}
