//! The CustomResourceDefinitions as the API server gets them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::rules::RULES;
use crate::{NodeNetSlice, NodeNetState, VirtualIP};

/// Why a definition could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The derived schema is not JSON, or does not read back after the additions.
    #[error("definition of {kind}: {source}")]
    Json {
        /// Kind.
        kind: String,
        /// Cause.
        source: serde_json::Error,
    },
    /// A path of [`RULES`] or of a keyed list names no property.
    #[error("definition of {kind}: the schema has no property {path}")]
    NoSuchProperty {
        /// Kind.
        kind: String,
        /// Property names, joined by dots.
        path: String,
    },
}

/// Lists with keys: (kind, path of the list, keys). An empty list of keys makes a set.
const KEYED_LISTS: &[(&str, &[&str], &[&str])] = &[
    ("VirtualIP", &["spec", "addresses"], &[]),
    ("VirtualIP", &["spec", "services"], &["namespace", "name"]),
    ("VirtualIP", &["status", "conditions"], &["type"]),
    ("NodeNetState", &["status", "conditions"], &["type"]),
];

/// Definitions of all kinds, by name.
pub fn custom_resource_definitions() -> Result<Vec<CustomResourceDefinition>, SchemaError> {
    [VirtualIP::crd(), NodeNetState::crd(), NodeNetSlice::crd()].into_iter().map(complete).collect()
}

/// Adds what the derive cannot state (CEL rules, keyed lists) and removes what older API servers warn of.
fn complete(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, SchemaError> {
    let kind = crd.spec.names.kind.clone();
    let json = |source| SchemaError::Json { kind: kind.clone(), source };
    let mut value = serde_json::to_value(crd).map_err(json)?;
    let missing = |path: &[&str]| SchemaError::NoSuchProperty { kind: kind.clone(), path: path.join(".") };
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            let Some(root) = version.pointer_mut("/schema/openAPIV3Schema") else { continue };
            plain(root);
            if let Some(status) = root.pointer_mut("/properties/status") {
                without_defaults(status);
            }
            for rule in RULES.iter().filter(|r| r.kind == kind) {
                let object = property(root, rule.path).ok_or_else(|| missing(rule.path))?;
                let rules = object.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
                if let Some(rules) = rules.as_array_mut() {
                    rules.push(json!({ "rule": rule.rule, "message": rule.message }));
                }
            }
            for (_, path, keys) in KEYED_LISTS.iter().filter(|l| l.0 == kind) {
                let list = property(root, path).ok_or_else(|| missing(path))?;
                if keys.is_empty() {
                    list.insert("x-kubernetes-list-type".into(), json!("set"));
                } else {
                    list.insert("x-kubernetes-list-type".into(), json!("map"));
                    list.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                }
            }
        }
    }
    serde_json::from_value(value).map_err(json)
}

/// Drops the defaults of a status: its writer states all of it, and API servers of 1.20 refuse a default of `""`.
fn without_defaults(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("default");
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(without_defaults);
    }
    if let Some(items) = map.get_mut("items") {
        without_defaults(items);
    }
}

fn property<'a>(root: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let mut at = root;
    for name in path {
        at = at.get_mut("properties")?.get_mut(*name)?;
    }
    at.as_object_mut()
}

/// Drops `nullable` (an absent field is absent, not null) and integer formats that the API does not know.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("nullable");
            if map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By server-side apply, API servers of 1.20 append to a keyed list instead of taking the applied order, so that what
    /// was written never equals what is read, and refuse to take the last entry out of one.
    #[test]
    fn lists_that_are_applied_whole_are_atomic() {
        let all = custom_resource_definitions().unwrap();
        let crd = all.iter().find(|crd| crd.spec.names.kind == "NodeNetState").unwrap();
        let value = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        for part in ["spec", "status"] {
            let path =
                format!("/openAPIV3Schema/properties/{part}/properties/virtualIPs/x-kubernetes-list-type");
            assert_eq!(value.pointer(&path), Some(&json!("atomic")), "{part}");
        }
    }
}
