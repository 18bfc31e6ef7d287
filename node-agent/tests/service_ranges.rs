//! A service range is made local on every node: one that holds a neighbour or a pod would cut the node off.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_agent::resolve::Origin;
use nodenet_crds::NodeNetStateSpec;
use plans::{Agent, spec};

/// What an agent on a node with these foreign addresses makes local, and what it says.
fn on(addresses: &[&str], spec: &NodeNetStateSpec) -> (Vec<String>, Vec<String>) {
    let agent = agent(addresses, spec);
    (routes(&agent), problems(&agent))
}

fn agent(addresses: &[&str], spec: &NodeNetStateSpec) -> Agent {
    let mut agent = Agent::new();
    for address in addresses {
        agent.kernel.add_address("eth0", address);
    }
    agent.read(spec, &[]);
    agent
}

fn routes(agent: &Agent) -> Vec<String> {
    agent.resolver.desired().routes.iter().map(|route| route.range.to_string()).collect()
}

fn problems(agent: &Agent) -> Vec<String> {
    agent.resolver.problems().iter().map(ToString::to_string).collect()
}

fn ranges(list: &[&str]) -> NodeNetStateSpec {
    let mut spec = spec();
    spec.service_addresses.cidrs = list.iter().map(|range| (*range).to_owned()).collect();
    spec
}

#[test]
fn a_range_that_holds_the_nodes_network_is_refused() {
    let (routes, problems) = on(&["10.100.0.11/24"], &ranges(&["10.96.0.0/12", "172.20.0.0/16"]));
    assert_eq!(routes, ["172.20.0.0/16"]);
    assert_eq!(
        problems,
        [
            "service addresses: range 10.96.0.0/12 is not made local: it overlaps the network 10.100.0.0/24 of \
             interface eth0, which would be out of this node's reach; give the cluster's own service range \
             (serviceCIDRs), or move the other one"
        ]
    );
}

#[test]
fn a_range_within_the_nodes_network_is_refused() {
    assert!(on(&["10.0.0.11/8"], &ranges(&["10.96.0.0/12"])).0.is_empty());
    assert!(on(&["fd00::11/32"], &ranges(&["fd00:0:96::/112"])).0.is_empty());
}

#[test]
fn a_range_that_holds_a_single_address_of_the_node_is_refused() {
    assert!(on(&["10.97.3.4/32"], &ranges(&["10.96.0.0/12"])).0.is_empty());
}

#[test]
fn every_length_of_an_overlap_is_seen() {
    for length in 8..=32 {
        let (routes, problems) = on(&["10.96.0.1/24"], &ranges(&[&format!("10.96.0.1/{length}")]));
        assert!(routes.is_empty(), "/{length}");
        assert_eq!(problems.len(), 1, "/{length}");
        let (routes, problems) = on(&[&format!("10.96.0.1/{length}")], &ranges(&["11.0.0.0/24"]));
        assert_eq!((routes.len(), problems.len()), (1, 0), "/{length}");
    }
}

#[test]
fn a_range_that_overlaps_a_pod_network_is_refused() {
    for pods in ["10.96.0.0/16", "10.0.0.0/8"] {
        let mut spec = ranges(&["10.96.0.0/12"]);
        spec.cluster_cidrs = vec![pods.into()];
        let (routes, problems) = on(&[], &spec);
        assert!(routes.is_empty(), "{pods}");
        assert!(problems[0].contains(&format!("overlaps the pod network {pods}")), "{problems:?}");
    }
}

#[test]
fn what_another_proxy_or_this_agent_bound_is_no_address_of_the_node() {
    let mut agent = Agent::new();
    for interface in ["kube-ipvs0", "nodenet0", "lo"] {
        agent.kernel.add_link(interface, "dummy");
    }
    agent.kernel.add_address("kube-ipvs0", "10.96.0.1/32");
    agent.kernel.add_address("nodenet0", "10.96.0.2/32");
    agent.read(&spec(), &[]);
    assert_eq!(routes(&agent), ["10.96.0.0/12"]);
    assert_eq!(problems(&agent), Vec::<String>::new());
}

#[test]
fn nothing_is_made_local_before_the_nodes_addresses_were_seen() {
    let mut agent = Agent::new();
    agent.kernel.add_address("eth0", "10.100.0.11/24");
    agent.resolver.put_spec(&spec(), Origin::Api);
    agent.look_at_node();
    assert!(routes(&agent).is_empty());
    assert_eq!(problems(&agent).len(), 1);
}

#[test]
fn an_address_that_comes_later_is_reported_and_takes_no_route_away() {
    let mut agent = agent(&[], &spec());
    assert_eq!(routes(&agent), ["10.96.0.0/12"]);
    agent.settle_all();
    agent.kernel.add_address("eth0", "10.100.0.11/24");
    let touched = agent.look_at_node();
    assert!(!touched.routes);
    assert_eq!(routes(&agent), ["10.96.0.0/12"]);
    let said = problems(&agent);
    assert!(said[0].contains("range 10.96.0.0/12 stays local although it overlaps"), "{said:?}");

    // A word of the operator about something else does not take it away either.
    let mut spec = spec();
    spec.cluster_cidrs.push("10.245.0.0/16".into());
    agent.resolver.put_spec(&spec, Origin::Api);
    assert_eq!(routes(&agent), ["10.96.0.0/12"]);
    assert_eq!(problems(&agent), said);
}

#[test]
fn a_range_that_was_refused_is_taken_when_nothing_is_in_the_way_any_more() {
    let mut agent = agent(&["10.100.0.11/24"], &spec());
    assert!(routes(&agent).is_empty());
    agent.kernel.remove_address("eth0", "10.100.0.11".parse().unwrap());
    let touched = agent.look_at_node();
    assert!(touched.routes);
    assert_eq!(routes(&agent), ["10.96.0.0/12"]);
    assert!(problems(&agent).is_empty());
}
