//! Nothing is written, least of all removed, before the input that it needs is complete. Absent is not empty.
// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Taint;
use nodenet_crds::{FrontendKind, ServiceBinding, conditions};
use nodenet_planner::{Change, Kind, Object, ObjectRef, Output, Settings};
use simulation::{Cluster, at, endpoints, node, read, s, service, virtual_ip, without};

const ADDRESS: &str = "192.168.0.15/24";

/// Three nodes, two Services, one virtual IP for the first of them; all published.
fn published() -> Cluster {
    let mut c = Cluster::new(Settings::default());
    for i in 1..=3 {
        c.add_node(&format!("n{i}"), &format!("192.168.0.{}", 10 + i));
    }
    for (i, name) in ["web", "db"].into_iter().enumerate() {
        c.put(service("default", name, &format!("10.96.0.{}", i + 1), Some(30080 + i as i32)));
        c.put(endpoints("default", name, &format!("{name}-a"), &["10.244.1.5".to_owned()]));
    }
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.services = vec![ServiceBinding {
        namespace: "default".into(),
        name: "web".into(),
        ports: None,
        node_ports: true,
    }];
    c.put(vip);
    c.run(s(5));
    assert_eq!(c.condition("web", "Ready").0, "True");
    c.take_writes();
    c
}

fn about_slices(output: &Output) -> bool {
    matches!(output, Output::PutSlice { .. } | Output::DeleteSlice { .. } | Output::ReleaseSlice { .. })
}

#[test]
fn no_slice_is_written_until_services_endpoints_nodes_and_slices_are_listed() {
    let c = published();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::NodeNetSlice] {
        let (mut index, keys) = without(&c, kind);
        let outputs = index.plan(&keys, &at(c.now));
        assert!(!outputs.iter().any(about_slices), "without {kind}: {outputs:?}");
        assert!(index.incomplete().contains(&kind));
    }
}

#[test]
fn what_was_withheld_comes_back_when_the_list_ends_and_then_nothing_is_to_do() {
    let c = published();
    for kind in Kind::ALL {
        let (mut index, keys) = without(&c, kind);
        let now = at(c.now);
        assert_eq!(index.plan(&keys, &now), Vec::new(), "without {kind}");
        let mut again = BTreeSet::new();
        for object in c.objects.values().filter(|o| o.kind() == kind) {
            again.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        again.extend(index.apply(Change::Synced(kind), &now));
        assert_eq!(index.plan(&again, &now), Vec::new(), "{kind} listed at last, all is right already");
        assert!(index.incomplete().is_empty());
    }
}

#[test]
fn no_state_is_written_or_deleted_until_nodes_and_states_are_listed() {
    let c = published();
    for kind in [Kind::Node, Kind::NodeNetState] {
        let (mut index, keys) = without(&c, kind);
        let outputs = index.plan(&keys, &at(c.now));
        let about = |o: &&Output| matches!(o, Output::PutState { .. } | Output::DeleteState { .. });
        assert_eq!(outputs.iter().find(about), None, "without {kind}");
    }
}

#[test]
fn a_lost_watch_of_services_withholds_slices_until_it_is_back() {
    let mut c = published();
    c.send(Change::Lost(Kind::Service));
    c.put(endpoints("default", "web", "web-a", &["10.244.1.6".to_owned()]));
    c.settle();
    assert_eq!(c.take_writes(), Vec::new());
    c.relist();
    c.settle();
    assert_eq!(c.take_writes().iter().filter(|o| about_slices(o)).count(), 1);
}

#[test]
fn a_list_that_begins_anew_removes_nothing_before_it_ends() {
    let mut c = published();
    let web = c.objects[&ObjectRef::namespaced(Kind::Service, "default", "web")].clone();
    c.send(Change::Listing(Kind::Service));
    c.settle();
    c.send(Change::Upsert(web));
    c.settle();
    assert_eq!(c.take_writes(), Vec::new(), "db is absent so far, which is not gone");
    assert_eq!(read(&c.slices()).len(), 2);
    c.send(Change::Synced(Kind::Service));
    c.settle();
    assert_eq!(read(&c.slices()).len(), 1, "now it is known to be gone");
}

#[test]
fn virtual_ips_that_cannot_be_read_do_not_freeze_services_nor_lose_frontends() {
    let mut c = published();
    c.put(endpoints("default", "web", "web-a", &["10.244.1.7".to_owned()]));
    let (mut index, keys) = without(&c, Kind::VirtualIP);
    let outputs = index.plan(&keys, &at(c.now));
    let [Output::PutSlice { spec, .. }] = outputs.as_slice() else { panic!("{outputs:?}") };
    let web = spec.services.iter().find(|p| p.name == "web").unwrap();
    assert_eq!(web.ports[0].endpoints[0].address, "10.244.1.7");
    let kinds: Vec<FrontendKind> = web.ports[0].frontends.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FrontendKind::VirtualIP) && kinds.contains(&FrontendKind::VirtualIPNodePort));
}

