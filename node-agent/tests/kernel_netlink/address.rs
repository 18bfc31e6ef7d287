//! Addresses of interfaces: roles, lifetimes, ownership.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use nodenet_agent::{
    kernel::Class,
    state::{Address, AddressKey, Operation},
};
use nodenet_crds::KernelAddressRole as Role;

use crate::support::{address, addresses, commit, commit_all, eventually, in_namespace, kernel, key, run};

fn cable() {
    run("ip", "link add eth0 type veth peer name peer0");
    run("ip", "link set eth0 up");
    run("ip", "link set peer0 up");
}

#[test]
fn an_address_behind_another_of_its_subnet_is_secondary() {
    in_namespace(|| {
        cable();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        let mut kernel = kernel();
        let vip = key("eth0", "192.168.0.15");
        let host = key("eth0", "192.168.0.16");
        commit_all(
            &mut kernel,
            vec![
                Operation::AddAddress(vip.clone(), address(24)),
                Operation::AddAddress(host.clone(), address(32)),
            ],
        );
        let state = addresses(&mut kernel);
        let role = |key: &AddressKey| state.addresses[key].role;
        assert_eq!(role(&key("eth0", "192.168.0.11")), Some(Role::Primary));
        assert_eq!(role(&vip), Some(Role::Secondary));
        assert_eq!(role(&host), Some(Role::Primary), "a host mask is a subnet of its own");
        assert!(run("ip", "address show dev eth0").contains("192.168.0.15/24 scope global secondary eth0"));
    });
}

#[test]
fn our_addresses_are_known_by_their_protocol_and_foreign_ones_are_not_ours() {
    in_namespace(|| {
        cable();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        run("ip", "address add fd00::11/64 dev eth0 nodad");
        let mut kernel = kernel();
        let ours = [key("eth0", "192.168.0.15"), key("eth0", "fd00::15")];
        commit_all(
            &mut kernel,
            vec![
                Operation::AddAddress(ours[0].clone(), address(24)),
                Operation::AddAddress(ours[1].clone(), address(64)),
            ],
        );
        let state = addresses(&mut kernel);
        if !state.addresses[&ours[0]].ours {
            println!("SKIP: this kernel does not keep the protocol of an address (before 5.18)");
            return;
        }
        for (key, address) in &state.addresses {
            assert_eq!(address.ours, ours.contains(key), "{key:?}");
        }
    });
}

#[test]
fn a_new_lifetime_never_takes_the_address_away() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let vips = [(key("eth0", "192.168.0.15"), 24), (key("eth0", "fd00::15"), 64)];
        let of = |prefix, lifetime| Address { lifetime, ..address(prefix) };
        commit_all(
            &mut kernel,
            vips.iter()
                .map(|(key, prefix)| Operation::AddAddress(key.clone(), of(*prefix, Some(30))))
                .collect(),
        );
        let mut monitor =
            Command::new("ip").args(["-o", "monitor", "address"]).stdout(Stdio::piped()).spawn().unwrap();
        // It listens as soon as it tells of something.
        let mut heard = String::new();
        let mut stdout = monitor.stdout.take().unwrap();
        eventually("the monitor listens", || {
            run("ip", "address replace 10.9.9.9/32 dev peer0");
            let mut bytes = [0; 4096];
            let length = stdout.read(&mut bytes).unwrap();
            heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
            heard.contains("10.9.9.9").then_some(())
        });
        for lifetime in [Some(600), None, Some(40)] {
            commit_all(
                &mut kernel,
                vips.iter()
                    .map(|(key, prefix)| Operation::SetAddress(key.clone(), of(*prefix, lifetime)))
                    .collect(),
            );
            let state = addresses(&mut kernel);
            for (key, _) in &vips {
                let left = state.addresses[key].lifetime;
                match lifetime {
                    None => assert_eq!(left, None, "{key:?}"),
                    Some(seconds) => {
                        let left = left.unwrap();
                        assert!(left <= seconds && left + 5 > seconds, "{key:?}: {left} of {seconds}");
                    }
                }
            }
        }
        run("ip", "address delete 10.9.9.9/32 dev peer0");
        while !heard.contains("Deleted") {
            let mut bytes = [0; 4096];
            let length = stdout.read(&mut bytes).unwrap();
            heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        for line in heard.lines().filter(|line| line.contains("Deleted")) {
            assert!(line.contains("10.9.9.9"), "{line}");
        }
        assert!(heard.contains("fd00::15"), "{heard}");
    });
}

