//! Virtual servers and real servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use nodenet_agent::{
    kernel::{Class, Kernel, KernelError, netlink::NetlinkKernel},
    state::{
        Family, Forwarding, IPVS_TIMEOUTS, Operation, Protocol, RealServer, RealServerKey, Scope,
        VirtualServer, VirtualServerKey, Which,
    },
};

use crate::support::{address, attempt, commit, commit_all, has_ipvs, in_namespace, ip, kernel, key, run};

fn read(
    kernel: &mut NetlinkKernel,
    which: Which<VirtualServerKey>,
) -> BTreeMap<VirtualServerKey, VirtualServer> {
    kernel.observe(&Scope { virtual_servers: which, ..Scope::default() }).unwrap().virtual_servers
}

fn tcp(address: &str, port: u16) -> VirtualServerKey {
    VirtualServerKey::Address(Protocol::TCP, ip(address), port)
}

fn server(scheduler: &str) -> VirtualServer {
    VirtualServer {
        scheduler: scheduler.to_owned(),
        flags: 0,
        persistence: 0,
        drain_timeout: None,
        real_servers: BTreeMap::new(),
    }
}

fn real(address: &str, port: u16) -> RealServerKey {
    RealServerKey { address: ip(address), port }
}

fn masquerade(weight: u32) -> RealServer {
    RealServer { weight, forwarding: Forwarding::Masquerade, active_connections: 0, inactive_connections: 0 }
}

/// Operations that make virtual servers with their real servers.
fn make(servers: &BTreeMap<VirtualServerKey, VirtualServer>) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (key, server) in servers {
        operations.push(Operation::AddVirtualServer(*key, server.clone()));
        for (real, how) in &server.real_servers {
            operations.push(Operation::AddRealServer(*key, *real, *how));
        }
    }
    operations
}

/// `count` virtual servers with `each` real servers.
fn many(count: u32, each: u32) -> BTreeMap<VirtualServerKey, VirtualServer> {
    (0..count)
        .map(|number| {
            let key = tcp(&format!("10.96.{}.{}", number / 200, number % 200 + 1), 80);
            let mut server = server("rr");
            server.real_servers = (0..each)
                .map(|index| {
                    (
                        real(&format!("10.{}.{}.{}", index + 1, number / 200, number % 200 + 1), 8080),
                        masquerade(1),
                    )
                })
                .collect();
            (key, server)
        })
        .collect()
}

#[test]
fn every_sort_of_virtual_server_is_made_read_changed_and_removed() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let mut wanted = BTreeMap::new();
        wanted.insert(
            tcp("10.96.0.1", 443),
            VirtualServer {
                persistence: 10800,
                drain_timeout: None,
                real_servers: [
                    (real("10.1.0.1", 6443), masquerade(1)),
                    (real("10.1.0.2", 6443), masquerade(0)),
                ]
                .into(),
                ..server("rr")
            },
        );
        wanted.insert(
            VirtualServerKey::Address(Protocol::UDP, ip("fd00:96::a"), 53),
            VirtualServer {
                real_servers: [(real("fd00:1::1", 5353), masquerade(100))].into(),
                ..server("wrr")
            },
        );
        wanted.insert(
            VirtualServerKey::Address(Protocol::SCTP, ip("10.96.0.2"), 9),
            VirtualServer { flags: 0x10, ..server("mh") },
        );
        wanted.insert(
            VirtualServerKey::FirewallMark(Family::V4, 0x4001),
            VirtualServer {
                real_servers: [(
                    real("10.1.0.3", 0),
                    RealServer { forwarding: Forwarding::DirectRoute, ..masquerade(3) },
                )]
                .into(),
                ..server("lc")
            },
        );
        wanted.insert(VirtualServerKey::FirewallMark(Family::V6, 0x4001), server("rr"));
        let mut kernel = kernel();
        commit_all(&mut kernel, make(&wanted));
        assert_eq!(read(&mut kernel, Which::All), wanted);
        let listed = run("ipvsadm", "-Sn");
        for line in [
            "-A -t 10.96.0.1:443 -s rr -p 10800",
            "-a -t 10.96.0.1:443 -r 10.1.0.2:6443 -m -w 0",
            "-A -u [fd00:96::a]:53 -s wrr",
            "-a -u [fd00:96::a]:53 -r [fd00:1::1]:5353 -m -w 100",
            "-A --sctp-service 10.96.0.2:9 -s mh -b mh-port",
            "-A -f 16385 -s lc",
            "-a -f 16385 -r 10.1.0.3:0 -g -w 3",
            "-A -f 16385 -6 -s rr",
        ] {
            assert!(listed.lines().any(|it| it.trim() == line), "{line} in\n{listed}");
        }
        let key = tcp("10.96.0.1", 443);
        let changed = VirtualServer { persistence: 0, ..server("sh") };
        commit_all(
            &mut kernel,
            vec![
                Operation::SetVirtualServer(key, changed.clone()),
                Operation::SetRealServer(key, real("10.1.0.2", 6443), masquerade(7)),
                Operation::DeleteRealServer(key, real("10.1.0.1", 6443)),
            ],
        );
        let found = read(&mut kernel, Which::Only([key, tcp("10.96.0.9", 1)].into()));
        let left =
            VirtualServer { real_servers: [(real("10.1.0.2", 6443), masquerade(7))].into(), ..changed };
        assert_eq!(found, BTreeMap::from([(key, left)]), "the one that is not there is left out");
        commit_all(&mut kernel, wanted.keys().map(|key| Operation::DeleteVirtualServer(*key)).collect());
        assert_eq!(read(&mut kernel, Which::All), BTreeMap::new());
    });
}

