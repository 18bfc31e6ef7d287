//! Reads NodeNetStates and NodeNetSlices from YAML (or JSON) of several documents.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use nodenet_crds::{GROUP, NodeNetSlice, NodeNetState, VERSION};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

/// What was read.
#[derive(Debug, Default)]
pub struct Input {
    /// The node's own state.
    pub state: Option<NodeNetState>,
    /// All slices.
    pub slices: Vec<NodeNetSlice>,
}

/// Why the input is not usable.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The file cannot be read.
    #[error("read {file}: {source}")]
    Read {
        /// Name, `-` for standard input.
        file: String,
        /// Cause.
        source: io::Error,
    },
    /// A document is not YAML, or not the object that it says it is.
    #[error("{file}, document {number}: {source}")]
    Document {
        /// Name.
        file: String,
        /// From 1.
        number: usize,
        /// Cause.
        source: serde_yaml_ng::Error,
    },
    /// A document without kind or version.
    #[error(
        "{file}, document {number}: is not an object of {GROUP}/{VERSION}: apiVersion {api_version:?}, kind {kind:?}"
    )]
    Foreign {
        /// Name.
        file: String,
        /// From 1.
        number: usize,
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
    },
    /// No state for the node.
    #[error("{file} has no NodeNetState named {node:?}; it has: {}", if .names.is_empty() { "none" } else { .names })]
    NoState {
        /// Name.
        file: String,
        /// The node.
        node: String,
        /// Names of those that it has.
        names: String,
    },
}

/// Reads `file`, or standard input for `-`, for `node`.
pub fn read(file: &Path, node: &str) -> Result<Input, InputError> {
    let name = file.display().to_string();
    let text = if name == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    parse(&text.map_err(|source| InputError::Read { file: name.clone(), source })?, &name, node)
}

/// Reads `text`; `file` is its name in errors.
pub fn parse(text: &str, file: &str, node: &str) -> Result<Input, InputError> {
    let mut input = Input::default();
    let mut names = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let wrong = |source| InputError::Document { file: file.to_owned(), number, source };
        let value = Value::deserialize(document).map_err(wrong)?;
        if value.is_null() {
            continue;
        }
        for value in items(value) {
            let string = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (api_version, kind) = (string("apiVersion"), string("kind"));
            let ours = api_version == format!("{GROUP}/{VERSION}");
            match kind.as_str() {
                "NodeNetState" if ours => {
                    let state: NodeNetState = typed(value).map_err(wrong)?;
                    let name = state.metadata.name.clone().unwrap_or_default();
                    if name == node {
                        input.state = Some(state);
                    } else {
                        names.push(name);
                    }
                }
                "NodeNetSlice" if ours => input.slices.push(typed(value).map_err(wrong)?),
                // What else the operator prints is not the node's.
                "VirtualIP" if ours => {}
                _ => return Err(InputError::Foreign { file: file.to_owned(), number, api_version, kind }),
            }
        }
    }
    if input.state.is_none() {
        let (file, node, names) = (file.to_owned(), node.to_owned(), names.join(", "));
        return Err(InputError::NoState { file, node, names });
    }
    Ok(input)
}

/// The objects of a `List`, or the one object.
fn items(mut value: Value) -> Vec<Value> {
    let list = value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match value.get_mut("items") {
        Some(Value::Sequence(items)) if list => std::mem::take(items),
        _ => vec![value],
    }
}

fn typed<K: DeserializeOwned>(value: Value) -> Result<K, serde_yaml_ng::Error> {
    serde_yaml_ng::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str =
        "apiVersion: nodenet.dev/v1alpha1\nkind: NodeNetState\nmetadata: {name: a}\nspec: {}\n";
    const SLICE: &str =
        "apiVersion: nodenet.dev/v1alpha1\nkind: NodeNetSlice\nmetadata: {name: s}\nspec: {revision: 4}\n";

    #[test]
    fn several_documents_are_one_input() {
        let text = format!("---\n{STATE}---\n{SLICE}---\n");
        let input = parse(&text, "f", "a").unwrap();
        assert_eq!(input.slices[0].spec.revision, 4);
    }

    #[test]
    fn what_is_missing_or_foreign_is_named() {
        let error = parse(STATE, "f.yaml", "b").unwrap_err().to_string();
        assert_eq!(error, "f.yaml has no NodeNetState named \"b\"; it has: a");
        let error = parse("apiVersion: v1\nkind: Service\n", "f.yaml", "b").unwrap_err().to_string();
        assert!(error.contains("document 1") && error.contains("\"Service\""), "{error}");
        let broken = format!("{STATE}---\n{}", SLICE.replace("4", "four"));
        let error = parse(&broken, "f.yaml", "a").unwrap_err().to_string();
        assert!(error.contains("document 2"), "{error}");
    }
}
