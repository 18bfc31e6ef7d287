//! Nothing is taken away because its input is gone: no cluster is without Services, and a node without a state of its own
//! keeps the last one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_agent::diff::Prune;
use nodenet_agent::resolve::Origin;
use nodenet_agent::state::Operation;
use nodenet_crds::NodeNetSliceSpec;
use plans::{Agent, NODE, names, real, slice, spec, tcp, web};

fn two_services() -> [(&'static str, NodeNetSliceSpec); 2] {
    [
        ("a", slice(1, vec![web("one", 1, "10.96.0.1", &[("10.244.1.1", NODE)])])),
        ("b", slice(2, vec![web("two", 2, "10.96.0.2", &[("10.244.1.2", NODE)])])),
    ]
}

fn agent() -> Agent {
    let mut agent = Agent::new();
    agent.read(&spec(), &two_services());
    agent.settle_all();
    agent
}

/// An agent that has just started on the node of [`agent`].
fn restarted() -> Agent {
    let before = agent();
    let mut after = Agent::on(before.kernel.clone(), before.journal.clone());
    after.look_at_node();
    after
}

#[test]
fn an_empty_list_of_slices_takes_nothing_away() {
    let mut agent = restarted();
    agent.resolver.put_spec(&spec(), Origin::Api);
    agent.resolver.list_started();
    agent.resolver.list_completed(&names(&[]));
    assert!(!agent.resolver.prune().services);
    assert_eq!(agent.settle_all(), vec![]);
}

#[test]
fn slices_without_a_plan_are_an_empty_list() {
    let mut agent = restarted();
    agent.resolver.put_spec(&spec(), Origin::Api);
    agent.resolver.list_started();
    agent.resolver.put_slice("a", &slice(3, vec![]));
    agent.resolver.list_completed(&names(&["a"]));
    assert!(!agent.resolver.prune().services);
    assert_eq!(agent.settle_all(), vec![]);
}

#[test]
fn the_last_plans_stay_when_a_list_turns_empty() {
    let mut agent = agent();
    agent.resolver.list_started();
    // As the watch says it: what a list does not name is gone, then the list is complete.
    agent.resolver.remove_slice("a");
    agent.resolver.remove_slice("b");
    agent.resolver.list_completed(&names(&[]));
    assert_eq!(agent.settle_all(), vec![]);
    assert_eq!(agent.resolver.desired().virtual_servers.len(), 2);
}

#[test]
fn the_last_plans_stay_when_the_last_slice_goes() {
    let mut agent = agent();
    agent.resolver.remove_slice("a");
    let done = agent.settle_all();
    assert!(
        done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.1", 80))),
        "others are left: {done:#?}"
    );
    agent.resolver.remove_slice("b");
    assert_eq!(agent.settle_all(), vec![]);
    assert_eq!(agent.resolver.desired().virtual_servers.len(), 1);
}

#[test]
fn slices_that_come_after_an_empty_list_are_the_whole_once_no_more_come() {
    let mut agent = restarted();
    agent.resolver.put_spec(&spec(), Origin::Api);
    agent.resolver.list_started();
    agent.resolver.list_completed(&names(&[]));
    agent.resolver.confirm_slices();
    agent.resolver.confirm_slices();
    assert!(!agent.resolver.prune().services, "none came");

    agent.resolver.put_slice("b", &two_services()[1].1);
    agent.resolver.confirm_slices();
    assert!(!agent.resolver.prune().services, "another may follow");
    assert_eq!(agent.settle_all(), vec![]);
    agent.resolver.confirm_slices();
    assert!(agent.resolver.prune().services);
    let done = agent.settle_all();
    assert!(done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.1", 80))), "{done:#?}");
    assert!(!done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.2", 80))), "{done:#?}");
}

#[test]
fn nothing_goes_while_the_nodes_own_state_is_gone() {
    let mut agent = agent();
    agent.resolver.state_gone();
    let prune = agent.resolver.prune();
    assert!(!prune.addresses && !prune.services);
    agent.resolver.remove_slice("a");
    let removed = agent.settle_all().iter().any(|o| matches!(o, Operation::DeleteVirtualServer(_)));
    assert!(!removed, "what is published is being taken away");

    agent.resolver.put_spec(&spec(), Origin::Api);
    let done = agent.settle_all();
    assert!(done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.1", 80))), "{done:#?}");
}

#[test]
fn a_slice_that_was_never_readable_keeps_only_what_may_stand_in_it() {
    let mut agent = restarted();
    agent.resolver.put_spec(&spec(), Origin::Api);
    agent.resolver.list_started();
    let fewer = slice(3, vec![web("one", 3, "10.96.0.1", &[])]);
    agent.resolver.put_slice("a", &fewer);
    agent.resolver.slice_unreadable("c");
    agent.resolver.list_completed(&names(&["a", "c"]));
    let gone = Operation::DeleteRealServer(tcp("10.96.0.1", 80), real("10.244.1.1", 8080));
    let done = agent.settle_all();
    assert!(done.contains(&gone), "its Service stands in a slice that can be read: {done:#?}");
    let removed = |done: &[Operation]| done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.2", 80)));
    assert!(!removed(&done), "its Service may stand in the other");

    agent.resolver.put_slice("c", &slice(4, vec![web("three", 4, "10.96.0.3", &[])]));
    assert!(removed(&agent.settle_all()));
}

#[test]
fn a_service_that_goes_while_a_slice_is_unknown_may_have_moved_there() {
    let mut agent = agent();
    agent.resolver.slice_unreadable("c");
    agent.resolver.put_slice("b", &slice(3, vec![]));
    assert_eq!(agent.settle_all(), vec![]);
    assert_eq!(agent.resolver.desired().virtual_servers.len(), 2);
    agent.resolver.remove_slice("c");
    let done = agent.settle_all();
    assert!(done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.2", 80))), "{done:#?}");
}

#[test]
fn a_slice_whose_earlier_content_is_known_stops_nothing() {
    let mut agent = agent();
    agent.resolver.slice_unreadable("b");
    assert_eq!(agent.resolver.prune(), Prune::ALL);
    agent.resolver.remove_slice("a");
    let done = agent.settle_all();
    assert!(done.contains(&Operation::DeleteVirtualServer(tcp("10.96.0.1", 80))), "{done:#?}");
    assert_eq!(agent.resolver.desired().virtual_servers.len(), 1);
}
