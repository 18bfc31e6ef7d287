//! The resolver: whatever order its inputs come in, it ends where a new one would, says what it touched, and survives
//! nonsense.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use std::collections::{BTreeMap, BTreeSet};

use nodenet_agent::diff::{Draining, Journal, Prune, diff};
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_agent::state::{NodeState, Scope, Which};
use nodenet_crds::{
    AssignedState, FrontendKind, NodeNetSliceSpec, NodeNetStateSpec, PortPlan, Protocol, ServicePlan,
};
use plans::{NODE, endpoint, frontend, part, port, slice, virtual_ip};
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Clone, Debug)]
enum Input {
    Spec(NodeNetStateSpec),
    Slice(&'static str, NodeNetSliceSpec),
    Remove(&'static str),
    /// Foreign addresses of eth0.
    Addresses(Vec<&'static str>),
    Withhold(bool),
}

const SLICES: [&str; 3] = ["a", "b", "c"];

fn port_plan() -> impl Strategy<Value = PortPlan> {
    let at = prop_oneof![
        6 => (1u8..4).prop_map(|n| frontend(FrontendKind::ClusterIP, Some(&format!("10.96.0.{n}")), 80)),
        1 => Just(frontend(FrontendKind::ClusterIP, Some("fd00:96::1"), 80)),
        3 => (30_000i32..30_003).prop_map(|p| frontend(FrontendKind::NodePort, None, p)),
        2 => Just(frontend(FrontendKind::VirtualIP, Some("192.168.0.15"), 80)),
        2 => Just(frontend(FrontendKind::VirtualIPNodePort, Some("192.168.0.15"), 30_000)),
        1 => select(vec!["", "nonsense", "127.0.0.1", "ff02::1", "::ffff:10.96.0.1"])
            .prop_map(|a| frontend(FrontendKind::ClusterIP, Some(a), 80)),
        1 => Just(frontend(FrontendKind::NodePort, None, -1)),
    ];
    let from = prop_oneof![
        8 => (1u8..5, select(vec![NODE, "node-2"]))
            .prop_map(|(n, node)| endpoint(&format!("10.244.0.{n}"), 8080, node)),
        1 => Just(endpoint("fd00:244::1", 8080, NODE)),
        1 => Just(endpoint("10.244.0", 0, NODE)),
    ];
    (
        select(vec![Protocol::TCP, Protocol::UDP]),
        proptest::collection::vec(at, 0..4),
        proptest::collection::vec(from, 0..4),
        select(vec![None, Some("wrr"), Some("no such scheduler")]),
    )
        .prop_map(|(protocol, frontends, endpoints, scheduler)| PortPlan {
            scheduler: scheduler.map(str::to_owned),
            ..port(protocol, frontends, endpoints)
        })
}

fn service_plan() -> impl Strategy<Value = ServicePlan> {
    let parts = prop_oneof![6 => Just((0, 1)), 2 => Just((0, 2)), 2 => Just((1, 2)), 1 => Just((3, -2))];
    (select(vec!["one", "two", "three"]), 1i64..4, parts, proptest::collection::vec(port_plan(), 0..3))
        .prop_map(|(name, revision, (number, of), ports)| part(name, revision, number, of, ports))
}

fn node_spec() -> impl Strategy<Value = NodeNetStateSpec> {
    let vip = select(vec![
        ("vip", "192.168.0.15/24"),
        ("other", "192.168.0.16/24"),
        ("other", "192.168.0.15/24"),
        ("odd", "192.168.9.9/24"),
        ("six", "fd00:5::15/64"),
        ("bad", "nonsense"),
    ]);
    let vips = proptest::collection::vec((vip, any::<bool>()), 0..3);
    let ranges =
        proptest::collection::vec(select(vec!["10.96.0.0/12", "fd00:96::/112", "0.0.0.0/0", "x"]), 0..3);
    (vips, ranges).prop_map(|(vips, ranges)| {
        let mut spec = plans::spec();
        spec.service_addresses.cidrs = ranges.into_iter().map(str::to_owned).collect();
        spec.virtual_ips = vips
            .into_iter()
            .map(|((name, address), active)| {
                virtual_ip(name, address, if active { AssignedState::Active } else { AssignedState::Backup })
            })
            .collect();
        spec
    })
}

fn input() -> impl Strategy<Value = Input> {
    let slices = (select(SLICES.to_vec()), proptest::collection::vec(service_plan(), 0..4));
    let addresses =
        vec!["192.168.0.11/24", "192.168.0.12/24", "fd00:5::11/64", "10.112.0.9/32", "169.254.1.1/16"];
    prop_oneof![
        6 => slices.prop_map(|(name, plans)| Input::Slice(name, slice(1, plans))),
        1 => select(SLICES.to_vec()).prop_map(Input::Remove),
        2 => node_spec().prop_map(Input::Spec),
        2 => proptest::sample::subsequence(addresses, 0..5).prop_map(Input::Addresses),
        1 => any::<bool>().prop_map(Input::Withhold),
    ]
}

fn resolver() -> Resolver {
    Resolver::new(Options { node: NODE.into(), ..Options::default() })
}

fn observed(addresses: &[&str]) -> NodeState {
    let mut kernel = FakeKernel::new();
    kernel.add_link("eth0", "");
    for address in addresses {
        kernel.add_address("eth0", address);
    }
    kernel.observe(&Scope { addresses: true, ..Scope::default() }).unwrap()
}

/// A list that is complete with the one slice that no cluster is without: while none holds a plan, nothing goes.
fn list(resolver: &mut Resolver) {
    resolver.list_started();
    resolver.put_slice("kubernetes", &slice(0, vec![part("kubernetes", 1, 0, 1, vec![])]));
    resolver.list_completed(&BTreeSet::from(["kubernetes".to_owned()]));
}

fn give(resolver: &mut Resolver, input: &Input) -> Scope {
    match input {
        Input::Spec(spec) => resolver.put_spec(spec, Origin::Api),
        Input::Slice(name, slice) => resolver.put_slice(name, slice),
        Input::Remove(name) => resolver.remove_slice(name),
        Input::Addresses(list) => resolver.put_observed(&observed(list)),
        Input::Withhold(all) => {
            resolver.set_withheld(if *all { Which::All } else { Which::default() }, Default::default())
        }
    }
}

/// A comparison of two wishes finds nothing outside of what was touched.
fn covers(touched: &Scope, before: &NodeState, after: &NodeState) -> Result<(), TestCaseError> {
    let journal = Journal::default();
    let mut draining = Draining::default();
    let mut all = Scope::all(after);
    all.merge(Scope::all(before));
    let mut journal_of_all = journal.clone();
    journal_of_all.virtual_servers.extend(before.virtual_servers.keys().copied());
    let compare = |scope: &Scope, draining: &mut Draining| {
        let now = std::time::Duration::ZERO;
        let context = &mut nodenet_agent::diff::Context {
            journal: &journal_of_all,
            prune: Prune::ALL,
            others: &nodenet_agent::diff::NOBODY,
            draining,
            now,
            drain_timeout: now,
            inside: nodenet_agent::filter::InsideMarks::default(),
        };
        let found = diff(&after.within(scope), &before.within(scope), scope, context).transaction;
        found.operations().iter().map(|operation| format!("{operation:?}")).collect::<BTreeSet<String>>()
    };
    prop_assert_eq!(compare(touched, &mut draining), compare(&all, &mut draining));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_ends_where_a_new_one_would_and_says_what_it_touched(
        inputs in proptest::collection::vec(input(), 1..24)
    ) {
        let mut grown = resolver();
        list(&mut grown);
        for input in &inputs {
            let before = grown.desired().clone();
            let touched = give(&mut grown, input);
            covers(&touched, &before, grown.desired())?;
        }

        // What there is at the end, given at once. A plan in force may be older than what the slices still hold (its
        // successor is incomplete): such histories are another test's.
        if !grown.incomplete().is_empty() {
            return Ok(());
        }
        let mut last: BTreeMap<String, &Input> = BTreeMap::new();
        for input in &inputs {
            let key = match input {
                Input::Spec(_) => "spec".to_owned(),
                Input::Slice(name, _) | Input::Remove(name) => format!("slice {name}"),
                Input::Addresses(_) => "addresses".to_owned(),
                Input::Withhold(_) => "withhold".to_owned(),
            };
            last.insert(key, input);
        }
        let mut fresh = resolver();
        list(&mut fresh);
        for input in last.values() {
            give(&mut fresh, input);
        }
        prop_assert_eq!(fresh.desired(), grown.desired());
        prop_assert_eq!(fresh.virtual_ips(), grown.virtual_ips());
        prop_assert_eq!(fresh.problems(), grown.problems());
    }

    #[test]
    fn rules_are_the_same_in_number_whatever_the_services(
        plans in proptest::collection::vec(service_plan(), 0..30)
    ) {
        let mut agent = resolver();
        agent.put_observed(&observed(&["192.168.0.11/24"]));
        agent.put_spec(&plans::spec(), Origin::Api);
        let before = agent.desired().rules.clone();
        agent.put_slice("a", &slice(1, plans));
        prop_assert_eq!(&agent.desired().rules, &before);
    }
}
