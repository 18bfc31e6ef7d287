//! Kernel modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    process::Command,
};

use super::program::{LIMIT, Task, find, shortened};
use crate::kernel::KernelError;

/// The modules of the running kernel.
pub(super) struct Modules {
    /// `/lib/modules`.
    root: PathBuf,
}

impl Modules {
    /// Modules under `root`, the folder with one folder for each kernel release.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Which of those named are loaded or built in.
    pub(super) fn read(&self, names: &BTreeSet<String>) -> Result<BTreeMap<String, bool>, KernelError> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let loaded = match fs::read_to_string("/proc/modules") {
            Ok(list) => list,
            // A kernel without loadable modules.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(KernelError::Io {
                    operation: "read",
                    object: "/proc/modules".to_owned(),
                    source,
                });
            }
        };
        let loaded: BTreeSet<_> = loaded.lines().filter_map(|line| line.split(' ').next()).collect();
        // Only where something is in question: the file is long.
        let mut built_in = None;
        Ok(names
            .iter()
            .map(|name| {
                let normal = normal(name);
                let present = loaded.contains(&*normal)
                    || fs::exists(format!("/sys/module/{normal}")).unwrap_or(false)
                    || built_in.get_or_insert_with(|| self.built_in()).contains(&normal);
                (name.clone(), present)
            })
            .collect())
    }

    /// Loads a module with what it needs.
    pub(super) fn load(&self, name: &str) -> Result<(), KernelError> {
        let object = || format!("module {name}");
        // The name comes from an allow-list; this keeps it from being an option whatever the list says.
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        {
            return Err(KernelError::Refused {
                operation: "load",
                object: object(),
                errno: libc::EINVAL,
                message: Some("this is not the name of a module".to_owned()),
            });
        }
        // Where there is none, the system says so.
        let mut command = Command::new(find("modprobe").unwrap_or_else(|| "modprobe".into()));
        if self.root.as_os_str() != "/lib/modules"
            && let Some(root) = self.root.parent().and_then(|lib| lib.parent())
        {
            command.arg("--dirname").arg(root);
        }
        command.args(["--", name]);
        let task = Task { operation: "load", object: object(), program: "modprobe" };
        let output = task.run(command, "", LIMIT)?;
        if output.status.success() {
            return Ok(());
        }
        Err(KernelError::Program {
            operation: "load",
            object: object(),
            program: "modprobe".to_owned(),
            status: output.status,
            stderr: shortened(&output.stderr),
        })
    }

    /// Names in `modules.builtin`; none where the file is not there.
    fn built_in(&self) -> BTreeSet<String> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let list = fs::read_to_string(self.root.join(release.trim()).join("modules.builtin"));
        list.unwrap_or_default()
            .lines()
            .filter_map(|line| line.rsplit('/').next())
            .filter_map(|file| file.split('.').next())
            .map(normal)
            .collect()
    }
}

/// The kernel writes `_` where file names have `-`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}
