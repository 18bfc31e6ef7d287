//! Which addresses from outside a Service gets: its author is not the cluster's administrator.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, NodeAddress, Service, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::{FrontendKind, ServiceBinding};
use nodenet_planner::{Change, Kind, ObjectRef, Output, Settings};
use simulation::{Cluster, at, endpoints, s, service, virtual_ip, without};

/// One node, an API server at 192.168.0.2, externalIPs granted in 203.0.113.0/24 and, by mistake, all of the nodes' network.
fn cluster() -> Cluster {
    let net = |text: &str| text.parse().unwrap();
    let mut c = Cluster::new(Settings {
        service_cidrs: vec![net("10.96.0.0/12")],
        cluster_cidrs: vec![net("10.244.0.0/16")],
        external_ip_cidrs: vec![net("203.0.113.0/24"), net("192.168.0.0/24"), net("10.0.0.0/8")],
        ..Settings::default()
    });
    c.add_node("n1", "192.168.0.11");
    let api: EndpointSlice = endpoints("default", "kubernetes", "kubernetes", &["192.168.0.2".to_owned()]);
    c.put(api);
    c
}

fn wants(name: &str, cluster_ip: &str, external: &[&str], created: i64) -> Service {
    let mut object = service("default", name, cluster_ip, None);
    object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
    object.spec.as_mut().unwrap().external_ips = Some(external.iter().map(ToString::to_string).collect());
    object
}

fn balanced(name: &str, cluster_ip: &str, ip: &str, mode: Option<&str>) -> Service {
    let mut object = wants(name, cluster_ip, &[], 100);
    object.spec.as_mut().unwrap().type_ = Some("LoadBalancer".to_owned());
    let ingress = LoadBalancerIngress {
        ip: Some(ip.to_owned()),
        ip_mode: mode.map(str::to_owned),
        ..LoadBalancerIngress::default()
    };
    object.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus { ingress: Some(vec![ingress]) }),
        ..ServiceStatus::default()
    });
    object
}

/// Addresses from outside at which a Service answers.
fn answers(c: &Cluster, name: &str) -> Vec<(FrontendKind, String)> {
    let slices = c.slices();
    let plans = slices.iter().flat_map(|slice| &slice.spec.services).filter(|plan| plan.name == name);
    let frontends = plans.flat_map(|plan| &plan.ports).flat_map(|port| &port.frontends);
    let outside =
        frontends.filter(|f| matches!(f.kind, FrontendKind::ExternalIP | FrontendKind::LoadBalancer));
    outside.map(|f| (f.kind, f.address.clone().unwrap())).collect()
}

fn refusals(c: &Cluster, name: &str) -> Vec<String> {
    let about = ObjectRef::namespaced(Kind::Service, "default", name);
    let of = c.events.iter().filter(|event| event.regarding == about && event.reason == "AddressRefused");
    of.map(|event| event.note.clone()).collect()
}

#[test]
fn a_granted_address_and_one_of_a_load_balancer_are_served() {
    let mut c = cluster();
    c.put(wants("web", "10.96.0.1", &["203.0.113.7"], 1));
    c.put(balanced("lb", "10.96.0.2", "198.51.100.9", Some("VIP")));
    c.put(balanced("proxied", "10.96.0.3", "198.51.100.10", Some("Proxy")));
    c.run(s(5));
    assert_eq!(answers(&c, "web"), [(FrontendKind::ExternalIP, "203.0.113.7".to_owned())]);
    assert_eq!(answers(&c, "lb"), [(FrontendKind::LoadBalancer, "198.51.100.9".to_owned())]);
    assert_eq!(answers(&c, "proxied"), [], "the load balancer delivers by itself");
    assert!(c.events.iter().all(|event| event.reason != "AddressRefused"), "{:?}", c.events);
}

#[test]
fn what_is_not_granted_or_is_anothers_is_refused_in_words() {
    let mut c = cluster();
    c.put(virtual_ip("db", &["192.168.0.15/24"]));
    c.put(service("default", "other", "10.96.0.9", None));
    let cases = [
        ("ungranted", "198.51.100.7", "externalIPCIDRs"),
        ("node", "192.168.0.11", "an address of Node n1"),
        ("api", "192.168.0.2", "an API server"),
        ("vip", "192.168.0.15", "VirtualIP db"),
        ("cluster-ip", "10.96.0.9", "the range 10.96.0.0/12 of Services"),
        ("pod", "10.244.1.5", "the pod network 10.244.0.0/16"),
    ];
    for (i, (name, address, _)) in cases.iter().enumerate() {
        c.put(wants(name, &format!("10.97.0.{i}"), &[address], 1));
    }
    c.put(balanced("balancer", "10.97.1.1", "192.168.0.11", None));
    c.run(s(5));
    for (name, address, words) in cases {
        assert_eq!(answers(&c, name), [], "{name}");
        let told = refusals(&c, name);
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        assert!(told[0].contains(address) && told[0].contains(words), "{name}: {}", told[0]);
    }
    assert_eq!(answers(&c, "balancer"), [], "a load balancer's address is judged too");
}