#[test]
fn an_address_that_nobody_renews_runs_out() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let vip = key("eth0", "192.168.0.15");
        let fenced = Address { lifetime: Some(1), ..address(24) };
        commit_all(&mut kernel, vec![Operation::AddAddress(vip.clone(), fenced)]);
        assert!(addresses(&mut kernel).addresses.contains_key(&vip));
        eventually("the address runs out", || {
            (!addresses(&mut kernel).addresses.contains_key(&vip)).then_some(())
        });
    });
}

#[test]
fn an_ipv6_address_is_usable_at_once_and_never_the_source_of_traffic() {
    in_namespace(|| {
        cable();
        run("ip", "address add fd00::11/64 dev eth0 nodad");
        let mut kernel = kernel();
        let vip = key("eth0", "fd00::15");
        let wanted = Address { role: Some(Role::Deprecated), ..address(64) };
        commit_all(&mut kernel, vec![Operation::AddAddress(vip.clone(), wanted)]);
        let found = addresses(&mut kernel).addresses[&vip].clone();
        assert_eq!((found.role, found.unusable, found.lifetime), (Some(Role::Deprecated), false, None));
        let shown = run("ip", "-6 address show dev eth0");
        let line = shown.lines().find(|line| line.contains("fd00::15/64 scope global")).unwrap();
        for flag in ["deprecated", "nodad", "noprefixroute"] {
            assert!(line.contains(flag), "{line}");
        }
        assert!(!line.contains("tentative"), "{line}");
        assert!(run("ip", "-6 route get fd00::99").contains("src fd00::11"));
        assert_eq!(run("ip", "-6 route show dev eth0").matches("fd00::/64").count(), 1);
    });
}

#[test]
fn an_ipv6_address_of_role_preferred_may_be_a_source() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let vip = key("eth0", "fd00::15");
        let wanted = Address { role: Some(Role::Preferred), ..address(64) };
        commit_all(&mut kernel, vec![Operation::AddAddress(vip.clone(), wanted)]);
        assert_eq!(addresses(&mut kernel).addresses[&vip].role, Some(Role::Preferred));
    });
}

#[test]
fn an_ipv6_address_that_failed_duplicate_detection_is_unusable() {
    in_namespace(|| {
        cable();
        // The same address on both ends of a cable: the second to come sees the first.
        run("ip", "address add fd00::15/64 dev peer0 nodad");
        run("ip", "address add fd00::15/64 dev eth0");
        let mut kernel = kernel();
        let vip = key("eth0", "fd00::15");
        assert!(addresses(&mut kernel).addresses[&vip].unusable, "while it is tentative");
        eventually("detection ends", || {
            run("ip", "-6 address show dev eth0").contains("dadfailed").then_some(())
        });
        assert!(addresses(&mut kernel).addresses[&vip].unusable);
    });
}

#[test]
fn when_the_primary_goes_its_secondary_is_promoted_where_the_setting_says_so() {
    in_namespace(|| {
        cable();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        let mut kernel = kernel();
        let vip = key("eth0", "192.168.0.15");
        commit_all(
            &mut kernel,
            vec![
                Operation::SetSysctl("net.ipv4.conf.eth0.promote_secondaries".to_owned(), "1".to_owned()),
                Operation::AddAddress(vip.clone(), address(24)),
            ],
        );
        commit_all(&mut kernel, vec![Operation::DeleteAddress(key("eth0", "192.168.0.11"), 24)]);
        let state = addresses(&mut kernel);
        assert_eq!(state.addresses[&vip].role, Some(Role::Primary));
        commit_all(&mut kernel, vec![Operation::DeleteAddress(vip.clone(), 24)]);
        assert!(!addresses(&mut kernel).addresses.contains_key(&vip));
    });
}

