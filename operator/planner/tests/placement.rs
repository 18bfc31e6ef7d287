//! Who holds a virtual IP, in virtual time with living and dying agents.
// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod simulation;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use nodenet_crds::{
    AddressOnNode, AssignedState, NodeNetStateSpec, NodePriority, VirtualIPOnNode, VirtualIPState,
};
use nodenet_planner::{Change, Kind, Output, Settings};
use proptest::prelude::*;
use simulation::{Cluster, at, s, virtual_ip};

const ADDRESS: &str = "192.168.0.15/24";

fn settings() -> Settings {
    Settings { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..Settings::default() }
}

/// Nodes n1.. with living agents.
fn cluster(nodes: u8) -> Cluster {
    let mut c = Cluster::new(settings());
    for i in 1..=nodes {
        c.add_node(&format!("n{i}"), &format!("192.168.0.{}", 10 + i));
    }
    c.run(s(3));
    c
}

fn prefer(node: &str, priority: i32) -> NodePriority {
    let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), node.to_owned())]);
    NodePriority {
        node_selector: LabelSelector { match_labels: Some(labels), match_expressions: None },
        priority,
    }
}

fn moves(c: &Cluster) -> Vec<String> {
    let all = c.events.iter().filter(|e| e.reason.starts_with("Holder") && e.action == "Place");
    all.map(|e| format!("{}: {}", e.reason, e.note)).collect()
}

