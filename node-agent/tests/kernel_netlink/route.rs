//! Local routes of service ranges.

use std::collections::BTreeSet;

use nodenet_agent::{
    kernel::Kernel,
    state::{LocalRoute, Operation, Scope},
};

use crate::support::{commit_all, in_namespace, kernel, run};

fn local(range: &str) -> LocalRoute {
    LocalRoute { range: range.parse().unwrap(), interface: "eth0".to_owned() }
}

fn read() -> BTreeSet<LocalRoute> {
    kernel().observe(&Scope { routes: true, ..Scope::default() }).unwrap().routes
}

fn cable() {
    run("ip", "link add eth0 type veth peer name peer0");
    run("ip", "link set eth0 up");
    run("ip", "link set peer0 up");
}

#[test]
fn every_address_of_a_range_becomes_local_and_ceases_to_be() {
    in_namespace(|| {
        cable();
        let routes = [local("10.96.0.0/12"), local("fd00:96::/108"), local("192.168.7.9/32")];
        let mut kernel = kernel();
        commit_all(&mut kernel, routes.iter().cloned().map(Operation::AddRoute).collect());
        assert_eq!(read(), routes.iter().cloned().collect());
        assert!(run("ip", "route get 10.96.0.10").starts_with("local 10.96.0.10 dev lo"));
        assert!(run("ip", "-6 route get fd00:96::a").starts_with("local fd00:96::a"));
        let table = run("ip", "route show table local");
        assert!(table.contains("local 10.96.0.0/12 dev eth0 proto 110 scope host"), "{table}");
        commit_all(&mut kernel, routes.iter().cloned().map(Operation::DeleteRoute).collect());
        assert_eq!(read(), BTreeSet::new());
        assert!(!run("ip", "route show table local").contains("10.96"));
    });
}

#[test]
fn routes_of_others_are_not_seen_as_ours() {
    in_namespace(|| {
        cable();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        run("ip", "route add local 10.97.0.0/16 dev eth0");
        run("ip", "route add 10.98.0.0/16 dev eth0");
        assert_eq!(read(), BTreeSet::new());
    });
}

#[test]
fn the_kernels_own_route_of_a_bound_address_outlives_ours() {
    in_namespace(|| {
        cable();
        run("ip", "address add 10.96.0.1/32 dev eth0");
        run("ip", "address add fd00:96::1/128 dev eth0 nodad");
        // Of the table only these addresses: others of the interface come and go by themselves.
        let show = || {
            let table = run("ip", "route show table local") + &run("ip", "-6 route show table local");
            let of_ours = |line: &&str| line.contains("10.96.0.1") || line.contains("fd00:96::1");
            table.lines().filter(of_ours).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = show();
        assert_eq!(before.len(), 2, "{before:#?}");
        let mut kernel = kernel();
        let routes = [local("10.96.0.1/32"), local("fd00:96::1/128")];
        commit_all(&mut kernel, routes.iter().cloned().map(Operation::AddRoute).collect());
        assert_eq!(show().len(), 4, "{:#?}", show());
        commit_all(&mut kernel, routes.iter().cloned().map(Operation::DeleteRoute).collect());
        assert_eq!(before, show());
    });
}
