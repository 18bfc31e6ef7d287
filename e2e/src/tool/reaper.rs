//! Removes a lab's network namespace and folder once its owner is gone, however the owner ended:
//! `lab-tool reap --netns NAME --folder FOLDER`, with a pipe from the owner as standard input.
//!
//! What the owner wrote into the pipe says what to keep: [`KEEP_LOGS`] or nothing.

use super::{During, ToolError};
use nix::unistd::setsid;
use std::fs;
use std::io::{Read, stdin};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the owner writes when somebody will want to read the logs.
pub const KEEP_LOGS: &str = "keep logs";

/// Longer than a guard waits for its program.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for the owner's end, then removes.
///
/// # Errors
/// When something cannot be removed.
pub fn run(netns: &str, folder: &Path) -> Result<(), ToolError> {
    // Ctrl-C ends the owner, not this.
    setsid().during("start a session for", "the reaper")?;
    let mut wish = String::new();
    // An error is as good as the end: nobody is there any more.
    let _ = stdin().read_to_string(&mut wish);
    let begin = Instant::now();
    let namespace = format!("/run/netns/{netns}");
    let inode = fs::metadata(&namespace).during("look at", &namespace)?.ino();
    // The guards end their programs at the same time; what these still write must not outlive them.
    while is_used(inode) && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = Command::new("ip").args(["netns", "del", netns]).status().during("remove", netns)?;
    if !status.success() {
        return Err(std::io::Error::other(status.to_string())).during("remove", netns);
    }
    if wish.trim() == KEEP_LOGS {
        let database = folder.join("etcd");
        return fs::remove_dir_all(&database).during("remove", database.display());
    }
    fs::remove_dir_all(folder).during("remove", folder.display())
}

/// Whether a process is in the network namespace.
fn is_used(inode: u64) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| fs::metadata(entry.path().join("ns/net")).is_ok_and(|data| data.ino() == inode))
}
