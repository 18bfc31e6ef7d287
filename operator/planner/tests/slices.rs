//! The slices: what a reader of them finds at each moment, and what a change costs.
// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nodenet_crds::{LABEL_HEADLESS, NodeNetSlice};
use nodenet_planner::{Change, Index, Kind, Object, ObjectRef, Output, Settings};
use proptest::prelude::*;
use simulation::{Cluster, Reader, at, endpoints, read, s, service, slices_in};

fn ips(service: u32, count: u32) -> Vec<String> {
    (0..count).map(|i| format!("10.{}.{}.{}", 1 + service % 200, i / 250, 1 + i % 250)).collect()
}

fn put_service(c: &mut Cluster, number: u32, endpoint_count: u32) {
    let name = format!("svc-{number}");
    c.put(service("default", &name, &format!("10.96.{}.{}", number / 250, 1 + number % 250), None));
    c.put(endpoints("default", &name, &format!("{name}-a"), &ips(number, endpoint_count)));
}

fn puts(writes: &[Output]) -> Vec<&str> {
    let all = writes.iter().filter_map(|w| match w {
        Output::PutSlice { name, .. } => Some(name.as_str()),
        _ => None,
    });
    all.collect()
}

/// What a fresh operator without any slice would publish for the same objects.
fn fresh(c: &Cluster) -> Reader {
    let mut other = Cluster::new(c.index.settings().clone());
    for (name, object) in &c.objects {
        if name.kind != Kind::NodeNetSlice {
            other.put(object.clone());
        }
    }
    other.settle();
    read(&other.slices())
}

#[test]
fn one_endpoint_change_is_one_slice_write_whatever_the_number_of_services() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..1000 {
        put_service(&mut c, i, 3);
    }
    c.settle();
    let first = c.take_writes();
    assert_eq!(puts(&first).len(), c.slices().len(), "the first sync writes each slice once");
    for i in [0, 17, 999] {
        let name = format!("svc-{i}");
        c.put(endpoints("default", &name, &format!("{name}-a"), &ips(i, 4)));
        c.settle();
        let writes = c.take_writes();
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert_eq!(puts(&writes).len(), 1);
    }
}

#[test]
fn slices_stay_about_the_size_that_is_asked_for() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..400 {
        put_service(&mut c, i, 1 + i % 20);
    }
    c.settle();
    let sizes: Vec<usize> =
        c.slices().iter().map(|s| serde_json::to_string(&s.spec).unwrap().len()).collect();
    assert!(sizes.iter().all(|s| *s <= 9000), "{sizes:?}");
    let total: usize = sizes.iter().sum();
    assert!(total / sizes.len() > 5000, "slices are filled: {sizes:?}");
}

#[test]
fn a_service_stays_in_its_slice_while_it_fits() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..50 {
        put_service(&mut c, i, 3);
    }
    c.settle();
    let place = |c: &Cluster, name: &str| {
        let at = c.slices().into_iter().find(|s| s.spec.services.iter().any(|p| p.name == name));
        at.and_then(|s| s.metadata.name.clone())
    };
    let before: BTreeMap<u32, _> = (0..50).map(|i| (i, place(&c, &format!("svc-{i}")))).collect();
    for i in 0..50 {
        let name = format!("svc-{i}");
        c.put(endpoints("default", &name, &format!("{name}-a"), &ips(i, 2)));
    }
    c.settle();
    for i in 0..50 {
        assert_eq!(place(&c, &format!("svc-{i}")), before[&i]);
    }
}

#[test]
fn a_service_that_outgrows_its_slice_is_written_to_its_new_place_first() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..20 {
        put_service(&mut c, i, 3);
    }
    c.settle();
    c.take_writes();
    watch_plans(&mut c);
    c.put(endpoints("default", "svc-3", "svc-3-a", &ips(3, 140)));
    c.settle();
    let writes = c.take_writes();
    assert_eq!(puts(&writes).len(), 2, "the new place, then the old one");
    assert_eq!(read(&c.slices()), fresh(&c));
}

