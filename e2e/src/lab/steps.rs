//! Scenarios in parts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// The parts of a scenario: one that fails is told and the next is tried, for a lab is dear.
#[derive(Debug, Default)]
pub struct Steps {
    failed: Vec<String>,
}

impl Steps {
    /// Does one part; a panic in it is its failure.
    pub fn run(&mut self, name: &str, part: impl FnOnce()) {
        let begin = Instant::now();
        let result: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(part));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("  {word} {name} ({:.1} s)", begin.elapsed().as_secs_f64());
        if result.is_err() {
            self.failed.push(name.to_owned());
        }
    }

    /// The names of the parts that failed.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }
}
