//! What can go wrong in the lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of the lab itself, as opposed to one of what is tested in it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The machine lacks something; the text says what to do.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A system call failed.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` ended with {code}{}", after_colon(.output))]
    Command {
        /// The command line.
        command: String,
        /// Its exit code or signal.
        code: String,
        /// What it printed last.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s; see {}", .waited.as_secs(), .log.display())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// Where to look.
        log: PathBuf,
    },
    /// The guest refused a request or answered nonsense.
    #[error("guest: {operation}: {reason}")]
    Guest {
        /// What was asked for.
        operation: String,
        /// What it said.
        reason: String,
    },
    /// A text that should have been JSON.
    #[error("{object} is not what was expected: {source}")]
    Json {
        /// Where the text came from.
        object: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

fn after_colon(output: &str) -> String {
    let output = output.trim();
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

/// Attaches operation and object to what the kernel said.
pub(crate) trait During<T> {
    /// Names the operation and the object for the error case.
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, LabError> {
        self.map_err(|source| LabError::Io { operation, object: object.to_string(), source: source.into() })
    }
}
