//! One agent for each node: a lock in the run folder, held for as long as the process lives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another nodenet-agent works on this node{}: {path} is locked", .pid.map(|p| format!(" (process {p})")).unwrap_or_default(), path = .path.display())]
    Held {
        /// The lock.
        path: PathBuf,
        /// Who has it.
        pid: Option<u32>,
    },
    /// The file cannot be used.
    #[error("lock {path}: {source}", path = .path.display())]
    Io {
        /// The lock.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// The lock; dropping it frees it, and so does the end of the process, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock in `run_dir`, which is made where it is absent.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("agent.lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(run_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { path, pid });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let error = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(folder.path()).unwrap();
    }
}
