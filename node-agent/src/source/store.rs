//! The last good desired state on disk: one file for the node's state and one for each slice, so that one change of an
//! endpoint rewrites one small file.
//!
//! ```text
//! STATE_DIR/desired-v1/state.json
//! STATE_DIR/desired-v1/slices/NAME.json
//! ```
//!
//! The rest of a name that is too long for a file's is a file in a folder of its first part.
//!
//! Each file is written beside its place, synced and renamed: it is there whole or not at all. Files of different ages
//! go together well, because a plan is complete by itself (`uid`, `revision`, `parts`). A disk that is full or broken
//! is reported and costs nothing but the cold start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nodenet_crds::{NodeNetSlice, NodeNetSliceSpec, NodeNetState, NodeNetStateSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Form of the files. Files of another form are left alone and not read.
const FORM: u32 = 1;
/// Longest part of a name that is that of a file or a folder: the file system takes 255 bytes, names of objects have up to
/// 253, and `.json` comes after them.
const NAME: usize = 240;
/// How long changes are collected before they are written.
pub const COLLECT: Duration = Duration::from_secs(5);
/// Collected bytes that are written at once.
const COLLECT_BYTES: usize = 256 * 1024;

/// Why something was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file is not what it should be; it counts as absent.
    #[error("read {path}: {source}", path = .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A file of another form or another node; it counts as absent.
    #[error("read {path}: {what}", path = .path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What is not as expected.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
struct File<S> {
    form: u32,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    spec: S,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in `state_dir`. Nothing is read or made yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(format!("desired-v{FORM}")) }
    }

    fn state_path(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    fn slice_path(&self, name: &str) -> PathBuf {
        // Names of objects are DNS subdomains: no slash, no leading dot, and ASCII.
        let mut path = self.folder.join("slices");
        let mut rest = name;
        while let Some((first, more)) = rest.split_at_checked(NAME).filter(|(_, more)| !more.is_empty()) {
            path.push(format!("{first}+"));
            rest = more;
        }
        path.join(format!("{rest}.json"))
    }

    /// The stored state of `node`; `None` where nothing was stored.
    pub fn state(&self, node: &str) -> Result<Option<NodeNetState>, StoreError> {
        let path = self.state_path();
        let Some(file) = read::<NodeNetStateSpec>(&path)? else { return Ok(None) };
        if file.name != node {
            let what = format!("is the state of node {:?}, not of {node:?}", file.name);
            return Err(StoreError::Foreign { path, what });
        }
        let mut state = NodeNetState::new(&file.name, file.spec);
        state.metadata.generation = file.generation;
        state.metadata.uid = file.uid;
        Ok(Some(state))
    }

    /// Names of the stored slices.
    pub fn slice_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut folders = vec![(String::new(), self.folder.join("slices"))];
        while let Some((first, folder)) = folders.pop() {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let file = entry.file_name();
                let Some(file) = file.to_str() else { continue };
                if let Some(rest) = file.strip_suffix(".json") {
                    names.insert(format!("{first}{rest}"));
                } else if let Some(part) = file.strip_suffix('+') {
                    folders.push((format!("{first}{part}"), entry.path()));
                }
            }
        }
        names
    }

    /// One stored slice.
    pub fn slice(&self, name: &str) -> Result<Option<NodeNetSlice>, StoreError> {
        let Some(file) = read::<NodeNetSliceSpec>(&self.slice_path(name))? else { return Ok(None) };
        let mut slice = NodeNetSlice::new(&file.name, file.spec);
        slice.metadata.generation = file.generation;
        slice.metadata.uid = file.uid;
        Ok(Some(slice))
    }

    /// Starts the thread that writes. `collect` is how long changes are collected.
    pub fn writer(&self, collect: Duration) -> StoreWriter {
        let (sender, receiver) = mpsc::channel();
        let problem = Arc::new(Mutex::new(None));
        let writer = Writing { store: self.clone(), pending: BTreeMap::new(), problem: problem.clone() };
        let thread = std::thread::Builder::new().name("store".to_owned()).stack_size(128 * 1024);
        let thread = thread.spawn(move || writer.run(&receiver, collect));
        if let Err(source) = &thread {
            let path = self.folder.clone();
            note(
                &problem,
                Some(StoreError::Io { operation: "start the writer of", path, source: clone(source) }),
            );
        }
        StoreWriter { sender, problem, thread: thread.ok() }
    }
}