#[test]
fn one_refused_virtual_server_harms_no_other_and_its_real_servers_are_not_tried() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let mut wanted = many(20, 3);
        let bad = [tcp("10.96.0.3", 80), tcp("10.96.0.11", 80)];
        wanted.get_mut(&bad[0]).unwrap().scheduler = "nonsense".to_owned();
        wanted.get_mut(&bad[1]).unwrap().scheduler = "a-name-that-is-too-long".to_owned();
        let mut kernel = kernel();
        let committed = commit(&mut kernel, make(&wanted));
        let errors: Vec<_> = committed.failed.iter().map(|(_, error)| error.to_string()).collect();
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert!(
            errors[0].starts_with("add virtual server TCP 10.96.0.3:80: Invalid argument"),
            "{errors:#?}"
        );
        assert!(errors[0].contains("modprobe ip_vs_nonsense"), "{errors:#?}");
        assert!(errors[1].contains("too long") || errors[1].contains("bytes"), "{errors:#?}");
        assert!(committed.failed.iter().all(|(_, error)| error.class() == Class::Invalid));
        assert_eq!(committed.done, 18 * 4);
        let found = read(&mut kernel, Which::All);
        assert_eq!(found.len(), 18);
        assert!(found.values().all(|server| server.real_servers.len() == 3));
    });
}

#[test]
fn what_is_there_and_what_is_gone_are_conflicts() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let wanted = many(1, 1);
        let key = *wanted.keys().next().unwrap();
        let backend = *wanted[&key].real_servers.keys().next().unwrap();
        let mut kernel = kernel();
        commit_all(&mut kernel, make(&wanted));
        let gone = real("10.9.9.9", 8080);
        for operation in [
            Operation::AddVirtualServer(key, server("rr")),
            Operation::DeleteVirtualServer(tcp("10.96.9.9", 1)),
            Operation::AddRealServer(key, backend, masquerade(1)),
            Operation::SetRealServer(key, gone, masquerade(1)),
            Operation::DeleteRealServer(key, gone),
        ] {
            let committed = commit(&mut kernel, vec![operation.clone()]);
            assert_eq!(committed.failed.len(), 1, "{operation:?}");
            assert_eq!(committed.failed[0].1.class(), Class::Conflict, "{}", committed.failed[0].1);
        }
    });
}

#[test]
fn a_change_of_one_real_server_is_one_message() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let wanted = many(50, 2);
        let key = *wanted.keys().next().unwrap();
        let mut kernel = kernel();
        commit_all(&mut kernel, make(&wanted));
        let committed =
            commit_all(&mut kernel, vec![Operation::AddRealServer(key, real("10.9.9.9", 80), masquerade(1))]);
        assert_eq!(committed.messages, 1);
    });
}

