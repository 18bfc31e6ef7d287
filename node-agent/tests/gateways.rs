//! The node's gateways are no Service's, whatever was planned.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_crds::{FrontendKind, Protocol};
use plans::{Agent, endpoint, frontend, plan, port, slice, spec, tcp};

#[test]
fn a_service_at_the_gateways_address_is_left_out_until_it_is_none() {
    let mut agent = Agent::new();
    agent.kernel.set_gateways(&["192.168.0.1"]);
    let frontends = vec![
        frontend(FrontendKind::ClusterIP, Some("10.96.0.1"), 80),
        frontend(FrontendKind::ExternalIP, Some("192.168.0.1"), 80),
        frontend(FrontendKind::LoadBalancer, Some("192.168.0.2"), 80),
    ];
    let ports = vec![port(Protocol::TCP, frontends, vec![endpoint("10.244.0.1", 8080, "n2")])];
    agent.read(&spec(), &[("s", slice(1, vec![plan("web", 1, ports)]))]);
    agent.settle_all();
    let served = |agent: &Agent, address: &str| {
        let state = agent.kernel.state();
        let route = state
            .routes
            .iter()
            .any(|route| route.range.addr() == address.parse::<std::net::IpAddr>().unwrap());
        (state.virtual_servers.contains_key(&tcp(address, 80)), route)
    };
    assert_eq!(served(&agent, "192.168.0.1"), (false, false));
    assert_eq!(served(&agent, "192.168.0.2"), (true, true));
    assert!(served(&agent, "10.96.0.1").0);

    agent.kernel.set_gateways(&["192.168.0.2"]);
    let touched = agent.look_at_node();
    agent.settle(touched);
    assert_eq!(served(&agent, "192.168.0.1"), (true, true));
    assert_eq!(served(&agent, "192.168.0.2"), (false, false));
}
