//! The rules as `iptables-restore` gets them, and what is read back of what the programs print.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use nodenet_agent::filter::{Config, parse, restore_text, rules};
use nodenet_agent::state::{Family, Ruleset};

fn golden(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/filter").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; UPDATE_GOLDEN=1 writes it", path.display());
}

fn with_pod_networks() -> Config {
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    Config { cluster_cidrs, ..Config::default() }
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

#[test]
fn what_restore_gets_reads_back_as_the_same_rules() {
    for family in [Family::V4, Family::V6] {
        let wanted = rules(family, &with_pod_networks());
        let text = restore_text(&wanted, &Ruleset::default()).replace("-I ", "-A ");
        assert_eq!(parse(family, &text), wanted);
        assert_eq!(restore_text(&wanted, &parse(family, &text)), "");
    }
}
