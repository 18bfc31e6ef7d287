//! The namespaces of the guest: a network namespace each, with a mount namespace of its own, so that a
//! node's programs see their own `/run`, `/var/lib` and `/sys`.

use super::{During, ToolError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::{Arc, Mutex, PoisonError};

/// The two namespaces of a node, pod or client.
#[derive(Debug)]
struct Pair {
    network: File,
    mounts: File,
}

/// All namespaces by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Namespaces(Arc<Mutex<HashMap<String, Arc<Pair>>>>);

impl Namespaces {
    /// Makes the pair. Runs on a thread of its own, because it leaves the caller's namespaces.
    pub(super) fn create(&self, name: &str) -> Result<(), ToolError> {
        let owned = name.to_owned();
        let pair = std::thread::spawn(move || make(&owned)).join().unwrap_or_else(|_| {
            Err(std::io::Error::other("the thread panicked")).during("make the namespace", "")
        })?;
        // In the root's mount namespace, for `ip -n` and `ip netns exec`.
        fs::create_dir_all("/run/netns").during("make", "/run/netns")?;
        let path = format!("/run/netns/{name}");
        File::create_new(&path).during("make", &path)?;
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pair.network));
        bind(&source, &path)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(pair));
        Ok(())
    }

    /// Moves the calling thread into the named namespaces; it must end afterwards.
    pub(super) fn enter(&self, name: &str) -> Result<(), ToolError> {
        let pair = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let Some(pair) = pair else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).during("enter namespace", name);
        };
        // A mount namespace can only be entered by a thread that shares its root and folder with no other.
        unshare(CloneFlags::CLONE_FS).during("unshare file system attributes for", name)?;
        setns(&pair.network, CloneFlags::CLONE_NEWNET).during("enter network namespace", name)?;
        setns(&pair.mounts, CloneFlags::CLONE_NEWNS).during("enter mount namespace", name)
    }
}

fn make(name: &str) -> Result<Pair, ToolError> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .during("make namespaces", name)?;
    private()?;
    filesystem("sysfs", "/sys")?;
    for folder in ["/run", "/var/lib"] {
        filesystem("tmpfs", folder)?;
    }
    for folder in ["/run/lock", "/run/netns"] {
        fs::create_dir_all(folder).during("make", folder)?;
    }
    let network = "/proc/thread-self/ns/net";
    let mounts = "/proc/thread-self/ns/mnt";
    Ok(Pair {
        network: File::open(network).during("open", network)?,
        mounts: File::open(mounts).during("open", mounts)?,
    })
}

/// Mounts a file system that needs no device.
pub(super) fn filesystem(kind: &str, target: &str) -> Result<(), ToolError> {
    fs::create_dir_all(target).during("make", target)?;
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).during("mount", target)
}

/// Shows a folder or file at a second place.
pub(super) fn bind(source: &str, target: &str) -> Result<(), ToolError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).during("bind", target)
}

/// Keeps mounts of this namespace from reaching others.
pub(super) fn private() -> Result<(), ToolError> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .during("make private", "/")
}
