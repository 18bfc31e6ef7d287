//! What the API server is given.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::path::Path;

use nodenet_crds::schema::custom_resource_definitions;
use proptest::prelude::*;
use serde_json::Value;

fn schemas() -> Vec<(String, Value)> {
    custom_resource_definitions()
        .unwrap()
        .into_iter()
        .map(|crd| {
            let kind = crd.spec.names.kind.clone();
            let crd = serde_json::to_value(crd).unwrap();
            (kind, crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone())
        })
        .collect()
}

/// Walks every schema object with its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(child, &format!("{path}.{name}"), visit);
    }
    if let Some(items) = schema.get("items") {
        walk(items, &format!("{path}[]"), visit);
    }
}

#[test]
fn the_charts_definitions_are_those_of_the_kinds() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nodenet/crds");
    for crd in custom_resource_definitions().unwrap() {
        let path = dir.join(format!("{}.yaml", crd.spec.names.plural));
        let have = std::fs::read_to_string(&path).unwrap();
        let want = serde_yaml_ng::to_string(&crd).unwrap();
        assert!(have.ends_with(&want), "{} is stale: run `cargo xtask crds`", path.display());
    }
}

#[test]
fn every_list_and_number_of_a_spec_is_bounded_and_every_free_string_of_ours() {
    for (kind, schema) in schemas() {
        walk(&schema, &kind, &mut |path, s| {
            // Label selectors, conditions and times are the API's own types.
            if path.contains("elector") || path.contains("onditions") || path.ends_with("since") {
                return;
            }
            // Counts and generations of status and summaries are written by us alone.
            let ours_alone = path.contains("status") || path.contains("summary");
            match s.get("type").and_then(Value::as_str) {
                Some("array") => assert!(s.get("maxItems").is_some(), "{path} has no maxItems"),
                Some("string") if s.get("enum").is_none() => {
                    assert!(s.get("maxLength").is_some(), "{path} has no maxLength");
                }
                Some("integer") if !ours_alone => {
                    assert!(s.get("minimum").is_some(), "{path} has no minimum");
                }
                _ => {}
            }
            assert!(s.get("nullable").is_none(), "{path} is nullable");
            assert!(s.get("oneOf").is_none() && s.get("anyOf").is_none(), "{path} is a union");
        });
    }
}

proptest! {
    #[test]
    fn validation_never_panics(addresses in prop::collection::vec("\\PC{0,50}|[0-9a-f.:]{1,20}/[0-9]{1,3}", 0..20),
                               interface in prop::option::of("\\PC{0,20}"), priority in any::<i32>()) {
        let spec = nodenet_crds::VirtualIPSpec {
            addresses,
            interface,
            priorities: vec![nodenet_crds::NodePriority { node_selector: Default::default(), priority }],
            ..Default::default()
        };
        for violation in nodenet_crds::validate::virtual_ip(&spec) {
            prop_assert!(violation.field.starts_with("spec."));
            prop_assert!(!violation.to_string().is_empty());
        }
    }
}
