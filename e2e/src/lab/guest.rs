//! The guest: user-mode Linux with the host's files, and the host's side of its exec protocol.
//!
//! Its network device is a raw socket on the peer of a veth in the lab's namespace; `gro=1` because bulk
//! transfers stall without it. The main process leaves children behind when killed, so that it runs
//! under a guard that ends the process group.

use super::error::{During, LabError};
use super::process::{Process, lab_tool, last_lines, wait_for};
use super::protocol::{Event, Exec, PORT, Request};
use super::site::{self, Site};
use crate::tool::init::variable;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// How long a boot may take on a busy machine; about a second on an idle one.
const BOOT: Duration = Duration::from_secs(60);

/// What a program in the guest printed, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running guest kernel. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    channel: Channel,
}

/// The way to the guest's init; cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Channel {
    netns: String,
    console: PathBuf,
}

impl Guest {
    /// Boots a guest with that much memory and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; the error holds the end of its console.
    pub fn boot(site: &Site, memory_mebibytes: u32) -> Result<Self, LabError> {
        let console = site.log("guest-console");
        let sockets = site.folder().join("uml");
        std::fs::create_dir_all(&sockets).during("make", sockets.display())?;
        let argv = [
            "linux.uml".to_owned(),
            "rootfstype=hostfs".into(),
            "rootflags=/".into(),
            "ro".into(),
            format!("uml_dir={}/", sockets.display()),
            format!("mem={memory_mebibytes}M"),
            format!("init={}", lab_tool()?.display()),
            format!("{}={}", variable::SHARED, site.shared().display()),
            format!("{}={}/{}", variable::ADDRESS, Site::GUEST, Site::PREFIX_LENGTH),
            format!("{}={}", variable::GATEWAY, Site::HOST),
            "con=null".into(),
            "con0=fd:0,fd:1".into(),
            "quiet".into(),
            format!("vec0:transport=raw,ifname={},depth=128,gro=1", Site::UPLINK),
        ];
        let mut process = Process::start(Some(site.netns()), &console, &argv)?;
        let channel = Channel { netns: site.netns().into(), console: console.clone() };
        wait_for("the guest's boot", BOOT, &console, || {
            if !process.is_running() {
                return Err(LabError::Guest { operation: "boot".into(), reason: process.tail() });
            }
            Ok(channel.ask(&Request::Ping).ok())
        })?;
        Ok(Self { process, channel })
    }

    /// The way to its init.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Its main process on the host.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Channel {
    /// To the guest of a lab that another process started, by the name of its network namespace.
    pub fn attach(netns: &str) -> Self {
        Self { netns: netns.into(), console: "/dev/null".into() }
    }

