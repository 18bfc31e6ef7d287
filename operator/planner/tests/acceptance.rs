//! What is refused, in which words, and that a refusal changes nothing on any node.
// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use nodenet_crds::{FrontendKind, ServiceBinding, VirtualIP};
use nodenet_planner::{Kind, ObjectRef, Output, Settings};
use simulation::{Cluster, endpoints, node, read, s, service, virtual_ip};

const ADDRESS: &str = "192.168.0.15/24";

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ..Settings::default()
    }
}

fn cluster() -> Cluster {
    let mut c = Cluster::new(settings());
    for i in 1..=3 {
        c.add_node(&format!("n{i}"), &format!("192.168.0.{}", 10 + i));
    }
    c.put(service("default", "web", "10.96.0.1", Some(30080)));
    c.put(service("default", "plain", "10.96.0.2", None));
    c.put(endpoints("default", "web", "web-a", &["10.244.1.5".to_owned()]));
    c.run(s(5));
    c.set_gateways("n2", &["192.168.0.1"]);
    c.run(s(1));
    c
}

fn bind(name: &str, ports: Option<Vec<i32>>, node_ports: bool) -> ServiceBinding {
    ServiceBinding { namespace: "default".into(), name: name.into(), ports, node_ports }
}

fn nothing_matches() -> LabelSelector {
    let labels = BTreeMap::from([("rack".to_owned(), "none".to_owned())]);
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

/// One bad edit: the change, the reason that it must get, words that its message must hold.
type BadEdit = (&'static str, fn(&mut VirtualIP), &'static str, &'static [&'static str]);

const BAD_EDITS: &[BadEdit] = &[
    (
        "no address",
        |v| v.spec.addresses = vec!["here".into()],
        "Invalid",
        &["spec.addresses[0]", "192.168.0.15/24"],
    ),
    ("multicast", |v| v.spec.addresses = vec!["224.0.0.1/24".into()], "Invalid", &["multicast"]),
    ("no addresses", |v| v.spec.addresses.clear(), "Invalid", &["spec.addresses"]),
    (
        "a node's own",
        |v| v.spec.addresses = vec!["192.168.0.12/24".into()],
        "AddressInUse",
        &["an address of Node n2"],
    ),
    (
        "a gateway",
        |v| v.spec.addresses = vec!["192.168.0.1/24".into()],
        "AddressInUse",
        &["spec.addresses[0]", "the gateway of Node n2", "use an address"],
    ),
    ("service range", |v| v.spec.addresses = vec!["10.96.3.4/24".into()], "AddressInUse", &["10.96.0.0/12"]),
    ("pod network", |v| v.spec.addresses = vec!["10.244.3.4/24".into()], "AddressInUse", &["10.244.0.0/16"]),
    (
        "foreign subnet",
        |v| v.spec.addresses = vec!["172.16.0.9/24".into()],
        "NoCandidate",
        &["172.16.0.9", "spec.interface"],
    ),
    ("interface", |v| v.spec.interface = Some("ens99".into()), "NoCandidate", &["ens99", "eth0"]),
    (
        "selector",
        |v| v.spec.node_selector = Some(nothing_matches()),
        "NoMatchingNodes",
        &["spec.nodeSelector", "3 Nodes"],
    ),
    (
        "priority",
        |v| {
            v.spec.priorities =
                vec![nodenet_crds::NodePriority { node_selector: LabelSelector::default(), priority: 255 }]
        },
        "Invalid",
        &["spec.priorities[0].priority", "1 to 254"],
    ),
    (
        "Service",
        |v| v.spec.services = vec![bind("nope", None, false)],
        "ServiceNotFound",
        &["spec.services[0]", "default/nope", "create it"],
    ),
    (
        "port",
        |v| v.spec.services = vec![bind("web", Some(vec![81]), false)],
        "Invalid",
        &["no port 81", "80"],
    ),
    (
        "node ports",
        |v| v.spec.services = vec![bind("plain", None, true)],
        "Invalid",
        &["default/plain", "no node ports"],
    ),
    (
        "port twice",
        |v| v.spec.services = vec![bind("web", None, false), bind("plain", None, false)],
        "Invalid",
        &["spec.services[1]", "default/web"],
    ),
];

