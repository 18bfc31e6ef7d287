//! `nodenet-operator render`: manifests in, NodeNetStates and NodeNetSlices out, without a cluster.

mod input;
mod schema;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use nodenet_crds::conditions::virtual_ip::ACCEPTED;
use nodenet_planner::{Now, Settings};

pub use input::{Input, Problem, What, read};

/// Why nothing was printed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The schemas of our kinds cannot be made.
    #[error("schema: {0}")]
    Schema(#[from] nodenet_crds::schema::SchemaError),
    /// The output cannot be written as YAML.
    #[error("output: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
}

/// What is printed where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// NodeNetStates and NodeNetSlices as YAML documents.
    pub documents: String,
    /// What is wrong with the manifests, a line each.
    pub problems: Vec<String>,
    /// Whether a document could not be decoded: what is printed is not all there is.
    pub undecodable: bool,
}

/// Reads the manifests at `paths` and plans them.
///
/// # Errors
/// See [`Error`]; what is wrong with a document is in [`Output::problems`].
pub fn render(paths: &[PathBuf], settings: Settings, now: Timestamp) -> Result<Output, Error> {
    let mut input = Input::default();
    for path in paths {
        read(path, &mut input)?;
    }
    let undecodable = input.problems.iter().any(|p| p.what.loses_the_object());
    let mut problems: Vec<_> = input.problems.iter().map(ToString::to_string).collect();
    let sources = input.sources();
    let now = Now { monotonic: Duration::ZERO, wall: now };
    let rendered = nodenet_planner::render(settings, input.objects, &now);
    for vip in &rendered.virtual_ips {
        let name = vip.metadata.name.as_deref().unwrap_or_default();
        let from = sources.get(name).map(String::as_str).unwrap_or("-");
        let conditions = vip.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        for c in conditions.iter().filter(|c| c.type_ == ACCEPTED && c.status != "True") {
            problems.push(format!("{from}: VirtualIP {name}: {}: {}", c.reason, c.message));
        }
    }
    let mut documents = String::new();
    for state in &rendered.states {
        document(&mut documents, &serde_yaml_ng::to_string(state)?);
    }
    for slice in &rendered.slices {
        document(&mut documents, &serde_yaml_ng::to_string(slice)?);
    }
    Ok(Output { documents, problems, undecodable })
}

fn document(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = write!(out, "---\n{text}");
}

#[cfg(test)]
mod tests;
