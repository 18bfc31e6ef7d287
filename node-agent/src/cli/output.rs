//! How changes are printed.

use std::io::{self, Write};

use clap::ValueEnum;
use nodenet_crds::Failure;
use serde::Serialize;

use crate::agent::words::{Sign, words};
use crate::state::Operation;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// Form of the output of `apply` and `cleanup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChangeForm {
    /// For people: a line for each change (`+` comes, `~` changes, `-` goes) and a summary.
    Text,
    /// For programs.
    Json,
}

/// What was, or would be, changed.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Nothing was done.
    pub dry_run: bool,
    /// What was done, or would be.
    pub operations: Vec<Operation>,
    /// What could not be done.
    pub failures: Vec<Failure>,
    /// What stands in the way or makes no sense, in words.
    pub notes: Vec<String>,
    /// Messages that the changes cost.
    pub messages: usize,
    /// Whether the kernel is as wanted now.
    pub converged: bool,
}

impl Changes {
    /// Prints them.
    pub fn print(&self, form: ChangeForm, out: &mut impl Write) -> io::Result<()> {
        match form {
            ChangeForm::Json => {
                serde_json::to_writer_pretty(&mut *out, self)?;
                writeln!(out)
            }
            ChangeForm::Text => self.text(out),
        }
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let mut counts = [0usize; 3];
        for operation in &self.operations {
            let (sign, object) = words(operation);
            counts[match sign {
                Sign::Add => 0,
                Sign::Change => 1,
                Sign::Remove => 2,
            }] += 1;
            writeln!(out, "{} {object}", sign.symbol())?;
        }
        for note in &self.notes {
            writeln!(out, "! {note}")?;
        }
        for failure in &self.failures {
            writeln!(out, "! {} {}: {}", failure.operation, failure.object, failure.message)?;
        }
        let [added, changed, removed] = counts;
        let total = added + changed + removed;
        let counted: Vec<String> = [("added", added), ("changed", changed), ("removed", removed)]
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(word, n)| format!("{n} {word}"))
            .collect();
        let counted = if counted.is_empty() { "Nothing done".to_owned() } else { counted.join(", ") };
        match (total, self.failures.len(), self.dry_run) {
            (0, 0, _) if self.converged => writeln!(out, "Nothing to do: the kernel is as wanted."),
            (_, 0, true) => writeln!(out, "Would be: {counted}. Nothing was done."),
            (_, 0, false) => {
                let end =
                    if self.converged { "The kernel is as wanted." } else { "Something is still missing." };
                writeln!(out, "{counted}. {end}")
            }
            (_, failed, _) => writeln!(out, "{counted}; {failed} could not be done."),
        }
    }
}
