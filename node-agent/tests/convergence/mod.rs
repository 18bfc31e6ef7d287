//! "Committing the difference converges", for any kernel: the same cases run against the fake and the real one.
//!
//! The caller's kernel has an interface [`INTERFACE`] with the foreign addresses [`FOREIGN_ADDRESSES`], and nothing else
//! of interest.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use nodenet_agent::diff::{Context, Draining, Journal, NOBODY, Outcome, Prune, diff};
use nodenet_agent::filter::{Config, SetName, rules};
use nodenet_agent::kernel::Kernel;
use nodenet_agent::state::*;
use nodenet_crds::KernelAddressRole as Role;
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use proptest::sample::select;

/// Interface that carries addresses.
pub const INTERFACE: &str = "nn-test";
/// Addresses that are there before, and must be there afterwards.
pub const FOREIGN_ADDRESSES: [&str; 2] = ["192.0.2.1/24", "fd00:5::1/64"];
/// Most rounds that a kernel may take.
pub const ROUNDS: usize = 8;

/// A starting state and a wish.
#[derive(Clone, Debug)]
pub struct Case {
    /// Brings the kernel to where it starts: what an earlier agent left and what others made.
    pub start: Vec<Operation>,
    /// What of it the earlier agent wrote down.
    pub journal: Journal,
    /// The wish.
    pub desired: NodeState,
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ranges() -> Vec<ipnet::IpNet> {
    vec!["10.96.0.0/24".parse().unwrap(), "fd00:96::/112".parse().unwrap()]
}

fn in_range(key: &VirtualServerKey) -> bool {
    matches!(key, VirtualServerKey::Address(_, a, _) if ranges().iter().any(|r| r.contains(a)))
}

fn server_key() -> impl Strategy<Value = VirtualServerKey> {
    let addresses = ["10.96.0.1", "10.96.0.2", "192.0.2.1", "203.0.113.9", "fd00:96::1", "fd00:5::1"];
    (select(vec![Protocol::TCP, Protocol::UDP]), select(addresses.to_vec()), select(vec![53u16, 80, 30_001]))
        .prop_map(|(protocol, at, port)| VirtualServerKey::Address(protocol, address(at), port))
}

fn server(v6: bool) -> impl Strategy<Value = VirtualServer> {
    let real = (1u8..6, select(vec![80u16, 8080])).prop_map(move |(n, port)| {
        let at = if v6 { format!("fd00:244::{n}") } else { format!("10.244.0.{n}") };
        RealServerKey { address: address(&at), port }
    });
    let to = (0u32..3).prop_map(|weight| RealServer {
        weight,
        forwarding: Forwarding::Masquerade,
        active_connections: 0,
        inactive_connections: 0,
    });
    (select(vec!["rr", "wrr", "sh"]), select(vec![0u32, 300]), btree_map(real, to, 0..4)).prop_map(
        |(scheduler, persistence, real_servers)| VirtualServer {
            drain_timeout: None,
            scheduler: scheduler.into(),
            flags: 0,
            persistence,
            real_servers,
        },
    )
}

fn servers() -> impl Strategy<Value = BTreeMap<VirtualServerKey, VirtualServer>> {
    btree_set(server_key(), 0..8).prop_flat_map(|keys| {
        keys.into_iter()
            .map(|key| {
                let v6 = matches!(key, VirtualServerKey::Address(_, a, _) if a.is_ipv6());
                server(v6).prop_map(move |server| (key, server))
            })
            .collect::<Vec<_>>()
            .prop_map(|list| list.into_iter().collect())
    })
}

fn entry(kind: SetKind) -> BoxedStrategy<SetEntry> {
    let at = (1u8..5).prop_map(|n| IpAddr::from([10, 96, 0, n]));
    let protocol = select(vec![Protocol::TCP, Protocol::UDP]);
    let port = 1u16..4;
    match kind {
        SetKind::HashIp => at.prop_map(SetEntry::Ip).boxed(),
        SetKind::HashNet => {
            (0u8..4).prop_map(|n| SetEntry::Net(format!("10.{n}.0.0/16").parse().unwrap())).boxed()
        }
        SetKind::HashIpPort => (at, protocol, port).prop_map(|(a, p, n)| SetEntry::IpPort(a, p, n)).boxed(),
        SetKind::HashIpPortNet => (at, protocol, port, 0u8..3)
            .prop_map(|(a, p, n, net)| {
                SetEntry::IpPortNet(a, p, n, format!("10.{net}.0.0/16").parse().unwrap())
            })
            .boxed(),
        SetKind::HashIpPortMark => (at, protocol, port, 0x1002_u32..0x1006)
            .prop_map(|(a, p, n, m)| SetEntry::IpPortMark(a, p, n, m))
            .boxed(),
        SetKind::HashIpPortIp => {
            (at, protocol, port).prop_map(|(a, p, n)| SetEntry::IpPortIp(a, p, n, a)).boxed()
        }
        SetKind::BitmapPort => port.prop_map(SetEntry::Port).boxed(),
    }
}

fn set(kind: SetKind, max_entries: u32) -> impl Strategy<Value = IpSet> {
    btree_set(entry(kind), 0..4).prop_map(move |entries| {
        // The kernel keeps one of those that it takes for the same.
        let mut kept: BTreeSet<SetEntry> = BTreeSet::new();
        for entry in entries {
            kept.retain(|there| !there.is_same_element(&entry));
            kept.insert(entry);
        }
        let max_entries = if kind == SetKind::BitmapPort { 0 } else { max_entries };
        IpSet { kind, family: Family::V4, max_entries, entries: kept }
    })
}

fn all_sets() -> impl Strategy<Value = BTreeMap<String, IpSet>> {
    SetName::ALL
        .into_iter()
        .map(|name| set(name.kind(), 65_536).prop_map(move |set| (name.name(Family::V4), set)))
        .collect::<Vec<_>>()
        .prop_map(|sets| sets.into_iter().collect())
}

/// Sets as an older version could have left them: some are missing, smaller or of another type.
fn old_sets() -> impl Strategy<Value = BTreeMap<String, IpSet>> {
    let one = |name: SetName| {
        let as_now = set(name.kind(), 65_536);
        let smaller = set(name.kind(), 1024);
        let other =
            set(if name.kind() == SetKind::HashIp { SetKind::HashNet } else { SetKind::HashIp }, 1024);
        prop_oneof![
            2 => Just(None),
            4 => as_now.prop_map(Some),
            1 => smaller.prop_map(Some),
            1 => other.prop_map(Some),
        ]
        .prop_map(move |set| (name.name(Family::V4), set))
    };
    let stale = set(SetKind::HashIp, 1024).prop_map(|set| ("NODENET-OLD".to_owned(), Some(set)));
    let mut list: Vec<BoxedStrategy<(String, Option<IpSet>)>> =
        SetName::ALL.into_iter().map(|name| one(name).boxed()).collect();
    list.push(prop_oneof![stale, Just(("NODENET-OLD".to_owned(), None))].boxed());
    list.prop_map(|sets| sets.into_iter().filter_map(|(name, set)| Some((name, set?))).collect())
}

fn held_address() -> impl Strategy<Value = (AddressKey, Address)> {
    prop_oneof![
        (10u8..14).prop_map(|n| (format!("192.0.2.{n}"), 24, Role::Secondary)),
        (10u8..12).prop_map(|n| (format!("198.51.100.{n}"), 32, Role::Primary)),
        (10u8..12).prop_map(|n| (format!("fd00:5::{n}"), 64, Role::Deprecated)),
    ]
    .prop_map(|(at, prefix_length, role)| {
        let key = AddressKey { interface: INTERFACE.into(), address: address(&at) };
        let address =
            Address { prefix_length, role: Some(role), lifetime: Some(3000), ours: true, unusable: false };
        (key, address)
    })
}

fn held_addresses() -> impl Strategy<Value = BTreeMap<AddressKey, Address>> {
    proptest::collection::vec(held_address(), 0..4).prop_map(|list| list.into_iter().collect())
}

fn wish() -> impl Strategy<Value = NodeState> {
    let full = (all_sets(), servers(), held_addresses(), any::<bool>());
    let full = full.prop_map(|(sets, virtual_servers, addresses, masquerade_all)| {
        let config = Config { masquerade_all, ..Config::default() };
        NodeState {
            modules: BTreeMap::from([("ip_vs".into(), true)]),
            sysctls: BTreeMap::from([
                ("net.ipv4.ip_forward".into(), "1".into()),
                (promote_secondaries(INTERFACE), "1".into()),
            ]),
            links: BTreeMap::from([(
                SERVICE_INTERFACE.into(),
                Link { kind: "dummy".into(), up: true, carrier: true },
            )]),
            addresses,
            routes: ranges().into_iter().map(local_route).collect(),
            sets,
            rules: BTreeMap::from([(Family::V4, rules(Family::V4, &config))]),
            virtual_servers,
            gateways: None,
        }
    });
    prop_oneof![9 => full, 1 => Just(NodeState::default())]
}

fn local_route(range: ipnet::IpNet) -> LocalRoute {
    LocalRoute { range, interface: SERVICE_INTERFACE.into() }
}

/// A wish and a starting state that has little, much or nothing to do with it.
pub fn cases() -> impl Strategy<Value = Case> {
    (wish(), old_sets(), servers(), held_addresses(), any::<[bool; 4]>(), any::<u64>()).prop_map(
        |(desired, sets, servers, addresses, [linked, routed, ruled, similar], known)| {
            let mut start = NodeState { sets, virtual_servers: servers, addresses, ..NodeState::default() };
            if linked {
                start.links = desired.links.clone();
                let mut routes: BTreeSet<LocalRoute> = desired.routes.iter().take(1).cloned().collect();
                if routed && !start.links.is_empty() {
                    routes.insert(local_route("10.97.0.0/24".parse().unwrap()));
                }
                start.routes = if start.links.is_empty() { BTreeSet::new() } else { routes };
            }
            if similar {
                start.virtual_servers.extend(desired.virtual_servers.clone());
                start.addresses.extend(desired.addresses.clone());
            }
            let named = SetName::ALL.iter().all(|name| start.sets.contains_key(&name.name(Family::V4)));
            if ruled && named {
                start.rules.insert(Family::V4, rules(Family::V4, &Config::default()));
            }
            let mut journal = Journal { ranges: ranges().into_iter().collect(), ..Journal::default() };
            for (i, key) in start.virtual_servers.keys().enumerate() {
                if known >> (i % 64) & 1 == 1 {
                    journal.virtual_servers.insert(*key);
                }
            }
            journal.addresses.extend(start.addresses.keys().cloned());
            Case { start: building(&start), journal, desired }
        },
    )
}

/// Operations that make a state out of nothing.
pub fn building(state: &NodeState) -> Vec<Operation> {
    let mut draining = Draining::default();
    let journal = Journal::default();
    let context = &mut context(&journal, Prune::default(), &mut draining);
    let outcome = diff(state, &NodeState::default(), &Scope::all(state), context);
    outcome.transaction.operations().to_vec()
}

/// A context at time 0.
pub fn context<'a>(journal: &'a Journal, prune: Prune, draining: &'a mut Draining) -> Context<'a> {
    Context {
        journal,
        prune,
        others: &NOBODY,
        draining,
        now: Duration::ZERO,
        drain_timeout: Duration::from_secs(600),
        inside: nodenet_agent::filter::InsideMarks::default(),
    }
}

/// Looks, compares and commits until nothing differs. The operations of each round.
pub fn apply<K: Kernel>(
    kernel: &mut K,
    desired: &NodeState,
    journal: &mut Journal,
    rounds: usize,
) -> Result<Vec<Vec<Operation>>, String> {
    let mut scope = Scope::all(desired);
    let mut draining = Draining::default();
    let mut done: Vec<Vec<Operation>> = Vec::new();
    let mut errors = String::new();
    for _ in 0..rounds {
        let observed = match kernel.observe(&scope) {
            Ok(observed) => observed,
            Err(error) => {
                errors += &format!("\n  {error}");
                continue;
            }
        };
        let outcome: Outcome =
            diff(desired, &observed, &scope, &mut context(journal, Prune::ALL, &mut draining));
        journal.merge(outcome.claims);
        if outcome.transaction.is_empty() && outcome.widen.is_empty() {
            return Ok(done);
        }
        scope.merge(outcome.widen);
        let committed = kernel.commit(&outcome.transaction);
        for (_, error) in &committed.failed {
            errors += &format!("\n  {error}");
        }
        done.push(outcome.transaction.operations().to_vec());
    }
    Err(format!("not converged after {rounds} rounds; last round: {:#?}\nerrors:{errors}", done.last()))
}

/// Checks a case: it converges, a second comparison finds nothing, and what is foreign is as before.
pub fn check<K: Kernel>(kernel: &mut K, case: &Case, rounds: usize) -> Result<(), String> {
    kernel.commit(&Transaction::new(case.start.clone()));
    check_from_here(kernel, case, rounds)
}

/// As [`check`], from whatever state the kernel is in.
pub fn check_from_here<K: Kernel>(kernel: &mut K, case: &Case, rounds: usize) -> Result<(), String> {
    let whole = Scope::all(&case.desired);
    let foreign = foreign_part(&look(kernel, &whole)?, case);
    let mut journal = case.journal.clone();
    apply(kernel, &case.desired, &mut journal, rounds)?;
    let after = look(kernel, &whole)?;
    let left = foreign_part(&after, case);
    if left != foreign {
        return Err(format!("foreign state changed from {foreign:#?} to {left:#?}"));
    }
    let mut draining = Draining::default();
    let again = diff(&case.desired, &after, &whole, &mut context(&journal, Prune::ALL, &mut draining));
    if !again.transaction.is_empty() {
        return Err(format!("the second comparison finds {:#?}", again.transaction));
    }
    Ok(())
}

fn look<K: Kernel>(kernel: &mut K, scope: &Scope) -> Result<NodeState, String> {
    let mut result = kernel.observe(scope);
    for _ in 0..3 {
        if result.is_ok() {
            break;
        }
        result = kernel.observe(scope);
    }
    result.map_err(|e| e.to_string())
}

/// Whether a virtual server that nobody wrote down does already what is wished for: it is taken over.
fn adoptable(wanted: &VirtualServer, there: &VirtualServer) -> bool {
    wanted.scheduler == there.scheduler
        && there.real_servers.keys().all(|real| wanted.real_servers.contains_key(real))
}

/// What is not ours, wished for or not.
fn foreign_part(
    observed: &NodeState,
    case: &Case,
) -> (BTreeMap<VirtualServerKey, VirtualServer>, Vec<AddressKey>) {
    let servers = observed
        .virtual_servers
        .iter()
        .filter(|(key, _)| !in_range(key) && !case.journal.virtual_servers.contains(key))
        .filter(|(key, there)| {
            !case.desired.virtual_servers.get(key).is_some_and(|wanted| adoptable(wanted, there))
        })
        .map(|(key, server)| (*key, server.clone()))
        .collect();
    let addresses = observed.addresses.iter().filter(|(key, address)| {
        key.interface == INTERFACE
            && !address.ours
            && !case.journal.addresses.contains(key)
            && !case.desired.addresses.contains_key(key)
    });
    (servers, addresses.map(|(key, _)| key.clone()).collect())
}