#[test]
fn a_bad_edit_says_what_must_change_and_changes_nothing_on_any_node_across_a_restart_too() {
    for (what, edit, reason, words) in BAD_EDITS {
        let mut c = cluster();
        let mut vip = virtual_ip("web", &[ADDRESS]);
        vip.spec.services = vec![bind("web", None, true)];
        c.put(vip);
        let mut other = virtual_ip("other", &["192.168.0.16/24"]);
        other.spec.services = Vec::new();
        c.put(other);
        c.run(s(3));
        assert_eq!(c.condition("web", "Ready").0, "True", "{what}");
        let before = (c.active("web"), read(&c.slices()), c.state("n1").map(|s| s.spec.clone()));

        let mut vip = c.vip("web").clone();
        edit(&mut vip);
        c.put(vip);
        c.run(s(3));
        let (status, got, message) = c.condition("web", "Accepted");
        assert_eq!((status.as_str(), got.as_str()), ("False", *reason), "{what}: {message}");
        for word in *words {
            assert!(message.contains(word), "{what}: {message:?} lacks {word:?}");
        }
        assert_eq!(c.condition("web", "Ready").1, *reason, "{what}: the summary names the cause");
        let after = |c: &Cluster| (c.active("web"), read(&c.slices()), c.state("n1").map(|s| s.spec.clone()));
        assert_eq!(after(&c), before, "{what}");
        assert_eq!(c.condition("other", "Ready").0, "True", "{what}: the others are unaffected");

        c.restart_operator();
        c.run(s(15));
        assert_eq!(after(&c), before, "{what}, after a restart of the operator");

        c.kill("n1");
        c.run(s(15));
        assert_eq!(c.active("web"), ["n2"], "{what}: what is in force still fails over");
        assert_eq!(c.doubles, Vec::<String>::new());
    }
}

#[test]
fn a_new_virtual_ip_with_a_bad_spec_touches_no_node() {
    for (what, edit, reason, _) in BAD_EDITS {
        if matches!(*what, "Service" | "port" | "node ports" | "port twice") {
            continue;
        }
        let mut c = cluster();
        c.take_writes();
        let mut vip = virtual_ip("web", &[ADDRESS]);
        edit(&mut vip);
        c.put(vip);
        c.settle();
        assert_eq!(c.condition("web", "Accepted").1, *reason, "{what}");
        let writes = c.take_writes();
        assert_eq!(writes.len(), 1, "{what}: only its status is written: {writes:?}");
    }
}

#[test]
fn a_new_virtual_ip_is_held_although_one_of_its_services_does_not_exist_yet() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![bind("later", None, false), bind("web", None, true)];
    c.put(vip);
    c.run(s(2));
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    let (status, reason, message) = c.condition("web", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ServiceNotFound"), "{message}");
    assert!(message.contains("the rest of the spec is in force"), "{message}");
    let mut later = service("default", "later", "10.96.0.9", None);
    later.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].port = 8080;
    c.put(later);
    c.run(s(2));
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn a_deleted_service_leaves_the_virtual_ip_held_and_the_others_answering() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![bind("plain", None, false)];
    c.put(vip);
    c.run(s(2));
    c.delete(&ObjectRef::namespaced(Kind::Service, "default", "plain"));
    c.run(s(2));
    assert_eq!(c.condition("web", "Accepted").1, "ServiceNotFound");
    assert_eq!(c.condition("web", "Held").0, "True");
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
}

#[test]
fn an_address_claimed_twice_belongs_to_the_older_object_then_to_the_first_name() {
    let mut c = cluster();
    c.put(virtual_ip("zz-older", &[ADDRESS]));
    c.run(s(2));
    c.put(virtual_ip("aa-younger", &[ADDRESS, "192.168.0.16/24"]));
    c.put(virtual_ip("bb-same-age", &["192.168.0.17/24"]));
    c.put(virtual_ip("cc-same-age", &["192.168.0.17/24"]));
    c.run(s(2));
    assert_eq!(c.condition("zz-older", "Ready").0, "True");
    let (_, reason, message) = c.condition("aa-younger", "Accepted");
    assert_eq!(reason, "AddressConflict");
    assert!(message.contains("spec.addresses[0]") && message.contains("zz-older"), "{message}");
    assert_eq!(c.condition("bb-same-age", "Accepted").0, "True");
    assert_eq!(c.condition("cc-same-age", "Accepted").1, "AddressConflict");
    c.delete_named(Kind::VirtualIP, "zz-older");
    c.run(s(2));
    assert_eq!(c.condition("aa-younger", "Ready").0, "True", "the next in age has it");
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn an_older_virtual_ip_that_asks_for_an_address_takes_it_from_the_younger_one() {
    let mut c = cluster();
    c.put(virtual_ip("older", &["192.168.0.20/24"]));
    c.run(s(2));
    c.put(virtual_ip("younger", &[ADDRESS, "192.168.0.21/24"]));
    c.run(s(2));
    let mut older = c.vip("older").clone();
    older.spec.addresses.push(ADDRESS.to_owned());
    c.put(older);
    c.run(s(2));
    assert_eq!(c.condition("older", "Ready").0, "True");
    assert_eq!(c.condition("younger", "Accepted").1, "AddressConflict");
    assert_eq!(c.has_address("192.168.0.21/24").len(), 1, "the rest of it stays");
    assert_eq!(c.has_address(ADDRESS).len(), 1);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_virtual_ip_deleted_and_made_again_with_a_bad_spec_does_not_inherit_the_old_one() {
    let mut c = cluster();
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(2));
    c.delete_named(Kind::VirtualIP, "web");
    c.put(virtual_ip("web", &["10.96.0.77/24"]));
    c.run(s(2));
    assert_eq!(c.has_address(ADDRESS), Vec::<String>::new());
    assert_eq!(c.condition("web", "Accepted").1, "AddressInUse");
}

#[test]
fn an_address_outside_the_interfaces_subnets_is_held_and_the_summary_warns() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &["192.168.2.10/24"]);
    vip.spec.interface = Some("eth0".into());
    c.put(vip);
    c.run(s(2));
    let (status, reason, message) = c.condition("web", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "AddressNotOnLink"), "{message}");
}

