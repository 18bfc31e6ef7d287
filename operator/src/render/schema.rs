//! Fields that our kinds do not have: the API server would drop them without a word, and a person who wrote one means
//! something by it.

use nodenet_crds::schema::{SchemaError, custom_resource_definitions};
use serde_json::Value;

/// Fields of every object.
const TOP: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The schema of one kind.
#[derive(Clone, Debug)]
pub struct Schema(Value);

impl Schema {
    /// The schemas of all our kinds, by name.
    ///
    /// # Errors
    /// As [`custom_resource_definitions`].
    pub fn all() -> Result<Vec<(String, Self)>, SchemaError> {
        let mut all = Vec::new();
        for crd in custom_resource_definitions()? {
            let schema = crd.spec.versions.into_iter().find_map(|v| v.schema?.open_api_v3_schema);
            let value = serde_json::to_value(schema)
                .map_err(|source| SchemaError::Json { kind: crd.spec.names.kind.clone(), source })?;
            all.push((crd.spec.names.kind, Self(value)));
        }
        Ok(all)
    }

    /// Paths of the fields of `object` that the schema does not have.
    pub fn unknown(&self, object: &Value) -> Vec<String> {
        let mut found = Vec::new();
        let Some(map) = object.as_object() else { return found };
        for (name, value) in map {
            if !TOP.contains(&name.as_str()) {
                match property(&self.0, name) {
                    Some(schema) => walk(schema, value, name, &mut found),
                    None => found.push(name.clone()),
                }
            }
        }
        found
    }
}

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get("properties").and_then(|p| p.get(name))
}

fn walk(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if schema.get("properties").is_some() => {
            for (name, value) in map {
                let path = format!("{path}.{name}");
                match property(schema, name) {
                    Some(schema) => walk(schema, value, &path, found),
                    None => found.push(path),
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                for (i, value) in list.iter().enumerate() {
                    walk(items, value, &format!("{path}[{i}]"), found);
                }
            }
        }
        _ => {}
    }
}