#[test]
fn an_address_and_port_belong_to_the_older_service_whatever_its_name() {
    let mut c = cluster();
    c.put(wants("web", "10.96.0.1", &["203.0.113.7"], 10));
    c.run(s(5));
    // Comes later, and first by name.
    c.put(wants("a-thief", "10.96.0.2", &["203.0.113.7"], 20));
    c.run(s(5));
    assert_eq!(answers(&c, "web").len(), 1);
    assert_eq!(answers(&c, "a-thief"), []);
    assert!(refusals(&c, "a-thief")[0].contains("Service default/web"), "{:?}", refusals(&c, "a-thief"));

    c.restart_operator();
    c.run(s(5));
    assert_eq!(answers(&c, "web").len(), 1, "not by who is read first");
    assert_eq!(answers(&c, "a-thief"), []);

    c.delete(&ObjectRef::namespaced(Kind::Service, "default", "web"));
    c.run(s(5));
    assert_eq!(answers(&c, "a-thief").len(), 1, "it is free now");
}

#[test]
fn an_address_that_another_takes_later_is_judged_again() {
    let mut c = cluster();
    c.put(wants("web", "10.96.0.1", &["192.168.0.12"], 1));
    c.run(s(5));
    assert_eq!(answers(&c, "web").len(), 1);
    c.add_node("n2", "192.168.0.12");
    c.run(s(5));
    assert_eq!(answers(&c, "web"), [], "a Node has it now");
    c.delete(&ObjectRef::cluster(Kind::Node, "n2"));
    c.run(s(5));
    assert_eq!(answers(&c, "web").len(), 1);
}

#[test]
fn a_virtual_ip_that_names_the_service_serves_its_address() {
    let mut c = cluster();
    let mut vip = virtual_ip("front", &["192.168.0.15/24"]);
    vip.spec.services = vec![ServiceBinding {
        namespace: "default".into(),
        name: "lb".into(),
        ports: None,
        node_ports: false,
    }];
    c.put(balanced("lb", "10.96.0.1", "192.168.0.15", None));
    c.put(vip);
    c.run(s(5));
    assert_eq!(answers(&c, "lb"), [], "by the VirtualIP");
    assert_eq!(refusals(&c, "lb"), Vec::<String>::new());
    let slices = c.slices();
    let frontends =
        slices.iter().flat_map(|sl| &sl.spec.services).flat_map(|p| &p.ports).flat_map(|p| &p.frontends);
    assert!(frontends.clone().any(|f| f.kind == FrontendKind::VirtualIP));
}

