//! What must hold whatever happens, rule by rule. Each test fails when its rule is broken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use std::time::Duration;

use nodenet_agent::diff::{Draining, Prune};
use nodenet_agent::kernel::Kernel;
use nodenet_agent::resolve::Origin;
use nodenet_agent::state::*;
use nodenet_crds::{AssignedState, FrontendKind, KernelAddressRole, NodeNetStateSpec, Protocol as Transport};
use plans::*;

fn two_services() -> Vec<(&'static str, nodenet_crds::NodeNetSliceSpec)> {
    vec![
        ("a", slice(1, vec![web("one", 1, "10.96.0.1", &[("10.244.1.1", NODE), ("10.244.2.1", "node-2")])])),
        ("b", slice(2, vec![web("two", 2, "10.96.0.2", &[("10.244.1.2", NODE)])])),
    ]
}

fn removals(operations: &[Operation]) -> Vec<&Operation> {
    operations
        .iter()
        .filter(|operation| {
            matches!(
                operation,
                Operation::DeleteLink(_)
                    | Operation::DestroySet(_)
                    | Operation::DeleteEntry(..)
                    | Operation::DeleteRoute(_)
                    | Operation::DeleteVirtualServer(_)
                    | Operation::DeleteRealServer(..)
                    | Operation::ForgetConnections(..)
                    | Operation::DeleteAddress(..)
            )
        })
        .collect()
}

// 1. Nothing is removed before its input is complete.

