//! Our chains and jumps, by whichever iptables the host uses.

use nodenet_agent::{
    filter::{self, Config, SetName},
    kernel::{
        Kernel,
        netlink::{NetlinkKernel, Options, PacketFilterMode},
    },
    state::{Family, Operation, Ruleset, Scope},
};

use crate::support::{attempt, available, commit_all, in_namespace, kernel, run};

/// The infix of programs that can change rules here, by trying.
fn writable() -> Vec<(&'static str, PacketFilterMode)> {
    [("-nft", PacketFilterMode::Nft), ("-legacy", PacketFilterMode::Legacy)]
        .into_iter()
        .filter(|(infix, _)| {
            let program = format!("iptables{infix}");
            attempt(&program, "-N TRIAL", "").is_ok()
                && attempt(&program, "-A TRIAL -j RETURN", "").is_ok()
                && attempt(&program, "-F TRIAL", "").is_ok()
                && attempt(&program, "-X TRIAL", "").is_ok()
        })
        .collect()
}

/// The modes to test; none, and why, where there is none.
pub fn modes() -> Vec<(&'static str, PacketFilterMode)> {
    let mut modes = Vec::new();
    in_namespace(|| {
        if !available("ipset", "list -n", "the kernel has no IP sets") {
            return;
        }
        modes = writable();
        if modes.is_empty() {
            println!("SKIP: no iptables can change rules here");
        }
    });
    modes
}

fn kernel_of(mode: PacketFilterMode) -> NetlinkKernel {
    NetlinkKernel::new(Options { packet_filter: mode, ..Options::default() }).unwrap()
}

fn wanted(family: Family) -> Ruleset {
    filter::rules(family, &Config::default())
}

/// The sets that the rules name.
fn sets() -> Vec<Operation> {
    [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| {
            SetName::ALL.map(|set| {
                let empty = set.empty(family);
                Operation::CreateSet(set.name(family), empty.kind, family, empty.max_entries)
            })
        })
        .collect()
}

fn replace_both() -> Vec<Operation> {
    [Family::V4, Family::V6].map(|family| Operation::ReplaceRules(family, wanted(family))).into()
}

fn read(kernel: &mut NetlinkKernel) -> std::collections::BTreeMap<Family, Ruleset> {
    kernel.observe(&Scope { rules: true, ..Scope::default() }).unwrap().rules
}

#[test]
fn rules_are_read_as_they_were_written_and_writing_them_again_writes_nothing() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            let mut kernel = kernel_of(mode);
            let mut operations = sets();
            operations.extend(replace_both());
            commit_all(&mut kernel, operations);
            let found = read(&mut kernel);
            for family in [Family::V4, Family::V6] {
                assert_eq!(found[&family], wanted(family), "{infix}");
            }
            let before = run(&format!("iptables{infix}-save"), "");
            let programs = kernel.cost().programs;
            commit_all(&mut kernel, replace_both());
            assert_eq!(kernel.cost().programs - programs, 2, "two readings, no writing");
            let rules = |text: &str| -> Vec<String> {
                text.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect()
            };
            assert_eq!(rules(&before), rules(&run(&format!("iptables{infix}-save"), "")));
        });
    }
}

#[test]
fn what_another_hand_flushed_is_put_back_once_and_foreign_rules_stay() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            let mut kernel = kernel_of(mode);
            let mut operations = sets();
            operations.extend(replace_both());
            commit_all(&mut kernel, operations);
            let program = format!("iptables{infix}");
            let foreign = "-A INPUT -s 192.0.2.1/32 -j DROP";
            run(&program, foreign);
            run(&program, "-t nat -F PREROUTING");
            run(&program, "-t nat -F NODENET-POSTROUTING");
            assert_ne!(read(&mut kernel)[&Family::V4], wanted(Family::V4));
            for _ in 0..2 {
                commit_all(&mut kernel, replace_both());
                assert_eq!(read(&mut kernel)[&Family::V4], wanted(Family::V4));
            }
            let saved = run(&format!("{program}-save"), "");
            assert!(saved.contains(foreign), "{saved}");
            let mut jumps: Vec<_> = saved
                .lines()
                .filter(|line| line.starts_with("-A") && !line.starts_with("-A NODENET"))
                .collect();
            jumps.sort_unstable();
            let count = jumps.len();
            jumps.dedup();
            assert_eq!(jumps.len(), count, "no jump stands twice: {jumps:#?}");
        });
    }
}

