//! The place of a lab on the host: a network namespace and a folder, both named after this process and
//! removed with the lab by a process of their own (see [`crate::tool::reaper`]), also when the lab's owner
//! is killed.

use super::error::{During, LabError};
use super::process::{lab_tool, output};
use crate::tool::reaper::KEEP_LOGS;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PREFIX: &str = "nodenet-lab-";

/// Network namespace and folder of one lab.
#[derive(Debug)]
pub struct Site {
    name: String,
    folder: PathBuf,
    reaper: Child,
}

impl Site {
    /// The host's address on the link to the guest; the API server is to be had there.
    pub const HOST: &'static str = "10.255.0.1";
    /// The guest's address on that link.
    pub const GUEST: &'static str = "10.255.0.2";
    /// Prefix length of that link.
    pub const PREFIX_LENGTH: u8 = 24;
    /// The guest's end of the link, which user-mode Linux opens.
    pub const UPLINK: &'static str = "u0";

    /// Makes the place.
    ///
    /// # Errors
    /// When the namespace or the folder cannot be made.
    pub fn create() -> Result<Self, LabError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(folder.join("shared")).during("make", folder.display())?;
        output(Command::new("ip").args(["netns", "add", &name]), "")?;
        let reaper = Command::new(lab_tool()?)
            .args(["reap", "--netns", &name, "--folder"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .during("start", "the reaper")?;
        let site = Self { name, folder, reaper };
        site.ip(&format!(
            "link set lo up\n\
             link add h0 type veth peer name {uplink}\n\
             addr add {host}/{length} dev h0\n\
             link set h0 up\n\
             link set {uplink} up\n",
            uplink = Self::UPLINK,
            host = Self::HOST,
            length = Self::PREFIX_LENGTH,
        ))?;
        Ok(site)
    }

    /// The network namespaces of the labs that run on this host.
    pub fn running() -> Vec<String> {
        namespaces().into_iter().filter(|name| alive(name)).collect()
    }

    /// Runs a batch of `ip` commands in the namespace.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, batch: &str) -> Result<(), LabError> {
        output(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch).map(drop)
    }

    /// Asks an HTTP server in the namespace (on its loopback) and returns headers and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn http_get(&self, port: u16, path: &str) -> Result<String, LabError> {
        let mut stream = connect(&self.name, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).during("write to", port)?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).during("read from", port)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The network namespace's name.
    pub fn netns(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that the guest sees at [`crate::tool::init::SHARED`].
    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// A log file in the folder.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the lab's logs stay in {}", self.folder.display());
            if let Some(pipe) = &mut self.reaper.stdin {
                // Without this the logs are gone, and that is all.
                let _ = pipe.write_all(KEEP_LOGS.as_bytes());
            }
        }
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
    }
}

/// Connects from within a network namespace, on a thread that may stay in it.
pub(super) fn connect(netns: &str, address: SocketAddr) -> Result<TcpStream, LabError> {
    let path = format!("/run/netns/{netns}");
    let connect = move || {
        let namespace = File::open(&path).during("open", &path)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).during("enter", &path)?;
        let stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).during("connect to", address)?;
        stream.set_nodelay(true).during("configure the connection to", address)?;
        Ok(stream)
    };
    std::thread::spawn(connect)
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")).during("connect to", address))
}

/// Whether the process that a lab is named after still runs.
fn alive(name: &str) -> bool {
    let id = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    id.is_some_and(|id| Path::new("/proc").join(id).exists())
}

/// The network namespaces of all labs.
fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}
