//! Asking and answering: the host's side of [`crate::tool::traffic`].

use super::error::LabError;
use super::guest::{Channel, Outcome, Started};
use super::process::{lab_tool, wait_for};
use super::protocol::Exec;
use crate::tool::init::SHARED;
use crate::tool::traffic::{Attempt, Progress, Question, Transport};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Between two looks at what a prober has seen. A look is a program in the guest, which has one processor.
const LOOK: Duration = Duration::from_millis(500);

/// A namespace of the guest: where a node's, pod's or client's programs run.
#[derive(Debug, Clone)]
pub struct Place {
    channel: Channel,
    name: String,
}

impl Place {
    pub(super) fn new(channel: Channel, name: &str) -> Self {
        Self { channel, name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program that must succeed and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String, LabError> {
        self.channel.run(Exec::new(argv.iter().copied()).within(&self.name))
    }

    /// As [`Place::run`], with a standard input.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn run_with(&self, argv: &[&str], stdin: &str) -> Result<String, LabError> {
        self.channel.run(Exec::new(argv.iter().copied()).within(&self.name).stdin(stdin))
    }

    /// Runs a program to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn attempt(&self, argv: &[&str]) -> Result<Outcome, LabError> {
        self.channel.attempt(Exec::new(argv.iter().copied()).within(&self.name))
    }

    /// Starts a program that runs on; its output stands in `<log>` in the lab's shared folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, exec: Exec, log: &str) -> Result<Started, LabError> {
        self.channel.spawn(exec.within(&self.name), log)
    }

    /// Writes a file as this place sees it.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn put(&self, path: &str, content: &str) -> Result<(), LabError> {
        self.channel.put(Some(&self.name), path, content)
    }

    /// Starts a program that answers with `answer` and the asker's address on these ports, TCP and UDP.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve(&self, answer: &str, ports: &[u16]) -> Result<Started, LabError> {
        let mut argv =
            vec![lab_tool()?.display().to_string(), "serve".into(), "--answer".into(), answer.into()];
        argv.extend(ports.iter().map(ToString::to_string));
        let log = format!("serve-{}.log", self.name);
        self.spawn(Exec::new(argv), &log)
    }

    /// Asks so many times, one after the other, each time on a new connection (or from a new socket).
    ///
    /// # Errors
    /// When the guest fails; an attempt that fails is in the result.
    pub fn ask(
        &self,
        transport: Transport,
        target: SocketAddr,
        count: u32,
    ) -> Result<Vec<Attempt>, LabError> {
        let tool = lab_tool()?.display().to_string();
        let (target, count) = (target.to_string(), count.to_string());
        let text = self.run(&[&tool, "ask", "--transport", transport.name(), "--count", &count, &target])?;
        lines(&text)
    }

    /// Asks all these questions at once, and returns the attempts of each.
    ///
    /// # Errors
    /// When the guest fails; attempts that fail are in the result.
    pub fn survey(&self, questions: &[Question]) -> Result<Vec<Vec<Attempt>>, LabError> {
        let json = |source| LabError::Json { object: "a survey".into(), source };
        let stdin = serde_json::to_string(questions).map_err(json)?;
        let text = self.run_with(&[&lab_tool()?.display().to_string(), "survey"], &stdin)?;
        serde_json::from_str(&text).map_err(json)
    }

    /// Asks over UDP from one socket again and again in the background until [`Probe::stop`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keep_asking(&self, target: SocketAddr, per_second: u32) -> Result<Probe, LabError> {
        self.background(&["keep-asking", "--per-second", &per_second.to_string(), &target.to_string()])
    }

    /// Asks again and again in the background until [`Probe::stop`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn probe(
        &self,
        transport: Transport,
        target: SocketAddr,
        per_second: u32,
    ) -> Result<Probe, LabError> {
        let rate = per_second.to_string();
        self.background(&[
            "probe",
            "--transport",
            transport.name(),
            "--per-second",
            &rate,
            &target.to_string(),
        ])
    }

    /// Reads one endless answer in the background until [`Probe::stop`]: a download.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn download(&self, target: SocketAddr) -> Result<Download, LabError> {
        self.background(&["download", &target.to_string()]).map(|probe| Download { probe })
    }

    fn background(&self, arguments: &[&str]) -> Result<Probe, LabError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = format!("{}-{}-{}.jsonl", arguments[0], self.name, NEXT.fetch_add(1, Ordering::Relaxed));
        let tool = lab_tool()?.display().to_string();
        let argv = [&[tool.as_str()], arguments].concat();
        let started = self.spawn(Exec::new(argv), &log)?;
        Ok(Probe { place: self.clone(), started, log: format!("{SHARED}/{log}") })
    }
}

