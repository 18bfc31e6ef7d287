//! Programs on the host: short ones that are waited for, and long ones under a guard (see
//! [`crate::tool::guard`]) that end with the lab.

use super::error::{During, LabError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// [`LabError::Command`] with the end of what it printed when it fails.
pub fn output(command: &mut Command, stdin: &str) -> Result<String, LabError> {
    let output = attempt(command, stdin)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut printed = String::from_utf8_lossy(&output.stderr).into_owned();
    if printed.trim().is_empty() {
        printed = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(LabError::Command {
        command: line(command),
        code: output.status.to_string(),
        output: last_lines(&printed, 12),
    })
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// When it cannot be started.
pub fn attempt(command: &mut Command, stdin: &str) -> Result<Output, LabError> {
    let name = line(command);
    let mut child = command
        .stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .during("start", &name)?;
    let writer = child.stdin.take().map(|mut pipe| {
        let text = stdin.to_owned();
        // On its own thread: the program may print more than a pipe holds before it has read everything.
        std::thread::spawn(move || pipe.write_all(text.as_bytes()))
    });
    let output = child.wait_with_output().during("wait for", &name)?;
    if let Some(writer) = writer {
        // A program need not read its input to the end.
        let _ = writer.join();
    }
    Ok(output)
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The end of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A program of the lab that runs until it is stopped or dropped, or until this process is gone.
#[derive(Debug)]
pub struct Process {
    guard: Child,
    id: u32,
    log: PathBuf,
}

impl Process {
    /// Starts a program in a network namespace of the host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr>>(netns: Option<&str>, log: &Path, argv: &[S]) -> Result<Self, LabError> {
        Self::start_with(netns, log, argv, &[])
    }

    /// As [`Process::start`], with environment variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with<S: AsRef<OsStr>>(
        netns: Option<&str>,
        log: &Path,
        argv: &[S],
        env: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        let name = argv.first().map(|word| word.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let mut command = Command::new(lab_tool()?);
        command.arg("guard");
        if let Some(netns) = netns {
            command.args(["--netns", netns]);
        }
        command.arg("--log").arg(log).arg("--").args(argv).envs(env.iter().copied());
        let mut guard = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .during("start the guard of", &name)?;
        let mut first = String::new();
        if let Some(stdout) = guard.stdout.take() {
            BufReader::new(stdout).read_line(&mut first).during("read from the guard of", &name)?;
        }
        match first.trim().parse() {
            Ok(id) => Ok(Self { guard, id, log: log.to_owned() }),
            Err(_) => {
                let output = guard.wait_with_output().during("wait for the guard of", &name)?;
                Err(LabError::Command {
                    command: name,
                    code: output.status.to_string(),
                    output: String::from_utf8_lossy(&output.stderr).into_owned(),
                })
            }
        }
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of what it printed.
    pub fn tail(&self) -> String {
        last_lines(&std::fs::read_to_string(&self.log).unwrap_or_default(), 15)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.guard.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        kill(Pid::from_raw(i32::try_from(self.id).unwrap_or(i32::MAX)), signal).during("signal", self.id)
    }

    /// Ends it: SIGTERM, then SIGKILL after a few seconds.
    pub fn stop(self) {
        drop(self);
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill(mut self) {
        // Gone already is what is wanted.
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.guard.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The multi-call program, which cargo builds beside the running one.
///
/// # Errors
/// [`LabError::Missing`] when it was not built.
pub fn lab_tool() -> Result<PathBuf, LabError> {
    let here = std::env::current_exe().during("find", "this program")?;
    let mut folder = here.parent().unwrap_or(Path::new("/"));
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let tool = folder.join("lab-tool");
    if tool.exists() {
        return Ok(tool);
    }
    Err(LabError::Missing {
        what: tool.display().to_string(),
        remedy: "build it with `cargo build -p nodenet-e2e --bin lab-tool`".into(),
    })
}

/// Asks again and again until the answer is there.
///
/// # Errors
/// [`LabError::Timeout`] naming `what` and `log`, or the first error of `ask`.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    log: &Path,
    mut ask: impl FnMut() -> Result<Option<T>, LabError>,
) -> Result<T, LabError> {
    let begin = std::time::Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if begin.elapsed() > timeout {
            return Err(LabError::Timeout { what: what.into(), waited: timeout, log: log.into() });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
