//! Reading manifests: files, folders and standard input; YAML and JSON; several documents and lists.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nodenet_planner::{Kind, Object, ObjectRef};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Error;
use super::schema::Schema;

/// Objects that were read, and what is wrong.
#[derive(Debug, Default)]
pub struct Input {
    /// What could be decoded; of several objects of one name the last, as `kubectl apply` would have it.
    pub objects: Vec<Object>,
    /// What is wrong, in the order of reading.
    pub problems: Vec<Problem>,
    from: BTreeMap<ObjectRef, String>,
    schemas: Vec<(String, Schema)>,
}

impl Input {
    /// The file of each VirtualIP, by name.
    pub fn sources(&self) -> BTreeMap<String, String> {
        let vips = self.from.iter().filter(|(object, _)| object.kind == Kind::VirtualIP);
        vips.map(|(object, file)| (object.name.clone(), file.clone())).collect()
    }
}

/// Something that a person must change.
#[derive(Debug)]
pub struct Problem {
    /// The file, or `-`.
    pub file: String,
    /// Which document of it, from 1.
    pub document: usize,
    /// The object as far as it names itself.
    pub object: String,
    /// What is wrong.
    pub what: What,
}

/// What is wrong with a document.
#[derive(Debug)]
pub enum What {
    /// It is no YAML.
    NoYaml(serde_yaml_ng::Error),
    /// It has no kind, so that nobody can say what it is.
    NoKind,
    /// It has no name.
    NoName,
    /// A field has another type than it should.
    Undecodable {
        /// Path of the field.
        field: String,
        /// What the decoder says.
        source: serde_json::Error,
    },
    /// A version of our group that does not exist.
    Version {
        /// What stands there.
        have: String,
        /// What is known.
        want: &'static str,
    },
    /// A field that our kind does not have.
    UnknownField {
        /// Path of the field.
        field: String,
    },
    /// The object stands in another document too.
    Twice {
        /// Where it stood before.
        before: String,
    },
}

