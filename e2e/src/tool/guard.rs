//! The guard of a lab process: `lab-tool guard [--netns NAME] --log FILE -- PROGRAM ARGS`.
//!
//! A lab must leave nothing behind, however its owner ends (a panic, Ctrl-C, `kill -9`). So each
//! process of the host's side runs under a guard that reads from a pipe held by the owner: when the
//! pipe ends, the guard ends the whole process group. The guard prints the program's process id.

use super::{During, ToolError};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpid, setsid};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write, stdin, stdout};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a program may take to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// What the guard is asked to do.
#[derive(Debug)]
pub struct Guarded {
    /// The network namespace (a name under `/run/netns`) to run in; absent: the caller's.
    pub netns: Option<String>,
    /// Both output streams are appended to this file.
    pub log: String,
    /// Program and arguments.
    pub argv: Vec<String>,
}

enum News {
    Ended(i32),
    OwnerGone,
}

/// Runs the program until it ends or the owner is gone; returns its exit code.
///
/// # Errors
/// When the namespace, the log file or the program cannot be had.
pub fn run(guarded: &Guarded) -> Result<i32, ToolError> {
    setsid().during("start a session for", &guarded.argv[0])?;
    if let Some(name) = &guarded.netns {
        let path = format!("/run/netns/{name}");
        let namespace = File::open(&path).during("open", &path)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).during("enter", &path)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&guarded.log)
        .during("open the log", &guarded.log)?;
    let errors = log.try_clone().during("duplicate", &guarded.log)?;
    let mut child = Command::new(&guarded.argv[0])
        .args(&guarded.argv[1..])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .during("start", &guarded.argv[0])?;
    let id = child.id();
    println!("{id}");
    stdout().flush().during("tell", id)?;

    let (tell, news) = mpsc::channel();
    let ended = tell.clone();
    std::thread::spawn(move || ended.send(News::Ended(wait(&mut child))));
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        // An error is as good as the end: nobody is there any more.
        let _ = stdin().read_to_end(&mut rest);
        tell.send(News::OwnerGone)
    });
    let code = match news.recv() {
        Ok(News::Ended(code)) => code,
        _ => {
            let _ = kill(process(id), Signal::SIGTERM);
            match news.recv_timeout(GRACE) {
                Ok(News::Ended(code)) => code,
                _ => 128 + Signal::SIGKILL as i32,
            }
        }
    };
    // Children that the program left in the group (user-mode Linux keeps one for each task) and, with
    // them, this guard: the owner reads the end of the guard, not its code, in that case.
    if group_has_others() {
        let _ = killpg(getpid(), Signal::SIGKILL);
    }
    Ok(code)
}

fn process(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

fn wait(child: &mut Child) -> i32 {
    match child.wait() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(_) => 255,
    }
}

/// Whether a process other than this one is in its process group.
fn group_has_others() -> bool {
    let me = getpid().as_raw();
    let Ok(entries) = std::fs::read_dir("/proc") else { return true };
    entries.flatten().any(|entry| {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<i32>() else { return false };
        if id == me {
            return false;
        }
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { return false };
        // After the command in parentheses: state, parent, process group.
        let Some((_, rest)) = stat.rsplit_once(')') else { return false };
        rest.split_whitespace().nth(2).and_then(|group| group.parse::<i32>().ok()) == Some(me)
    })
}
