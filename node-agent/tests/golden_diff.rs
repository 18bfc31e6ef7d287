//! Golden directories of comparisons: `current.yaml` (what the kernel has), `desired.yaml`, `expected.yaml` (what is done,
//! claimed and noted), and where it is not the usual one `context.yaml`. `UPDATE_EXPECT=1` writes what is expected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use expect_test::expect_file;
use nodenet_agent::agent::words::words;
use nodenet_agent::diff::{Context, Draining, Journal, Prune, diff};
use nodenet_agent::state::{NodeState, Scope};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Given {
    /// What is ours without the kernel saying so.
    journal: Journal,
    /// Whether anything may be removed.
    prune: bool,
}

impl Default for Given {
    fn default() -> Self {
        let ranges = [("10.96.0.0/12").parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        Self { journal: Journal { ranges: ranges.into(), ..Journal::default() }, prune: true }
    }
}

#[derive(Serialize)]
struct Expected {
    /// In words, in order.
    operations: Vec<String>,
    #[serde(skip_serializing_if = "Journal::is_empty")]
    claims: Journal,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    looks_wider: bool,
}

fn read<T: for<'de> Deserialize<'de> + Default>(path: PathBuf) -> T {
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        Err(_) => T::default(),
    }
}

fn check(directory: &Path) {
    let name = directory.file_name().unwrap().to_string_lossy();
    assert!(directory.join("desired.yaml").exists(), "{name} has no desired.yaml");
    let current: NodeState = read(directory.join("current.yaml"));
    let desired: NodeState = read(directory.join("desired.yaml"));
    let given: Given = read(directory.join("context.yaml"));
    let mut draining = Draining::default();
    let prune = if given.prune { Prune::ALL } else { Prune::default() };
    let (now, drain_timeout) = (Duration::ZERO, Duration::from_secs(600));
    let mut context = Context {
        journal: &given.journal,
        prune,
        others: &nodenet_agent::diff::NOBODY,
        draining: &mut draining,
        now,
        drain_timeout,
        inside: nodenet_agent::filter::InsideMarks::default(),
    };
    let found = diff(&desired, &current, &Scope::all(&desired), &mut context);
    let expected = Expected {
        operations: found
            .transaction
            .operations()
            .iter()
            .map(|operation| {
                let (sign, object) = words(operation);
                format!("{} {object}", sign.symbol())
            })
            .collect(),
        claims: found.claims,
        notes: found.notes.iter().map(ToString::to_string).collect(),
        looks_wider: !found.widen.is_empty(),
    };
    let actual = serde_yaml_ng::to_string(&expected).unwrap();
    expect_file![directory.join("expected.yaml")].assert_eq(&actual);
}

#[test]
fn comparisons_are_as_kept() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/diff");
    let mut directories: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    directories.sort();
    assert!(!directories.is_empty(), "no directories in {}", root.display());
    directories.iter().for_each(|directory| check(directory));
}