#[test]
fn while_it_is_not_known_whose_an_address_is_everything_stays() {
    let mut c = cluster();
    let mut vip = virtual_ip("front", &["192.168.0.15/24"]);
    vip.spec.services = vec![ServiceBinding {
        namespace: "default".into(),
        name: "lb".into(),
        ports: None,
        node_ports: false,
    }];
    c.put(vip);
    c.put(balanced("lb", "10.96.0.1", "192.168.0.15", None));
    c.put(balanced("thief", "10.96.0.2", "192.168.0.15", None));
    c.put(wants("web", "10.96.0.3", &["203.0.113.7"], 5));
    c.put(wants("a-late-one", "10.96.0.4", &["203.0.113.7"], 50));
    c.run(s(5));
    assert_eq!(answers(&c, "thief"), []);
    // A new leader that has read all but one kind.
    for missing in [Kind::NodeNetState, Kind::VirtualIP] {
        let now = at(c.now);
        let (mut index, keys) = without(&c, missing);
        let writes = |outputs: Vec<Output>| -> Vec<Output> {
            outputs.into_iter().filter(|o| matches!(o, Output::PutSlice { .. })).collect()
        };
        assert_eq!(writes(index.plan(&keys, &now)), [], "without {missing}");
        let mut keys = BTreeSet::new();
        for object in c.objects.values().filter(|o| o.kind() == missing) {
            keys.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        keys.extend(index.apply(Change::Synced(missing), &now));
        assert_eq!(writes(index.plan(&keys, &now)), [], "with {missing} too");
    }
}

#[test]
fn an_address_that_a_load_balancer_binds_on_a_node_is_served() {
    let mut c = cluster();
    c.put(balanced("lb", "10.96.0.1", "192.168.0.77", None));
    c.run(s(5));
    c.add_interface_address("n1", "192.168.0.77/32");
    c.put(wants("web", "10.96.0.2", &["192.168.0.77"], 5));
    c.run(s(5));
    assert_eq!(answers(&c, "lb"), [(FrontendKind::LoadBalancer, "192.168.0.77".to_owned())]);
    assert_eq!(answers(&c, "web"), [], "the author of a Service may not say so");
}

/// Three nodes whose agents have reported.
fn three_nodes() -> Cluster {
    let mut c = cluster();
    c.add_node("n2", "192.168.0.12");
    c.add_node("n3", "192.168.0.13");
    c.run(s(5));
    c
}

#[test]
fn a_gateway_of_a_nodes_network_is_no_services() {
    let mut c = three_nodes();
    c.set_gateways("n1", &["192.168.0.1"]);
    c.put(wants("claims", "10.96.0.2", &["192.168.0.1"], 2));
    c.put(balanced("balancer", "10.96.0.3", "192.168.0.1", None));
    c.run(s(5));
    for name in ["claims", "balancer"] {
        assert_eq!(answers(&c, name), [], "{name}");
        let told = refusals(&c, name);
        assert!(told.len() == 1 && told[0].contains("192.168.0.1 is the gateway of Node n1"), "{told:?}");
    }
    c.set_gateways("n1", &[]);
    c.run(s(5));
    assert_eq!(answers(&c, "claims").len(), 1, "it is none any more");
}

#[test]
fn no_word_of_agents_takes_a_served_address_away() {
    let mut c = three_nodes();
    c.put(wants("web", "10.96.0.1", &["192.168.0.50"], 1));
    c.put(balanced("lb", "10.96.0.2", "192.168.0.51", None));
    c.put(wants("bound", "10.96.0.3", &["192.168.0.52"], 1));
    c.run(s(5));
    for (node, words) in [("n3", "Node n3,"), ("n2", "Node n2 and others,"), ("n1", "Node n1 and others,")] {
        c.set_gateways(node, &["192.168.0.50", "192.168.0.51"]);
        c.add_interface_address(node, "192.168.0.52/24");
        c.run(s(5));
        for (name, what) in
            [("web", "the gateway of"), ("lb", "the gateway of"), ("bound", "on an interface of")]
        {
            assert_eq!(answers(&c, name).len(), 1, "{name}: {node} too says that it has it");
            let told = refusals(&c, name).pop().unwrap();
            assert!(told.contains(&format!("{what} {words}")) && told.contains("do not serve it"), "{told}");
        }
    }
    c.restart_operator();
    c.run(s(5));
    for name in ["web", "lb", "bound"] {
        assert_eq!(answers(&c, name).len(), 1, "{name}: after a restart too");
    }
    // What the API server says counts at any time.
    c.add_node("n4", "192.168.0.50");
    c.run(s(5));
    assert_eq!((answers(&c, "web").len(), answers(&c, "lb").len()), (0, 1));
}

#[test]
fn an_agents_word_counts_in_networks_that_its_node_is_known_to_be_in() {
    let mut c = three_nodes();
    let mut number = 0;
    let mut served = |c: &mut Cluster, address: &str| {
        number += 1;
        let name = format!("web-{number}");
        c.put(wants(&name, &format!("10.96.1.{number}"), &[address], 2));
        c.run(s(5));
        answers(c, &name).len() == 1
    };
    c.set_gateways("n2", &["203.0.113.1"]);
    assert!(served(&mut c, "203.0.113.1"), "on no link of the node");
    c.set_gateways("n2", &["203.0.113.2", "10.200.0.1", "10.150.0.1"]);
    c.add_interface_address("n2", "203.0.113.9/24");
    c.add_interface_address("n2", "10.200.0.9/24");
    c.add_interface_address("n2", "192.168.0.12/0");
    assert!(served(&mut c, "203.0.113.2"), "its Node has no address there");
    assert!(served(&mut c, "203.0.113.9"));
    assert!(served(&mut c, "10.150.0.1"), "nor is its network all the world");
    c.add_interface_address("n3", "10.200.0.10/24");
    assert!(served(&mut c, "10.200.0.1"), "two say that they are in a network");
    c.add_interface_address("n1", "10.200.0.11/24");
    c.set_gateways("n2", &["10.200.0.2"]);
    assert!(!served(&mut c, "10.200.0.2"), "three do");
    assert!(!served(&mut c, "10.200.0.10"));
    assert!(served(&mut c, "10.200.0.12"));
    // By the Node's addresses, not by those of others.
    c.set_node("n2", |node| {
        let addresses = node.status.as_mut().unwrap().addresses.as_mut().unwrap();
        addresses.push(NodeAddress { type_: "ExternalIP".to_owned(), address: "203.0.113.9".to_owned() });
    });
    c.set_gateways("n2", &["203.0.113.3"]);
    assert!(!served(&mut c, "203.0.113.3"));
}

#[test]
fn another_services_addresses_are_not_to_be_had_by_any_door() {
    let mut c = cluster();
    c.put(balanced("lb", "10.96.0.1", "203.0.113.80", None));
    c.put(wants("web", "10.96.0.2", &["203.0.113.7"], 101));
    c.run(s(5));
    // Its ClusterIP, its load balancer's address and its external address.
    c.put(wants("thief", "10.96.0.3", &["10.96.0.2", "203.0.113.80", "203.0.113.7"], 200));
    c.run(s(5));
    assert_eq!(answers(&c, "thief"), []);
    let told = refusals(&c, "thief");
    assert_eq!(told.len(), 3, "{told:?}");
    for words in ["the range 10.96.0.0/12 of Services", "Service default/lb", "Service default/web"] {
        assert!(told.iter().any(|note| note.contains(words)), "{words}: {told:?}");
    }
    assert_eq!((answers(&c, "lb").len(), answers(&c, "web").len()), (1, 1));
}