#[test]
fn a_service_larger_than_one_object_stands_in_parts_of_one_revision() {
    let mut c = Cluster::new(Settings::default());
    watch_plans(&mut c);
    put_service(&mut c, 1, 2500);
    c.settle();
    let parts: Vec<_> = c.slices().iter().flat_map(|s| s.spec.services.clone()).collect();
    assert!(parts.len() >= 3 && parts.iter().all(|p| p.parts as usize == parts.len()), "{}", parts.len());
    assert!(parts.iter().flat_map(|p| &p.ports).all(|p| p.endpoints.len() <= 1000));
    assert_eq!(parts.iter().map(|p| p.revision).collect::<BTreeSet<_>>().len(), 1);
    c.put(endpoints("default", "svc-1", "svc-1-a", &ips(1, 2499)));
    c.settle();
    assert_eq!(read(&c.slices()), fresh(&c));
    let all: Vec<_> = c.slices().iter().flat_map(|s| s.spec.services.clone()).collect();
    assert_eq!(all.iter().map(|p| p.revision).collect::<BTreeSet<_>>().len(), 1, "the old plan has left");
}

#[test]
fn one_endpoint_change_of_a_large_service_is_one_write_of_one_part() {
    let mut c = Cluster::new(Settings::default());
    put_service(&mut c, 1, 5000);
    put_service(&mut c, 2, 20);
    c.settle();
    c.take_writes();
    watch_plans(&mut c);
    let mut addresses = ips(1, 5000);
    for round in 0..20 {
        addresses[round * 200] = format!("10.9.0.{round}");
        if round % 3 == 0 {
            addresses.pop();
        }
        c.put(endpoints("default", "svc-1", "svc-1-a", &addresses));
        c.settle();
        let writes = c.take_writes();
        let changed = if round % 3 == 0 { 2 } else { 1 };
        assert!(writes.len() <= changed, "round {round}: {}", writes.len());
        for write in &writes {
            let Output::PutSlice { spec, .. } = write else { panic!("{write:?}") };
            assert!(serde_json::to_string(spec).unwrap().len() < 20_000);
        }
    }
    assert_eq!(read(&c.slices()), fresh(&c));
    c.restart_operator();
    c.settle();
    assert_eq!(c.take_writes(), Vec::<Output>::new());
}

#[test]
fn a_rolling_update_writes_each_slice_at_most_once_a_window() {
    for (size, per_window) in [(250, 10), (5000, 25)] {
        let mut c = Cluster::new(Settings::default());
        put_service(&mut c, 1, size);
        c.settle();
        c.take_writes();
        watch_plans(&mut c);
        let mut addresses = ips(1, size);
        let (slices, mut written, mut windows) = (c.slices().len(), 0, 0);
        // New pods first, then as many old ones go, as a Deployment does it.
        for first in (0..250).step_by(per_window) {
            let new: Vec<String> =
                (first..first + per_window).map(|i| format!("10.9.{}.{}", i / 250, 1 + i % 250)).collect();
            for surge in [true, false] {
                if surge {
                    addresses.extend(new.clone());
                } else {
                    addresses.drain(..per_window);
                }
                c.put(endpoints("default", "svc-1", "svc-1-a", &addresses));
                c.settle();
                let writes = c.take_writes();
                let names = puts(&writes);
                assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "twice: {names:?}");
                assert_eq!(names.len(), writes.len(), "nothing moves: {writes:?}");
                written += writes.len();
                windows += 1;
            }
        }
        assert!(written <= windows * slices);
        println!("{size} endpoints in {slices} slices: {written} writes in {windows} windows");
        assert_eq!(read(&c.slices()), fresh(&c));
    }
}

/// What readers of a large Service must find, whatever was written of it so far.
#[derive(Debug, Default)]
struct Between {
    /// Addresses that served at each time since all was written.
    served: Vec<BTreeSet<String>>,
    /// Affinity at each of these times.
    affinity: Vec<Option<i32>>,
    /// At some of these times all had weight 0.
    all_rested: bool,
}

/// Endpoints of a Service of two colours, each on a node of its own; `rests` is the one that has weight 0.
fn of_two_colours(addresses: &[String], rests: Option<&str>) -> (Service, EndpointSlice) {
    let mut slice = endpoints("default", "svc-1", "svc-1-a", addresses);
    for endpoint in &mut slice.endpoints {
        endpoint.node_name = Some(colour(&endpoint.addresses[0]).to_owned());
    }
    let mut object = service("default", "svc-1", "10.96.0.2", None);
    object.metadata.annotations =
        rests.map(|rests| [("nodenet.dev/endpoint-weights".to_owned(), format!("{rests}=0"))].into());
    (object, slice)
}

