//! `cargo xtask demo`: the whole chain as a user sees it, checked at each step.

mod checks;
mod failover;
mod show;

use super::cargo;
use crate::lab::nodenet::{Nodenet, workspace};
use crate::lab::process::Process;
use crate::lab::progress::step;
use crate::lab::{Lab, LabSpec};
use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The example folders that are applied.
const EXAMPLES: &[&str] = &["examples/000-keepalived-vip", "examples/002-what-forwards-the-packet"];
/// How long things may take to be ready on a busy machine.
const READY: &str = "--timeout=180s";

/// Installs nodenet into a lab, applies the examples, connects, and moves a virtual IP.
#[derive(Debug, clap::Args)]
pub struct DemoArguments {
    /// Leaves the lab up afterwards and says how to use it.
    #[arg(long)]
    keep: bool,
}

/// One thing that must hold.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// Runs it; the exit code is 0 when every check held.
///
/// # Errors
/// When the lab does not come up, with what to do about it.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<i32> {
    let checks = perform(arguments.keep, Times::Judged)?;
    let failed = checks.iter().filter(|check| !check.ok).count();
    println!("{} checks held, {failed} did not", checks.len() - failed);
    Ok(i32::from(failed > 0))
}

/// What is done about how long things take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Times {
    /// Too long is a check that did not hold.
    #[default]
    Judged,
    /// They are shown and recorded: tests make no verdict of a time, the machine may be busy.
    Shown,
}

/// Runs it and returns the checks; they also stand in `target/demo/report.json`.
///
/// # Errors
/// When the lab does not come up.
pub fn perform(keep: bool, times: Times) -> anyhow::Result<Vec<Check>> {
    let mut demo = Demo { times, ..Demo::default() };
    step("building operator and agent", || {
        cargo::build_lab_tool()?;
        cargo::build("nodenet-operator", &["nodenet-operator"])?;
        cargo::build("nodenet-agent", &["nodenet-agent"])
    })?;
    let lab = demo.timed("lab", || Lab::start(LabSpec::default()).map_err(Into::into))?;
    let result = demo.tour(&lab);
    if let Err(error) = &result {
        demo.check("the demo runs to its end", false, format!("{error:#}"));
    }
    demo.write()?;
    if demo.checks.iter().any(|check| !check.ok) {
        show::logs(&lab);
    }
    if keep {
        show::keep(&lab);
    }
    Ok(demo.checks)
}

/// Checks and times so far.
#[derive(Debug, Default)]
struct Demo {
    checks: Vec<Check>,
    timings: BTreeMap<String, f64>,
    times: Times,
}

impl Demo {
    fn check(&mut self, name: &str, ok: bool, detail: impl Into<String>) {
        let detail = detail.into();
        println!("  {} {name}: {detail}", if ok { "ok" } else { "FAILED" });
        self.checks.push(Check { name: name.into(), ok, detail });
    }

    /// A check that is about a time.
    fn check_time(&mut self, name: &str, ok: bool, detail: impl Into<String>) {
        match self.times {
            Times::Judged => self.check(name, ok, detail),
            Times::Shown => println!("  -- {name}: {}", detail.into()),
        }
    }

    fn timed<T>(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begin = Instant::now();
        let result = step(name, work);
        self.record(name, begin.elapsed());
        result
    }

    fn record(&mut self, name: &str, took: Duration) {
        let key = name.replace(' ', "_") + "_seconds";
        self.timings.insert(key, (took.as_secs_f64() * 1000.0).round() / 1000.0);
    }

    fn tour(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let nodenet = Nodenet::built()?;
        let nodes: Vec<&str> = lab.topology().spec().nodes.iter().map(|node| node.name.as_str()).collect();

        show::heading("install");
        self.timed("helm install", || lab.install_chart(&nodenet, &[]).context("helm install"))?;
        self.check(
            "helm install",
            true,
            show::first_line(&lab.cluster().helm(&["list", "--all-namespaces", "--short"])?),
        );
        let _operators: Vec<Process> = [0, 1]
            .into_iter()
            .map(|number| lab.start_operator(&nodenet, number))
            .collect::<Result<_, _>>()?;
        for node in &nodes {
            lab.start_agent(&nodenet, node)?;
        }

        show::heading("apply the examples");
        for folder in EXAMPLES {
            let folder = workspace().join(folder).display().to_string();
            print!("{}", lab.cluster().kubectl(&["apply", "-f", &folder])?);
            // What kubelet and the EndpointSlice controller write elsewhere.
            let slices = format!("{folder}/cluster/endpointslice.yaml");
            print!("{}", lab.cluster().kubectl(&["apply", "-f", &slices])?);
        }
        let waits: [(&str, &[&str]); 2] =
            [("virtual ip ready", &["vip/prometheus"]), ("nodes ready", &["nns", "--all"])];
        for (name, what) in waits {
            let begin = Instant::now();
            let arguments = [&["wait", "--for=condition=Ready", READY], what].concat();
            let result =
                step(&format!("kubectl {}", arguments.join(" ")), || lab.cluster().kubectl(&arguments));
            self.record(name, begin.elapsed());
            match result {
                Ok(text) => self.check(name, true, text.trim().replace('\n', ", ")),
                Err(error) => self.check(name, false, error.to_string()),
            }
        }

        show::heading("connect");
        checks::addresses(self, lab)?;
        checks::traffic(self, lab)?;

        show::heading("what one looks at");
        show::state(lab, "k8s-node-1")?;

        show::heading("take the holder's link down");
        failover::run(self, lab)?;
        show::command(lab, &["get", "vip,nns,nnslice"])
    }

    fn write(&self) -> anyhow::Result<()> {
        let folder = workspace().join("target/demo");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join("report.json");
        let text = serde_json::to_string_pretty(&json!({"checks": self.checks, "timings": self.timings}))?;
        std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}
