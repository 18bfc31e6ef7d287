//! Namespaces, programs and short names for what tests say often.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use nodenet_agent::{
    kernel::{
        Committed, Kernel,
        netlink::{Namespace, NetlinkKernel, Options},
    },
    state::{Address, AddressKey, NodeState, Operation, Scope, Transaction},
};

/// How long a condition may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a network namespace of its own, with the loopback interface up. Without root it is skipped.
pub fn in_namespace(test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                    println!("SKIP: no network namespace can be made: {error}; run as root");
                    return;
                }
                run("ip", "link set lo up");
                test();
            })
            .join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A namespace that lives as long as this value.
pub struct Neighbour {
    path: String,
    // Dropping it ends the thread, and with it the namespace.
    _end: std::sync::mpsc::Sender<()>,
}

impl Neighbour {
    pub fn new() -> Self {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", "link set lo up");
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())).unwrap();
            let _ = ended.recv();
        });
        Self { path: told.recv().unwrap(), _end: end }
    }

    pub fn namespace(&self) -> Namespace {
        Namespace::at(&self.path)
    }

    /// Runs a program there.
    pub fn run(&self, program: &str, arguments: &str) -> String {
        self.namespace().run(|| run(program, arguments)).unwrap()
    }

    /// Makes a cable from `near` here to `far` there, both up.
    pub fn cable(&self, near: &str, far: &str) {
        run("ip", &format!("link add {near} type veth peer name {far} netns {}", self.path));
        run("ip", &format!("link set {near} up"));
        self.run("ip", &format!("link set {far} up"));
    }
}

/// Runs a program; its standard output.
pub fn run(program: &str, arguments: &str) -> String {
    match attempt(program, arguments, "") {
        Ok(output) => output,
        Err(error) => panic!("{program} {arguments}: {error}"),
    }
}

/// Runs a program with words separated by blanks; its standard output, or what it said.
pub fn attempt(program: &str, arguments: &str, input: &str) -> Result<String, String> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).map_err(|error| error.to_string())?;
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Whether a program succeeds; otherwise the test is skipped for the reason given.
pub fn available(program: &str, arguments: &str, why: &str) -> bool {
    match attempt(program, arguments, "") {
        Ok(_) => true,
        Err(error) => {
            println!("SKIP: {why}: {program} {arguments}: {}", error.trim());
            false
        }
    }
}

/// Whether the kernel has dummy interfaces.
pub fn has_dummy() -> bool {
    available("ip", "link add probe0 type dummy", "the kernel has no dummy interfaces")
        && attempt("ip", "link delete probe0", "").is_ok()
}

/// Whether the kernel has IPVS.
pub fn has_ipvs() -> bool {
    available("ipvsadm", "-Ln", "the kernel has no IPVS")
}

/// The kernel of the present namespace.
pub fn kernel() -> NetlinkKernel {
    NetlinkKernel::new(Options::default()).unwrap()
}

/// Commits operations.
pub fn commit(kernel: &mut NetlinkKernel, operations: Vec<Operation>) -> Committed {
    kernel.commit(&Transaction::new(operations))
}

/// Commits operations that must all succeed.
pub fn commit_all(kernel: &mut NetlinkKernel, operations: Vec<Operation>) -> Committed {
    let count = operations.len();
    let committed = commit(kernel, operations);
    assert!(committed.failed.is_empty(), "{:#?}", committed.failed);
    assert_eq!(committed.done, count);
    committed
}

/// Addresses and links.
pub fn addresses(kernel: &mut NetlinkKernel) -> NodeState {
    kernel.observe(&Scope { addresses: true, ..Scope::default() }).unwrap()
}

pub fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub fn key(interface: &str, address: &str) -> AddressKey {
    AddressKey { interface: interface.to_owned(), address: ip(address) }
}

pub fn address(prefix_length: u8) -> Address {
    Address { prefix_length, role: None, lifetime: None, ours: false, unusable: false }
}

/// Waits for a condition.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
