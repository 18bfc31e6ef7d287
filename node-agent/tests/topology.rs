//! Hints of EndpointSlices: which endpoints a node uses, and when it uses all in spite of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plans;

use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_crds::{Endpoint, FrontendKind, PortPlan, Protocol, TrafficPolicy};
use plans::{NODE, endpoint, frontend, plan, port, slice, spec, tcp};

/// `(last byte of the address, node, zones, nodes)`
type Pod<'a> = (u8, &'a str, &'a [&'a str], &'a [&'a str]);

fn pods(list: &[Pod<'_>]) -> Vec<Endpoint> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let pod = |(number, node, zones, nodes): &Pod<'_>| Endpoint {
        for_zones: texts(zones),
        for_nodes: texts(nodes),
        ..endpoint(&format!("10.244.0.{number}"), 8080, node)
    };
    list.iter().map(pod).collect()
}

fn resolver(zone: Option<&str>) -> Resolver {
    let mut resolver = Resolver::new(Options { node: NODE.into(), ..Options::default() });
    let spec = nodenet_crds::NodeNetStateSpec { zone: zone.map(str::to_owned), ..spec() };
    resolver.put_spec(&spec, Origin::Api);
    resolver
}

fn web(endpoints: Vec<Endpoint>) -> PortPlan {
    port(Protocol::TCP, vec![frontend(FrontendKind::ClusterIP, Some("10.96.0.1"), 80)], endpoints)
}

/// Last bytes of the addresses of those that answer.
fn answering(resolver: &Resolver) -> Vec<u8> {
    let servers = &resolver.desired().virtual_servers[&tcp("10.96.0.1", 80)].real_servers;
    servers
        .keys()
        .map(|key| match key.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            other => panic!("{other}"),
        })
        .collect()
}

#[test]
fn hints_are_followed_where_all_have_them_and_one_is_for_us() {
    let no: &[&str] = &[];
    let cases: [(&str, &[Pod<'_>], &[u8]); 9] = [
        ("no hints", &[(1, NODE, no, no), (2, "n2", no, no)], &[1, 2]),
        ("our zone", &[(1, "n2", &["a"], no), (2, "n3", &["b"], no), (3, "n4", &["a", "b"], no)], &[1, 3]),
        ("one has none", &[(1, "n2", &["a"], no), (2, "n3", no, no)], &[1, 2]),
        ("none is for our zone", &[(1, "n2", &["b"], no), (2, "n3", &["c"], no)], &[1, 2]),
        ("our node", &[(1, NODE, no, &[NODE]), (2, "n2", no, &["n2"])], &[1]),
        ("our node before our zone", &[(1, NODE, &["a"], &[NODE]), (2, "n2", &["a"], &["n2"])], &[1]),
        ("not our node: our zone", &[(1, "n2", &["a"], &["n2"]), (2, "n3", &["b"], &["n3"])], &[1]),
        ("one names no node: our zone", &[(1, NODE, &["a"], &[NODE]), (2, "n2", &["a"], no)], &[1, 2]),
        ("nobody is for us", &[(1, "n2", &["b"], &["n2"]), (2, "n3", &["c"], &["n3"])], &[1, 2]),
    ];
    for (name, list, expected) in cases {
        let mut resolver = resolver(Some("a"));
        resolver.put_slice("s", &slice(1, vec![plan("web", 1, vec![web(pods(list))])]));
        assert_eq!(answering(&resolver), expected, "{name}");
    }
}

#[test]
fn a_node_that_knows_no_zone_uses_all_and_one_that_learns_it_follows() {
    let none: &[&str] = &[];
    let list: &[Pod<'_>] = &[(1, "n2", &["a"], none), (2, "n3", &["b"], none)];
    let mut resolver = resolver(None);
    resolver.put_slice("s", &slice(1, vec![plan("web", 1, vec![web(pods(list))])]));
    assert_eq!(answering(&resolver), [1, 2]);
    let spec = nodenet_crds::NodeNetStateSpec { zone: Some("b".into()), ..spec() };
    let touched = resolver.put_spec(&spec, Origin::Api);
    assert_eq!(answering(&resolver), [2]);
    assert!(touched.virtual_servers.contains(&tcp("10.96.0.1", 80)));
}

#[test]
fn endpoints_that_terminate_and_the_policy_local_know_no_hints() {
    let none: &[&str] = &[];
    let mut leaving = pods(&[(1, "n2", &["b"], none)]);
    leaving[0].terminating = true;
    let mut list = pods(&[(2, "n3", &["a"], none), (3, "n4", &["b"], none)]);
    list.extend(leaving.clone());
    let mut resolver = resolver(Some("a"));
    resolver.put_slice("s", &slice(1, vec![plan("web", 1, vec![web(list)])]));
    assert_eq!(answering(&resolver), [2], "one that terminates spoils nothing");
    resolver.put_slice("s", &slice(2, vec![plan("web", 2, vec![web(leaving)])]));
    assert_eq!(answering(&resolver), [1], "and is better than nothing");

    let here = pods(&[(1, NODE, &["b"], none), (2, "n3", &["a"], none)]);
    let local = PortPlan { internal_traffic_policy: TrafficPolicy::Local, ..web(here) };
    resolver.put_slice("s", &slice(3, vec![plan("web", 3, vec![local])]));
    assert_eq!(answering(&resolver), [1]);
}

#[test]
fn hints_in_one_part_of_a_plan_count_for_all() {
    let none: &[&str] = &[];
    let first = web(pods(&[(1, "n2", &["a"], none), (2, "n3", &["b"], none)]));
    let second = web(pods(&[(3, "n4", none, none)]));
    let mut resolver = resolver(Some("a"));
    resolver.put_slice("s", &slice(1, vec![plans::part("web", 1, 0, 2, vec![first])]));
    resolver.put_slice("t", &slice(1, vec![plans::part("web", 1, 1, 2, vec![second])]));
    assert_eq!(answering(&resolver), [1, 2, 3], "the one without hints stands in another part");
}
