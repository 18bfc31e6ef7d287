//! Network namespaces by path.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use crate::kernel::KernelError;

/// The network namespace in which sockets are opened, settings are read and programs run.
///
/// A thread belongs to one namespace and a socket stays in that of the thread that opened it. So what belongs to
/// another namespace is done on a thread of its own that enters it first; the calling thread never moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace(Option<PathBuf>);

impl Namespace {
    /// The one of whatever thread asks.
    pub const fn own() -> Self {
        Self(None)
    }

    /// The one that a file stands for: `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Some(path.into()))
    }

    /// Does something inside of the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered; nothing was done then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
        let Some(path) = &self.0 else { return Ok(work()) };
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(path)?;
                    Ok(work())
                })
                .join()
        });
        match outcome {
            Ok(done) => done.map_err(|source| KernelError::Io {
                operation: "enter",
                object: format!("network namespace {}", path.display()),
                source,
            }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
