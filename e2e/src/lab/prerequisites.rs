//! What the lab needs from the machine, and how it comes there.
//!
//! Programs come from Debian packages, installed when they are missing; the control plane from
//! `KUBEBUILDER_ASSETS` (a folder with etcd, kube-apiserver and kubectl, envtest's convention) or from
//! the [`cache`](super::cache).

use super::cache::Cache;
use super::error::{During, LabError};
use super::process::output;
use super::progress::step;
use super::{client_tools, control_plane_build};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that must be there, and the Debian package that brings it.
type Need = (&'static str, &'static str);

const NETWORK: &[Need] = &[("ip", "iproute2"), ("modprobe", "kmod")];

const GUEST: &[Need] = &[
    ("linux.uml", "user-mode-linux"),
    ("ipvsadm", "ipvsadm"),
    ("ipset", "ipset"),
    ("iptables-legacy", "iptables"),
    ("ping", "iputils-ping"),
    ("arping", "iputils-arping"),
    ("tcpdump", "tcpdump"),
    ("conntrack", "conntrack"),
    ("keepalived", "keepalived"),
];

const CONTROL_PLANE: &[Need] = &[("openssl", "openssl")];
const ETCD: &[Need] = &[("etcd", "etcd-server")];
const CLIENT_TOOLS: &[Need] = &[("npm", "npm"), ("unzip", "unzip")];
const BUILD: &[Need] = &[
    ("go", "golang-go"),
    ("dpkg-source", "dpkg-dev"),
    ("/usr/share/gocode/src/github.com/modern-go/reflect2", "golang-github-modern-go-reflect2-dev"),
];

/// Services that Debian would start with their packages; the lab wants the programs only.
const SERVICES: &[&str] = &["etcd", "keepalived"];

/// The control plane's programs.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm.
    pub helm: PathBuf,
}

/// Makes sure that a guest can be booted.
///
/// # Errors
/// [`LabError::Missing`] says what to do.
pub fn guest() -> Result<(), LabError> {
    install(&[NETWORK, GUEST].concat())
}

/// Makes sure that a control plane can be started.
///
/// # Errors
/// [`LabError::Missing`] says what to do.
pub fn control_plane() -> Result<ControlPlane, LabError> {
    install(&[NETWORK, CONTROL_PLANE].concat())?;
    let cache = Cache::open()?;
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        let asset = |name: &str| {
            let path = assets.join(name);
            if path.exists() {
                return Ok(path);
            }
            Err(LabError::Missing {
                what: path.display().to_string(),
                remedy: "KUBEBUILDER_ASSETS must name a folder with etcd, kube-apiserver and kubectl".into(),
            })
        };
        return Ok(ControlPlane {
            etcd: asset("etcd")?,
            kube_apiserver: asset("kube-apiserver")?,
            kubectl: asset("kubectl")?,
            helm: client_tools::ensure(&cache)?.helm,
        });
    }
    install(ETCD)?;
    let clients = client_tools::ensure(&cache)?;
    Ok(ControlPlane {
        etcd: find("etcd").unwrap_or_else(|| "etcd".into()),
        kube_apiserver: control_plane_build::ensure(&cache)?.kube_apiserver,
        kubectl: clients.kubectl,
        helm: clients.helm,
    })
}

/// kube-proxy: that of the folder `KUBEBUILDER_ASSETS` where it holds one (envtest's does not), otherwise that of
/// the release that the lab builds.
///
/// # Errors
/// [`LabError::Missing`] says what to do.
pub fn kube_proxy() -> Result<PathBuf, LabError> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if let Some(found) = assets.map(|assets| assets.join("kube-proxy")).filter(|path| path.exists()) {
        return Ok(found);
    }
    Ok(control_plane_build::ensure(&Cache::open()?)?.kube_proxy)
}

/// What helm and kubectl are fetched with.
pub(super) fn client_tools_need() -> Result<(), LabError> {
    install(CLIENT_TOOLS)
}

/// What kube-apiserver is built with.
pub(super) fn build_needs() -> Result<(), LabError> {
    install(BUILD)
}

/// Installs the packages of those programs that are missing.
fn install(needs: &[Need]) -> Result<(), LabError> {
    require_root()?;
    let packages: Vec<&str> =
        needs.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    require_debian(&packages)?;
    step(&format!("installing {}", packages.join(", ")), || {
        let quiet = QuietServices::begin()?;
        output(apt_get().args(["-q", "update"]), "")?;
        output(apt_get().args(["-qy", "install", "--no-install-recommends"]).args(&packages), "")?;
        quiet.end();
        Ok(())
    })
}

/// `apt-get` that asks nothing.
pub(super) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(LabError::Missing {
        what: "root".into(),
        remedy: "the lab makes network namespaces; run the command as root (sudo -E cargo xtask ...)".into(),
    })
}

fn require_debian(packages: &[&str]) -> Result<(), LabError> {
    if Path::new("/etc/debian_version").exists() && find("apt-get").is_some() {
        return Ok(());
    }
    Err(LabError::Missing {
        what: format!("Debian, whose packages {} the lab would install,", packages.join(", ")),
        remedy: "install these programs yourself; a control plane of your own is taken from \
                 KUBEBUILDER_ASSETS (a folder with etcd, kube-apiserver and kubectl); on an existing \
                 cluster (KUBECONFIG) install charts/nodenet with Helm instead, no lab is needed then"
            .into(),
    })
}

/// A program by its name, as the shell would find it, or a path as it is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Keeps packages from starting their services while they are installed (Debian's policy-rc.d).
struct QuietServices {
    made: Option<PathBuf>,
}

impl QuietServices {
    fn begin() -> Result<Self, LabError> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { made: None });
        }
        fs::write(&path, "#!/bin/sh\nexit 101\n").during("write", path.display())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .during("make executable", path.display())?;
        Ok(Self { made: Some(path) })
    }

    /// Also keeps them from starting at the next boot.
    fn end(self) {
        if self.made.is_some() && Path::new("/run/systemd/system").exists() {
            let _ = Command::new("systemctl").args(["disable", "--quiet"]).args(SERVICES).status();
        }
    }
}

impl Drop for QuietServices {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = fs::remove_file(path);
        }
    }
}
