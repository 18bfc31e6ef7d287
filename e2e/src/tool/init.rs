//! The guest's process 1: makes the root file system writable (in memory), loads modules, brings up the
//! link to the host and serves requests.
//!
//! It is configured by its environment, which the kernel fills from its command line.

use super::namespaces::{bind, filesystem, private};
use super::{During, ToolError, server};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

/// Where the guest sees the host's folder for results and logs.
pub const SHARED: &str = "/lab";

/// Variables on the kernel's command line.
pub mod variable {
    /// The host's folder that appears at [`super::SHARED`].
    pub const SHARED: &str = "LAB_SHARED";
    /// The guest's address on the link to the host, with its prefix length.
    pub const ADDRESS: &str = "LAB_ADDRESS";
    /// The host's address on that link: the guest's default gateway.
    pub const GATEWAY: &str = "LAB_GATEWAY";
}

/// What the tests' kernels have in common with a node's: loaded before the first request.
const MODULES: &[&str] = &[
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_sh",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_mh",
    "nf_conntrack",
    "ip_set",
    "xt_set",
    "dummy",
    "veth",
    "bridge",
];

/// Sets the guest up and serves until it is halted; returns only with an error.
///
/// # Errors
/// When a step of the set-up fails; the kernel panics then, and the console log says why.
pub fn run() -> Result<std::convert::Infallible, ToolError> {
    filesystem("proc", "/proc")?;
    filesystem("tmpfs", "/run")?;
    writable_root()?;
    filesystem("proc", "/proc")?;
    filesystem("sysfs", "/sys")?;
    for folder in ["/run", "/dev/shm"] {
        filesystem("tmpfs", folder)?;
    }
    filesystem("devpts", "/dev/pts")?;
    fs::create_dir_all(SHARED).during("make", SHARED)?;
    let shared = required(variable::SHARED)?;
    mount(Some("none"), SHARED, Some("hostfs"), MsFlags::empty(), Some(shared.as_str()))
        .during("mount", SHARED)?;
    fs::create_dir_all("/lib/modules").during("make", "/lib/modules")?;
    bind("/usr/lib/uml/modules", "/lib/modules")?;

    // What is written to the shared folder shall be seen on the host at once, not after 30 s.
    set("/proc/sys/vm/dirty_expire_centisecs", "10")?;
    set("/proc/sys/vm/dirty_writeback_centisecs", "10")?;
    set("/proc/sys/net/ipv4/ip_forward", "1")?;

    run_with_input("modprobe", &[&["-a"], MODULES].concat(), "")?;
    set("/proc/sys/net/netfilter/nf_conntrack_max", "262144")?;
    let (address, gateway) = (required(variable::ADDRESS)?, required(variable::GATEWAY)?);
    let batch = format!(
        "link set lo up\naddr add {address} dev vec0\nlink set vec0 up\nroute add default via {gateway}\n"
    );
    run_with_input("ip", &["-batch", "-"], &batch)?;
    let address = address.split('/').next().unwrap_or_default().to_owned();
    server::serve(&address)
}

/// Puts a memory overlay over the host's files, so that the guest can write anywhere and the host keeps
/// what it has.
fn writable_root() -> Result<(), ToolError> {
    private()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").during("read", "the kernel's release")?;
    let module = format!("/usr/lib/uml/modules/{}/kernel/fs/overlayfs/overlay.ko", release.trim());
    let file = File::open(&module).during("open", &module)?;
    finit_module(&file, c"", ModuleInitFlags::empty()).during("load", &module)?;
    for folder in ["/run/root", "/run/upper", "/run/work"] {
        fs::create_dir(folder).during("make", folder)?;
    }
    let options = "lowerdir=/,upperdir=/run/upper,workdir=/run/work";
    mount(Some("overlay"), "/run/root", Some("overlay"), MsFlags::empty(), Some(options))
        .during("mount", "the overlay")?;
    chdir("/run/root").during("enter", "/run/root")?;
    pivot_root(".", ".").during("change root to", "the overlay")?;
    umount2(".", MntFlags::MNT_DETACH).during("unmount", "the old root")?;
    chdir("/").during("enter", "/")
}

fn required(name: &'static str) -> Result<String, ToolError> {
    env::var(name).map_err(std::io::Error::other).during("read variable", name)
}

fn set(path: &str, value: &str) -> Result<(), ToolError> {
    fs::write(path, value).during("write", path)
}

fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<(), ToolError> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", server::PATH)
        .stdin(Stdio::piped())
        .spawn()
        .during("start", program)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).during("write to", program)?;
    }
    let status = child.wait().during("wait for", program)?;
    if status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(status.to_string())).during("run", program)
}
