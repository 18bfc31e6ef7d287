//! What holds for the workspace as a whole.

use super::report::{Area, Outcome, Report};
use crate::lab::nodenet::workspace;
use crate::lab::process::{attempt, last_lines};
use crate::lab::progress::step;
use std::time::Instant;

/// Crates that must stay pure, and what they must not reach.
const PURE: &[&str] = &["nodenet-planner", "nodenet-wire", "nodenet-crds"];
const IMPURE: &[&str] = &["tokio", "kube-client", "hyper"];

/// Runs formatter and linter and looks at generated files and the crates' borders.
pub(super) fn run(report: &mut Report) {
    cargo(report, "cargo fmt", &["fmt", "--all", "--check", "--", "--color=never"]);
    cargo(
        report,
        "cargo clippy",
        &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
    );
    cargo(
        report,
        "the chart's CRDs are those of the kinds",
        &[
            "run",
            "--quiet",
            "--package",
            "nodenet-crds",
            "--bin",
            "crdgen",
            "--",
            "--check",
            "charts/nodenet/crds",
        ],
    );
    for package in PURE {
        borders(report, package);
    }
}

fn cargo(report: &mut Report, name: &str, arguments: &[&str]) {
    let begin = Instant::now();
    let mut command = crate::xtask::cargo::command();
    command.args(arguments).current_dir(workspace());
    let outcome = match step(name, || attempt(&mut command, "")) {
        Ok(output) if output.status.success() => Outcome::Passed,
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Outcome::Failed(last_lines(&String::from_utf8_lossy(&text), 60))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    report.add(name, Area::House, outcome, begin.elapsed());
}

fn borders(report: &mut Report, package: &str) {
    let begin = Instant::now();
    let name = format!("{package} reaches no runtime and no client");
    let mut tree = crate::xtask::cargo::command();
    tree.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none"])
        .current_dir(workspace());
    let outcome = match attempt(&mut tree, "") {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let found: Vec<&str> = text
                .lines()
                .filter_map(|line| line.split(' ').next())
                .filter(|name| IMPURE.contains(name))
                .collect();
            if found.is_empty() {
                Outcome::Passed
            } else {
                Outcome::Failed(format!("it reaches {}", found.join(", ")))
            }
        }
        Ok(output) => Outcome::Failed(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Outcome::Failed(error.to_string()),
    };
    report.add(&name, Area::House, outcome, begin.elapsed());
}