fn clone(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn note(problem: &Mutex<Option<String>>, error: Option<StoreError>) {
    *problem.lock().unwrap_or_else(PoisonError::into_inner) = error.map(|e| e.to_string());
}

fn read<S: DeserializeOwned>(path: &Path) -> Result<Option<File<S>>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { operation: "read", path: path.to_owned(), source }),
    };
    let file: File<S> = serde_json::from_slice(&bytes)
        .map_err(|source| StoreError::Content { path: path.to_owned(), source })?;
    if file.form != FORM {
        let what = format!("has form {}, this agent reads form {FORM}", file.form);
        return Err(StoreError::Foreign { path: path.to_owned(), what });
    }
    Ok(Some(file))
}

/// Hands changes to the thread that writes them.
pub struct StoreWriter {
    sender: Sender<Command>,
    problem: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    /// The file has this content now, or is gone.
    Put(PathKey, Option<Vec<u8>>),
    Flush(Sender<()>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathKey {
    State,
    Slice(String),
}

impl StoreWriter {
    /// Stores the node's state.
    pub fn put_state(&self, state: &NodeNetState) {
        let name = state.metadata.name.clone().unwrap_or_default();
        let (uid, generation) = (state.metadata.uid.clone(), state.metadata.generation);
        self.put(PathKey::State, &File { form: FORM, name, uid, generation, spec: &state.spec });
    }

    /// Stores a slice.
    pub fn put_slice(&self, slice: &NodeNetSlice) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let (uid, generation) = (slice.metadata.uid.clone(), slice.metadata.generation);
        let file = File { form: FORM, name: name.clone(), uid, generation, spec: &slice.spec };
        self.put(PathKey::Slice(name), &file);
    }

    /// Forgets a slice.
    pub fn remove_slice(&self, name: &str) {
        // The thread lives as long as this sender; where it never started, `problem` says so.
        let _ = self.sender.send(Command::Put(PathKey::Slice(name.to_owned()), None));
    }

    fn put<S: Serialize>(&self, key: PathKey, file: &File<S>) {
        match serde_json::to_vec(file) {
            Ok(bytes) => {
                let _ = self.sender.send(Command::Put(key, Some(bytes)));
            }
            Err(source) => {
                let path = PathBuf::from(format!("{key:?}"));
                note(&self.problem, Some(StoreError::Content { path, source }));
            }
        }
    }

    /// Writes everything collected and waits for it.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if self.sender.send(Command::Flush(done)).is_ok() {
            // An error means that the thread is gone; `problem` has its last words.
            let _ = wait.recv_timeout(Duration::from_secs(10));
        }
    }

    /// What goes wrong with the writing, for others to look at.
    pub fn problems(&self) -> Problems {
        Problems(self.problem.clone())
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        self.flush();
        let (sender, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.sender, sender));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by it.
            let _ = thread.join();
        }
    }
}

/// What goes wrong with the writing.
#[derive(Clone, Debug)]
pub struct Problems(Arc<Mutex<Option<String>>>);