#[test]
fn a_new_node_gets_its_state_although_virtual_ips_cannot_be_read() {
    let mut c = published();
    c.send(Change::Lost(Kind::VirtualIP));
    c.put(node("n4", "192.168.0.14"));
    c.settle();
    let writes = c.take_writes();
    assert!(matches!(writes.as_slice(), [Output::PutState { node, .. }] if node == "n4"), "{writes:?}");
    assert_eq!(c.active("web"), ["n1"], "what was assigned stays");
}

#[test]
fn while_leases_cannot_be_read_nothing_moves() {
    let mut c = published();
    c.send(Change::Lost(Kind::Lease));
    c.kill("n1");
    for _ in 0..30 {
        c.now += s(1);
        c.settle();
    }
    assert_eq!(c.active("web"), ["n1"]);
}

#[test]
fn an_undecodable_service_keeps_its_plan_and_the_others_go_on_across_a_restart_too() {
    let mut c = published();
    let before = read(&c.slices());
    let web = ObjectRef::namespaced(Kind::Service, "default", "web");
    let undecodable = |service| Change::Undecodable {
        object: web.clone(),
        service,
        error: "spec.ports: not a list".into(),
    };
    c.send(undecodable(None));
    c.settle();
    assert_eq!(c.take_writes(), Vec::new());

    let (mut index, mut keys) = without(&c, Kind::Service);
    let now = at(c.now);
    for object in c.objects.values().filter(|o| o.kind() == Kind::Service && o.object_ref() != web) {
        keys.extend(index.apply(Change::Upsert(object.clone()), &now));
    }
    keys.extend(index.apply(undecodable(None), &now));
    keys.extend(index.apply(Change::Synced(Kind::Service), &now));
    let outputs = index.plan(&keys, &now);
    assert!(!outputs.iter().any(about_slices), "{outputs:?}");

    let change = Change::Upsert(endpoints("default", "db", "db-a", &["10.244.1.9".to_owned()]).into());
    let keys = index.apply(change, &now);
    let outputs = index.plan(&keys, &now);
    let [Output::PutSlice { spec, .. }] = outputs.as_slice() else { panic!("{outputs:?}") };
    let web = spec.services.iter().find(|p| p.name == "web").unwrap();
    assert_eq!(Some(&web.ports), before.iter().find(|((_, n, _), _)| n == "web").map(|(_, p)| p));
}

