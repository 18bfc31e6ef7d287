//! Sets of the packet filter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use nodenet_agent::{
    kernel::{Class, Kernel, netlink::NetlinkKernel},
    state::{Family, IpSet, Operation, Protocol, Scope, SetEntry, SetKind, Which},
};

use crate::support::{attempt, available, commit, commit_all, in_namespace, ip, kernel, run};

fn available_here() -> bool {
    available("ipset", "list -n", "the kernel has no IP sets")
}

fn read(kernel: &mut NetlinkKernel, which: Which<String>) -> BTreeMap<String, IpSet> {
    kernel.observe(&Scope { sets: which, ..Scope::default() }).unwrap().sets
}

fn create(name: &str, kind: SetKind, family: Family, size: u32) -> Operation {
    Operation::CreateSet(name.to_owned(), kind, family, size)
}

fn add(name: &str, entry: SetEntry) -> Operation {
    Operation::AddEntry(name.to_owned(), entry)
}

fn delete(name: &str, entry: SetEntry) -> Operation {
    Operation::DeleteEntry(name.to_owned(), entry)
}

/// Entry number `n` of a large set.
fn port_entry(n: u32) -> SetEntry {
    let address = IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + n / 50));
    SetEntry::IpPort(address, Protocol::TCP, u16::try_from(8000 + n % 50).unwrap())
}

#[test]
fn every_kind_of_set_is_made_filled_read_and_emptied() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let kinds = [
            (SetKind::HashIp, Family::V4, SetEntry::Ip(ip("10.96.0.1"))),
            (SetKind::HashIp, Family::V6, SetEntry::Ip(ip("fd00::1"))),
            (SetKind::HashNet, Family::V4, SetEntry::Net("10.0.0.0/8".parse().unwrap())),
            (SetKind::HashNet, Family::V6, SetEntry::Net("fd00::/64".parse().unwrap())),
            (SetKind::HashIpPort, Family::V4, SetEntry::IpPort(ip("10.96.0.1"), Protocol::UDP, 53)),
            (SetKind::HashIpPort, Family::V6, SetEntry::IpPort(ip("fd00::1"), Protocol::SCTP, 53)),
            (
                SetKind::HashIpPortIp,
                Family::V4,
                SetEntry::IpPortIp(ip("10.1.0.3"), Protocol::TCP, 80, ip("10.1.0.3")),
            ),
            (
                SetKind::HashIpPortIp,
                Family::V6,
                SetEntry::IpPortIp(ip("fd00::3"), Protocol::TCP, 80, ip("fd00::3")),
            ),
            (SetKind::BitmapPort, Family::V4, SetEntry::Port(30080)),
            (SetKind::BitmapPort, Family::V6, SetEntry::Port(30081)),
            (
                SetKind::HashIpPortMark,
                Family::V4,
                SetEntry::IpPortMark(ip("10.96.0.1"), Protocol::TCP, 80, 0x2002),
            ),
            (
                SetKind::HashIpPortMark,
                Family::V6,
                SetEntry::IpPortMark(ip("fd00::1"), Protocol::UDP, 53, 0x2005),
            ),
            (
                SetKind::HashIpPortNet,
                Family::V4,
                SetEntry::IpPortNet(ip("10.96.0.1"), Protocol::TCP, 80, "192.0.2.0/24".parse().unwrap()),
            ),
            (
                SetKind::HashIpPortNet,
                Family::V6,
                SetEntry::IpPortNet(ip("fd00::1"), Protocol::TCP, 80, "fd00:5::/64".parse().unwrap()),
            ),
        ];
        let name = |index: usize| {
            let prefix = if kinds[index].1 == Family::V4 { "NODENET-" } else { "NODENET6-" };
            format!("{prefix}{index}")
        };
        let mut operations = Vec::new();
        let mut wanted = BTreeMap::new();
        for (index, (kind, family, entry)) in kinds.iter().enumerate() {
            let size = if *kind == SetKind::BitmapPort { 0 } else { 100_000 };
            operations.push(create(&name(index), *kind, *family, size));
            operations.push(add(&name(index), *entry));
            let set = IpSet { kind: *kind, family: *family, max_entries: size, entries: [*entry].into() };
            wanted.insert(name(index), set);
        }
        commit_all(&mut kernel, operations);
        assert_eq!(read(&mut kernel, Which::All), wanted);
        let saved = run("ipset", "save");
        for line in [
            "add NODENET-0 10.96.0.1",
            "add NODENET-2 10.0.0.0/8",
            "add NODENET-4 10.96.0.1,udp:53",
            "add NODENET6-5 fd00::1,sctp:53",
            "add NODENET-6 10.1.0.3,tcp:80,10.1.0.3",
            "create NODENET-8 bitmap:port range 0-65535",
            "create NODENET-10 hash:ip,port family inet hashsize 1024 maxelem 100000 skbinfo",
            "add NODENET-10 10.96.0.1,tcp:80 skbmark 0x2002",
            "add NODENET-12 10.96.0.1,tcp:80,192.0.2.0/24",
            "add NODENET-8 30080",
        ] {
            assert!(saved.contains(line), "{line} in\n{saved}");
        }
        let entries = kinds.iter().enumerate().map(|(index, (_, _, entry))| delete(&name(index), *entry));
        commit_all(&mut kernel, entries.collect());
        assert!(read(&mut kernel, Which::All).values().all(|set| set.entries.is_empty()));
        commit_all(&mut kernel, (0..kinds.len()).map(|index| Operation::DestroySet(name(index))).collect());
        assert_eq!(run("ipset", "list -n"), "");
    });
}

