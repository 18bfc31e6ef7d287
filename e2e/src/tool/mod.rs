//! The multi-call program `lab-tool`: what runs inside of the lab.

pub mod accounting;
pub mod guard;
pub mod init;
mod ipvs;
pub mod ipvs_fill;
pub mod ipvs_watch;
mod namespaces;
pub mod netlink_tap;
pub mod reaper;
mod server;
pub mod traffic;

use std::io;

/// An operation of the tool that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {source}")]
pub struct ToolError {
    /// What was tried (`mount`, `open`, ...).
    pub operation: &'static str,
    /// On what.
    pub object: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Attaches operation and object to what the kernel said.
pub(crate) trait During<T> {
    /// Names the operation and the object for the error case.
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, ToolError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str, object: impl ToString) -> Result<T, ToolError> {
        self.map_err(|source| ToolError { operation, object: object.to_string(), source: source.into() })
    }
}
