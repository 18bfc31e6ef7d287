//! The place of a lab on the host: a network namespace and a folder, both named after this process and
//! removed with the lab by a process of their own (see [`crate::tool::reaper`]), also when the lab's owner
//! is killed.

use super::error::{During, LabError};
use super::process::{lab_tool, output};
use crate::tool::reaper::KEEP_LOGS;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

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