#[test]
fn the_node_of_the_highest_priority_holds_a_new_virtual_ip_and_becomes_ready() {
    let mut c = cluster(3);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n2", 150)];
    c.put(vip);
    c.run(s(1));
    assert_eq!(c.has_address(ADDRESS), ["n2"]);
    let (status, reason, message) = c.condition("web", "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Ready"), "{message}");
    let held = c.vip("web").status.clone().unwrap();
    assert_eq!(held.addresses[0].node, "n2");
    assert_eq!(held.addresses[0].interface.as_deref(), Some("eth0"));
    assert_eq!(held.addresses[0].reason, "highest priority (150) of 3 candidates");
    assert_eq!(held.summary.holder, "n2");
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_dead_holder_is_replaced_after_its_fence_and_within_twelve_seconds() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    assert_eq!(c.active("web"), ["n1"]);
    c.kill("n1");
    let took = c.run_until(s(12), |c| c.has_address(ADDRESS) == ["n2"]);
    assert!(took >= s(6), "{took:?} is before the addresses of a dead agent have run out");
    assert_eq!(c.doubles, Vec::<String>::new());
    let all = moves(&c);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[1].starts_with("HolderLost: moves from n1 to n2: the agent of n1 has not renewed"),
        "{}",
        all[1]
    );
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn of_two_nodes_one_takes_over_from_the_other() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.kill("n1");
    c.run_until(s(12), |c| c.has_address(ADDRESS) == ["n2"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_silent_holder_is_announced_before_its_fence_runs_out() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.kill("n1");
    c.run_until(s(12), |c| c.condition("web", "Held").1 == "WaitingForFence");
    assert_eq!(c.active("web"), ["n1"], "nothing moves before the fence");
}

#[test]
fn a_node_that_returns_takes_its_addresses_back_only_by_priority() {
    let mut c = cluster(3);
    c.put(virtual_ip("equal", &[ADDRESS]));
    let mut vip = virtual_ip("preferred", &["192.168.0.16/24"]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    c.put(vip);
    c.run(s(5));
    assert_eq!((c.active("equal"), c.active("preferred")), (vec!["n1".into()], vec!["n1".into()]));
    c.kill("n1");
    c.run(s(15));
    assert_eq!((c.active("equal"), c.active("preferred")), (vec!["n2".into()], vec!["n2".into()]));
    c.revive("n1");
    c.run(s(15));
    assert_eq!(c.active("equal"), ["n2"], "no move without a cause");
    assert_eq!(c.active("preferred"), ["n1"], "preempt is the default");
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn without_preempt_the_holder_stays_when_a_better_node_returns() {
    let mut c = cluster(2);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    vip.spec.failover.preempt = false;
    c.put(vip);
    c.run(s(5));
    c.kill("n1");
    c.run(s(15));
    c.revive("n1");
    c.run(s(60));
    assert_eq!(c.active("web"), ["n2"]);
}

#[test]
fn a_better_node_waits_for_the_preemption_delay_after_its_return() {
    let mut c = cluster(2);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    vip.spec.failover.preempt_delay_seconds = Some(30);
    c.put(vip);
    c.run(s(5));
    c.kill("n1");
    c.run(s(15));
    assert_eq!(c.active("web"), ["n2"]);
    c.revive("n1");
    c.run(s(25));
    assert_eq!(c.active("web"), ["n2"], "before the delay has passed");
    c.run_until(s(8), |c| c.active("web") == ["n1"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn nothing_moves_while_the_api_server_is_away_nor_when_it_returns() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    let before = moves(&c);
    c.stop_api();
    c.run(s(60));
    assert_eq!(c.has_address(ADDRESS), ["n1"], "a living agent keeps its addresses");
    c.start_api();
    c.run(s(30));
    assert_eq!(c.active("web"), ["n1"]);
    assert_eq!(moves(&c), before);
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn nothing_moves_when_most_agents_fall_silent_at_once_although_the_operator_sees_the_api() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    for node in ["n1", "n2"] {
        c.agents.get_mut(node).unwrap().connected = false;
    }
    c.run(s(40));
    assert_eq!(c.active("web"), ["n1"]);
    let (status, reason, _) = c.condition("web", "Held");
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "AgentsSilent"));
    for node in ["n1", "n2"] {
        c.agents.get_mut(node).unwrap().connected = true;
    }
    c.run(s(5));
    assert_eq!(c.condition("web", "Ready").0, "True");
    assert_eq!(moves(&c).len(), 1);
}

#[test]
fn most_nodes_dead_for_good_are_given_up_when_another_proves_that_the_api_answers() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.kill("n1");
    c.kill("n2");
    c.run(s(50));
    assert_eq!(c.active("web"), ["n1"]);
    c.run_until(s(25), |c| c.has_address(ADDRESS) == ["n3"]);
}

#[test]
fn a_restarted_operator_writes_nothing_and_moves_nothing() {
    let mut c = cluster(3);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.failover.preempt = false;
    c.put(vip);
    c.put(simulation::service("default", "web", "10.96.0.7", Some(30080)));
    c.run(s(5));
    c.kill("n1");
    c.run(s(15));
    c.revive("n1");
    c.run(s(5));
    assert_eq!(c.active("web"), ["n2"]);
    c.take_writes();
    c.restart_operator();
    c.run(s(30));
    assert_eq!(c.take_writes(), Vec::<Output>::new());
    assert_eq!(c.active("web"), ["n2"]);
}

#[test]
fn a_holder_that_died_with_the_operator_is_replaced_after_a_full_fence() {
    let mut c = cluster(3);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.operator = false;
    c.kill("n1");
    c.run(s(1));
    c.restart_operator();
    let took = c.run_until(s(15), |c| c.has_address(ADDRESS) == ["n2"]);
    assert!(took >= s(8), "the Lease's age counts from what this operator saw, took {took:?}");
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_node_that_died_long_before_an_operator_restart_never_gets_an_address() {
    let mut c = cluster(3);
    c.run(s(5));
    c.kill("n1");
    c.run(s(30));
    c.restart_operator();
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    c.put(vip);
    c.run(s(5));
    assert_eq!(c.active("web"), ["n2"]);
}

#[test]
fn a_living_holder_lets_go_before_the_next_one_takes() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.agents.get_mut("n1").unwrap().obeys = false;
    c.set_ready("n1", false);
    c.run(s(30));
    assert_eq!(c.active("web"), Vec::<String>::new(), "n1 still has it and its agent lives");
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    let (status, reason, message) = c.condition("web", "Held");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "WaitingForFence"));
    assert!(message.contains("n1") && message.contains("n2"), "{message}");
    c.agents.get_mut("n1").unwrap().obeys = true;
    c.run(s(1));
    assert_eq!(c.has_address(ADDRESS), ["n2"]);
    assert_eq!(c.doubles, Vec::<String>::new());
    let all = moves(&c);
    assert!(all[1].contains("n1 had to leave it: its Node is not Ready"), "{all:?}");
}

