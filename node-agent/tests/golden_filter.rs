//! The rules as `iptables-restore` gets them, and what is read back of what the programs print. `UPDATE_EXPECT=1` writes
//! what is expected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use expect_test::expect_file;
use nodenet_agent::filter::{Config, SetName, parse, restore_text, rules};
use nodenet_agent::state::{Family, Ruleset};

fn golden(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/filter").join(name);
    expect_file![path].assert_eq(actual);
}

fn with_pod_networks() -> Config {
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    let pod_cidrs = vec!["10.244.5.0/24".parse().unwrap(), "fd00:10:244:5::/64".parse().unwrap()];
    Config { cluster_cidrs, pod_cidrs, ..Config::default() }
}

#[test]
fn rules_of_both_families_are_as_kept() {
    for (name, family, config) in [
        ("v4.rules", Family::V4, with_pod_networks()),
        ("v6.rules", Family::V6, with_pod_networks()),
        ("v4-masquerade-all.rules", Family::V4, Config { masquerade_all: true, ..Config::default() }),
        ("v4-no-pod-networks.rules", Family::V4, Config::default()),
    ] {
        golden(name, &restore_text(&rules(family, &config), &Ruleset::default()));
    }
}

/// The text with rules that are appended instead of put before all others: the last of those comes first.
fn appended(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut first = 0;
    for line in text.lines() {
        let inserted = line.starts_with("-I ");
        if !inserted {
            first = lines.len() + 1;
        }
        lines.insert(if inserted { first } else { lines.len() }, line);
    }
    lines.join("\n").replace("-I ", "-A ")
}

#[test]
fn what_restore_gets_reads_back_as_the_same_rules() {
    for family in [Family::V4, Family::V6] {
        let wanted = rules(family, &with_pod_networks());
        let text = appended(&restore_text(&wanted, &Ruleset::default()));
        assert_eq!(parse(family, &text), wanted);
        assert_eq!(restore_text(&wanted, &parse(family, &text)), "");
    }
}

/// `saved-*.txt` is what `iptables-save -c` of either kind prints after it was given `v4.rules` or `v6.rules`, with foreign
/// rules beside them.
#[test]
fn what_the_programs_print_reads_as_what_they_were_given() {
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        for kind in ["legacy", "nft"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join(format!("tests/golden/filter/saved-{kind}-{name}.txt"));
            let saved = std::fs::read_to_string(&path).unwrap();
            assert_eq!(parse(family, &saved), rules(family, &with_pod_networks()), "{}", path.display());
        }
    }
}

fn one_rule(rule: &str) -> Ruleset {
    parse(Family::V4, &format!("*nat\n:NODENET-X - [0:0]\n-A NODENET-X {rule}\nCOMMIT\n"))
}

#[test]
fn one_rule_has_one_spelling() {
    for (one, other) in [
        ("-j MARK --set-xmark 0x4000/0x4000", "-j MARK --or-mark 0x4000"),
        ("-j MARK --set-xmark 0x0/0x4000", "-j MARK --and-mark 0xffffbfff"),
        ("-j MARK --set-xmark 0x4000/0xffffffff", "-j MARK --set-mark 16384"),
        ("-m mark --mark 0x4000/0x4000 -j ACCEPT", "-m mark --mark 16384/16384 --jump ACCEPT"),
        ("-s 10.0.0.1/32 -j RETURN", "--source 10.0.0.1 -j RETURN"),
        ("-p udp -j RETURN", "-p 17 -j RETURN"),
        (
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        ),
    ] {
        assert_eq!(one_rule(one), one_rule(other), "{one} and {other}");
    }
    assert_ne!(one_rule("-m mark --mark 0x4000 -j ACCEPT"), one_rule("-m mark ! --mark 0x4000 -j ACCEPT"));
}

#[test]
fn what_is_stale_goes_and_what_is_foreign_is_not_mentioned() {
    let current = parse(
        Family::V4,
        "*nat\n:PREROUTING ACCEPT [0:0]\n:FOREIGN - [0:0]\n:NODENET-OLD - [0:0]\n\
         -A PREROUTING -j FOREIGN\n-A PREROUTING -j NODENET-OLD\n-A PREROUTING -j NODENET-OLD\n\
         -A NODENET-OLD -j RETURN\nCOMMIT\n",
    );
    let text = restore_text(&Ruleset::default(), &current);
    let expected = "*nat\n:NODENET-OLD - [0:0]\n-D PREROUTING -j NODENET-OLD\n-D PREROUTING -j NODENET-OLD\n\
                    -X NODENET-OLD\nCOMMIT\n";
    assert_eq!(text, expected);
}

/// `IPSET_MAXNAMELEN` is 32 with the byte at the end.
#[test]
fn names_of_sets_are_short_enough_for_the_kernel() {
    for family in [Family::V4, Family::V6] {
        for set in SetName::ALL {
            let name = set.name(family);
            assert!(name.len() < 32, "{name}");
        }
    }
}