#[test]
fn sets_of_others_are_not_seen() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        run("ipset", "create KUBE-CLUSTER-IP hash:ip,port");
        run("ipset", "create NODENET-A hash:ip");
        run("ipset", "create NODENET6-A hash:ip family inet6");
        let found: Vec<_> = read(&mut kernel(), Which::All).into_keys().collect();
        assert_eq!(found, ["NODENET-A", "NODENET6-A"]);
        assert_eq!(read(&mut kernel(), Which::Only(["NODENET-B".to_owned()].into())), BTreeMap::new());
    });
}

#[test]
fn many_entries_cost_few_messages_and_calls() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        commit_all(&mut kernel, vec![create("NODENET-A", SetKind::HashIpPort, Family::V4, 131_072)]);
        let before = kernel.cost();
        let committed =
            commit_all(&mut kernel, (0..70_000).map(|n| add("NODENET-A", port_entry(n))).collect());
        let calls = kernel.cost().system_calls - before.system_calls;
        assert!(committed.messages <= 140, "{} messages", committed.messages);
        assert!(calls <= 100, "{calls} system calls");
        let found = read(&mut kernel, Which::All);
        assert_eq!(found["NODENET-A"].entries.len(), 70_000, "more than the usual limit of 65,536");
        assert_eq!(found["NODENET-A"].entries, (0..70_000).map(port_entry).collect());
    });
}

#[test]
fn single_entries_are_looked_at_without_reading_the_set() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let mut operations = vec![create("NODENET-A", SetKind::HashIpPort, Family::V4, 65_536)];
        operations.extend((0..10_000).map(|n| add("NODENET-A", port_entry(n))));
        commit_all(&mut kernel, operations);
        let before = kernel.cost();
        let asked = [port_entry(3), port_entry(20_000), port_entry(9_999)];
        let set_entries =
            [("NODENET-A".to_owned(), asked.into()), ("NODENET-B".to_owned(), [port_entry(1)].into())];
        let scope = Scope { set_entries: set_entries.into(), ..Scope::default() };
        let found = kernel.observe(&scope).unwrap().sets;
        assert_eq!(found.len(), 1, "a set that is not there is left out");
        assert_eq!(found["NODENET-A"].entries, BTreeSet::from([port_entry(3), port_entry(9_999)]));
        let cost = kernel.cost();
        assert_eq!(cost.messages - before.messages, 4);
        assert!(cost.system_calls - before.system_calls <= 6);
    });
}

#[test]
fn an_entry_that_is_there_already_or_gone_already_is_no_failure() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let entry = SetEntry::Ip(ip("10.0.0.1"));
        commit_all(&mut kernel, vec![create("NODENET-A", SetKind::HashIp, Family::V4, 64)]);
        for operation in [add("NODENET-A", entry), delete("NODENET-A", entry)] {
            commit_all(&mut kernel, vec![operation.clone()]);
            commit_all(&mut kernel, vec![operation]);
        }
    });
}

