//! What the host says to the guest's init, and what it hears back.
//!
//! One TCP connection carries one [`Request`] as a line of JSON; the answer is one or more
//! [`Event`]s, a line each. [`Event::Exit`], [`Event::Done`] and [`Event::Failed`] end it.

use serde::{Deserialize, Serialize};

/// The port that the guest's init listens on.
pub const PORT: u16 = 7000;

/// A program to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The namespace (made by [`Request::Namespace`]) to run in; absent: the guest's own.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set on top of the init's few.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; absent: `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// What the program reads from its standard input.
    #[serde(default)]
    pub stdin: String,
}

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Request {
    /// Answers [`Event::Done`] as soon as the guest serves.
    Ping,
    /// Makes a network namespace with a mount namespace of its own: private `/run`, `/var/lib` and
    /// `/sys`. It also stands at `/run/netns/<name>` of the guest's root for `ip -n`.
    Namespace {
        /// Its name.
        name: String,
    },
    /// Runs a program; its output arrives as [`Event::Out`] and [`Event::Err`], then [`Event::Exit`].
    Run(Exec),
    /// Starts a program that outlives the connection, its output appended to `log` (a path in the
    /// guest). Answers [`Event::Started`].
    Spawn {
        /// What to start.
        exec: Exec,
        /// The file for both output streams.
        log: String,
    },
    /// Sends a signal to a started program.
    Kill {
        /// From [`Event::Started`].
        id: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Waits for a started program's end and answers [`Event::Exit`], or [`Event::Running`] when it
    /// still runs after that time.
    Wait {
        /// From [`Event::Started`].
        id: u32,
        /// Milliseconds to wait.
        timeout_millis: u64,
    },
    /// Writes a file, in the namespace's own view of the file system.
    Put {
        /// See [`Exec::namespace`].
        namespace: Option<String>,
        /// Absolute path; missing folders are made.
        path: String,
        /// What to write.
        content: String,
        /// Permission bits.
        mode: u32,
    },
}

/// A part of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A piece of standard output.
    Out {
        /// The piece; bytes that are no UTF-8 are replaced.
        text: String,
    },
    /// A piece of standard error.
    Err {
        /// The piece.
        text: String,
    },
    /// A program's end.
    Exit {
        /// Its exit code, or 128 + the signal that ended it.
        code: i32,
    },
    /// The program runs.
    Started {
        /// Names it in later requests: its process id in the guest.
        id: u32,
    },
    /// The program still runs.
    Running,
    /// The request is fulfilled.
    Done,
    /// The request could not be fulfilled.
    Failed {
        /// Why.
        reason: String,
    },
}
