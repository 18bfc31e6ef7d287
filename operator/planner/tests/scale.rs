//! 10,000 Services with 10 endpoints each: what the first sync writes, and what one change costs.

// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeSet;
use std::time::Instant;

use nodenet_crds::{NodeNetSlice, SLICE_FINALIZER};
use nodenet_planner::{Change, Index, Key, Kind, Output, Settings};
use simulation::{at, endpoints, meta, s, service};

const SERVICES: u32 = 10_000;

fn ips(service: u32, first: u32) -> Vec<String> {
    (first..first + 10).map(|i| format!("10.{}.{}.{}", 1 + service / 250, service % 250, 1 + i)).collect()
}

/// Resident memory of this process in MiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096 / (1 << 20)
}

fn publish(index: &mut Index, keys: &BTreeSet<Key>, generation: i64) -> (usize, BTreeSet<Key>) {
    let outputs = index.plan(keys, &at(s(1)));
    let count = outputs.len();
    let mut next = BTreeSet::new();
    for output in outputs {
        let Output::PutSlice { name, spec, .. } = output else { panic!("{output:?}") };
        let mut metadata = meta(&name);
        metadata.generation = Some(generation);
        metadata.finalizers = Some(vec![SLICE_FINALIZER.to_owned()]);
        next.extend(index.apply(Change::Wrote(NodeNetSlice { metadata, spec }.into()), &at(s(1))));
    }
    (count, next)
}

#[test]
fn at_ten_thousand_services_the_first_sync_writes_each_slice_once_and_a_change_writes_one() {
    let mut index = Index::new(Settings::default());
    let mut keys = index.lead(&at(s(0)));
    let begin = Instant::now();
    for i in 0..SERVICES {
        let name = format!("svc-{i}");
        let ip = format!("10.{}.{}.{}", 100 + i / 62_500, i / 250 % 250, i % 250);
        keys.extend(index.apply(Change::Upsert(service("default", &name, &ip, None).into()), &at(s(0))));
        let slice = endpoints("default", &name, &format!("{name}-a"), &ips(i, 0));
        keys.extend(index.apply(Change::Upsert(slice.into()), &at(s(0))));
    }
    for kind in Kind::ALL {
        keys.extend(index.apply(Change::Synced(kind), &at(s(0))));
    }
    let applied = begin.elapsed();
    let (writes, next) = publish(&mut index, &keys, 1);
    println!(
        "applied in {applied:?}, planned {writes} slices in {:?}, {} MiB resident",
        begin.elapsed() - applied,
        resident()
    );
    assert_eq!(index.endpoint_count(), SERVICES as usize * 10);
    assert_eq!(publish(&mut index, &next, 2).0, 0, "the answers change nothing");
    let begin = Instant::now();
    for i in 0..200 {
        let number = i * 49;
        let name = format!("svc-{number}");
        let slice = endpoints("default", &name, &format!("{name}-a"), &ips(number, 1));
        let keys = index.apply(Change::Upsert(slice.into()), &at(s(1)));
        assert_eq!(keys, BTreeSet::from([Key::service("default", name)]));
        let (writes, next) = publish(&mut index, &keys, 3 + i64::from(i));
        assert_eq!(writes, 1);
        assert_eq!(publish(&mut index, &next, 3 + i64::from(i)).0, 0);
    }
    println!("a change costs {:?}", begin.elapsed() / 200);
}
