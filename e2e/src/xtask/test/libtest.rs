//! Reads what Rust's test programs print with `--show-output`.

use super::Program;
use super::report::{Area, Outcome, Report};
use crate::lab::process::output;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a test prints that cannot run here.
const SKIP: &str = "SKIP:";

/// A result line, before its output is known.
#[derive(Debug)]
struct Verdict {
    test: String,
    word: String,
    took: Duration,
}

/// Collects the results of one program.
#[derive(Debug)]
pub(super) struct Parser<'a> {
    program: &'a Program,
    /// Whether tests run one after the other, so that the time between two results is the second's.
    serial: bool,
    begin: Instant,
    last: Instant,
    verdicts: Vec<Verdict>,
    outputs: BTreeMap<String, String>,
    section: Option<String>,
    announced: usize,
    /// A test whose verdict did not stand in its line.
    pending: Option<String>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(program: &'a Program, serial: bool) -> Self {
        let now = Instant::now();
        Self {
            program,
            serial,
            begin: now,
            last: now,
            verdicts: Vec::new(),
            outputs: BTreeMap::new(),
            section: None,
            announced: 0,
            pending: None,
        }
    }

    /// Takes a line of the program's standard output.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.section = Some(name.to_owned());
        } else if line == "successes:" || line == "failures:" || line.starts_with("test result: ") {
            self.section = None;
        } else if let Some(section) = &self.section {
            let text = self.outputs.entry(section.clone()).or_default();
            text.push_str(line);
            text.push('\n');
        } else if let Some((test, word)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            let test = test.strip_suffix(" - should panic").unwrap_or(test);
            if is_verdict(word) {
                self.verdict(test, word);
            } else {
                // A child of the test has printed between the test's name and its verdict.
                self.pending = Some(test.to_owned());
            }
        } else if is_verdict(line)
            && let Some(test) = self.pending.take()
        {
            self.verdict(&test, line);
        } else if let Some(rest) = line.strip_prefix("running ") {
            self.announced = rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        }
    }

    fn verdict(&mut self, test: &str, word: &str) {
        let now = Instant::now();
        let took = now - self.last;
        self.last = now;
        if self.serial {
            println!("   {word} {test} ({:.1} s)", took.as_secs_f64());
        }
        self.verdicts.push(Verdict { test: test.into(), word: word.into(), took });
    }

    /// Puts the results into the report. A program that ended early, or not at all well although no test
    /// failed, is a failure of its own.
    pub(super) fn finish(mut self, status: &str, success: bool, report: &mut Report) {
        let share = self.begin.elapsed() / u32::try_from(self.verdicts.len().max(1)).unwrap_or(1);
        let mut failed = 0;
        let counted = self.verdicts.len();
        for verdict in std::mem::take(&mut self.verdicts) {
            let printed = self.outputs.remove(&verdict.test).unwrap_or_default();
            let skip = printed.lines().find_map(|line| line.trim_start().strip_prefix(SKIP));
            let outcome = match verdict.word.as_str() {
                "ok" => skip.map_or(Outcome::Passed, |why| Outcome::Skipped(why.trim().into())),
                word if word.starts_with("ignored") => Outcome::Skipped(
                    word.strip_prefix("ignored, ").unwrap_or("it is marked as ignored").into(),
                ),
                _ => {
                    failed += 1;
                    Outcome::Failed(printed)
                }
            };
            let took = if self.serial { verdict.took } else { share };
            report.add(
                &full_name(self.program, &verdict.test),
                area(self.program, &verdict.test),
                outcome,
                took,
            );
        }
        if counted < self.announced || (!success && failed == 0) {
            let reason = format!("ended with {status} after {counted} of {} tests", self.announced);
            let name = format!("{}::{}", self.program.package, self.program.target);
            report.add(&name, area(self.program, ""), Outcome::Failed(reason), self.begin.elapsed());
        }
        if !self.serial && counted > 0 {
            let seconds = self.begin.elapsed().as_secs_f64();
            println!(
                "   {}::{}: {counted} tests in {seconds:.1} s",
                self.program.package, self.program.target
            );
        }
    }
}

fn is_verdict(word: &str) -> bool {
    word == "ok" || word == "FAILED" || word.starts_with("ignored")
}

/// A test's name in the report.
pub(super) fn full_name(program: &Program, test: &str) -> String {
    format!("{}::{}::{test}", program.package, program.target)
}

/// A test belongs to the area that its program or module is named after, otherwise to the chain as a whole.
pub(super) fn area(program: &Program, test: &str) -> Area {
    let areas = [
        ("service_proxy", Area::ServiceProxy),
        ("virtual_ips", Area::VirtualIps),
        ("node_network_policy", Area::NodeNetworkPolicy),
        ("node_truth", Area::NodeTruth),
        ("house", Area::House),
    ];
    let named = |text: &str, area: &str| text.split("::").any(|part| part == area);
    let target = program.target.trim_start_matches("kernel_").trim_start_matches("lab_");
    areas
        .into_iter()
        .find(|(name, _)| target.starts_with(name) || named(test, name))
        .map_or(Area::FirstLight, |(_, area)| area)
}

/// The names of a program's tests.
pub(super) fn list(program: &Path) -> anyhow::Result<Vec<String>> {
    let text = output(Command::new(program).args(["--list", "--format", "terse"]), "")?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, success: bool) -> (Vec<serde_json::Value>, i32) {
        let program = Program { package: "p".into(), target: "t".into(), path: "/none".into() };
        let mut parser = Parser::new(&program, false);
        text.lines().for_each(|line| parser.line(line));
        let mut report = Report::default();
        parser.finish("exit status: 101", success, &mut report);
        let path = std::env::temp_dir().join(format!("nodenet-report-{}-{}", std::process::id(), text.len()));
        report.write(&path).unwrap();
        let entries = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::remove_file(path).unwrap();
        (entries, report.conclude())
    }

    #[test]
    fn a_test_that_prints_skip_is_skipped_with_its_reason() {
        let text = "running 4 tests\ntest a ... ok\ntest b::c - should panic ... ok\ntest d ... FAILED\n\
                    test e ... ignored, slow\n\nsuccesses:\n\n---- a stdout ----\nSKIP: no IPVS here\n\n\n\
                    successes:\n    a\n\nfailures:\n\n---- d stdout ----\nthread panicked\n\n\nfailures:\n    d\n\n\
                    test result: FAILED. 1 passed\n";
        let (entries, code) = parse(text, false);
        let results: Vec<_> = entries.iter().map(|entry| entry["result"].as_str().unwrap()).collect();
        assert_eq!(results, ["skipped", "passed", "failed", "skipped"]);
        assert_eq!(entries[0]["reason"], "no IPVS here");
        assert!(entries[2]["reason"].as_str().unwrap().contains("thread panicked"));
        assert_eq!(code, 1);
    }

    #[test]
    fn what_children_print_between_name_and_verdict_does_no_harm() {
        let (entries, code) = parse("running 1 test\ntest a ... noise\nmore noise\nok\n", true);
        assert_eq!((entries.len(), &entries[0]["result"], code), (1, &"passed".into(), 0));
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let (entries, code) = parse("running 2 tests\ntest a ... ok\n", false);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["result"], "failed");
        assert_eq!(code, 1);
    }
}
