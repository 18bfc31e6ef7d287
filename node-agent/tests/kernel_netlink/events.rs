//! Hearing of changes by whatever hand.

use std::sync::mpsc;

use nodenet_agent::{
    kernel::{
        Kernel, KernelEvent,
        netlink::{Namespace, events, listener::Listener},
    },
    state::{LocalRoute, Operation, Scope},
};

use crate::support::{PATIENCE, address, commit_all, in_namespace, kernel, key, run};

fn listen() -> (Listener, mpsc::Receiver<KernelEvent>) {
    let (tell, told) = mpsc::channel();
    let listener = events::listen(&Namespace::own(), move |event| tell.send(event).is_ok(), |_| {}).unwrap();
    (listener, told)
}

/// Waits for an event and drops those before it.
fn wait_for(told: &mpsc::Receiver<KernelEvent>, wanted: &KernelEvent) {
    loop {
        let event = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{wanted:?} was not told"));
        if event == *wanted {
            return;
        }
    }
}

#[test]
fn changes_by_another_hand_are_told_by_name() {
    in_namespace(|| {
        let (_listener, told) = listen();
        run("ip", "link add eth0 type veth peer name peer0");
        wait_for(&told, &KernelEvent::Link("eth0".to_owned()));
        run("ip", "link set eth0 up");
        wait_for(&told, &KernelEvent::Link("eth0".to_owned()));
        run("ip", "link set peer0 up");
        wait_for(&told, &KernelEvent::Link("eth0".to_owned()));
        run("ip", "address add 192.168.0.11/24 dev eth0");
        wait_for(&told, &KernelEvent::Address(key("eth0", "192.168.0.11")));
        run("ip", "address add fd00::11/64 dev eth0 nodad");
        wait_for(&told, &KernelEvent::Address(key("eth0", "fd00::11")));
        run("ip", "address delete 192.168.0.11/24 dev eth0");
        wait_for(&told, &KernelEvent::Address(key("eth0", "192.168.0.11")));
        run("ip", "link delete eth0");
        wait_for(&told, &KernelEvent::Link("eth0".to_owned()));
    });
}

#[test]
fn of_routes_only_local_ones_that_the_kernel_did_not_make_are_told() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name peer0");
        run("ip", "link set eth0 up");
        run("ip", "link set peer0 up");
        let (_listener, told) = listen();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        run("ip", "route add 10.98.0.0/16 dev eth0");
        run("ip", "address add 192.168.1.1/32 dev eth0");
        loop {
            let event = told.recv_timeout(PATIENCE).unwrap();
            assert_ne!(event, KernelEvent::Route);
            if event == KernelEvent::Address(key("eth0", "192.168.1.1")) {
                break;
            }
        }
        let route = LocalRoute { range: "10.96.0.0/12".parse().unwrap(), interface: "eth0".to_owned() };
        commit_all(&mut kernel(), vec![Operation::AddRoute(route)]);
        wait_for(&told, &KernelEvent::Route);
        run("ip", "route delete local 10.96.0.0/12 dev eth0 table local");
        wait_for(&told, &KernelEvent::Route);
    });
}

#[test]
fn gateways_are_those_of_all_default_routes_and_their_changes_are_told() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name peer0");
        run("ip", "link set eth0 up");
        run("ip", "link set peer0 up");
        run("ip", "address add 192.168.0.11/24 dev eth0");
        run("ip", "address add fd00::11/64 dev eth0 nodad");
        run("ip", "route add 10.98.0.0/16 via 192.168.0.99");
        let (_listener, told) = listen();
        let scope = Scope { gateways: true, ..Scope::default() };
        let gateways = || -> Vec<String> {
            let seen = kernel().observe(&scope).unwrap().gateways.unwrap();
            seen.iter().map(ToString::to_string).collect()
        };
        assert_eq!(gateways(), Vec::<String>::new());
        run("ip", "route add default via 192.168.0.1");
        wait_for(&told, &KernelEvent::Gateway);
        assert_eq!(gateways(), ["192.168.0.1"]);
        run(
            "ip",
            "route add default metric 9 nexthop via 192.168.0.2 dev eth0 nexthop via 192.168.0.3 dev eth0",
        );
        run("ip", "route add default via 192.168.0.4 table 77");
        run("ip", "-6 route add default via fd00::1");
        run("ip", "-6 route add default via fe80::1 dev eth0 metric 9");
        assert_eq!(gateways(), ["192.168.0.1", "192.168.0.2", "192.168.0.3", "192.168.0.4", "fd00::1"]);
        run("ip", "route delete default via 192.168.0.1");
        wait_for(&told, &KernelEvent::Gateway);
        assert!(!gateways().contains(&"192.168.0.1".to_owned()));
    });
}

#[test]
fn own_changes_are_told_too() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name peer0");
        let (_listener, told) = listen();
        let vip = key("eth0", "192.168.0.15");
        commit_all(&mut kernel(), vec![Operation::AddAddress(vip.clone(), address(24))]);
        wait_for(&told, &KernelEvent::Address(vip));
    });
}

#[test]
fn a_renamed_interface_is_looked_at_anew() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name peer0");
        let (_listener, told) = listen();
        run("ip", "link set eth0 name lan0");
        wait_for(&told, &KernelEvent::Overrun);
        run("ip", "address add 192.168.0.11/24 dev lan0");
        wait_for(&told, &KernelEvent::Address(key("lan0", "192.168.0.11")));
    });
}

#[test]
fn lost_events_are_told_as_an_overrun() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name peer0");
        run("ip", "link set eth0 up");
        run("ip", "link set peer0 up");
        let (go, wait) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let heard = move |event| {
            // Until the other side lets go; afterwards this returns at once.
            let _ = wait.recv();
            tell.send(event).is_ok()
        };
        let _listener = events::listen(&Namespace::own(), heard, |_| {}).unwrap();
        let mut kernel = kernel();
        let vip = key("eth0", "192.168.0.15");
        let there_and_back =
            [Operation::AddAddress(vip.clone(), address(24)), Operation::DeleteAddress(vip, 24)];
        for _ in 0..10 {
            commit_all(&mut kernel, there_and_back.iter().cycle().take(2_000).cloned().collect());
        }
        drop(go);
        wait_for(&told, &KernelEvent::Overrun);
        run("ip", "address add 192.168.0.11/24 dev eth0");
        wait_for(&told, &KernelEvent::Address(key("eth0", "192.168.0.11")));
    });
}

#[test]
fn listening_ends_when_nobody_hears() {
    in_namespace(|| {
        let (listener, told) = listen();
        drop(told);
        run("ip", "link add eth0 type veth peer name peer0");
        drop(listener);
    });
}
