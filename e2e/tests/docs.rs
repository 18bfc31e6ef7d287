//! The documents and what they speak of.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_condition_and_reason_is_explained() {
    let document = read("docs/conditions.md");
    let constants = read("crds/src/conditions.rs");
    let words = constants.lines().filter_map(|line| {
        let (name, value) = line.trim().strip_prefix("pub const ")?.split_once(": &str = ")?;
        Some((name, value.trim_end_matches(';').trim_matches('"')))
    });
    let mut seen = 0;
    for (name, word) in words {
        assert!(
            document.contains(&format!("`{word}`")),
            "docs/conditions.md does not explain {word} ({name})"
        );
        seen += 1;
    }
    assert!(seen > 30, "only {seen} conditions and reasons found in crds/src/conditions.rs");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents =
        ["README.md", "docs/install.md", "docs/conditions.md", "docs/architecture.md", "examples/README.md"];
    for document in documents {
        let folder = workspace().join(document);
        let folder = folder.parent().expect("a folder");
        let text = read(document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") {
                assert!(folder.join(path).exists(), "{document} links to {link}, which is not there");
            }
        }
    }
}