#[test]
fn our_jumps_stand_before_rules_of_others() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            let program = format!("iptables{infix}");
            run(&program, "-A INPUT -s 192.0.2.1/32 -j DROP");
            run(&program, "-t nat -A PREROUTING -p tcp --dport 80 -j RETURN");
            let mut kernel = kernel_of(mode);
            let mut operations = sets();
            operations.extend(replace_both());
            commit_all(&mut kernel, operations);
            for (table, chain) in wanted(Family::V4).jumps.keys() {
                let listed = run(&program, &format!("-t {table} -S {chain}"));
                let first = listed.lines().nth(1).unwrap();
                assert!(first.contains("-j NODENET-"), "{table} {chain}: {listed}");
            }
        });
    }
}

#[test]
fn an_empty_ruleset_takes_ours_away_and_leaves_the_rest() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            let program = format!("iptables{infix}");
            run(&program, "-N KUBE-SERVICES");
            run(&program, "-A INPUT -j KUBE-SERVICES");
            let mut kernel = kernel_of(mode);
            let mut operations = sets();
            operations.extend(replace_both());
            commit_all(&mut kernel, operations);
            commit_all(
                &mut kernel,
                [Family::V4, Family::V6]
                    .map(|family| Operation::ReplaceRules(family, Ruleset::default()))
                    .into(),
            );
            assert!(read(&mut kernel).is_empty());
            let saved = run(&format!("{program}-save"), "");
            assert!(!saved.contains("NODENET"), "{saved}");
            assert!(saved.contains("-A INPUT -j KUBE-SERVICES"), "{saved}");
        });
    }
}

#[test]
fn the_filter_that_the_host_uses_and_that_can_be_written_is_found() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            // A kubelet's chain on the other side of what would be taken without it.
            run(&format!("iptables{infix}"), "-t mangle -N KUBE-IPTABLES-HINT");
            let mut kernel = kernel();
            assert!(read(&mut kernel).is_empty());
            assert_eq!(kernel.packet_filter_mode(), None, "looking decides nothing");
            let mut operations = sets();
            operations.extend(replace_both());
            commit_all(&mut kernel, operations);
            assert_eq!(kernel.packet_filter_mode(), Some(mode));
            assert!(run(&format!("iptables{infix}-save"), "").contains(":NODENET-"));
            // Another start finds what is there and does not try to write.
            let mut kernel = crate::support::kernel();
            assert_eq!(read(&mut kernel)[&Family::V4], wanted(Family::V4));
            assert_eq!(kernel.packet_filter_mode(), Some(mode));
        });
    }
    in_namespace(|| {
        let Some((_, first)) = writable().first().copied() else { return };
        let mut kernel = kernel();
        let mut operations = sets();
        operations.extend(replace_both());
        commit_all(&mut kernel, operations);
        assert_eq!(kernel.packet_filter_mode(), Some(first), "without a hint the first that can be written");
    });
}

#[test]
fn rules_that_name_a_set_that_is_not_there_are_refused_whole_in_the_programs_words() {
    for (infix, mode) in modes() {
        in_namespace(|| {
            let mut kernel = kernel_of(mode);
            let committed = crate::support::commit(
                &mut kernel,
                vec![Operation::ReplaceRules(Family::V4, wanted(Family::V4))],
            );
            let error = committed.failed[0].1.to_string();
            assert!(
                error.starts_with(&format!("replace IPv4 packet filter rules: iptables{infix}-restore")),
                "{error}"
            );
            assert!(error.contains("NODENET-"), "{error}");
        });
    }
}
