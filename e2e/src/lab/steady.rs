//! Traffic that must not notice what happens meanwhile: questions at a steady rate, and connections that
//! last.

use super::error::LabError;
use super::scene::{PATIENCE, Scene, Unmet};
use super::traffic::{Download, Probe};
use crate::tool::traffic::Transport;

/// Running questions and downloads, each with words for it.
#[derive(Debug)]
pub struct SteadyTraffic {
    probes: Vec<(String, Probe)>,
    downloads: Vec<(String, Download)>,
}

impl SteadyTraffic {
    /// Starts questions (from, to, how many a second) and downloads (from, to) over TCP, and waits until all
    /// questions are answered.
    ///
    /// # Errors
    /// When one is not answered.
    pub fn start(
        scene: &Scene,
        questions: &[(&str, &str, u32)],
        downloads: &[(&str, &str)],
    ) -> Result<Self, Unmet> {
        let mut traffic = Self { probes: Vec::new(), downloads: Vec::new() };
        for (from, to, per_second) in questions {
            let probe = scene.place(from).probe(Transport::Tcp, to.parse()?, *per_second)?;
            traffic.probes.push((format!("{from} asking {to}"), probe));
        }
        for (from, to) in downloads {
            let download = scene.place(from).download(to.parse()?)?;
            traffic.downloads.push((format!("{from} reading from {to}"), download));
        }
        traffic.goes_on(10)?;
        Ok(traffic)
    }

    /// Waits until each question was answered so many more times.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn goes_on(&self, answers: usize) -> Result<(), LabError> {
        for (_, probe) in &self.probes {
            probe.wait_for_answers(probe.answered()? + answers, PATIENCE)?;
        }
        Ok(())
    }

    /// Ends everything and says what was disturbed: connections that broke or stood still, questions without
    /// an answer.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn end(self) -> Result<Vec<String>, LabError> {
        self.goes_on(10)?;
        let mut disturbed = Vec::new();
        for (name, download) in self.downloads {
            let reports = download.stop()?;
            let bytes = reports.last().map_or(0, |last| last.bytes);
            println!("    {name}: {} MiB", bytes >> 20);
            match reports.iter().find_map(|report| report.error.as_deref()) {
                Some(error) => disturbed.push(format!("{name}: the connection ended: {error}")),
                None if bytes == 0 => disturbed.push(format!("{name}: nothing came")),
                None => {}
            }
        }
        for (name, probe) in self.probes {
            let attempts = probe.stop()?;
            let lost: Vec<_> = attempts.iter().filter(|attempt| attempt.error.is_some()).collect();
            let slowest = attempts.iter().map(|attempt| attempt.took_micros / 1000).max().unwrap_or(0);
            let (all, none) = (attempts.len(), lost.len());
            println!("    {name}: {all} questions, {none} without an answer, the slowest {slowest} ms");
            if let Some(first) = lost.first() {
                disturbed.push(format!("{name}: {none} of {all} without an answer, the first: {first:?}"));
            }
        }
        Ok(disturbed)
    }
}
