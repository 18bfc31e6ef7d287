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

    /// Adds all entries of another report.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// The same tests on two machines: failed where it failed on one, skipped where it was skipped on both.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for entry in other.entries {
            let Some(mine) = self.entries.iter_mut().find(|mine| mine.name == entry.name) else {
                self.entries.push(entry);
                continue;
            };
            mine.seconds += entry.seconds;
            let rank = |result: &str| ["skipped", "passed", "failed"].iter().position(|name| *name == result);
            if rank(entry.result) > rank(mine.result) {
                (mine.result, mine.reason) = (entry.result, entry.reason);
            } else if entry.result == "skipped" && mine.result == "skipped" && entry.reason != mine.reason {
                let reasons = [mine.reason.take(), entry.reason].into_iter().flatten().collect::<Vec<_>>();
                mine.reason = Some(reasons.join("; in the guest: "));
            }
        }
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_skipped_only_where_no_kernel_could_run_it() {
        let report = |outcomes: [Outcome; 4]| {
            let mut report = Report::default();
            for (name, outcome) in ["a", "b", "c", "d"].into_iter().zip(outcomes) {
                report.add(name, Area::FirstLight, outcome, Duration::from_secs(1));
            }
            report
        };
        let skip = || Outcome::Skipped("no IPVS".into());
        let fail = || Outcome::Failed("panicked".into());
        let own = report([skip(), skip(), Outcome::Passed, skip()]);
        let merged = own.merge(report([Outcome::Passed, skip(), fail(), fail()]));
        let results: Vec<_> = merged.entries.iter().map(|entry| entry.result).collect();
        assert_eq!(results, ["passed", "skipped", "failed", "failed"]);
        assert_eq!(merged.entries[0].reason, None);
        assert_eq!(merged.entries[1].reason.as_deref(), Some("no IPVS"));
    }
}