impl Problems {
    /// What went wrong with the last writing, if anything.
    pub fn now(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Writing {
    store: Store,
    pending: BTreeMap<PathKey, Option<Vec<u8>>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Writing {
    fn run(mut self, commands: &mpsc::Receiver<Command>, collect: Duration) {
        let mut due: Option<Instant> = None;
        loop {
            let wait =
                due.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
            match commands.recv_timeout(wait) {
                Ok(Command::Put(key, content)) => {
                    self.pending.insert(key, content);
                    due.get_or_insert_with(|| Instant::now() + collect);
                    if self.bytes() < COLLECT_BYTES {
                        continue;
                    }
                    self.write();
                }
                Ok(Command::Flush(done)) => {
                    self.write();
                    // Whoever waited may have stopped waiting.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => return self.write(),
            }
            // What could not be written is tried again, not more often than anything else is written.
            due =
                (!self.pending.is_empty()).then(|| Instant::now() + collect.max(Duration::from_secs(1)) * 6);
        }
    }

    fn bytes(&self) -> usize {
        self.pending.values().map(|content| content.as_ref().map_or(0, Vec::len)).sum()
    }

    fn write(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut first_error = None;
        let mut kept = BTreeMap::new();
        let mut kept_bytes = 0;
        for (key, content) in std::mem::take(&mut self.pending) {
            let path = match &key {
                PathKey::State => self.store.state_path(),
                PathKey::Slice(name) => self.store.slice_path(name),
            };
            let result = match &content {
                Some(bytes) => write_file(&path, bytes),
                None => match fs::remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        Err(StoreError::Io { operation: "remove", path, source })
                    }
                    _ => Ok(()),
                },
            };
            if let Err(error) = result {
                first_error.get_or_insert(error);
                kept_bytes += content.as_ref().map_or(0, Vec::len);
                // A disk that stays full must not fill the memory.
                if kept_bytes < COLLECT_BYTES {
                    kept.insert(key, content);
                }
            }
        }
        self.pending = kept;
        note(&self.problem, first_error);
    }
}

/// Writes `bytes` to `path`: whole or not at all, and only where the content differs.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if fs::read(path).is_ok_and(|now| now == bytes) {
        return Ok(());
    }
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { operation, path, source }
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed("create", folder))?;
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(source) = write() {
        // The half file holds space that others need; the error that counts is the first.
        let _ = fs::remove_file(&beside);
        return Err(StoreError::Io { operation: "write", path: path.to_owned(), source });
    }
    fs::rename(&beside, path).map_err(failed("rename", path))?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(node: &str) -> NodeNetState {
        let mut state = NodeNetState::new(
            node,
            NodeNetStateSpec { cluster_cidrs: vec!["10.244.0.0/16".into()], ..Default::default() },
        );
        state.metadata.generation = Some(7);
        state
    }

    fn slice(name: &str, revision: i64) -> NodeNetSlice {
        NodeNetSlice::new(name, NodeNetSliceSpec { revision, ..Default::default() })
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let writer = store.writer(Duration::from_secs(3600));
        writer.put_state(&state("a"));
        writer.put_slice(&slice("s1", 3));
        writer.put_slice(&slice("s2", 4));
        writer.remove_slice("s1");
        writer.flush();
        assert_eq!(writer.problems().now(), None);
        let read = store.state("a").unwrap().unwrap();
        assert_eq!((read.metadata.generation, read.spec), (Some(7), state("a").spec));
        assert_eq!(store.slice_names(), BTreeSet::from(["s2".to_owned()]));
        assert_eq!(store.slice("s2").unwrap().unwrap().spec.revision, 4);
        assert!(store.slice("s1").unwrap().is_none());
    }

    #[test]
    fn the_longest_names_are_kept_too() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let writer = store.writer(Duration::from_secs(3600));
        let names = [240, 241, 250, 251, 253].map(|length| "n".repeat(length));
        for (revision, name) in (1..).zip(&names) {
            writer.put_slice(&slice(name, revision));
        }
        writer.flush();
        assert_eq!(writer.problems().now(), None);
        assert_eq!(store.slice_names(), BTreeSet::from(names.clone()));
        for (revision, name) in (1..).zip(&names) {
            assert_eq!(store.slice(name).unwrap().unwrap().spec.revision, revision);
            writer.remove_slice(name);
        }
        writer.flush();
        assert_eq!(store.slice_names(), BTreeSet::new());
    }

    #[test]
    fn the_state_of_another_node_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.writer(Duration::ZERO).put_state(&state("a"));
        assert!(matches!(store.state("b"), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn half_a_file_counts_as_absent_with_words() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.writer(Duration::ZERO).put_state(&state("a"));
        let bytes = fs::read(store.state_path()).unwrap();
        for length in 0..bytes.len() {
            fs::write(store.state_path(), &bytes[..length]).unwrap();
            assert!(matches!(store.state("a"), Err(StoreError::Content { .. })), "{length} bytes");
        }
        fs::write(store.state_path(), br#"{"form":9,"name":"a","spec":{}}"#).unwrap();
        assert!(matches!(store.state("a"), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn a_disk_that_cannot_be_written_is_reported_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("blocked");
        fs::write(&blocked, b"a file where the folder should be").unwrap();
        let store = Store::new(&blocked);
        let writer = store.writer(Duration::from_secs(3600));
        writer.put_slice(&slice("s", 1));
        writer.flush();
        let problem = writer.problems().now().unwrap();
        assert!(problem.contains("blocked") && problem.contains("create"), "{problem}");
        fs::remove_file(&blocked).unwrap();
        writer.flush();
        assert_eq!(writer.problems().now(), None);
        assert!(store.slice("s").unwrap().is_some());
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_file(&path, b"one").unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        write_file(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }
}
