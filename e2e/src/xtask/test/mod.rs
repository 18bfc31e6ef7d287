//! `cargo xtask test`: the whole suite, and its report.
//!
//! Everything that cargo builds as a test is run by itself, so that each test has an entry of its own.
//! Where it runs follows from its name: an integration test `kernel*` in a guest kernel, one of the crate
//! `nodenet-e2e` alone on the host, everything else on the host. A test that prints `SKIP: <why>` is
//! counted as skipped.

mod house;
mod libtest;
mod report;

use super::demo;
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
use std::path::PathBuf;
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
    /// Tests in a guest kernel.
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
    if [Part::Host, Part::Kernel, Part::Lab].into_iter().any(wanted) {
        heading("building the tests");
        if let Some(programs) = build(&mut report)? {
            for part in [Part::Host, Part::Kernel, Part::Lab].into_iter().filter(|part| wanted(*part)) {
                let programs: Vec<&Program> =
                    programs.iter().filter(|program| program.part() == part).collect();
                heading(match part {
                    Part::Kernel => "kernel",
                    Part::Lab => "lab",
                    _ => "unit, golden and property tests",
                });
                match part {
                    Part::Kernel => in_guests(&programs, &mut report)?,
                    _ => on_host(&programs, part, &mut report)?,
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
    let mut binaries = Command::new("cargo");
    binaries.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(workspace());
    let mut tests = Command::new("cargo");
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

/// Runs test programs on the host: lab tests one after the other, for they share two processors.
fn on_host(programs: &[&Program], part: Part, report: &mut Report) -> anyhow::Result<()> {
    for program in programs {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", TIMEOUT]).arg(&program.path).arg("--show-output");
        if part == Part::Lab {
            command.arg("--test-threads=1");
        }
        let folder = workspace().join(folder(&program.package));
        let mut child = command
            .current_dir(&folder)
            .env("CARGO_MANIFEST_DIR", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.path.display()))?;
        let mut parser = Parser::new(program, part == Part::Lab);
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                parser.line(&line?);
            }
        }
        let status = child.wait()?;
        parser.finish(&status.to_string(), status.success(), report);
    }
    Ok(())
}

/// How long one test program may run, in seconds.
const TIMEOUT: &str = "1500";

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
        "nodenet-operator" => "operator",
        "nodenet-planner" => "operator/planner",
        "nodenet-agent" => "node-agent",
        "nodenet-wire" => "node-agent/wire",
        _ => "e2e",
    }
}

fn run_demo(report: &mut Report) {
    let begin = Instant::now();
    match demo::perform(false) {
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
