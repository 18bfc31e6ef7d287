//! Announcements and questions between two ends of a cable.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use nodenet_agent::kernel::netlink::{
    Namespace,
    announce::Announcer,
    owner::{self, AnotherOwner, OwnerWatch, Says},
    probe::{self, Question},
};

use crate::support::{Neighbour, PATIENCE, in_namespace, ip, key, run};

fn watch() -> (OwnerWatch, mpsc::Receiver<AnotherOwner>) {
    let (tell, told) = mpsc::channel();
    let watch = owner::watch(&Namespace::own(), move |owner| tell.send(owner).is_ok(), |_| {}).unwrap();
    (watch, told)
}

fn mac_of(shown: &str) -> String {
    shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn an_announcement_of_a_watched_address_by_another_host_is_told_with_its_mac() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        let (watch, told) = watch();
        watch.set([key("eth0", "192.168.0.15"), key("eth0", "fd00::15")].into());
        let mac = mac_of(&neighbour.run("ip", "link show eth1"));
        let mut announcer = Announcer::open(&neighbour.namespace()).unwrap();
        for address in ["192.168.0.15", "fd00::15"] {
            // Not watched: not told.
            announcer.announce(&key("eth1", "192.168.0.99")).unwrap();
            announcer.announce(&key("eth1", address)).unwrap();
            let heard = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!((heard.interface.as_str(), heard.address), ("eth0", ip(address)));
            assert_eq!(heard.mac.to_string(), mac);
        }
    });
}

#[test]
fn who_says_the_same_again_and_again_is_told_of_once_in_a_while() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        let (watch, told) = watch();
        watch.set([key("eth0", "192.168.0.15"), key("eth0", "192.168.0.16")].into());
        let mut announcer = Announcer::open(&neighbour.namespace()).unwrap();
        for _ in 0..500 {
            announcer.announce(&key("eth1", "192.168.0.15")).unwrap();
        }
        announcer.announce(&key("eth1", "192.168.0.16")).unwrap();
        let mut before = 0;
        while told.recv_timeout(PATIENCE).unwrap().address == ip("192.168.0.15") {
            before += 1;
        }
        assert!((1..50).contains(&before), "{before} of 500");
    });
}

#[test]
fn an_announcement_reaches_the_neighbours_caches() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        neighbour.run("ip", "address add 192.168.0.2/24 dev eth1");
        neighbour.run("ip", "address add fd00::2/64 dev eth1 nodad");
        for address in ["192.168.0.15", "fd00::15"] {
            neighbour
                .run("ip", &format!("neighbour add {address} lladdr 02:00:00:00:00:99 nud stale dev eth1"));
        }
        let mac = mac_of(&run("ip", "link show eth0"));
        let mut announcer = Announcer::open(&Namespace::own()).unwrap();
        for address in ["192.168.0.15", "fd00::15"] {
            // A neighbour that changed its mind less than a second ago holds on to it; so repeat as the agent does.
            crate::support::eventually("the neighbour learns", || {
                announcer.announce(&key("eth0", address)).unwrap();
                neighbour
                    .run("ip", &format!("neighbour show {address} dev eth1"))
                    .contains(&mac)
                    .then_some(())
            });
        }
    });
}

#[test]
fn our_own_announcements_are_not_another_owner() {
    in_namespace(|| {
        // Both ends are ours: a node with two cards on one segment.
        run("ip", "link add eth0 type veth peer name eth1");
        run("ip", "link set eth0 up");
        run("ip", "link set eth1 up");
        let neighbour = Neighbour::new();
        neighbour.cable("eth2", "eth3");
        let (watch, told) = watch();
        watch.set(["eth0", "eth1", "eth2"].map(|name| key(name, "192.168.0.15")).into());
        let mut announcer = Announcer::open(&Namespace::own()).unwrap();
        announcer.announce(&key("eth0", "192.168.0.15")).unwrap();
        announcer.announce(&key("eth1", "192.168.0.15")).unwrap();
        Announcer::open(&neighbour.namespace()).unwrap().announce(&key("eth3", "192.168.0.15")).unwrap();
        let heard = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(heard.interface, "eth2");
    });
}

#[test]
fn a_question_finds_the_owner_of_an_address_and_nobody_for_a_free_one() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        run("ip", "address add 192.168.0.11/24 dev eth0");
        neighbour.run("ip", "address add 192.168.0.15/24 dev eth1");
        neighbour.run("ip", "address add fd00::15/64 dev eth1 nodad");
        let mac = mac_of(&neighbour.run("ip", "link show eth1"));
        let keys = ["192.168.0.15", "fd00::15", "192.168.0.16", "fd00::16"].map(|it| key("eth0", it));
        for question in [Question::WillTake, Question::WhoHas] {
            let start = Instant::now();
            let wait = Duration::from_millis(300);
            let answers = probe::ask(&Namespace::own(), &keys, question, wait);
            assert!(start.elapsed() < wait * 4, "all are asked at once: {:?}", start.elapsed());
            assert_eq!(answers.len(), 4);
            for (asked, answer) in answers {
                let taken = asked.address == ip("192.168.0.15") || asked.address == ip("fd00::15");
                let owner = answer.unwrap().map(|mac| mac.to_string());
                assert_eq!(owner, taken.then(|| mac.clone()), "{asked:?} {question:?}");
            }
        }
        // Nobody waits for the rest of the time once all have answered.
        let start = Instant::now();
        probe::ask(&Namespace::own(), &keys[..2], Question::WillTake, PATIENCE);
        assert!(start.elapsed() < PATIENCE / 2);
    });
}

#[test]
fn who_will_take_an_address_is_heard_and_who_only_asks_is_not() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        let keys = ["192.168.0.15", "fd00::15"];
        for address in keys {
            run(
                "ip",
                &format!(
                    "address add {address}/{} dev eth0 {}",
                    if address.contains(':') { 64 } else { 24 },
                    if address.contains(':') { "nodad" } else { "" }
                ),
            );
        }
        neighbour.run("ip", "address add 192.168.0.12/24 dev eth1");
        neighbour.run("ip", "address add fd00::12/64 dev eth1 nodad");
        let mac = mac_of(&neighbour.run("ip", "link show eth1"));
        let (watch, told) = watch();
        watch.set(keys.map(|address| key("eth0", address)).into());
        let wait = Duration::from_millis(100);
        for address in keys {
            let there = &[key("eth1", address)];
            probe::ask(&neighbour.namespace(), there, Question::WhoHas, wait);
            probe::ask(&neighbour.namespace(), there, Question::WillTake, wait);
            let heard = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(
                (heard.says, heard.address, heard.mac.to_string()),
                (Says::WillTake, ip(address), mac.clone())
            );
        }
    });
}

#[test]
fn an_interface_that_is_not_there_or_down_is_named() {
    in_namespace(|| {
        run("ip", "link add eth0 type veth peer name eth1");
        let mut announcer = Announcer::open(&Namespace::own()).unwrap();
        let error = announcer.announce(&key("eth7", "192.168.0.15")).unwrap_err().to_string();
        assert!(error.contains("announce address 192.168.0.15 on interface eth7"), "{error}");
        let error = announcer.announce(&key("eth0", "192.168.0.15")).unwrap_err().to_string();
        assert!(error.contains("Network is down"), "{error}");
    });
}