#[test]
fn an_undecodable_endpoint_slice_freezes_its_own_service_only() {
    let c = published();
    let now = at(c.now);
    let web = ObjectRef::namespaced(Kind::EndpointSlice, "default", "web-a");
    for service in [Some("web".to_owned()), None] {
        let (mut index, mut keys) = without(&c, Kind::EndpointSlice);
        for object in c.objects.values().filter(|o| o.kind() == Kind::EndpointSlice && o.object_ref() != web)
        {
            keys.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        let error = "endpoints: not a list".to_owned();
        keys.extend(
            index.apply(Change::Undecodable { object: web.clone(), service: service.clone(), error }, &now),
        );
        keys.extend(index.apply(Change::Synced(Kind::EndpointSlice), &now));
        assert_eq!(index.plan(&keys, &now), Vec::new(), "service {service:?}");
        let keys = index.apply(Change::Upsert(c.objects[&web].clone()), &now);
        assert_eq!(index.plan(&keys, &now), Vec::new(), "decoded at last, as published");
    }
}

#[test]
fn an_undecodable_virtual_ip_stays_where_it_is_and_says_why_across_a_restart_too() {
    let mut c = published();
    let name = ObjectRef::cluster(Kind::VirtualIP, "web");
    let undecodable = Change::Undecodable {
        object: name.clone(),
        service: None,
        error: "spec.addresses: not a list".into(),
    };
    let only_says_why = |outputs: &[Output]| {
        let mut said = false;
        for output in outputs {
            match output {
                Output::VirtualIPStatus { status, .. } => {
                    let c = conditions::get(&status.conditions, "Accepted").unwrap();
                    assert_eq!((c.status.as_str(), c.reason.as_str()), ("False", "Invalid"));
                    assert!(c.message.contains("spec.addresses: not a list"), "{}", c.message);
                    said = true;
                }
                Output::Event(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(said);
    };
    let now = at(c.now);
    let keys = c.index.apply(undecodable.clone(), &now);
    only_says_why(&c.index.plan(&keys, &now));

    let (mut index, mut keys) = without(&c, Kind::VirtualIP);
    keys.extend(index.apply(undecodable, &now));
    keys.extend(index.apply(Change::Synced(Kind::VirtualIP), &now));
    only_says_why(&index.plan(&keys, &now));
}

#[test]
fn a_node_that_cannot_be_decoded_keeps_its_state() {
    let c = published();
    let (mut index, mut keys) = without(&c, Kind::Node);
    let now = at(c.now);
    for object in c.objects.values().filter(|o| o.kind() == Kind::Node && o.object_ref().name != "n3") {
        keys.extend(index.apply(Change::Upsert(object.clone()), &now));
    }
    let object = ObjectRef::cluster(Kind::Node, "n3");
    keys.extend(index.apply(Change::Undecodable { object, service: None, error: "?".into() }, &now));
    keys.extend(index.apply(Change::Synced(Kind::Node), &now));
    let outputs = index.plan(&keys, &now);
    let gone = |o: &&Output| matches!(o, Output::DeleteState { .. });
    assert_eq!(outputs.iter().find(gone), None);
}

#[test]
fn a_virtual_ip_deleted_while_no_operator_ran_is_withdrawn_by_the_next_one() {
    let mut c = published();
    c.operator = false;
    c.delete_named(Kind::VirtualIP, "web");
    c.restart_operator();
    c.run(s(2));
    assert_eq!(c.has_address(ADDRESS), Vec::<String>::new());
    let frontends = |c: &Cluster| {
        let all = read(&c.slices()).into_values().flatten().flat_map(|p| p.frontends);
        all.filter(|f| f.kind == FrontendKind::VirtualIP).count()
    };
    assert_eq!(frontends(&c), 0);
    let states = c.objects.values().filter(|o| matches!(o, Object::NodeNetState(_)));
    assert_eq!(states.count(), 3);
}

#[test]
fn what_an_older_definition_cuts_off_a_state_is_not_written_again_and_again() {
    let mut c = published();
    c.cut_off = |spec| spec.being_deleted = false;
    let taint = |cluster: &mut Cluster, key: &str| {
        cluster.set_node("n1", |node| {
            let taint = Taint { key: key.to_owned(), ..Taint::default() };
            node.spec.as_mut().unwrap().taints = Some(vec![taint]);
        });
    };
    let states = |cluster: &mut Cluster| -> usize {
        let writes = cluster.take_writes();
        writes.iter().filter(|output| matches!(output, Output::PutState { .. })).count()
    };
    taint(&mut c, "ToBeDeletedByClusterAutoscaler");
    c.run(s(5));
    assert_eq!(states(&mut c), 1, "the same would be cut again");
    // Another hand is put right, what the definition keeps is written, and a new process tries once.
    let mut state = c.state("n1").unwrap().clone();
    state.spec.zone = Some("elsewhere".to_owned());
    c.put(state);
    c.run(s(5));
    assert_eq!((states(&mut c), c.state("n1").unwrap().spec.zone.clone()), (1, None));
    c.set_node("n1", |node| {
        let zone = ("topology.kubernetes.io/zone".to_owned(), "a".to_owned());
        node.metadata.labels.get_or_insert_default().extend([zone]);
    });
    c.run(s(5));
    assert_eq!((states(&mut c), c.state("n1").unwrap().spec.zone.as_deref()), (1, Some("a")));
    c.restart_operator();
    c.run(s(5));
    assert_eq!(states(&mut c), 1);
    // The definition is the newer one now.
    c.cut_off = |_| {};
    taint(&mut c, "none");
    c.run(s(5));
    assert_eq!(states(&mut c), 0, "what is published is what is wanted");
    taint(&mut c, "ToBeDeletedByClusterAutoscaler");
    c.run(s(5));
    assert!(states(&mut c) == 1 && c.state("n1").unwrap().spec.being_deleted);
}
