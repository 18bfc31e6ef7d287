//! Settings under `/proc/sys`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::namespace::Namespace;
use crate::kernel::KernelError;

/// The settings of a network namespace.
pub(super) struct Settings {
    root: PathBuf,
    namespace: Namespace,
}

impl Settings {
    /// Settings under `root`, as a thread of `namespace` sees them.
    pub(super) fn new(root: PathBuf, namespace: Namespace) -> Self {
        Self { root, namespace }
    }

    /// Reads those named; one that the kernel does not have is left out.
    pub(super) fn read(&self, names: &BTreeSet<String>) -> Result<BTreeMap<String, String>, KernelError> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.namespace.run(|| {
            let mut settings = BTreeMap::new();
            for name in names {
                if let Some(value) = self.read_one(name)? {
                    settings.insert(name.clone(), value);
                }
            }
            Ok(settings)
        })?
    }

    /// Writes a setting; whether that was needed.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<bool, KernelError> {
        self.namespace.run(|| {
            if self.read_one(name)?.as_deref() == Some(&*normal(value)) {
                return Ok(false);
            }
            // A write that is refused half-way leaves the old value: the kernel takes the whole or nothing.
            fs::write(self.path(name)?, value).map_err(|source| refusal(name, source))?;
            Ok(true)
        })?
    }

    fn read_one(&self, name: &str) -> Result<Option<String>, KernelError> {
        match fs::read_to_string(self.path(name)?) {
            Ok(value) => Ok(Some(normal(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KernelError::Io { operation: "read", object: object(name), source }),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, KernelError> {
        let path: String = name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect();
        let inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !inside {
            return Err(KernelError::Refused {
                operation: "find",
                object: object(name),
                errno: libc::EINVAL,
                message: Some("this is not the name of a setting".to_owned()),
            });
        }
        Ok(self.root.join(path))
    }
}

fn object(name: &str) -> String {
    format!("setting {name}")
}

/// One spelling of a value: words with single blanks between them.
fn normal(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn refusal(name: &str, source: io::Error) -> KernelError {
    let object = object(name);
    match source.raw_os_error() {
        Some(errno @ libc::EROFS) => KernelError::Refused {
            operation: "write",
            object,
            errno,
            message: Some(
                "/proc/sys is mounted read-only here; mount the host's /proc/sys writable, or set it in an init \
                 container"
                    .to_owned(),
            ),
        },
        Some(errno @ (libc::EACCES | libc::EPERM)) => KernelError::Refused {
            operation: "write",
            object,
            errno,
            message: Some("only root of the network namespace may set it".to_owned()),
        },
        Some(errno @ libc::ENOENT) => KernelError::Refused {
            operation: "write",
            object,
            errno,
            message: Some("the kernel has no such setting; is its module loaded?".to_owned()),
        },
        Some(errno @ (libc::EINVAL | libc::ERANGE)) => {
            KernelError::Refused { operation: "write", object, errno, message: None }
        }
        _ => KernelError::Io { operation: "write", object, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(root: &Path) -> Settings {
        Settings::new(root.to_owned(), Namespace::own())
    }

    #[test]
    fn an_interface_name_with_dots_is_written_with_slashes() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("net/ipv4/conf/eth0.7");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("arp_ignore"), "0\n").unwrap();
        let settings = settings(root.path());
        assert!(settings.write("net.ipv4.conf.eth0/7.arp_ignore", "1").unwrap());
        assert_eq!(fs::read_to_string(folder.join("arp_ignore")).unwrap(), "1");
    }

    #[test]
    fn a_value_that_is_there_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("range"), "1024\t2048\n").unwrap();
        assert!(!settings(root.path()).write("range", "1024 2048").unwrap());
        assert_eq!(fs::read_to_string(root.path().join("range")).unwrap(), "1024\t2048\n");
    }

    #[test]
    fn a_setting_that_is_not_there_is_left_out_when_read_and_named_when_written() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(&root.path().join("none"));
        assert_eq!(settings.read(&["net.ipv4.vs.conntrack".to_owned()].into()).unwrap(), BTreeMap::new());
        let error = settings.write("net.ipv4.vs.conntrack", "1").unwrap_err().to_string();
        assert!(error.contains("net.ipv4.vs.conntrack") && error.contains("module"), "{error}");
    }

    #[test]
    fn a_name_cannot_leave_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        for name in ["a.//.b", "", ".etc.passwd", "//"] {
            assert!(settings.write(name, "1").is_err(), "{name}");
        }
    }
}
