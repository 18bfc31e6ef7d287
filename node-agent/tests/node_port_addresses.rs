//! On which of the node's addresses node ports answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_crds::{FrontendKind, NodeNetStateSpec, Protocol};
use plans::{Agent, endpoint, frontend, plan, port, slice, spec, tcp};

fn agent(within: Option<&[&str]>) -> Agent {
    let mut agent = Agent::new();
    agent.kernel.add_link("eth1", "");
    agent.kernel.add_address("eth1", "10.9.0.11/24");
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let spec = NodeNetStateSpec { node_port_addresses: within.map(texts), ..spec() };
    let frontends = vec![
        frontend(FrontendKind::ClusterIP, Some("10.96.0.1"), 80),
        frontend(FrontendKind::NodePort, None, 30_080),
    ];
    let ports = vec![port(Protocol::TCP, frontends, vec![endpoint("10.244.0.1", 8080, "n2")])];
    agent.read(&spec, &[("s", slice(1, vec![plan("web", 1, ports)]))]);
    agent.settle_all();
    agent
}

fn answers(agent: &Agent, address: &str) -> bool {
    agent.kernel.state().virtual_servers.contains_key(&tcp(address, 30_080))
}

#[test]
fn node_ports_answer_where_they_are_wanted() {
    let cases: [(Option<&[&str]>, bool, bool); 4] = [
        (None, true, true),
        (Some(&["10.9.0.0/24"]), false, true),
        (Some(&["192.168.0.11/32", "fd00::/64"]), true, false),
        (Some(&[]), false, false),
    ];
    for (within, on_eth0, on_eth1) in cases {
        let agent = agent(within);
        assert_eq!(answers(&agent, "192.168.0.11"), on_eth0, "{within:?}");
        assert_eq!(answers(&agent, "10.9.0.11"), on_eth1, "{within:?}");
        let cluster_ip = tcp("10.96.0.1", 80);
        assert!(agent.kernel.state().virtual_servers.contains_key(&cluster_ip), "{within:?}");
    }
}

#[test]
fn an_address_that_comes_within_the_ranges_gets_them_and_one_beside_does_not() {
    let mut agent = agent(Some(&["10.9.0.0/24"]));
    agent.kernel.add_address("eth1", "10.9.0.12/24");
    agent.kernel.add_address("eth1", "10.8.0.12/24");
    let touched = agent.look_at_node();
    agent.settle(touched);
    assert!(answers(&agent, "10.9.0.12"));
    assert!(!answers(&agent, "10.8.0.12"));
}

#[test]
fn load_balancers_ask_on_the_addresses_of_node_ports() {
    let addresses = |agent: &mut Agent| agent.resolver.take_health_checks().unwrap().addresses;
    assert_eq!(addresses(&mut agent(Some(&["0.0.0.0/0"]))).map(|some| some.len()), Some(2));
    let mut agent = agent(Some(&["10.9.0.0/24"]));
    let eth1 = "10.9.0.11".parse().unwrap();
    assert_eq!(addresses(&mut agent), Some([eth1].into()));
    assert_eq!(agent.resolver.take_health_checks(), None, "nothing is new");
    agent.kernel.add_address("eth1", "10.9.0.12/24");
    agent.look_at_node();
    assert_eq!(addresses(&mut agent), Some([eth1, "10.9.0.12".parse().unwrap()].into()));
    agent.resolver.put_spec(&spec(), nodenet_agent::resolve::Origin::Api);
    assert_eq!(addresses(&mut agent), None, "on all");
}