#[test]
fn a_service_answers_on_the_virtual_ip_with_its_ports_and_its_node_ports() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![bind("web", None, true)];
    c.put(vip);
    c.run(s(2));
    let plans = read(&c.slices());
    let web = plans.iter().find(|((_, n, _), _)| n == "web").map(|(_, p)| p).unwrap();
    let on: Vec<(FrontendKind, i32)> = web[0]
        .frontends
        .iter()
        .filter(|f| f.address.as_deref() == Some("192.168.0.15"))
        .map(|f| (f.kind, f.port))
        .collect();
    assert_eq!(on, [(FrontendKind::VirtualIP, 80), (FrontendKind::VirtualIPNodePort, 30080)]);
    c.delete_named(Kind::VirtualIP, "web");
    c.run(s(2));
    let plans = read(&c.slices());
    assert!(plans.values().flatten().flat_map(|p| &p.frontends).all(|f| f.kind != FrontendKind::VirtualIP));
}

#[test]
fn a_virtual_ip_is_programmed_once_its_holder_has_reported_the_publication_of_its_frontends() {
    let mut c = cluster();
    c.agents.get_mut("n1").unwrap().programs = false;
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![bind("web", None, true)];
    c.put(vip);
    c.run(s(2));
    assert_eq!(c.condition("web", "Held").0, "True");
    let (status, reason, message) = c.condition("web", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NotProgrammed"), "{message}");
    c.agents.get_mut("n1").unwrap().programs = true;
    c.run(s(2));
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn an_endpoint_of_a_bound_service_is_one_write_and_leaves_the_virtual_ip_ready() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![bind("web", None, true)];
    c.put(vip);
    c.run(s(2));
    c.agents.get_mut("n1").unwrap().programs = false;
    c.take_writes();
    c.put(endpoints("default", "web", "web-a", &["10.244.1.6".to_owned(), "10.244.1.7".to_owned()]));
    c.settle();
    let writes = c.take_writes();
    assert!(matches!(writes.as_slice(), [Output::PutSlice { .. }]), "{writes:?}");
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn the_address_of_an_api_server_is_refused_whether_configured_or_published() {
    let published = ADDRESS.split_once('/').unwrap().0;
    for configured in [true, false] {
        let mut settings = settings();
        if configured {
            settings.api_servers = vec![published.parse().unwrap()];
        }
        let mut c = Cluster::new(settings);
        c.add_node("n1", "192.168.0.11");
        if !configured {
            c.put(endpoints("default", "kubernetes", "kubernetes", &[published.to_owned()]));
        }
        c.run(s(2));
        c.put(virtual_ip("web", &[ADDRESS]));
        c.run(s(2));
        let (_, reason, message) = c.condition("web", "Accepted");
        assert_eq!(reason, "AddressInUse");
        assert!(message.contains(published) && message.contains("API server"), "{message}");
        assert_eq!(c.active("web"), Vec::<String>::new());
        if !configured {
            c.delete(&ObjectRef::namespaced(Kind::EndpointSlice, "default", "kubernetes"));
            c.run(s(2));
            assert_eq!(c.condition("web", "Ready").0, "True");
        }
    }
}

#[test]
fn an_interface_that_no_node_has_is_refused_although_one_agent_was_never_heard_of() {
    let mut c = cluster();
    c.put(node("n4", "192.168.0.14"));
    c.run(s(1));
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.interface = Some("ens99".into());
    c.put(vip);
    c.run(s(2));
    let (status, reason, message) = c.condition("web", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NoCandidate"), "{message}");
    for word in ["ens99", "eth0", "n4 has not"] {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
    let assigned = (1..=4).filter_map(|i| c.state(&format!("n{i}"))).any(|s| !s.spec.virtual_ips.is_empty());
    assert!(!assigned, "nothing is in force");
}

#[test]
fn a_node_whose_agent_was_never_heard_of_is_no_candidate_beside_others() {
    let mut c = cluster();
    c.put(node("n4", "192.168.0.14"));
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(2));
    assert_eq!(c.condition("web", "Ready").0, "True");
    assert!(c.state("n4").unwrap().spec.virtual_ips.is_empty());
    c.add_agent("n4");
    c.run(s(2));
    assert_eq!(c.state("n4").unwrap().spec.virtual_ips.len(), 1);
}

#[test]
fn a_virtual_ip_waits_for_the_first_report_where_only_agents_know_whether_it_fits() {
    let mut named = virtual_ip("web", &[ADDRESS]);
    named.spec.interface = Some("eth0".into());
    let elsewhere = virtual_ip("web", &["172.16.0.9/24"]);
    for (vip, fits) in [(named, true), (elsewhere, false)] {
        let mut c = Cluster::new(settings());
        for i in 1..=2 {
            c.put(node(&format!("n{i}"), &format!("192.168.0.1{i}")));
        }
        c.put(vip);
        c.run(s(20));
        let (status, reason, message) = c.condition("web", "Accepted");
        assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "Pending"), "{message}");
        assert_eq!(c.condition("web", "Ready").1, "Pending");
        assert!(c.events.is_empty(), "nothing is wrong: {:?}", c.events);
        c.add_agent("n1");
        c.run(s(5));
        let (status, _, message) = c.condition("web", "Accepted");
        assert_eq!(status, if fits { "True" } else { "False" }, "{message}");
        assert_eq!(c.condition("web", "Held").0, if fits { "True" } else { "False" });
    }
}

#[test]
fn a_holder_stays_although_what_it_reported_is_lost() {
    let mut c = cluster();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.interface = Some("eth0".into());
    c.put(vip);
    c.run(s(2));
    assert_eq!(c.active("web"), ["n1"]);
    // Its agent keeps what it has, and does not get round to reporting on the new object.
    let agent = c.agents.get_mut("n1").unwrap();
    (agent.obeys, agent.reports) = (false, false);
    c.delete_named(Kind::NodeNetState, "n1");
    c.run(s(20));
    assert_eq!((c.active("web"), c.has_address(ADDRESS)), (vec!["n1".to_owned()], vec!["n1".to_owned()]));
    let agent = c.agents.get_mut("n1").unwrap();
    (agent.obeys, agent.reports) = (true, true);
    c.run(s(2));
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn nodes_may_have_their_default_route_over_a_virtual_ip_that_is_in_force() {
    let mut c = cluster();
    c.put(virtual_ip("router", &[ADDRESS]));
    c.run(s(3));
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    for node in ["n2", "n3"] {
        c.set_gateways(node, &["192.168.0.15"]);
    }
    c.run(s(3));
    assert_eq!(c.condition("router", "Accepted").0, "True");
    c.restart_operator();
    c.run(s(15));
    assert_eq!(c.condition("router", "Accepted").0, "True");
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
}

#[test]
fn one_agents_word_refuses_no_address_of_a_network_that_its_node_is_not_known_in() {
    let mut c = cluster();
    for node in ["n2", "n3"] {
        c.add_interface_address(node, "172.16.0.2/24");
        c.add_interface_address(node, "172.16.0.8/24");
        c.set_gateways(node, &["172.16.0.9"]);
    }
    c.put(virtual_ip("gateway", &["172.16.0.9/24"]));
    c.put(virtual_ip("bound", &["172.16.0.8/24"]));
    c.run(s(3));
    let accepted = |c: &Cluster| ["gateway", "bound"].map(|name| c.condition(name, "Accepted").0);
    assert_eq!(accepted(&c), ["True", "True"], "two agents may say so");
    // A third one is believed.
    c.add_interface_address("n1", "172.16.0.7/24");
    c.put(virtual_ip("late", &["172.16.0.7/24"]));
    c.run(s(3));
    assert_eq!(c.condition("late", "Accepted").1, "AddressInUse");
    assert_eq!(accepted(&c), ["True", "True"], "what is in force stays");
}
