//! What a Service asks for beyond ports and endpoints, across its life and the operator's.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeSet;

use nodenet_crds::{ANNOTATION_SCHEDULER, PortPlan, TrafficPolicy};
use nodenet_planner::{Change, Index, Kind, ObjectRef, Output, Settings};
use simulation::{Cluster, at, endpoints, s, service};

fn cluster() -> Cluster {
    let mut c = Cluster::new(Settings::default());
    c.add_node("n1", "192.168.0.11");
    c
}

fn put(c: &mut Cluster, name: &str, ip: &str, policy: Option<&str>) {
    let mut object = service("default", name, ip, Some(30_080));
    object.spec.as_mut().unwrap().external_traffic_policy = policy.map(str::to_owned);
    c.put(object);
    c.put(endpoints("default", name, &format!("{name}-a"), &["10.244.1.5".to_owned()]));
}

fn port(c: &Cluster, name: &str) -> PortPlan {
    let slices = c.slices();
    let mut plans = slices.iter().flat_map(|slice| &slice.spec.services);
    plans.find(|plan| plan.name == name).unwrap().ports[0].clone()
}

#[test]
fn the_number_of_a_local_port_outlives_the_operator() {
    let mut c = cluster();
    put(&mut c, "other", "10.96.0.9", Some("Local"));
    put(&mut c, "web", "10.96.0.1", Some("Local"));
    c.run(s(5));
    let before = port(&c, "web");
    assert_eq!(before.external_traffic_policy, TrafficPolicy::Local);
    assert!(before.inside_number.is_some() && before.inside_number != port(&c, "other").inside_number);

    c.delete(&ObjectRef::namespaced(Kind::Service, "default", "other"));
    c.run(s(5));
    c.take_writes();
    c.restart_operator();
    c.run(s(5));
    assert_eq!(c.take_writes(), Vec::<Output>::new(), "a restart writes nothing");
    put(&mut c, "third", "10.96.0.3", Some("Local"));
    c.run(s(5));
    assert_eq!(port(&c, "web"), before);
    assert!(port(&c, "third").inside_number > before.inside_number);

    put(&mut c, "web", "10.96.0.1", None);
    c.run(s(5));
    assert_eq!(port(&c, "web").inside_number, None);
}

#[test]
fn an_annotation_that_makes_no_sense_is_told_once_and_changes_nothing() {
    let mut c = cluster();
    put(&mut c, "web", "10.96.0.1", None);
    c.run(s(5));
    let before = port(&c, "web");
    let mut object = service("default", "web", "10.96.0.1", Some(30_080));
    let annotations = [(ANNOTATION_SCHEDULER.to_owned(), "fastest".to_owned())];
    object.metadata.annotations = Some(annotations.into());
    c.put(object);
    c.run(s(60));
    let told: Vec<_> = c.events.iter().filter(|event| event.reason == "AnnotationIgnored").collect();
    assert_eq!(told.len(), 1, "{:?}", c.events);
    assert_eq!(told[0].regarding, ObjectRef::namespaced(Kind::Service, "default", "web"));
    assert!(told[0].note.contains("fastest") && told[0].note.contains("wlc"), "{}", told[0].note);
    assert_eq!(port(&c, "web"), before);
}

#[test]
fn a_new_leader_says_of_what_it_finds_that_it_may_have_been_told() {
    let mut c = cluster();
    let wrong = |name: &str, ip: &str| {
        let mut object = service("default", name, ip, None);
        object.metadata.annotations = Some([(ANNOTATION_SCHEDULER.to_owned(), "fastest".to_owned())].into());
        object
    };
    c.run(s(1));
    c.put(wrong("web", "10.96.0.1"));
    c.run(s(5));
    c.restart_operator();
    c.run(s(5));
    c.put(wrong("late", "10.96.0.2"));
    c.run(s(5));
    let told: Vec<_> = c.events.iter().map(|event| (event.regarding.name.as_str(), event.again)).collect();
    assert_eq!(told, [("web", false), ("web", true), ("late", false)]);
}

#[test]
fn while_a_slice_cannot_be_read_no_number_in_it_is_given_to_another_port() {
    let mut c = cluster();
    put(&mut c, "web", "10.96.0.1", Some("Local"));
    c.run(s(5));
    let hidden = c.slices()[0].clone();
    let number = port(&c, "web").inside_number;
    assert!(number.is_some());
    put(&mut c, "other", "10.96.0.9", Some("Local"));
    let now = at(c.now);
    let mut index = Index::new(Settings::default());
    let mut keys = BTreeSet::new();
    let reference = ObjectRef::cluster(Kind::NodeNetSlice, hidden.metadata.name.clone().unwrap());
    for kind in Kind::ALL {
        for object in c.objects.values().filter(|o| o.kind() == kind && o.object_ref() != reference) {
            keys.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        if kind == Kind::NodeNetSlice {
            let object = reference.clone();
            index.apply(Change::Undecodable { object, service: None, error: "garbage".into() }, &now);
        }
        keys.extend(index.apply(Change::Synced(kind), &now));
    }
    keys.extend(index.lead(&now));
    let numbers = |outputs: Vec<Output>| -> Vec<(String, Option<i32>)> {
        let puts = outputs.into_iter().filter_map(|output| match output {
            Output::PutSlice { spec, .. } => Some(spec.services),
            _ => None,
        });
        puts.flatten().map(|plan| (plan.name, plan.ports[0].inside_number)).collect()
    };
    let planned = numbers(index.plan(&keys, &now));
    assert_eq!(planned, [("other".to_owned(), None), ("web".to_owned(), None)]);
    // It can be read at last.
    let keys = index.apply(Change::Upsert(hidden.into()), &now);
    index.plan(&keys, &now);
    let failed = |name: &str| Change::WriteFailed(ObjectRef::cluster(Kind::NodeNetSlice, name));
    let keys: BTreeSet<_> =
        ["nodenet-0000", "nodenet-0001"].iter().flat_map(|name| index.apply(failed(name), &now)).collect();
    let planned = numbers(index.plan(&keys, &now));
    let of =
        |name: &str| planned.iter().filter(|(n, _)| n == name).map(|(_, number)| *number).collect::<Vec<_>>();
    assert!(of("web").iter().all(|n| *n == number), "{planned:?}");
    assert!(of("other").iter().all(|n| n.is_some() && *n != number), "{planned:?}");
    assert!(!of("other").is_empty());
}
