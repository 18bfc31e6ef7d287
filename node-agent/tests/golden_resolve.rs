//! Golden directories of resolutions: `input.yaml` (spec, slices, the node's interfaces and addresses) and
//! `expected.yaml` (what the node must have, its virtual IPs, what makes no sense). `UPDATE_EXPECT=1` writes what is
//! expected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_agent::state::NodeState;
use nodenet_crds::{NodeNetSliceSpec, NodeNetStateSpec};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    /// Name of the node.
    node: String,
    spec: NodeNetStateSpec,
    #[serde(default)]
    slices: BTreeMap<String, NodeNetSliceSpec>,
    /// Interfaces and addresses.
    observed: NodeState,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    #[serde(rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    virtual_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<String>,
    desired: NodeState,
}

fn check(directory: &Path) {
    let name = directory.file_name().unwrap().to_string_lossy();
    let text = std::fs::read_to_string(directory.join("input.yaml")).unwrap();
    let input: Input = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut resolver = Resolver::new(Options { node: input.node, ..Options::default() });
    resolver.put_observed(&input.observed);
    resolver.list_started();
    for (slice, spec) in &input.slices {
        resolver.put_slice(slice, spec);
    }
    resolver.list_completed(&input.slices.keys().cloned().collect());
    resolver.put_spec(&input.spec, Origin::Api);
    let in_words = |vip: &nodenet_agent::resolve::VirtualIp| {
        let places = vip.addresses.iter().map(|a| match &a.key {
            Some(key) if a.not_on_link => format!("{} on {} (not on link)", a.text, key.interface),
            Some(key) => format!("{} on {}", a.text, key.interface),
            None => format!("{} nowhere", a.text),
        });
        let fault = vip.fault().map(|fault| format!(": {fault}")).unwrap_or_default();
        format!("{} {:?}, {}{fault}", vip.name, vip.state, places.collect::<Vec<_>>().join(", "))
    };
    let mut desired = resolver.desired().clone();
    // The rules have their own golden files.
    desired.rules.clear();
    let expected = Expected {
        virtual_ips: resolver.virtual_ips().iter().map(in_words).collect(),
        problems: resolver.problems().iter().map(ToString::to_string).collect(),
        incomplete: resolver.incomplete().iter().map(ToString::to_string).collect(),
        desired,
    };
    let actual = serde_yaml_ng::to_string(&expected).unwrap();
    expect_file![directory.join("expected.yaml")].assert_eq(&actual);
}

#[test]
fn resolutions_are_as_kept() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/resolve");
    let mut directories: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    directories.sort();
    assert!(!directories.is_empty(), "no directories in {}", root.display());
    directories.iter().for_each(|directory| check(directory));
}