#[test]
fn a_cordoned_node_hands_over_and_gets_nothing_back_until_it_is_uncordoned() {
    let mut c = cluster(2);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    c.put(vip);
    c.run(s(5));
    c.set_node("n1", |n| n.spec.as_mut().unwrap().unschedulable = Some(true));
    c.run(s(5));
    assert_eq!(c.active("web"), ["n2"]);
    c.set_node("n1", |n| n.spec.as_mut().unwrap().unschedulable = None);
    c.run(s(5));
    assert_eq!(c.active("web"), ["n1"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn an_interface_that_goes_down_moves_the_addresses() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.set_interface("n1", false);
    c.run(s(2));
    assert_eq!(c.active("web"), ["n2"]);
    assert!(moves(&c)[1].contains("its interface eth0 is down"));
}

#[test]
fn a_preferred_node_gets_its_addresses_back_soon_after_its_interface_is_up_again() {
    let mut c = cluster(2);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.priorities = vec![prefer("n1", 200)];
    c.put(vip);
    c.run(s(5));
    c.set_interface("n1", false);
    c.run(s(10));
    assert_eq!(c.active("web"), ["n2"]);
    c.set_interface("n1", true);
    c.run(s(5));
    assert_eq!(c.active("web"), ["n1"], "an interface that is up again is no fault to be waited for");
}

#[test]
fn a_deleted_node_hands_over_before_its_state_goes() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    c.delete_named(Kind::Node, "n1");
    c.run(s(5));
    assert_eq!(c.active("web"), ["n2"]);
    assert!(c.state("n1").is_none(), "nobody needs its state any more");
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn an_address_that_passes_from_one_virtual_ip_to_another_is_never_on_two_nodes() {
    let mut c = cluster(2);
    let mut first = virtual_ip("first", &[ADDRESS]);
    first.spec.priorities = vec![prefer("n1", 200)];
    c.put(first);
    c.run(s(5));
    let mut second = virtual_ip("second", &[ADDRESS]);
    second.spec.priorities = vec![prefer("n2", 200)];
    c.put(second);
    c.run(s(5));
    let (status, reason, message) = c.condition("second", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "AddressConflict"));
    assert!(message.contains("VirtualIP first"), "{message}");
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    c.agents.get_mut("n1").unwrap().obeys = false;
    c.delete_named(Kind::VirtualIP, "first");
    c.run(s(5));
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    assert_eq!(c.active("second"), Vec::<String>::new());
    c.agents.get_mut("n1").unwrap().obeys = true;
    c.run(s(1));
    assert_eq!(c.has_address(ADDRESS), ["n2"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_virtual_ip_whose_only_candidate_is_gone_says_so_and_returns_with_it() {
    let mut c = cluster(2);
    let mut vip = virtual_ip("web", &[ADDRESS]);
    vip.spec.node_selector = Some(prefer("n1", 1).node_selector);
    c.put(vip);
    c.run(s(5));
    c.kill("n1");
    c.run(s(15));
    let (status, reason, message) = c.condition("web", "Held");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NotHeld"), "{message}");
    c.revive("n1");
    c.run(s(5));
    assert_eq!(c.condition("web", "Ready").0, "True");
}

#[test]
fn an_agent_that_has_not_reported_yet_may_have_what_it_was_told_to_take() {
    let mut c = cluster(2);
    c.agents.get_mut("n1").unwrap().reports = false;
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(3));
    assert_eq!(c.has_address(ADDRESS), ["n1"]);
    c.agents.get_mut("n1").unwrap().obeys = false;
    c.set_ready("n1", false);
    c.run(s(20));
    assert_eq!(c.active("web"), Vec::<String>::new());
    let agent = c.agents.get_mut("n1").unwrap();
    (agent.obeys, agent.reports) = (true, true);
    c.run(s(1));
    assert_eq!(c.has_address(ADDRESS), ["n2"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_node_whose_state_was_deleted_under_its_living_agent_is_waited_for() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(3));
    c.agents.get_mut("n1").unwrap().obeys = false;
    c.delete_named(Kind::Node, "n1");
    c.delete_named(Kind::NodeNetState, "n1");
    c.run(s(30));
    assert_eq!((c.has_address(ADDRESS), c.active("web")), (vec!["n1".to_owned()], Vec::new()));
    let (_, reason, message) = c.condition("web", "Held");
    assert_eq!(reason, "WaitingForFence");
    assert!(message.contains("Node n1 was deleted") && message.contains("stop it"), "{message}");
    c.kill("n1");
    c.run_until(s(12), |c| c.has_address(ADDRESS) == ["n2"]);
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_deposed_leader_cannot_make_a_former_holder_active_again() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    assert_eq!(c.active("web"), ["n1"]);
    let mut deposed = c.another_leader();
    c.set_ready("n1", false);
    c.run(s(5));
    assert_eq!(c.active("web"), ["n2"]);
    // To its knowledge n1 is the holder still, and something else of its state is to change.
    let mut node = simulation::node("n1", "192.168.0.11");
    node.spec.as_mut().unwrap().pod_cidr = Some("10.244.7.0/24".into());
    let keys = deposed.apply(Change::Upsert(node.into()), &at(c.now));
    let writes = deposed.plan(&keys, &at(c.now));
    let active = |spec: &NodeNetStateSpec| spec.virtual_ips.iter().any(|v| v.state == AssignedState::Active);
    let of_n1 = |w: &Output| matches!(w, Output::PutState { node, spec, .. } if node == "n1" && active(spec));
    assert!(writes.iter().any(of_n1), "{writes:?}");
    c.operator = false;
    for write in writes {
        c.write(write);
    }
    assert_eq!(c.active("web"), ["n2"]);
    c.run(s(5));
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn a_leader_that_learns_late_where_an_address_went_does_not_give_it_to_another_node_too() {
    let mut c = cluster(2);
    c.put(virtual_ip("web", &[ADDRESS]));
    c.run(s(5));
    let late = c.another_leader();
    c.set_ready("n1", false);
    c.run(s(5));
    c.set_ready("n1", true);
    c.run(s(1));
    assert_eq!(c.active("web"), ["n2"]);
    c.index = late;
    c.agents.get_mut("n2").unwrap().obeys = false;
    c.relist();
    c.run(s(5));
    assert_eq!(c.doubles, Vec::<String>::new());
    c.agents.get_mut("n2").unwrap().obeys = true;
    c.run(s(5));
    assert_eq!((c.active("web").len(), c.has_address(ADDRESS).len()), (1, 1));
    assert_eq!(c.doubles, Vec::<String>::new());
}

#[test]
fn what_a_node_says_of_addresses_that_it_was_never_given_holds_up_no_other() {
    for restart in [false, true] {
        let mut c = cluster(3);
        let mut vip = virtual_ip("web", &[ADDRESS]);
        vip.spec.node_selector = Some(LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "kubernetes.io/hostname".into(),
                operator: "NotIn".into(),
                values: Some(vec!["n3".into()]),
            }]),
        });
        c.put(vip);
        c.run(s(5));
        c.agents.get_mut("n3").unwrap().reports = false;
        let mut state = c.state("n3").unwrap().clone();
        state.status.as_mut().unwrap().virtual_ips = vec![VirtualIPOnNode {
            name: "web".into(),
            state: VirtualIPState::Active,
            message: None,
            addresses: vec![AddressOnNode { address: ADDRESS.into(), interface: "eth0".into(), role: None }],
        }];
        c.put(state);
        c.run(s(1));
        let (status, reason, message) = c.condition("web", "Held");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "DuplicateOwner"), "{message}");
        assert!(message.contains("n3"), "{message}");
        if restart {
            c.restart_operator();
            c.run(s(3));
        }
        c.kill("n1");
        c.run_until(s(15), |c| c.has_address(ADDRESS) == ["n2"]);
        assert_eq!(c.doubles, Vec::<String>::new());
    }
}