/// Those of one colour are neighbours, and so in the same parts.
fn colour(address: &str) -> &'static str {
    if address.split('.').nth(2) == Some("0") { "blue" } else { "green" }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Endpoints come and go, in a rolling update or all at once, and other things change: writes fail, and a reader who
    /// looks after each of them has all endpoints that stay, none that was at no time, some if there were always some
    /// (and some that take connections, if these were always there), and never parts of two layouts.
    #[test]
    fn a_reader_of_a_large_service_never_has_a_mixture(
        changes in prop::collection::vec((0..400_usize, 0..400_usize, 0..10_u32), 1..25),
        failures in 0..40_u32,
    ) {
        let mut c = Cluster::new(small());
        let mut seed = 7_u32;
        let fails = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % 100 < failures
        };
        put_service(&mut c, 1, 600);
        put_service(&mut c, 2, 10);
        c.settle();
        c.fail = Box::new(fails);
        let between: Rc<RefCell<Between>> = Rc::default();
        let shared = Rc::clone(&between);
        c.invariant = Some(Box::new(move |objects: &BTreeMap<ObjectRef, Object>| {
            let between = shared.borrow();
            if between.served.is_empty() {
                return;
            }
            let plans = read(&slices_in(objects));
            let (_, ports) = plans.iter().find(|((_, name, _), _)| name == "svc-1").unwrap();
            assert_eq!(ports.len(), 1, "parts of one layout say the same of a port");
            assert!(between.affinity.contains(&ports[0].persistence_seconds));
            let all: Vec<String> = ports[0].endpoints.iter().map(|e| e.address.clone()).collect();
            let has: BTreeSet<String> = all.iter().cloned().collect();
            assert_eq!(all.len(), has.len(), "each endpoint stands in one part");
            let mut stay = between.served[0].clone();
            stay.retain(|address| between.served.iter().all(|at| at.contains(address)));
            assert!(has.is_superset(&stay), "lacks {:?}", stay.difference(&has));
            let never = |address: &&String| !between.served.iter().any(|at| at.contains(*address));
            assert_eq!(has.iter().find(never), None);
            assert!(!has.is_empty(), "there were always some");
            let serves = ports[0].endpoints.iter().any(|endpoint| endpoint.weight != Some(0));
            assert!(serves || between.all_rested, "some always took connections");
        }));
        let mut addresses: Vec<String> = ips(1, 600);
        let mut affinity = None;
        let mut rests: Option<&str> = None;
        let note = |addresses: &[String], affinity: Option<i32>, rests: Option<&str>| {
            let mut between = between.borrow_mut();
            between.all_rested |= addresses.iter().all(|address| rests == Some(colour(address)));
            between.served.push(addresses.iter().cloned().collect());
            between.affinity.push(affinity);
        };
        note(&addresses, affinity, rests);
        for (number, (from, count, what)) in changes.into_iter().enumerate() {
            let new = |i: usize| format!("10.{}.{}.{}", 20 + number, i / 250, 1 + i % 250);
            match what {
                0 => addresses = (0..600).map(new).collect(),
                1 => affinity = if affinity.is_none() { Some(10_800) } else { None },
                2 if addresses.len() < 100 => addresses.extend((0..9).map(new)),
                2 => drop(addresses.drain(from.min(addresses.len())..(from + 40).min(addresses.len()))),
                3 => addresses.extend((0..30).map(new)),
                4 | 5 => rests = if rests == Some("blue") { Some("green") } else { Some("blue") },
                _ => {
                    for (i, address) in addresses.iter_mut().enumerate().skip(from).take(count % 30) {
                        *address = new(i);
                    }
                }
            }
            note(&addresses, affinity, rests);
            let (mut object, slice) = of_two_colours(&addresses, rests);
            object.spec.as_mut().unwrap().session_affinity = affinity.map(|_| "ClientIP".to_owned());
            c.put(object);
            c.put(slice);
            if count % 3 == 0 {
                c.settle();
                // All was written: what was before is over.
                *between.borrow_mut() = Between::default();
                note(&addresses, affinity, rests);
            } else {
                // Only the first writes of it arrive before the next change.
                c.plan_once();
            }
        }
        c.settle();
        prop_assert_eq!(read(&c.slices()), fresh(&c));
    }
}