/// A running prober.
#[derive(Debug)]
pub struct Probe {
    place: Place,
    started: Started,
    log: String,
}

impl Probe {
    /// What it has seen until now.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn attempts(&self) -> Result<Vec<Attempt>, LabError> {
        lines(&self.read()?)
    }

    /// How many answers it has had until now.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn answered(&self) -> Result<usize, LabError> {
        // It may have seen much: it is counted where it stands.
        let counted = self.place.attempt(&["grep", "-c", r#""error":null"#, &self.log])?;
        Ok(counted.stdout.trim().parse().unwrap_or(0))
    }

    /// Waits until it has had that many answers.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn wait_for_answers(&self, count: usize, timeout: Duration) -> Result<(), LabError> {
        wait_for("answers to the prober", timeout, Path::new(&self.log), || {
            if self.answered()? >= count {
                return Ok(Some(()));
            }
            std::thread::sleep(LOOK);
            Ok(None)
        })
    }

    /// Ends it and returns all that it has seen.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn stop(self) -> Result<Vec<Attempt>, LabError> {
        self.started.signal(Signal::SIGKILL)?;
        self.started.wait(Duration::from_secs(5))?;
        self.attempts()
    }

    fn read(&self) -> Result<String, LabError> {
        // In the guest: what it wrote last may not have reached the host yet.
        let text = self.place.run(&["cat", &self.log])?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        Ok(text[..whole].to_owned())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Ended already or not: nobody reads it any more, and the guest has one processor.
        let _ = self.started.signal(Signal::SIGKILL);
    }
}

/// A running download.
#[derive(Debug)]
pub struct Download {
    probe: Probe,
}

impl Download {
    /// What it has received until now.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn progress(&self) -> Result<Vec<Progress>, LabError> {
        lines(&self.probe.read()?)
    }

    /// Ends it and returns its reports; the last one says whether the connection broke before.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn stop(self) -> Result<Vec<Progress>, LabError> {
        // A broken download has ended already.
        let _ = self.probe.started.signal(Signal::SIGKILL);
        self.probe.started.wait(Duration::from_secs(5))?;
        self.progress()
    }
}

/// How often each answer came.
pub fn answers(attempts: &[Attempt]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in attempts.iter().filter_map(|attempt| attempt.answer.clone()) {
        *counts.entry(answer).or_default() += 1;
    }
    counts
}

/// The longest time without an answer, between two of them.
pub fn longest_outage(attempts: &[Attempt]) -> Duration {
    let answered = attempts.iter().filter(|attempt| attempt.error.is_none());
    let mut times: Vec<u64> = answered.map(|attempt| attempt.begin_micros + attempt.took_micros).collect();
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_micros(gaps.max().unwrap_or(0))
}

fn lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, LabError> {
    let parse = |line: &str| {
        serde_json::from_str(line).map_err(|source| LabError::Json { object: format!("`{line}`"), source })
    };
    text.lines().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(begin_millis: u64, ok: bool) -> Attempt {
        Attempt {
            begin_micros: begin_millis * 1000,
            took_micros: 1000,
            answer: ok.then(|| "pod".into()),
            source: None,
            error: (!ok).then(|| "refused".into()),
        }
    }

    #[test]
    fn an_outage_lasts_from_one_answer_to_the_next() {
        let attempts =
            [attempt(0, true), attempt(20, true), attempt(40, false), attempt(60, false), attempt(80, true)];
        assert_eq!(longest_outage(&attempts), Duration::from_millis(60));
        assert_eq!(answers(&attempts), [("pod".to_owned(), 3)].into());
        // One that began in it and was answered late does not make it longer.
        let mut late = attempt(30, true);
        late.took_micros = 60_000;
        let attempts = [attempts.as_slice(), &[late, attempt(100, true)]].concat();
        assert_eq!(longest_outage(&attempts), Duration::from_millis(60));
    }
}