#[test]
fn entries_that_the_kernel_refuses_are_named_and_the_others_are_in() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        commit_all(&mut kernel, vec![create("NODENET-A", SetKind::HashIp, Family::V4, 65_536)]);
        let wrong = [SetEntry::Ip(ip("fd00::1")), SetEntry::Ip(ip("fd00::2"))];
        let mut entries: Vec<_> =
            (1..=1200_u32).map(|n| SetEntry::Ip(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)))).collect();
        entries.insert(7, wrong[0]);
        entries.insert(900, wrong[1]);
        let committed = commit(&mut kernel, entries.iter().map(|entry| add("NODENET-A", *entry)).collect());
        assert_eq!(committed.done, 1200);
        let failed: Vec<_> = committed.failed.iter().map(|(operation, _)| operation.clone()).collect();
        assert_eq!(failed, wrong.map(|entry| add("NODENET-A", entry)));
        let (_, error) = &committed.failed[0];
        assert!(error.to_string().starts_with("add entry fd00::1 to set NODENET-A: "), "{error}");
        assert_eq!(error.class(), Class::Invalid);
        assert_eq!(read(&mut kernel, Which::All)["NODENET-A"].entries.len(), 1200);
    });
}

#[test]
fn a_full_set_says_so_for_each_entry_left_out() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let mut operations = vec![create("NODENET-A", SetKind::HashIp, Family::V4, 64)];
        operations.extend(
            (1..=2000_u32)
                .map(|n| add("NODENET-A", SetEntry::Ip(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))))),
        );
        let committed = commit(&mut kernel, operations);
        let inside = read(&mut kernel, Which::All)["NODENET-A"].entries.len();
        assert_eq!(committed.failed.len(), 2000 - inside);
        assert_eq!(committed.done, inside + 1);
        assert!(committed.failed[0].1.to_string().contains("full"), "{}", committed.failed[0].1);
    });
}

#[test]
fn a_set_that_rules_use_gets_another_size_and_keeps_its_entries() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let mut operations = vec![create("NODENET-A", SetKind::HashIpPort, Family::V4, 1024)];
        operations.extend((0..1000).map(|n| add("NODENET-A", port_entry(n))));
        commit_all(&mut kernel, operations);
        // A set of sets refers to it as a rule would, on kernels of either packet filter.
        run("ipset", "create holder list:set");
        run("ipset", "add holder NODENET-A");
        commit_all(&mut kernel, vec![create("NODENET-A", SetKind::HashIpPort, Family::V4, 131_072)]);
        let found = read(&mut kernel, Which::All);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["NODENET-A"]);
        assert_eq!(found["NODENET-A"].max_entries, 131_072);
        assert_eq!(found["NODENET-A"].entries.len(), 1000);
        let again = commit(&mut kernel, vec![create("NODENET-A", SetKind::HashIpPort, Family::V4, 131_072)]);
        assert_eq!(again.failed[0].1.class(), Class::Conflict, "the same again");
        let committed = commit(&mut kernel, vec![Operation::DestroySet("NODENET-A".to_owned())]);
        assert_eq!(committed.failed[0].1.class(), Class::Retry, "{}", committed.failed[0].1);
        assert!(committed.failed[0].1.to_string().contains("in use"), "{}", committed.failed[0].1);
        assert!(attempt("ipset", "list holder", "").unwrap().contains("NODENET-A"));
    });
}

#[test]
fn entries_of_a_set_that_could_not_be_made_are_not_tried() {
    in_namespace(|| {
        if !available_here() {
            return;
        }
        let mut kernel = kernel();
        let name = "NODENET-A-NAME-THAT-IS-LONGER-THAN-THE-KERNEL-TAKES";
        let committed = commit(
            &mut kernel,
            vec![
                create(name, SetKind::HashIp, Family::V4, 64),
                add(name, SetEntry::Ip(ip("10.0.0.1"))),
                create("NODENET-B", SetKind::HashIp, Family::V4, 64),
                add("NODENET-B", SetEntry::Ip(ip("10.0.0.1"))),
            ],
        );
        assert_eq!((committed.done, committed.failed.len()), (2, 1));
        assert_eq!(committed.failed[0].1.class(), Class::Invalid);
    });
}
