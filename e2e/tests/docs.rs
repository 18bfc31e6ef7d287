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

/// All files below a folder whose name ends so.
fn files(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, end, found);
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
}

#[test]
fn behaviours_that_are_compared_stand_in_the_service_proxys_table() {
    let document = read("docs/service-proxy.md");
    let mut tables = Vec::new();
    files(&workspace().join("e2e/tests/lab_services"), ".yaml", &mut tables);
    let mut texts: Vec<String> =
        tables.iter().map(|path| fs::read_to_string(path).expect("a table")).collect();
    texts.push(read("e2e/tests/lab_services/lasting.rs"));
    let mut seen = 0;
    for line in texts.iter().flat_map(|text| text.lines()) {
        let yaml = line.strip_prefix("- behaviour: ");
        let rust = line.trim().strip_prefix("behaviour: \"").and_then(|rest| rest.strip_suffix("\","));
        let Some(behaviour) = yaml.or(rust) else { continue };
        assert!(document.contains(&format!("| {behaviour} |")), "docs/service-proxy.md has no `{behaviour}`");
        seen += 1;
    }
    assert!(seen > 20, "only {seen} behaviours found in e2e/tests/lab_services");
}

#[test]
fn tests_that_the_service_proxys_table_names_are_there() {
    let mut sources = Vec::new();
    for folder in ["node-agent", "operator", "e2e/tests"] {
        files(&workspace().join(folder), ".rs", &mut sources);
    }
    let sources: Vec<String> =
        sources.iter().map(|path| fs::read_to_string(path).expect("a source")).collect();
    for name in read("docs/service-proxy.md").split('`').filter_map(|word| word.split_once("::")) {
        let (program, test) = name;
        if !program.starts_with("kernel") && !program.starts_with("lab") {
            continue;
        }
        let start = test.trim_end_matches('*');
        let named =
            |text: &String| text.contains(&format!("fn {start}")) || text.contains(&format!("mod {start}"));
        assert!(sources.iter().any(named), "docs/service-proxy.md speaks of {program}::{test}");
    }
}