#[test]
fn rule_1_a_restarted_agent_removes_nothing_before_it_has_read_everything() {
    let mut before = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    before.read(&held, &two_services());
    before.settle_all();

    let mut agent = Agent::on(before.kernel.clone(), before.journal.clone());
    let nothing = |agent: &mut Agent, when: &str| {
        let done = agent.settle_all();
        assert_eq!(removals(&done), Vec::<&Operation>::new(), "{when}");
    };
    nothing(&mut agent, "nothing was read");
    agent.look_at_node();
    agent.resolver.put_spec(&held, Origin::Disk);
    nothing(&mut agent, "an old spec was read from the disk");
    agent.resolver.put_spec(&held, Origin::Api);
    nothing(&mut agent, "the spec was read");
    agent.resolver.list_started();
    agent.resolver.put_slice("a", &two_services()[0].1);
    nothing(&mut agent, "one slice was read");
    agent.resolver.list_completed(&names(&["a"]));
    let done = agent.settle_all();
    assert!(done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.2", 80))), "{done:#?}");
}

#[test]
fn rule_1_an_address_stays_until_its_own_input_was_read() {
    let mut before = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    before.read(&held, &[]);
    before.settle_all();

    let mut cold = Agent::on(before.kernel.clone(), before.journal.clone());
    cold.look_at_node();
    cold.resolver.put_spec(&spec(), Origin::Disk);
    assert_eq!(cold.settle_all(), vec![], "a copy on disk may be older than the address");

    let mut agent = Agent::on(before.kernel.clone(), before.journal.clone());
    agent.resolver.put_spec(&held, Origin::Api);
    assert_eq!(agent.settle_all(), vec![], "the node's own interfaces were not seen yet");
    agent.look_at_node();
    held.virtual_ips[0].state = AssignedState::Backup;
    agent.resolver.put_spec(&held, Origin::Api);
    let gone = AddressKey { interface: "eth0".into(), address: "192.168.0.15".parse().unwrap() };
    assert_eq!(
        agent.settle_all(),
        vec![Operation::DeleteAddress(gone, 24)],
        "slices are none of its business"
    );
}

#[test]
fn rule_1_a_missing_part_blocks_only_its_own_service() {
    let mut agent = Agent::new();
    agent.read(&spec(), &two_services());
    agent.settle_all();

    let half = web("one", 5, "10.96.0.1", &[("10.244.3.3", "node-3")]).ports;
    let two = web("two", 6, "10.96.0.2", &[("10.244.1.3", NODE)]);
    let touched = agent.resolver.put_slice("a", &slice(6, vec![part("one", 5, 0, 2, half.clone()), two]));
    let done = agent.settle(touched);
    assert!(!done.iter().any(|o| format!("{o:?}").contains("10.96.0.1")), "{done:#?}");
    assert!(format!("{done:?}").contains("10.244.1.3"), "the other Service goes on: {done:#?}");
    let incomplete: Vec<String> = agent.resolver.incomplete().iter().map(ToString::to_string).collect();
    assert_eq!(incomplete, ["Service default/one: 1 of 2 parts of plan 5 are there; plan 1 stays in force"]);

    let touched = agent.resolver.put_slice("c", &slice(7, vec![part("one", 5, 1, 2, half)]));
    let done = agent.settle(touched);
    assert!(format!("{done:?}").contains("10.244.3.3"), "{done:#?}");
    assert!(agent.resolver.incomplete().is_empty());
}

#[test]
fn rule_1_a_service_that_moves_during_a_new_list_stays() {
    let mut agent = Agent::new();
    agent.read(&spec(), &two_services());
    agent.settle_all();

    agent.resolver.list_started();
    let touched = agent.resolver.put_slice("a", &slice(3, vec![]));
    assert_eq!(agent.settle(touched), vec![], "its new place may still come");
    let moved = web("one", 3, "10.96.0.1", &[("10.244.1.1", NODE), ("10.244.2.1", "node-2")]);
    let touched = agent.resolver.put_slice("c", &slice(3, vec![moved]));
    assert_eq!(agent.settle(touched), vec![], "the same plan elsewhere");
    let touched = agent.resolver.list_completed(&names(&["a", "b", "c"]));
    assert_eq!(agent.settle(touched), vec![]);

    agent.resolver.list_started();
    let touched = agent.resolver.list_completed(&names(&["a", "b"]));
    let done = agent.settle(touched);
    assert!(
        done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.1", 80))),
        "absent from a complete list"
    );
}

// 2. Ours only.

#[test]
fn rule_2_cleanup_removes_ours_and_nothing_else() {
    let mut agent = Agent::new();
    let foreign_server = VirtualServer {
        scheduler: "wlc".into(),
        flags: 0,
        persistence: 50,
        drain_timeout: None,
        real_servers: [(
            real("192.168.0.77", 25),
            RealServer {
                weight: 3,
                forwarding: Forwarding::DirectRoute,
                active_connections: 0,
                inactive_connections: 0,
            },
        )]
        .into(),
    };
    let foreign_set = IpSet {
        kind: SetKind::HashIp,
        family: Family::V4,
        max_entries: 1024,
        entries: [SetEntry::Ip([192, 168, 0, 77].into())].into(),
    };
    agent.kernel.put_virtual_server(tcp("192.168.0.11", 25), foreign_server);
    agent.kernel.put_set("MINE", foreign_set);
    agent.kernel.add_address("eth0", "192.168.0.16/24");
    let before = agent.kernel.state();

    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    let mut service = web("one", 1, "10.96.0.1", &[("10.244.1.1", NODE)]);
    service.ports[0].frontends.push(frontend(FrontendKind::NodePort, None, 30_080));
    agent.read(&held, &[("a", slice(1, vec![service]))]);
    agent.settle_all();
    assert!(agent.kernel.state().virtual_servers.contains_key(&tcp("192.168.0.11", 30_080)));

    // A new agent that only knows the journal cleans up.
    let mut cleaner = Agent::on(agent.kernel.clone(), agent.journal.clone());
    let scope = Scope::all(&NodeState::default());
    for _ in 0..8 {
        let outcome = cleaner.compare(&scope, Prune::ALL);
        cleaner.kernel.commit(&outcome.transaction);
        if outcome.transaction.is_empty() {
            break;
        }
    }
    let after = cleaner.kernel.state();
    assert_eq!(after.virtual_servers, before.virtual_servers);
    assert_eq!(after.sets, before.sets);
    assert_eq!(after.addresses, before.addresses);
    assert_eq!(after.links, before.links);
    assert_eq!((after.routes, after.rules), (before.routes, before.rules));
}

#[test]
fn rule_2_an_address_set_by_another_hand_is_neither_renewed_nor_removed() {
    let mut agent = Agent::new();
    agent.kernel.add_address("eth0", "192.168.0.15/24");
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    agent.read(&held, &[]);
    let outcome = agent.compare(&Scope::all(agent.resolver.desired()), Prune::ALL);
    assert_eq!(outcome.notes.len(), 1, "{:?}", outcome.notes);
    agent.settle_all();
    agent.resolver.put_spec(&NodeNetStateSpec::default(), Origin::Api);
    agent.settle_all();
    let key = AddressKey { interface: "eth0".into(), address: "192.168.0.15".parse().unwrap() };
    assert!(agent.kernel.state().addresses.contains_key(&key));
}

// 3. A restart takes the kernel's state over.

#[test]
fn rule_3_a_restarted_agent_writes_nothing_that_is_already_right() {
    let mut before = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    let mut service = web("one", 1, "10.96.0.1", &[("10.244.1.1", NODE), ("10.244.2.1", "node-2")]);
    service.ports[0].frontends.push(frontend(FrontendKind::NodePort, None, 30_080));
    service.ports[0].frontends.push(frontend(FrontendKind::VirtualIP, Some("192.168.0.15"), 80));
    let slices = [("a", slice(1, vec![service]))];
    before.read(&held, &slices);
    before.settle_all();
    let server = tcp("10.96.0.1", 80);
    before.kernel.set_connections(&server, &real("10.244.2.1", 8080), 7, 3);

    let mut agent = Agent::on(before.kernel.clone(), before.journal.clone());
    agent.read(&held, &slices);
    let messages = agent.kernel.counters().messages;
    assert_eq!(agent.settle_all(), vec![]);
    assert_eq!(agent.kernel.counters().messages, messages);
    assert_eq!(agent.kernel.counters().broken_connections, 0);
}

// 4. Order is data.

#[test]
fn rule_4_things_come_in_order_and_go_in_reverse() {
    let mut agent = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    agent.read(&held, &two_services());
    let coming: Vec<usize> = agent.settle_all().iter().map(sort_of).collect();
    assert!(coming.is_sorted(), "{coming:?}");
    assert_eq!(coming.first(), Some(&0));
    assert_eq!(coming.last(), Some(&7));

    let outcome = {
        let mut cleaner = Agent::on(agent.kernel.clone(), agent.journal.clone());
        cleaner.compare(&Scope::all(&NodeState::default()), Prune::ALL)
    };
    let going: Vec<usize> = outcome.transaction.operations().iter().map(sort_of).collect();
    assert!(going.iter().rev().is_sorted(), "{going:?}");
    assert_eq!((going.first(), going.last()), (Some(&7), Some(&1)));
}

/// Place in "modules and settings, sets, rules, service addresses, virtual servers, real servers, virtual IPs"; our
/// interface counts as a service address when it comes, and goes last.
fn sort_of(operation: &Operation) -> usize {
    match operation {
        Operation::LoadModule(_) | Operation::SetSysctl(..) => 0,
        Operation::AddLink(_) | Operation::DeleteLink(_) => 1,
        Operation::CreateSet(..)
        | Operation::AddEntry(..)
        | Operation::DeleteEntry(..)
        | Operation::DestroySet(_) => 2,
        Operation::ReplaceRules(..) | Operation::RemoveKubeProxyRules(_) => 3,
        Operation::AddRoute(_) | Operation::DeleteRoute(_) => 4,
        Operation::AddVirtualServer(..)
        | Operation::SetVirtualServer(..)
        | Operation::DeleteVirtualServer(_)
        | Operation::ForgetConnections(..) => 5,
        Operation::AddRealServer(..) | Operation::SetRealServer(..) | Operation::DeleteRealServer(..) => 6,
        Operation::AddAddress(..) | Operation::SetAddress(..) | Operation::DeleteAddress(..) => 7,
    }
}

// 5. Cost is proportional to the change.

#[test]
fn rule_5_one_endpoint_touches_only_its_virtual_servers_and_entries() {
    let mut agent = Agent::new();
    let service = |i: usize, revision: i64, first: &str| {
        let at = format!("10.97.{}.{}", i / 250, i % 250 + 1);
        let mut plan = web(&format!("s{i}"), revision, &at, &[(first, NODE), ("10.244.2.1", "node-2")]);
        plan.ports[0].frontends.push(frontend(FrontendKind::NodePort, None, 30_000 + i as i32));
        plan
    };
    let of_slice =
        |n: usize| (n * 10..n * 10 + 10).map(|i| service(i, 1, &format!("10.244.1.{n}"))).collect();
    let slices: Vec<(String, _)> = (0..100).map(|n| (format!("slice-{n}"), slice(1, of_slice(n)))).collect();
    let by_name: Vec<(&str, _)> = slices.iter().map(|(name, slice)| (name.as_str(), slice.clone())).collect();
    agent.read(&spec(), &by_name);
    agent.settle_all();

    let mut changed = slices[42].1.clone();
    changed.services[3] = service(423, 2, "10.244.1.250");
    let touched = agent.resolver.put_slice("slice-42", &changed);
    let servers = [tcp("10.97.1.174", 80), tcp("192.168.0.11", 30_423)];
    assert_eq!(touched.virtual_servers, Which::Only(servers.into()));
    // The old endpoint is still behind the nine others of the slice: only the new entry is touched.
    let entry = |last: u8| {
        let at = [10, 244, 1, last].into();
        SetEntry::IpPortIp(at, Protocol::TCP, 8080, at)
    };
    assert_eq!(touched.set_entries, [("NODENET-LOOP-BACK".to_owned(), [entry(250)].into())].into());
    let of_rest =
        Scope { virtual_servers: Which::default(), set_entries: Default::default(), ..touched.clone() };
    assert!(of_rest.is_empty(), "{of_rest:?}");
    assert_eq!(
        agent.settle(touched).len(),
        5,
        "an addition and a removal in each of two servers, and an entry"
    );
}

// 9. Draining is an outcome of the comparison.

const SERVER: &str = "10.96.0.1";

fn draining_agent() -> (Agent, VirtualServerKey, RealServerKey) {
    let mut agent = Agent::new();
    agent.read(&spec(), &two_services());
    agent.settle_all();
    let (server, leaving) = (tcp(SERVER, 80), real("10.244.2.1", 8080));
    agent.kernel.set_connections(&server, &leaving, 2, 1);
    let without = web("one", 3, SERVER, &[("10.244.1.1", NODE)]);
    let touched = agent.resolver.put_slice("a", &slice(3, vec![without]));
    let done = agent.settle(touched);
    assert!(
        matches!(done.as_slice(), [Operation::SetRealServer(_, _, quiet)] if quiet.weight == 0),
        "{done:#?}"
    );
    (agent, server, leaving)
}

#[test]
fn rule_9_a_real_server_with_connections_takes_no_new_ones_and_goes_when_they_end() {
    let (mut agent, server, leaving) = draining_agent();
    let poll = agent.draining.scope();
    assert_eq!(poll.virtual_servers, Which::Only([server].into()));
    assert_eq!(agent.settle(poll.clone()), vec![], "it still has connections");
    agent.kernel.set_connections(&server, &leaving, 0, 0);
    assert_eq!(agent.settle(poll), vec![Operation::DeleteRealServer(server, leaving)]);
    assert!(agent.draining.is_empty());
    assert_eq!(agent.kernel.counters().broken_connections, 0);
}

#[test]
fn rule_9_a_draining_real_server_goes_at_its_deadline() {
    let (mut agent, server, leaving) = draining_agent();
    let deadline = agent.draining.next_deadline().unwrap();
    agent.now = deadline - Duration::from_millis(1);
    assert_eq!(agent.settle_all(), vec![]);
    agent.now = deadline;
    assert_eq!(agent.settle_all(), vec![Operation::DeleteRealServer(server, leaving)]);
}

#[test]
fn rule_9_a_service_says_how_long_its_real_servers_may_take() {
    for seconds in [0, 5, 86_400] {
        let mut agent = Agent::new();
        agent.read(&spec(), &two_services());
        agent.settle_all();
        let (server, leaving) = (tcp(SERVER, 80), real("10.244.2.1", 8080));
        agent.kernel.set_connections(&server, &leaving, 2, 1);
        let mut without = web("one", 3, SERVER, &[("10.244.1.1", NODE)]);
        without.ports[0].drain_timeout_seconds = Some(seconds);
        let touched = agent.resolver.put_slice("a", &slice(3, vec![without]));
        let done = agent.settle(touched);
        if seconds == 0 {
            assert_eq!(done, [Operation::DeleteRealServer(server, leaving)]);
            continue;
        }
        let timeout = Duration::from_secs(seconds.try_into().unwrap());
        assert_eq!(agent.draining.next_deadline(), Some(agent.now + timeout));
    }
}

#[test]
fn rule_9_a_real_server_that_comes_back_is_restored_in_place() {
    let (mut agent, server, leaving) = draining_agent();
    let back = web("one", 4, SERVER, &[("10.244.1.1", NODE), ("10.244.2.1", "node-2")]);
    let touched = agent.resolver.put_slice("a", &slice(4, vec![back]));
    let done = agent.settle(touched);
    assert!(
        matches!(done.as_slice(), [Operation::SetRealServer(s, r, full)] if (*s, *r, full.weight) == (server, leaving, 1)),
        "{done:#?}"
    );
    assert!(agent.draining.is_empty());
    assert_eq!(agent.kernel.counters().broken_connections, 0);
}

#[test]
fn rule_9_a_restart_goes_on_draining_and_writes_nothing() {
    let (mut agent, server, leaving) = draining_agent();
    agent.draining = Draining::default();
    assert_eq!(agent.settle_all(), vec![]);
    assert_eq!(agent.draining.iter().collect::<Vec<_>>(), vec![(&server, &leaving)]);
    assert_eq!(agent.kernel.counters().broken_connections, 0);
}

#[test]
fn rule_9_backends_of_udp_go_at_once_with_their_tracked_connections() {
    let mut agent = Agent::new();
    let dns = |revision, addresses: &[&str]| {
        let endpoints = addresses.iter().map(|a| endpoint(a, 53, "node-2")).collect();
        let frontends = vec![frontend(FrontendKind::ClusterIP, Some("10.96.0.10"), 53)];
        slice(revision, vec![plan("dns", revision, vec![port(Transport::UDP, frontends, endpoints)])])
    };
    agent.read(&spec(), &[("a", dns(1, &["10.244.2.1", "10.244.2.2"]))]);
    agent.settle_all();
    let (server, leaving) = (udp("10.96.0.10", 53), real("10.244.2.1", 53));
    agent.kernel.set_connections(&server, &leaving, 0, 40);
    let touched = agent.resolver.put_slice("a", &dns(2, &["10.244.2.2"]));
    let gone =
        [Operation::DeleteRealServer(server, leaving), Operation::ForgetConnections(server, Some(leaving))];
    assert_eq!(agent.settle(touched), gone);
    let other = web("other", 3, "10.96.0.2", &[("10.244.1.2", NODE)]);
    let touched = agent.resolver.put_slice("a", &slice(3, vec![other]));
    let gone = agent.settle(touched);
    assert!(gone.contains(&Operation::ForgetConnections(server, None)), "{gone:#?}");
}

#[test]
fn rule_9_who_sent_to_udp_before_the_virtual_server_was_there_is_translated_from_now_on() {
    let mut agent = Agent::new();
    let frontends = vec![frontend(FrontendKind::ClusterIP, Some("10.96.0.10"), 53)];
    let dns =
        plan("dns", 1, vec![port(Transport::UDP, frontends, vec![endpoint("10.244.2.1", 53, "node-2")])]);
    agent.read(&spec(), &[("a", slice(1, vec![dns]))]);
    let done = agent.settle_all();
    assert_eq!(done.last(), Some(&Operation::ForgetConnections(udp("10.96.0.10", 53), None)));
}

#[test]
fn rule_9_a_changed_scheduler_and_a_moved_plan_keep_every_real_server() {
    let mut agent = Agent::new();
    agent.read(&spec(), &two_services());
    agent.settle_all();
    let mut changed = web("one", 3, SERVER, &[("10.244.1.1", NODE), ("10.244.2.1", "node-2")]);
    changed.ports[0].scheduler = Some("wrr".into());
    let touched = agent.resolver.put_slice("c", &slice(3, vec![changed]));
    let done = agent.settle(touched);
    assert!(
        matches!(done.as_slice(), [Operation::LoadModule(m), Operation::SetVirtualServer(..)] if m == "ip_vs_wrr"),
        "{done:#?}"
    );
    let touched = agent.resolver.put_slice("a", &slice(4, vec![]));
    assert_eq!(agent.settle(touched), vec![]);
}

// Addresses: the node's own never go with ours.

fn addresses_of(agent: &Agent) -> Vec<(String, KernelAddressRole)> {
    let state = agent.kernel.state();
    let on_eth0 = state.addresses.iter().filter(|(key, _)| key.interface == "eth0");
    on_eth0.map(|(key, a)| (key.address.to_string(), a.role.unwrap())).collect()
}

#[test]
fn a_promoted_virtual_ip_goes_behind_the_primary_again_and_leaves_without_it() {
    use KernelAddressRole::{Primary, Secondary};
    let mut agent = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    agent.read(&held, &[]);
    agent.settle_all();
    let both = |own, vip| vec![("192.168.0.11".to_owned(), own), ("192.168.0.15".to_owned(), vip)];
    assert_eq!(addresses_of(&agent), both(Primary, Secondary));

    agent.kernel.remove_address("eth0", "192.168.0.11".parse().unwrap());
    let touched = agent.look_at_node();
    assert_eq!(agent.settle(touched), vec![], "promoted by the kernel, it stays where it is");
    assert_eq!(addresses_of(&agent), [("192.168.0.15".to_owned(), Primary)]);

    agent.kernel.add_address("eth0", "192.168.0.11/24");
    assert_eq!(addresses_of(&agent), both(Secondary, Primary));
    // Another hand takes the promotion away: it must be back before the address moves.
    agent.kernel.put_sysctl(&promote_secondaries("eth0"), "0");
    let touched = agent.look_at_node();
    agent.settle(touched);
    assert_eq!(addresses_of(&agent), both(Primary, Secondary));

    held.virtual_ips.clear();
    let touched = agent.resolver.put_spec(&held, Origin::Api);
    agent.settle(touched);
    assert_eq!(addresses_of(&agent), [("192.168.0.11".to_owned(), Primary)]);
}

#[test]
fn a_virtual_ip_that_became_primary_never_takes_the_nodes_own_address_along() {
    let mut agent = Agent::new();
    let mut held = spec();
    held.virtual_ips = vec![virtual_ip("vip", "192.168.0.15/24", AssignedState::Active)];
    agent.read(&held, &[]);
    agent.settle_all();
    agent.kernel.remove_address("eth0", "192.168.0.11".parse().unwrap());
    agent.kernel.add_address("eth0", "192.168.0.11/24");
    agent.kernel.put_sysctl(&promote_secondaries("eth0"), "0");
    agent.kernel.set_sysctls_read_only(true);
    held.virtual_ips[0].state = AssignedState::Backup;
    agent.look_at_node();
    agent.resolver.put_spec(&held, Origin::Api);
    let scope = Scope::all(agent.resolver.desired());
    for _ in 0..4 {
        let outcome = agent.compare(&scope, Prune::ALL);
        agent.kernel.commit(&outcome.transaction);
    }
    assert!(addresses_of(&agent).iter().any(|(a, _)| a == "192.168.0.11"), "{:?}", addresses_of(&agent));
}