#[derive(Clone, Debug)]
enum Trouble {
    Kill(u8),
    Revive(u8),
    Ready(u8, bool),
    Cordon(u8, bool),
    Interface(u8, bool),
    Deaf(u8, bool),
    Mute(u8, bool),
    DeleteState(u8),
    RestartOperator,
    StopOperator,
    Relist,
    Api(bool),
    Prefer(u8),
    Recreate,
}

fn trouble() -> impl Strategy<Value = (Trouble, u64)> {
    let n = 1..=3_u8;
    let what = prop_oneof![
        3 => n.clone().prop_map(Trouble::Kill),
        3 => n.clone().prop_map(Trouble::Revive),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Trouble::Ready(n, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Trouble::Cordon(n, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Trouble::Interface(n, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Trouble::Deaf(n, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, b)| Trouble::Mute(n, b)),
        1 => n.clone().prop_map(Trouble::DeleteState),
        2 => Just(Trouble::RestartOperator),
        1 => Just(Trouble::StopOperator),
        1 => Just(Trouble::Relist),
        1 => any::<bool>().prop_map(Trouble::Api),
        1 => n.prop_map(Trouble::Prefer),
        1 => Just(Trouble::Recreate),
    ];
    // Quarters of a second that pass afterwards.
    (what, prop_oneof![3 => 0..6_u64, 2 => 6..60_u64])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_address_is_on_two_nodes_and_in_the_end_one_holds_it(
        troubles in prop::collection::vec(trouble(), 1..25),
        failures in 0..30_u32,
    ) {
        let mut c = cluster(3);
        let mut count = 1_u32;
        c.fail = Box::new(move || {
            count = count.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (count >> 16) % 100 < failures
        });
        c.put(virtual_ip("web", &[ADDRESS]));
        for (trouble, quarters) in troubles {
            let name = |n: u8| format!("n{n}");
            match trouble {
                Trouble::Kill(n) => c.kill(&name(n)),
                Trouble::Revive(n) => c.revive(&name(n)),
                Trouble::Ready(n, ready) => c.set_ready(&name(n), ready),
                Trouble::Cordon(n, cordon) => {
                    c.set_node(&name(n), |n| n.spec.as_mut().unwrap().unschedulable = Some(cordon));
                }
                Trouble::Interface(n, up) => {
                    if c.state(&name(n)).is_some_and(|s| s.status.is_some()) {
                        c.set_interface(&name(n), up);
                    }
                }
                Trouble::Deaf(n, deaf) => c.agents.get_mut(&name(n)).unwrap().obeys = !deaf,
                Trouble::Mute(n, mute) => c.agents.get_mut(&name(n)).unwrap().reports = !mute,
                Trouble::DeleteState(n) => c.delete_named(Kind::NodeNetState, &name(n)),
                Trouble::RestartOperator => {
                    if c.api {
                        c.restart_operator();
                    }
                }
                Trouble::StopOperator => c.operator = false,
                Trouble::Relist => {
                    if c.api && c.operator {
                        c.relist();
                    }
                }
                Trouble::Api(true) => c.start_api(),
                Trouble::Api(false) => c.stop_api(),
                Trouble::Prefer(n) => {
                    if let Some(mut vip) = c.find_vip("web") {
                        vip.spec.priorities = vec![prefer(&name(n), 200)];
                        c.put(vip);
                    }
                }
                // Who had the address stands in the VirtualIP's status and in the NodeNetState. Where both are deleted while
                // no operator looks, and the agent does not do as it is told, nobody can know (decision 0006).
                Trouble::Recreate if !c.operator => {}
                Trouble::Recreate => {
                    c.delete_named(Kind::VirtualIP, "web");
                    c.put(virtual_ip("web", &[ADDRESS]));
                }
            }
            c.run(simulation::STEP * quarters as u32);
        }
        prop_assert_eq!(&c.doubles, &Vec::<String>::new());
        c.fail = Box::new(|| false);
        c.start_api();
        for i in 1..=3 {
            let name = format!("n{i}");
            c.revive(&name);
            let agent = c.agents.get_mut(&name).unwrap();
            (agent.obeys, agent.reports) = (true, true);
            c.set_ready(&name, true);
            c.set_node(&name, |n| n.spec.as_mut().unwrap().unschedulable = None);
        }
        c.restart_operator();
        c.run(s(15));
        for i in 1..=3 {
            c.set_interface(&format!("n{i}"), true);
        }
        c.run(s(15));
        let (status, _, message) = c.condition("web", "Ready");
        prop_assert_eq!(status, "True", "{}", message);
        prop_assert_eq!(c.has_address(ADDRESS).len(), 1);
        prop_assert_eq!(&c.doubles, &Vec::<String>::new());
    }
}