#[test]
fn a_kernel_without_ipvs_has_no_virtual_server_and_says_what_is_missing_when_one_is_wanted() {
    in_namespace(|| {
        if attempt("ipvsadm", "-Ln", "").is_ok() {
            println!("SKIP: this kernel has IPVS");
            return;
        }
        let mut kernel = kernel();
        assert_eq!(read(&mut kernel, Which::All), BTreeMap::new());
        let committed = commit(&mut kernel, make(&many(2, 2)));
        assert_eq!(committed.failed.len(), 2);
        let (_, error) = &committed.failed[1];
        assert!(matches!(error, KernelError::Missing { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "add virtual server TCP 10.96.0.2:80: the kernel has no IPVS; load it with `modprobe ip_vs`"
        );
    });
}

#[test]
fn an_address_does_not_wait_for_virtual_servers() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        run("ip", "link add eth0 type veth peer name peer0");
        let operations = make(&many(4000, 10));
        let mut services = kernel();
        let mut addresses = kernel();
        let (tell, told) = std::sync::mpsc::channel();
        let ready = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tell.send(()).unwrap();
                commit_all(&mut services, operations);
                ready.store(true, Ordering::SeqCst);
            });
            told.recv().unwrap();
            let start = Instant::now();
            let vip = key("eth0", "192.168.0.15");
            commit_all(&mut addresses, vec![Operation::AddAddress(vip, address(24))]);
            let took = start.elapsed();
            assert!(
                !ready.load(Ordering::SeqCst),
                "the address took {took:?}, longer than 4,000 virtual servers"
            );
            println!("an address beside 4,000 virtual servers: {took:.2?}");
        });
    });
}

#[test]
fn two_thousand_virtual_servers_with_ten_real_servers_each() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let wanted = many(2000, 10);
        let mut kernel = kernel();
        let operations = make(&wanted);
        let start = Instant::now();
        commit_all(&mut kernel, operations);
        let written = start.elapsed();
        let cost = kernel.cost();
        let start = Instant::now();
        let found = read(&mut kernel, Which::All);
        let read_in = start.elapsed();
        assert_eq!(found, wanted);
        println!(
            "2,000 virtual servers with 10 real servers each: written in {written:.2?} by {} messages in {} system \
             calls, read in {read_in:.2?} by {} system calls",
            cost.messages,
            cost.system_calls,
            kernel.cost().system_calls - cost.system_calls,
        );
        assert!(cost.system_calls < 200, "{} system calls", cost.system_calls);
        let some: BTreeSet<_> = wanted.keys().copied().take(5).collect();
        let before = kernel.cost().system_calls;
        assert_eq!(read(&mut kernel, Which::Only(some)).len(), 5);
        assert!(kernel.cost().system_calls - before <= 25, "cost follows what was asked for");
    });
}

#[test]
fn timeouts_are_set_one_by_one() {
    in_namespace(|| {
        if !has_ipvs() {
            return;
        }
        let mut kernel = kernel();
        let read = |kernel: &mut NetlinkKernel| {
            let sysctls = IPVS_TIMEOUTS.map(str::to_owned).into();
            let seen = kernel.observe(&Scope { sysctls, ..Scope::default() }).unwrap().sysctls;
            IPVS_TIMEOUTS.map(|name| seen[name].parse::<u32>().unwrap())
        };
        let [tcp, tcp_fin, udp] = read(&mut kernel);
        let set = |name: &str, seconds: u32| Operation::SetSysctl(name.to_owned(), seconds.to_string());
        commit_all(&mut kernel, vec![set(IPVS_TIMEOUTS[2], udp + 7)]);
        assert_eq!(read(&mut kernel), [tcp, tcp_fin, udp + 7], "the others stay");
        commit_all(&mut kernel, vec![set(IPVS_TIMEOUTS[0], 1234), set(IPVS_TIMEOUTS[1], 56)]);
        assert_eq!(read(&mut kernel), [1234, 56, udp + 7]);
        if let Ok(said) = attempt("ipvsadm", "-L --timeout", "") {
            assert!(said.contains(&format!("1234 56 {}", udp + 7)), "{said}");
        }
        let refused =
            commit(&mut kernel, vec![Operation::SetSysctl(IPVS_TIMEOUTS[0].to_owned(), "-5".to_owned())]);
        let error = refused.failed[0].1.to_string();
        assert!(error.contains("ipvs.timeout.tcp") && error.contains("not a number of seconds"), "{error}");
    });
}