    /// Asks whether the guest serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&self) -> Result<(), LabError> {
        self.done(&Request::Ping)
    }

    /// Runs a program and hands each piece of its output to `each` as it comes; returns the exit code.
    ///
    /// # Errors
    /// When it could not be started, or the guest is gone.
    pub fn stream(&self, exec: Exec, mut each: impl FnMut(&Event)) -> Result<i32, LabError> {
        let operation = exec.argv.join(" ");
        match self.converse(&Request::Run(exec), &mut each)? {
            Event::Exit { code } => Ok(code),
            other => Err(unexpected(operation, &other)),
        }
    }

    /// Runs a program to its end, whatever that is.
    ///
    /// # Errors
    /// When it could not be started, or the guest is gone.
    pub fn attempt(&self, exec: Exec) -> Result<Outcome, LabError> {
        let mut outcome = Outcome::default();
        outcome.code = self.stream(exec, |event| match event {
            Event::Out { text } => outcome.stdout.push_str(text),
            Event::Err { text } => outcome.stderr.push_str(text),
            _ => {}
        })?;
        Ok(outcome)
    }

    /// Runs a program that must succeed and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn run(&self, exec: Exec) -> Result<String, LabError> {
        let place = exec.namespace.clone().unwrap_or_else(|| "guest".into());
        let command = format!("{place}: {}", exec.argv.join(" "));
        let outcome = self.attempt(exec)?;
        if outcome.code == 0 {
            return Ok(outcome.stdout);
        }
        let printed = if outcome.stderr.trim().is_empty() { outcome.stdout } else { outcome.stderr };
        Err(LabError::Command { command, code: outcome.code.to_string(), output: last_lines(&printed, 12) })
    }

    /// Makes a namespace; see [`Request::Namespace`].
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn namespace(&self, name: &str) -> Result<(), LabError> {
        self.done(&Request::Namespace { name: name.into() })
    }

    /// Starts a program that runs on; its log stands in the shared folder under `log`.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn spawn(&self, exec: Exec, log: &str) -> Result<Started, LabError> {
        let operation = exec.argv.join(" ");
        let log = format!("{}/{log}", crate::tool::init::SHARED);
        match self.ask(&Request::Spawn { exec, log })? {
            Event::Started { id } => Ok(Started { channel: self.clone(), id }),
            other => Err(unexpected(operation, &other)),
        }
    }

    /// Writes a file as the named namespace sees it.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn put(&self, namespace: Option<&str>, path: &str, content: &str) -> Result<(), LabError> {
        self.done(&Request::Put {
            namespace: namespace.map(Into::into),
            path: path.into(),
            content: content.into(),
            mode: 0o600,
        })
    }

    fn done(&self, request: &Request) -> Result<(), LabError> {
        match self.ask(request)? {
            Event::Done => Ok(()),
            other => Err(unexpected(format!("{request:?}"), &other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Event, LabError> {
        self.converse(request, &mut |_| {})
    }

    fn converse(&self, request: &Request, each: &mut dyn FnMut(&Event)) -> Result<Event, LabError> {
        let mut stream = self.connect()?;
        let failed = |reason: String| LabError::Guest { operation: format!("{request:?}"), reason };
        let mut line = serde_json::to_string(request).map_err(|error| failed(error.to_string()))?;
        line.push('\n');
        stream.write_all(line.as_bytes()).during("write to", "the guest")?;
        for line in BufReader::new(stream).lines() {
            let line = line.during("read from", "the guest")?;
            match serde_json::from_str(&line).map_err(|error| failed(error.to_string()))? {
                Event::Failed { reason } => return Err(failed(reason)),
                event @ (Event::Out { .. } | Event::Err { .. }) => each(&event),
                event => return Ok(event),
            }
        }
        let console = std::fs::read_to_string(&self.console).unwrap_or_default();
        Err(failed(format!("the guest went away; its console ends with\n{}", last_lines(&console, 10))))
    }

    fn connect(&self) -> Result<TcpStream, LabError> {
        let address: IpAddr = Site::GUEST.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        site::connect(&self.netns, SocketAddr::new(address, PORT))
    }
}

fn unexpected(operation: String, event: &Event) -> LabError {
    LabError::Guest { operation, reason: format!("unexpected answer {event:?}") }
}

/// A program that runs on in the guest. Dropping this does not end it; the guest's end does.
#[derive(Debug, Clone)]
pub struct Started {
    channel: Channel,
    id: u32,
}

impl Started {
    /// Its process id in the guest.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), LabError> {
        self.channel.done(&Request::Kill { id: self.id, signal: signal as i32 })
    }

    /// Waits for its end; `None` when it still runs after that time.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn wait(&self, timeout: Duration) -> Result<Option<i32>, LabError> {
        let timeout_millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.channel.ask(&Request::Wait { id: self.id, timeout_millis })? {
            Event::Exit { code } => Ok(Some(code)),
            Event::Running => Ok(None),
            other => Err(unexpected(format!("wait for {}", self.id), &other)),
        }
    }
}

impl Exec {
    /// A program in the guest's own namespaces.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// In a namespace.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// With a standard input.
    #[must_use]
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.into();
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}