#[test]
fn deleting_all_slices_costs_no_reader_a_plan() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..200 {
        put_service(&mut c, i, 5);
    }
    c.settle();
    let before = read(&c.slices());
    watch_plans(&mut c);
    let names: Vec<String> = c.slices().iter().filter_map(|s| s.metadata.name.clone()).collect();
    for name in &names {
        c.delete_named(Kind::NodeNetSlice, name);
    }
    c.settle();
    assert_eq!(read(&c.slices()), before);
    let now: Vec<String> = c.slices().iter().filter_map(|s| s.metadata.name.clone()).collect();
    assert!(now.iter().all(|n| !names.contains(n)), "no name of a terminating slice is used again: {now:?}");
    assert!(c.slices().iter().all(|s| s.metadata.deletion_timestamp.is_none()));
}

#[test]
fn slices_deleted_while_no_operator_ran_come_back_with_nothing_lost() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..50 {
        put_service(&mut c, i, 5);
    }
    c.settle();
    let before = read(&c.slices());
    c.operator = false;
    let names: Vec<String> = c.slices().iter().filter_map(|s| s.metadata.name.clone()).collect();
    for name in &names {
        c.delete_named(Kind::NodeNetSlice, name);
    }
    watch_plans(&mut c);
    c.restart_operator();
    c.settle();
    assert_eq!(read(&c.slices()), before);
}

#[test]
fn a_slice_that_another_hand_emptied_or_changed_is_put_right() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..20 {
        put_service(&mut c, i, 5);
    }
    c.settle();
    let before = read(&c.slices());
    let mut slice: NodeNetSlice = c.slices()[0].clone();
    slice.spec.services.clear();
    slice.spec.revision = i64::MAX;
    c.put(slice);
    c.settle();
    assert_eq!(read(&c.slices()), before);
    assert!(c.slices()[0].spec.revision < 1 << 40, "a damaged counter is not continued");
    let name = c.slices()[0].metadata.name.clone().unwrap();
    c.objects.remove(&ObjectRef::cluster(Kind::NodeNetSlice, &*name));
    c.send(Change::Delete(ObjectRef::cluster(Kind::NodeNetSlice, name)));
    c.settle();
    assert_eq!(read(&c.slices()), before);
}

#[test]
fn a_slice_that_nobody_needs_is_deleted() {
    let mut c = Cluster::new(Settings::default());
    put_service(&mut c, 1, 5);
    c.settle();
    assert_eq!(c.slices().len(), 1);
    c.delete(&ObjectRef::namespaced(Kind::Service, "default", "svc-1"));
    c.settle();
    assert_eq!(c.slices().len(), 0);
}

#[test]
fn a_restarted_operator_writes_no_slice_and_continues_the_revisions() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..100 {
        put_service(&mut c, i, 5);
    }
    put_service(&mut c, 100, 2500);
    c.settle();
    c.take_writes();
    let highest = c.slices().iter().map(|s| s.spec.revision).max();
    c.restart_operator();
    c.settle();
    assert_eq!(c.take_writes(), Vec::<Output>::new());
    c.put(endpoints("default", "svc-5", "svc-5-a", &ips(5, 6)));
    c.settle();
    assert!(c.slices().iter().map(|s| s.spec.revision).max() > highest);
}

#[test]
fn a_follower_writes_nothing_and_takes_over_without_a_write() {
    let mut c = Cluster::new(Settings::default());
    let mut follower = Index::new(Settings::default());
    for kind in Kind::ALL {
        follower.apply(Change::Synced(kind), &at(s(0)));
    }
    for i in 0..50 {
        put_service(&mut c, i, 5);
    }
    c.settle();
    for object in c.objects.values() {
        let keys = follower.apply(Change::Upsert(object.clone()), &at(s(0)));
        assert!(keys.is_empty());
        assert!(follower.plan(&keys, &at(s(0))).is_empty());
    }
    let keys = follower.lead(&at(s(1)));
    assert_eq!(follower.plan(&keys, &at(s(1))), Vec::<Output>::new());
}

