//! `cargo xtask test`: the whole suite, and its report.
//!
//! Everything that cargo builds as a test is run by itself, so that each test has an entry of its own.
//! Where it runs follows from its name: an integration test `kernel*` on this
//! machine's kernel and in a guest's, one named `api` beside
//! a control plane of its own (its KUBECONFIG), everything else on the host; those of the crate `nodenet-e2e`
//! named `lab_*` start a lab themselves and run one after the other. A test that prints `SKIP: <why>` is
//! counted as skipped.

mod house;
mod libtest;
mod report;

use super::demo;
use crate::lab::cluster::{Cluster, ClusterSpec};
use crate::lab::guest::Guest;
use crate::lab::nodenet::workspace;
use crate::lab::prerequisites;
use crate::lab::progress::step;
use crate::lab::protocol::{Event, Exec};
use crate::lab::site::Site;
use anyhow::Context;
use libtest::Parser;
use report::{Area, Outcome, Report};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs formatter, linter, unit, golden and property tests, the chart's, the kernel's and the lab's, and the
/// demo.
#[derive(Debug, clap::Args)]
pub struct TestArguments {
    /// Only these parts.
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatter, linter, drift of generated files, the crates' borders.
    House,
    /// Tests that need nothing of the machine.
    Host,
    /// Tests against an API server.
    Api,
    /// Tests of the kernel's side, on this machine's kernel and in a guest's.
    Kernel,
    /// Tests that start a lab.
    Lab,
    /// The demo, each of its checks as a test.
    Demo,
}

/// A test program that cargo built.
#[derive(Debug)]
struct Program {
    package: String,
    target: String,
    path: PathBuf,
}

impl Program {
    fn part(&self) -> Part {
        if self.target.starts_with("kernel") {
            Part::Kernel
        } else if self.target == "api" {
            Part::Api
        } else if self.package == "nodenet-e2e" && self.target.starts_with("lab_") {
            Part::Lab
        } else {
            Part::Host
        }
    }
}

/// Runs the suite; the exit code is 0 when nothing failed.
///
/// # Errors
/// When the report cannot be written.
pub fn run(arguments: &TestArguments) -> anyhow::Result<i32> {
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let mut report = Report::default();
    if wanted(Part::House) {
        heading("house");
        house::run(&mut report);
    }
    let programs_of = [Part::Host, Part::Api, Part::Kernel, Part::Lab];
    if programs_of.into_iter().any(wanted) {
        heading("building the tests");
        if let Some(programs) = build(&mut report)? {
            for part in programs_of.into_iter().filter(|part| wanted(*part)) {
                let programs: Vec<&Program> =
                    programs.iter().filter(|program| program.part() == part).collect();
                heading(match part {
                    Part::Kernel => "kernel",
                    Part::Api => "API server",
                    Part::Lab => "lab",
                    _ => "unit, golden and property tests",
                });
                match part {
                    Part::Kernel => on_both_kernels(&programs, &mut report)?,
                    Part::Api => beside_control_planes(&programs, &mut report)?,
                    Part::Lab => {
                        programs.iter().try_for_each(|program| on_host(program, true, None, &mut report))?
                    }
                    _ => {
                        programs.iter().try_for_each(|program| on_host(program, false, None, &mut report))?
                    }
                }
            }
        }
    }
    if wanted(Part::Demo) {
        heading("demo");
        run_demo(&mut report);
    }
    report.write(&workspace().join("target/test/report.json"))?;
    Ok(report.conclude())
}

fn heading(text: &str) {
    println!("== {text}");
}

/// Builds all test programs, and the programs that lab tests start.
fn build(report: &mut Report) -> anyhow::Result<Option<Vec<Program>>> {
    let begin = Instant::now();
    let mut binaries = crate::xtask::cargo::command();
    binaries.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(workspace());
    let mut tests = crate::xtask::cargo::command();
    tests
        .args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json-render-diagnostics"])
        .current_dir(workspace())
        .stderr(Stdio::inherit());
    let (binaries_built, tests) = step("cargo build, cargo test --no-run", || {
        let binaries_built = binaries.status().context("start cargo")?.success();
        anyhow::Ok((binaries_built, tests.output().context("start cargo")?))
    })?;
    if !binaries_built || !tests.status.success() {
        report.add(
            "build",
            Area::House,
            Outcome::Failed("the workspace does not build".into()),
            begin.elapsed(),
        );
        return Ok(None);
    }
    report.add("build", Area::House, Outcome::Passed, begin.elapsed());
    let mut programs: Vec<Program> = String::from_utf8_lossy(&tests.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            let package = message["package_id"].as_str()?;
            // `path+file:///folder#name@version`, or `…/name#version` where folder and package agree.
            let (path, name) = package.rsplit_once('#')?;
            let package = match name.split_once('@') {
                Some((name, _)) => name,
                None => path.rsplit('/').next()?,
            };
            Some(Program {
                package: package.to_owned(),
                target: message["target"]["name"].as_str()?.to_owned(),
                path: message["executable"].as_str()?.into(),
            })
        })
        .collect();
    programs.sort_by(|one, other| (&one.package, &one.target).cmp(&(&other.package, &other.target)));
    Ok(Some(programs))
}