impl What {
    /// Whether the object is missing from the input because of it.
    pub const fn loses_the_object(&self) -> bool {
        !matches!(self, Self::UnknownField { .. } | Self::Twice { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        if !self.object.is_empty() {
            write!(f, ": {}", self.object)?;
        }
        match &self.what {
            What::NoYaml(source) => write!(f, ": not YAML: {source}; nothing after it was read"),
            What::NoKind => f.write_str(": no apiVersion and kind; write for example `kind: Service`"),
            What::NoName => f.write_str(": metadata.name is missing; give the object a name"),
            What::Undecodable { field, source } => {
                write!(f, ": {field}: {source}; the object is left out")
            }
            What::Version { have, want } => {
                write!(f, ": apiVersion: {have:?} is not known; write {want:?}")
            }
            What::UnknownField { field } => {
                write!(
                    f,
                    ": {field}: there is no such field, it has no effect; remove it or correct its name"
                )
            }
            What::Twice { before } => {
                write!(f, ": stands in {before} too; this one counts. Remove one of them")
            }
        }
    }
}

/// Reads a file, all manifests of a folder and what is below it, or standard input (`-`).
///
/// # Errors
/// A file that cannot be read.
pub fn read(path: &Path, input: &mut Input) -> Result<(), Error> {
    if input.schemas.is_empty() {
        input.schemas = Schema::all()?;
    }
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(error(path))?;
        documents("-", &text, input);
        return Ok(());
    }
    if !path.is_dir() {
        let text = std::fs::read_to_string(path).map_err(error(path))?;
        documents(&path.display().to_string(), &text, input);
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(error(path))?;
    entries.sort();
    for entry in entries {
        let manifest =
            entry.extension().and_then(|e| e.to_str()).is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
        if manifest || entry.is_dir() {
            read(&entry, input)?;
        }
    }
    Ok(())
}

fn documents(file: &str, text: &str, input: &mut Input) {
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let place = Place { file, document: i + 1 };
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => place.value(value, input),
            Err(source) => {
                input.problems.push(place.problem(String::new(), What::NoYaml(source)));
                // The parser cannot find the next document behind an error.
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: usize,
}

impl Place<'_> {
    fn problem(self, object: String, what: What) -> Problem {
        Problem { file: self.file.to_owned(), document: self.document, object, what }
    }

    fn value(self, value: Value, input: &mut Input) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if version.is_empty() || kind.is_empty() {
            input.problems.push(self.problem(String::new(), What::NoKind));
            return;
        }
        if kind.ends_with("List")
            && let Some(items) = value.get("items").and_then(Value::as_array)
        {
            for item in items {
                self.value(item.clone(), input);
            }
            return;
        }
        let Some(known) = Kind::ALL.into_iter().find(|k| k.as_str() == kind) else { return };
        let want = api_version(known);
        let (group, _) = want.rsplit_once('/').unwrap_or(("", want));
        if version.rsplit_once('/').map_or("", |(group, _)| group) != group {
            // A kind of that name in somebody else's group.
            return;
        }
        let metadata = |field: &str| {
            value
                .pointer(&format!("/metadata/{field}"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (mut namespace, name) = (metadata("namespace"), metadata("name"));
        if namespace.is_empty() && matches!(known, Kind::Service | Kind::EndpointSlice | Kind::Lease) {
            namespace = "default".to_owned();
        }
        let object = ObjectRef { kind: known, namespace, name };
        if version != want {
            let what = What::Version { have: version, want };
            input.problems.push(self.problem(object.to_string(), what));
            return;
        }
        if object.name.is_empty() {
            input.problems.push(self.problem(kind, What::NoName));
            return;
        }
        for (_, schema) in input.schemas.iter().filter(|(name, _)| *name == kind) {
            for field in schema.unknown(&value) {
                input.problems.push(self.problem(object.to_string(), What::UnknownField { field }));
            }
        }
        match decode(known, value, &object.namespace) {
            Ok(decoded) => self.keep(object, decoded, input),
            Err((field, source)) => {
                let what = What::Undecodable { field, source };
                input.problems.push(self.problem(object.to_string(), what));
            }
        }
    }

    fn keep(self, object: ObjectRef, decoded: Object, input: &mut Input) {
        let here = self.file.to_owned();
        if let Some(before) = input.from.insert(object.clone(), here) {
            if input.objects.contains(&decoded) {
                // The same twice says nothing new: folders that bring their own Nodes may be read together.
                return;
            }
            input.objects.retain(|o| o.object_ref() != object);
            input.problems.push(self.problem(object.to_string(), What::Twice { before }));
        }
        input.objects.push(decoded);
    }
}

const fn api_version(kind: Kind) -> &'static str {
    match kind {
        Kind::Node | Kind::Service => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::Lease => "coordination.k8s.io/v1",
        Kind::VirtualIP | Kind::NodeNetState | Kind::NodeNetSlice => "nodenet.dev/v1alpha1",
    }
}

type DecodeError = (String, serde_json::Error);

fn decode(kind: Kind, value: Value, namespace: &str) -> Result<Object, DecodeError> {
    fn typed<K: DeserializeOwned + kube::Resource>(value: Value, namespace: &str) -> Result<K, DecodeError> {
        let mut object: K =
            serde_path_to_error::deserialize(value).map_err(|e| (e.path().to_string(), e.into_inner()))?;
        if !namespace.is_empty() {
            object.meta_mut().namespace = Some(namespace.to_owned());
        }
        Ok(object)
    }
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{Node, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use nodenet_crds::{NodeNetSlice, NodeNetState, VirtualIP};
    Ok(match kind {
        Kind::Node => typed::<Node>(value, namespace)?.into(),
        Kind::Service => typed::<Service>(value, namespace)?.into(),
        Kind::EndpointSlice => typed::<EndpointSlice>(value, namespace)?.into(),
        Kind::Lease => typed::<Lease>(value, namespace)?.into(),
        Kind::VirtualIP => typed::<VirtualIP>(value, namespace)?.into(),
        Kind::NodeNetState => typed::<NodeNetState>(value, namespace)?.into(),
        Kind::NodeNetSlice => typed::<NodeNetSlice>(value, namespace)?.into(),
    })
}