#[test]
fn a_refusal_names_the_object_and_the_rest_of_the_transaction_goes_on() {
    in_namespace(|| {
        cable();
        run("ip", "address add 192.168.0.11/24 dev eth0");
        let mut kernel = kernel();
        let committed = commit(
            &mut kernel,
            vec![
                Operation::AddAddress(key("eth0", "192.168.0.11"), address(24)),
                Operation::AddAddress(key("eth9", "192.168.0.12"), address(24)),
                Operation::AddAddress(key("eth0", "192.168.0.13"), address(24)),
                Operation::DeleteAddress(key("eth0", "192.168.0.14"), 24),
            ],
        );
        assert_eq!(committed.done, 1);
        let errors: Vec<_> = committed.failed.iter().map(|(_, error)| error.to_string()).collect();
        assert_eq!(errors.len(), 3, "{errors:#?}");
        assert!(
            errors[0].starts_with("add address 192.168.0.11/24 on interface eth0: File exists"),
            "{errors:#?}"
        );
        assert!(errors[1].contains("there is no interface eth9"), "{errors:#?}");
        assert!(errors[2].starts_with("remove address 192.168.0.14/24 on interface eth0:"), "{errors:#?}");
        for (_, error) in &committed.failed {
            assert_eq!(error.class(), Class::Conflict, "{error}");
        }
        assert!(addresses(&mut kernel).addresses.contains_key(&key("eth0", "192.168.0.13")));
    });
}

#[test]
fn two_thousand_addresses_are_read_whole_and_written_in_few_calls() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let all: Vec<_> = (0..2000_u32)
            .map(|number| {
                Operation::AddAddress(
                    key("eth0", &format!("10.7.{}.{}", number / 250, number % 250 + 1)),
                    address(16),
                )
            })
            .collect();
        let before = kernel.cost().system_calls;
        commit_all(&mut kernel, all);
        let calls = kernel.cost().system_calls - before;
        assert!(calls < 50, "{calls} system calls");
        assert_eq!(
            addresses(&mut kernel)
                .addresses
                .keys()
                .filter(|it| it.address.to_string().starts_with("10.7."))
                .count(),
            2000
        );
        let listed = run("ip", "-o -4 address show dev eth0");
        assert_eq!(listed.lines().count(), 2000);
    });
}

#[test]
fn of_ten_thousand_refusals_each_is_known_with_the_kernels_words() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let taken = Operation::AddAddress(key("eth0", "192.168.0.15"), address(24));
        commit_all(&mut kernel, vec![taken.clone()]);
        let mut operations = vec![taken; 10_000];
        let free = Operation::AddAddress(key("eth0", "192.168.0.16"), address(24));
        operations.insert(5_000, free);
        let committed = commit(&mut kernel, operations);
        assert_eq!((committed.done, committed.failed.len()), (1, 10_000));
        for (_, error) in &committed.failed {
            let words = error.to_string();
            assert!(
                words.starts_with("add address 192.168.0.15/24 on interface eth0: File exists"),
                "{words}"
            );
            // Older kernels have no words for it.
            assert!(words.contains("ssigned") || words.ends_with("(os error 17)"), "{words}");
        }
    });
}

#[test]
fn a_reading_while_addresses_come_and_go_is_consistent() {
    in_namespace(|| {
        cable();
        let mut kernel = kernel();
        let steady: Vec<_> = (0..500_u32)
            .map(|number| {
                Operation::AddAddress(
                    key("eth0", &format!("10.7.{}.{}", number / 250, number % 250 + 1)),
                    address(32),
                )
            })
            .collect();
        commit_all(&mut kernel, steady);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let mut other = crate::support::kernel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let moving = key("eth0", "10.8.0.1");
                    commit(&mut other, vec![Operation::AddAddress(moving.clone(), address(32))]);
                    commit(&mut other, vec![Operation::DeleteAddress(moving, 32)]);
                }
            });
            for _ in 0..50 {
                let found = kernel.observe_addresses();
                if let Some(found) = found {
                    assert_eq!(found, 500);
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

trait Steady {
    /// Number of the steady addresses; `None` where the kernel said that every reading was disturbed.
    fn observe_addresses(&mut self) -> Option<usize>;
}

impl Steady for nodenet_agent::kernel::netlink::NetlinkKernel {
    fn observe_addresses(&mut self) -> Option<usize> {
        use nodenet_agent::{kernel::Kernel, state::Scope};
        match self.observe(&Scope { addresses: true, ..Scope::default() }) {
            Ok(state) => {
                Some(state.addresses.keys().filter(|it| it.address.to_string().starts_with("10.7.")).count())
            }
            Err(error) => {
                assert_eq!(error.class(), Class::Retry, "{error}");
                None
            }
        }
    }
}
