//! The suite's report: `target/test/report.json` and what is printed at the end.

use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What a test belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The workspace itself.
    House,
    /// The chain from `kubectl apply` to the kernel and back.
    FirstLight,
    /// Services.
    ServiceProxy,
    /// Virtual IPs.
    VirtualIps,
    /// The nodes' firewall.
    NodeNetworkPolicy,
    /// What a node reports about itself.
    NodeTruth,
}

/// How a test ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should; what it printed.
    Failed(String),
    /// It could not run here; why.
    Skipped(String),
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    area: Area,
    result: &'static str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// All entries.
#[derive(Debug, Default)]
pub struct Report {
    entries: Vec<Entry>,
}

impl Report {
    /// Adds an entry and prints a failure at once.
    pub fn add(&mut self, name: &str, area: Area, outcome: Outcome, took: Duration) {
        let (result, reason) = match outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Failed(text) => ("failed", Some(text)),
            Outcome::Skipped(text) => ("skipped", Some(text)),
        };
        if result == "failed" {
            println!("FAILED {name}\n{}", reason.as_deref().unwrap_or_default());
        }
        let seconds = (took.as_secs_f64() * 1000.0).round() / 1000.0;
        self.entries.push(Entry { name: name.into(), area, result, seconds, reason });
    }

    /// Writes the entries as a list.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&self.entries)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// Prints what was skipped and failed and, last, the counts; returns the exit code.
    pub fn conclude(&self) -> i32 {
        let count = |result: &str| self.entries.iter().filter(|entry| entry.result == result).count();
        let mut skipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.result == "skipped") {
            skipped.entry(entry.reason.as_deref().unwrap_or_default()).or_default().push(&entry.name);
        }
        println!("==");
        for (reason, names) in skipped {
            println!("skipped {} because {reason}: {}", names.len(), names.join(", "));
        }
        for entry in self.entries.iter().filter(|entry| entry.result == "failed") {
            println!("failed {}", entry.name);
        }
        let failed = count("failed");
        println!("{} passed, {failed} failed, {} skipped", count("passed"), count("skipped"));
        i32::from(failed > 0)
    }
}