#[test]
fn the_plans_of_a_slice_that_was_never_read_are_outdone_by_what_is_written_elsewhere() {
    let mut c = Cluster::new(Settings::default());
    for i in 0..50 {
        put_service(&mut c, i, 5);
    }
    c.settle();
    // The highest revisions by far stand where this operator cannot read them.
    for round in 0..100 {
        put_service(&mut c, 7, 6 + round % 2);
        c.settle();
    }
    let hidden = c.slices().into_iter().max_by_key(|s| s.spec.revision).unwrap().clone();
    let name = hidden.metadata.name.clone().unwrap();
    let now = at(c.now);
    let mut index = Index::new(Settings::default());
    for kind in Kind::ALL {
        for object in c.objects.values().filter(|o| o.kind() == kind) {
            let change = match object.object_ref() {
                object if object == ObjectRef::cluster(Kind::NodeNetSlice, &*name) => {
                    Change::Undecodable { object, service: None, error: "garbage".into() }
                }
                _ => Change::Upsert(object.clone()),
            };
            index.apply(change, &now);
        }
        index.apply(Change::Synced(kind), &now);
    }
    let keys = index.lead(&now);
    let writes = index.plan(&keys, &now);
    assert!(!puts(&writes).is_empty() && !puts(&writes).contains(&&*name));
    let mut again = BTreeSet::new();
    for write in &writes {
        let Output::PutSlice { spec, .. } = write else { continue };
        assert!(spec.revision > hidden.spec.revision);
        for plan in &spec.services {
            let lost = hidden.spec.services.iter().find(|p| p.name == plan.name);
            if let Some(lost) = lost {
                assert!(plan.revision > lost.revision, "{plan:?}");
                again.insert(&plan.name);
            }
        }
    }
    assert_eq!(again.len(), hidden.spec.services.len());
}

#[test]
fn the_headless_label_takes_a_service_away_and_gives_it_back_live() {
    let mut c = Cluster::new(Settings::default());
    put_service(&mut c, 1, 5);
    put_service(&mut c, 2, 5);
    c.settle();
    let before = read(&c.slices());
    let mut labelled = service("default", "svc-1", "10.96.0.2", None);
    labelled.metadata.labels = Some(BTreeMap::from([(LABEL_HEADLESS.to_owned(), String::new())]));
    c.put(labelled);
    c.settle();
    assert_eq!(read(&c.slices()).len(), 1);
    c.put(service("default", "svc-1", "10.96.0.2", None));
    c.settle();
    assert_eq!(read(&c.slices()), before);
}

#[test]
fn a_service_deleted_and_made_again_gets_a_plan_under_its_new_uid() {
    let mut c = Cluster::new(Settings::default());
    put_service(&mut c, 1, 5);
    put_service(&mut c, 2, 5);
    c.settle();
    let old = read(&c.slices());
    c.delete(&ObjectRef::namespaced(Kind::Service, "default", "svc-1"));
    c.put(service("default", "svc-1", "10.96.0.2", None));
    c.settle();
    let new = read(&c.slices());
    assert_eq!(new.len(), 2);
    assert_ne!(new.keys().next(), old.keys().next());
}

/// From now on a Service that exists and had a complete plan has one after every single write, if only that of a Service
/// of the same name which was there before.
fn watch_plans(c: &mut Cluster) {
    let had: Rc<RefCell<BTreeSet<ObjectRef>>> = Rc::default();
    c.invariant = Some(Box::new(move |objects: &BTreeMap<ObjectRef, Object>| {
        let plans = read(&slices_in(objects)).into_keys();
        let plans: BTreeSet<ObjectRef> =
            plans.map(|(namespace, name, _)| ObjectRef::namespaced(Kind::Service, namespace, name)).collect();
        let mut had = had.borrow_mut();
        had.retain(|service| objects.contains_key(service));
        for service in had.iter() {
            assert!(plans.contains(service), "{service} has no complete plan at this moment");
        }
        had.extend(plans.into_iter().filter(|service| objects.contains_key(service)));
    }));
}

/// Deletes a Service and makes it again before anybody plans.
fn recreate(c: &mut Cluster, number: u32) {
    let name = ObjectRef::namespaced(Kind::Service, "default", format!("svc-{number}"));
    let Some(Object::Service(mut service)) = c.objects.remove(&name) else { return };
    c.send(Change::Delete(name));
    service.metadata.uid = None;
    c.put(*service);
}

