//! The journal on disk: what is ours and the kernel cannot say it. Written before the commit that makes it so.
//!
//! It stands in `/run`, as the kernel state that it speaks of: both are gone after a boot.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::diff::Journal;
use crate::source::store::{StoreError, write_file};

/// Journal of the address lane.
pub const ADDRESSES: &str = "journal-addresses.json";
/// Journal of the service lane.
pub const SERVICES: &str = "journal-services.json";

/// A journal and its file.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    /// Where addresses go instead, when both lanes' journals are kept by one hand.
    of_addresses: Option<PathBuf>,
    journal: Journal,
    /// Memory has something that the file has not.
    unwritten: bool,
}

impl JournalFile {
    /// Reads the journal `name` in `run_dir`. One that is not there is empty; one that cannot be read is empty too, and
    /// the error says so: what is ours by the journal alone stays in the kernel then.
    pub fn open(run_dir: &Path, name: &str) -> (Self, Option<StoreError>) {
        let path = run_dir.join(name);
        let (journal, error) = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(journal) => (journal, None),
                Err(source) => (Journal::default(), Some(StoreError::Content { path: path.clone(), source })),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Journal::default(), None),
            Err(source) => {
                let error = StoreError::Io { operation: "read", path: path.clone(), source };
                (Journal::default(), Some(error))
            }
        };
        (Self { path, of_addresses: None, journal, unwritten: false }, error)
    }

    /// Both lanes' journals as one, for who does the work of both.
    ///
    /// # Errors
    /// When one of them cannot be read: what is ours would not be known.
    pub fn open_both(run_dir: &Path) -> Result<Self, StoreError> {
        let (addresses, problem) = Self::open(run_dir, ADDRESSES);
        let (mut both, other) = Self::open(run_dir, SERVICES);
        if let Some(problem) = problem.or(other) {
            return Err(problem);
        }
        both.journal.merge(addresses.journal);
        both.of_addresses = Some(addresses.path);
        Ok(both)
    }

    /// What it says.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Adds claims and writes them, if any are new.
    pub fn claim(&mut self, claims: Journal) -> Result<(), StoreError> {
        self.unwritten |= self.journal.merge(claims);
        self.write()
    }

    /// Changes it by `change`, which says whether anything changed, and writes it then.
    pub fn change(&mut self, change: impl FnOnce(&mut Journal) -> bool) -> Result<(), StoreError> {
        self.unwritten |= change(&mut self.journal);
        self.write()
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.unwritten {
            match &self.of_addresses {
                None => write(&self.path, &self.journal)?,
                Some(path) => {
                    let addresses =
                        Journal { addresses: self.journal.addresses.clone(), ..Journal::default() };
                    write(path, &addresses)?;
                    write(&self.path, &Journal { addresses: BTreeSet::new(), ..self.journal.clone() })?;
                }
            }
            self.unwritten = false;
        }
        Ok(())
    }
}

fn write(path: &Path, journal: &Journal) -> Result<(), StoreError> {
    let content = |source| StoreError::Content { path: path.to_owned(), source };
    write_file(path, &serde_json::to_vec(journal).map_err(content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(range: &str) -> Journal {
        Journal { ranges: [range.parse().unwrap()].into(), ..Journal::default() }
    }

    #[test]
    fn claims_survive() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, error) = JournalFile::open(folder.path(), SERVICES);
        assert!(error.is_none() && file.journal().is_empty());
        file.claim(claim("10.96.0.0/12")).unwrap();
        let (again, error) = JournalFile::open(folder.path(), SERVICES);
        assert!(error.is_none());
        assert_eq!(again.journal(), file.journal());
    }

    #[test]
    fn what_could_not_be_written_is_written_with_the_next_claim() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        fs::write(&run, b"").unwrap();
        let (mut file, _) = JournalFile::open(&run, SERVICES);
        assert!(file.claim(claim("10.96.0.0/12")).is_err());
        fs::remove_file(&run).unwrap();
        file.claim(Journal::default()).unwrap();
        assert_eq!(JournalFile::open(&run, SERVICES).0.journal().ranges.len(), 1);
    }
}