/// Runs a test program on the host; `serial` for those that would share the two processors badly.
fn on_host(
    program: &Program,
    serial: bool,
    kubeconfig: Option<&Path>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", TIMEOUT]).arg(&program.path).arg("--show-output");
    if serial {
        command.arg("--test-threads=1");
    }
    // Whatever cluster the caller has is none of the tests' business.
    command.env_remove("KUBECONFIG");
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let folder = workspace().join(folder(&program.package));
    let mut child = command
        .current_dir(&folder)
        .env("CARGO_MANIFEST_DIR", &folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.path.display()))?;
    let mut parser = Parser::new(program, serial);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            parser.line(&line?);
        }
    }
    let status = child.wait()?;
    parser.finish(&status.to_string(), status.success(), report);
    Ok(())
}

/// Runs test programs, each beside a control plane of its own; without one they skip themselves.
fn beside_control_planes(programs: &[&Program], report: &mut Report) -> anyhow::Result<()> {
    for program in programs {
        match prerequisites::control_plane() {
            Ok(binaries) => {
                let site = Site::create()?;
                let cluster = Cluster::start(&site, binaries, &ClusterSpec::default())?;
                on_host(program, true, Some(&cluster.kubeconfig()), report)?;
            }
            Err(error) => {
                println!("   no control plane: {error}");
                on_host(program, true, None, report)?;
            }
        }
    }
    Ok(())
}

/// How long one test program may run, in seconds.
const TIMEOUT: &str = "1500";

/// Runs test programs on two kernels: the machine's own (newer, nftables, no IPVS maybe) and a guest's. What
/// one of them lacks the other may have, so a test is skipped only where neither could run it.
fn on_both_kernels(programs: &[&Program], report: &mut Report) -> anyhow::Result<()> {
    for program in programs {
        let (mut own, mut guest) = (Report::default(), Report::default());
        println!("   {} on this machine's kernel", program.target);
        on_host(program, true, None, &mut own)?;
        println!("   {} in a guest kernel", program.target);
        in_guests(&[program], &mut guest)?;
        report.extend(own.merge(guest));
    }
    Ok(())
}

/// Runs test programs as root, each in a guest kernel of its own.
fn in_guests(programs: &[&Program], report: &mut Report) -> anyhow::Result<()> {
    for program in programs {
        match prerequisites::guest() {
            Ok(()) => in_guest(program, report),
            Err(error) => {
                for test in libtest::list(&program.path)? {
                    let outcome = Outcome::Skipped(error.to_string());
                    let area = libtest::area(program, &test);
                    report.add(&libtest::full_name(program, &test), area, outcome, Duration::ZERO);
                }
            }
        }
    }
    Ok(())
}

/// A guest that does not boot or dies is a failure of the program's tests.
fn in_guest(program: &Program, report: &mut Report) {
    let mut exec = Exec::new(["timeout", "--kill-after=10", TIMEOUT, &program.path.display().to_string()]);
    exec.argv.extend(["--show-output".into(), "--test-threads=1".into()]);
    let folder = workspace().join(folder(&program.package));
    exec.cwd = Some(folder.display().to_string());
    let exec = exec.env("CARGO_MANIFEST_DIR", &folder.display().to_string());
    let mut parser = Parser::new(program, true);
    let mut rest = String::new();
    let ran = Site::create().and_then(|site| {
        let guest = Guest::boot(&site, 1024)?;
        guest.channel().stream(exec, |event| match event {
            Event::Out { text } => {
                rest.push_str(text);
                while let Some(end) = rest.find('\n') {
                    parser.line(&rest[..end]);
                    rest.drain(..=end);
                }
            }
            Event::Err { text } => eprint!("{text}"),
            _ => {}
        })
    });
    match ran {
        Ok(code) => parser.finish(&format!("exit code {code}"), code == 0, report),
        Err(error) => parser.finish(&error.to_string(), false, report),
    }
}

/// A package's folder: tests find their golden files from there.
fn folder(package: &str) -> &'static str {
    match package {
        "nodenet-crds" => "crds",
        "nodenet-client" => "crds/client",
        "nodenet-operator" => "operator",
        "nodenet-planner" => "operator/planner",
        "nodenet-agent" => "node-agent",
        "nodenet-wire" => "node-agent/wire",
        _ => "e2e",
    }
}

fn run_demo(report: &mut Report) {
    let begin = Instant::now();
    match demo::perform(false, demo::Times::Shown) {
        Ok(checks) => {
            let share = begin.elapsed() / u32::try_from(checks.len().max(1)).unwrap_or(1);
            for check in checks {
                let outcome = if check.ok { Outcome::Passed } else { Outcome::Failed(check.detail) };
                report.add(&format!("demo: {}", check.name), Area::FirstLight, outcome, share);
            }
        }
        Err(error) => {
            let missing = error.downcast_ref::<crate::lab::error::LabError>();
            let outcome = match missing {
                Some(error @ crate::lab::error::LabError::Missing { .. }) => {
                    Outcome::Skipped(error.to_string())
                }
                _ => Outcome::Failed(format!("{error:#}")),
            };
            report.add("demo", Area::FirstLight, outcome, begin.elapsed());
        }
    }
}