#[test]
fn a_service_made_again_keeps_its_old_plan_until_the_new_one_stands() {
    for endpoint_count in [3, 140, 2500] {
        let mut c = Cluster::new(Settings::default());
        for i in 0..20 {
            put_service(&mut c, i, 3);
        }
        put_service(&mut c, 3, endpoint_count);
        c.settle();
        watch_plans(&mut c);
        // It fits no more where it is, and what it has now stands in several parts or in one.
        for count in [2600, 150, 4] {
            recreate(&mut c, 3);
            c.put(endpoints("default", "svc-3", "svc-3-a", &ips(3, count)));
            c.settle();
            assert_eq!(read(&c.slices()), fresh(&c), "from {endpoint_count} to {count}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Service(u32),
    Recreate(u32),
    DeleteService(u32),
    Endpoints(u32, u32, u32),
    DeleteEndpoints(u32, u32),
    DeleteSlice(usize),
    DamageSlice(usize),
    LoseSlice(usize),
    Relist,
    Restart,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let svc = 0..12_u32;
    let size = prop_oneof![4 => 0..8_u32, 2 => 20..60_u32, 1 => 100..180_u32, 1 => 300..700_u32];
    prop_oneof![
        4 => svc.clone().prop_map(Step::Service),
        1 => svc.clone().prop_map(Step::DeleteService),
        2 => svc.clone().prop_map(Step::Recreate),
        8 => (svc.clone(), 0..2_u32, size).prop_map(|(s, e, n)| Step::Endpoints(s, e, n)),
        1 => (svc, 0..2_u32).prop_map(|(s, e)| Step::DeleteEndpoints(s, e)),
        2 => (0..8_usize).prop_map(Step::DeleteSlice),
        1 => (0..8_usize).prop_map(Step::DamageSlice),
        1 => (0..8_usize).prop_map(Step::LoseSlice),
        1 => Just(Step::Relist),
        1 => Just(Step::Restart),
        6 => Just(Step::Settle),
    ]
}

/// Small slices and parts, so that few Services already move, split and share.
fn small() -> Settings {
    Settings { slice_bytes: 2500, part_bytes: 9000, ..Settings::default() }
}

fn run(steps: Vec<Step>, failures: u32) {
    let mut c = Cluster::new(small());
    let mut count = 0_u32;
    c.fail = Box::new(move || {
        count = count.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        failures > 0 && (count >> 16) % 100 < failures
    });
    let nth = |c: &Cluster, i: usize| {
        let names: Vec<String> = c.slices().iter().filter_map(|s| s.metadata.name.clone()).collect();
        (!names.is_empty()).then(|| names[i % names.len()].clone())
    };
    for step in steps {
        // What another hand damages is lost for a moment; everything else never is.
        if !matches!(step, Step::DamageSlice(_) | Step::LoseSlice(_)) && c.invariant.is_none() {
            watch_plans(&mut c);
        }
        match step {
            Step::Service(i) => {
                c.put(service("default", &format!("svc-{i}"), &format!("10.96.0.{}", i + 1), None));
            }
            Step::Recreate(i) => recreate(&mut c, i),
            Step::DeleteService(i) => {
                c.delete(&ObjectRef::namespaced(Kind::Service, "default", format!("svc-{i}")));
            }
            Step::Endpoints(i, e, n) => {
                let addresses: Vec<String> = ips(i, n)
                    .into_iter()
                    .map(|a| a.replacen("10.", if e == 0 { "10." } else { "11." }, 1))
                    .collect();
                let name = format!("svc-{i}");
                c.put(endpoints("default", &name, &format!("{name}-{e}"), &addresses));
            }
            Step::DeleteEndpoints(i, e) => {
                let name = ObjectRef::namespaced(Kind::EndpointSlice, "default", format!("svc-{i}-{e}"));
                c.delete(&name);
            }
            Step::DeleteSlice(i) => {
                if let Some(name) = nth(&c, i) {
                    c.delete_named(Kind::NodeNetSlice, &name);
                }
            }
            Step::DamageSlice(i) => {
                let Some(name) = nth(&c, i) else { continue };
                let mut slice =
                    c.slices().into_iter().find(|s| s.metadata.name == Some(name.clone())).unwrap().clone();
                slice.spec.services.pop();
                c.invariant = None;
                c.put(slice);
                c.settle();
            }
            Step::LoseSlice(i) => {
                let Some(name) = nth(&c, i) else { continue };
                c.invariant = None;
                let name = ObjectRef::cluster(Kind::NodeNetSlice, name);
                c.objects.remove(&name);
                c.send(Change::Delete(name));
                c.settle();
            }
            Step::Relist => c.relist(),
            Step::Restart => c.restart_operator(),
            Step::Settle => c.settle(),
        }
    }
    c.settle();
    assert_eq!(read(&c.slices()), fresh(&c), "what is published equals what a fresh start publishes");
    let once: usize = c.slices().iter().flat_map(|s| &s.spec.services).filter(|p| p.part == 0).count();
    assert_eq!(once, read(&c.slices()).len(), "and each plan stands there once");
    assert!(
        c.slices().iter().all(|s| !s.spec.services.is_empty() && s.metadata.deletion_timestamp.is_none())
    );
    c.take_writes();
    c.restart_operator();
    c.settle();
    assert_eq!(c.take_writes(), Vec::<Output>::new(), "a restart rewrites nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_where_a_fresh_start_ends_and_never_loses_a_plan_on_the_way(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(steps, 0);
    }

    #[test]
    fn writes_that_fail_change_nothing_of_that(
        steps in prop::collection::vec(step(), 1..40),
        failures in 1..40_u32,
    ) {
        run(steps, failures);
    }
}

#[test]
fn what_an_older_definition_cuts_off_is_not_written_again_and_again() {
    let mut c = Cluster::new(Settings::default());
    c.add_node("n1", "192.168.0.11");
    let mut web = service("default", "web", "10.96.0.1", None);
    web.spec.as_mut().unwrap().session_affinity = Some("ClientIP".to_owned());
    c.put(endpoints("default", "web", "web-a", &["10.244.1.5".to_owned()]));
    let now = at(c.now);
    let mut index = Index::new(Settings::default());
    let mut keys = BTreeSet::new();
    for kind in Kind::ALL {
        keys.extend(index.apply(Change::Listing(kind), &now));
        for object in c.objects.values().filter(|o| o.kind() == kind && kind != Kind::NodeNetSlice) {
            keys.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        if kind == Kind::Service {
            keys.extend(index.apply(Change::Upsert(web.clone().into()), &now));
        }
        keys.extend(index.apply(Change::Synced(kind), &now));
    }
    keys.extend(index.lead(&now));
    let puts = |outputs: Vec<Output>| -> Vec<NodeNetSlice> {
        let put = |output| match output {
            Output::PutSlice { name, spec, .. } => Some(NodeNetSlice::new(&name, spec)),
            _ => None,
        };
        outputs.into_iter().filter_map(put).collect()
    };
    let stored = |slice: &NodeNetSlice, version: &str| {
        let mut slice = slice.clone();
        for port in slice.spec.services.iter_mut().flat_map(|plan| &mut plan.ports) {
            port.persistence_seconds = None;
        }
        slice.metadata.uid = Some("u".to_owned());
        slice.metadata.resource_version = Some(version.to_owned());
        slice.metadata.generation = version.parse().ok();
        slice.metadata.finalizers = Some(vec![nodenet_crds::SLICE_FINALIZER.to_owned()]);
        slice
    };
    let first = puts(index.plan(&keys, &now));
    assert_eq!(first.len(), 1);
    for version in ["1", "1"] {
        let keys = index.apply(Change::Wrote(stored(&first[0], version).into()), &now);
        assert_eq!(puts(index.plan(&keys, &now)), [], "the same would be cut again");
    }
    // What changes is written, once.
    let more = endpoints("default", "web", "web-a", &["10.244.1.5".to_owned(), "10.244.1.6".to_owned()]);
    let keys = index.apply(Change::Upsert(more.into()), &now);
    let second = puts(index.plan(&keys, &now));
    assert_eq!(second.len(), 1);
    let keys = index.apply(Change::Wrote(stored(&second[0], "2").into()), &now);
    assert_eq!(puts(index.plan(&keys, &now)), []);
}
