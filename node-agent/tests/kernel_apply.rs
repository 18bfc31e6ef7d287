//! `apply`, `show` and `cleanup` on the running kernel, each test in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // What helpers of tests meet fails the test.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

/// Needs root, IPVS, ipset and iptables: says so and skips where they are missing.
fn namespace(name: &str) -> Option<Namespace> {
    if std::fs::metadata("/proc/self").map(|m| m.uid()).unwrap_or(1) != 0 {
        println!("SKIP: needs root");
        return None;
    }
    if !Path::new("/proc/net/ip_vs").exists() {
        println!("SKIP: the kernel has no IPVS");
        return None;
    }
    let namespace = Namespace(format!("{name}-{}", std::process::id()));
    let _ = run("ip", &["netns", "add", &namespace.0]);
    if !Path::new("/run/netns").join(&namespace.0).exists() {
        println!("SKIP: no network namespace can be made");
        return None;
    }
    for arguments in [
        vec!["link", "add", "eth0", "type", "dummy"],
        vec!["link", "set", "eth0", "up"],
        vec!["link", "set", "lo", "up"],
        vec!["addr", "add", "192.0.2.1/24", "dev", "eth0"],
    ] {
        namespace.ip(&arguments);
    }
    Some(namespace)
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Namespace {
    fn exec(&self, arguments: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.0];
        all.extend(arguments);
        let output = run("ip", &all);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text(&output)
    }

    fn ip(&self, arguments: &[&str]) -> String {
        let mut all = vec!["ip"];
        all.extend(arguments);
        self.exec(&all)
    }

    fn agent(&self, folder: &Path, arguments: &[&str]) -> Output {
        let run_dir = folder.to_str().unwrap();
        Command::new(env!("CARGO_BIN_EXE_nodenet-agent"))
            .args(arguments)
            .args(["--netns", &self.0, "--run-dir", run_dir])
            .output()
            .unwrap()
    }

    fn apply(&self, folder: &Path, more: &[&str]) -> Output {
        let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/node.yaml");
        let mut arguments = vec!["apply", "-f", input.to_str().unwrap(), "--node", "k8s-node-1"];
        arguments.extend(more);
        self.agent(folder, &arguments)
    }
}

fn last(output: &Output) -> String {
    text(output).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn apply_makes_it_so_once_and_cleanup_takes_back_only_ours() {
    let Some(ns) = namespace("apply") else { return };
    let folder = tempfile::tempdir().unwrap();
    // Another hand's: an address, a virtual server, a set, a rule.
    ns.ip(&["addr", "add", "192.0.2.99/24", "dev", "eth0"]);
    ns.exec(&["ipvsadm", "-A", "-t", "192.0.2.1:9", "-s", "wlc"]);
    ns.exec(&["ipset", "create", "OTHERS", "hash:ip"]);
    ns.exec(&[
        "iptables-legacy",
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-m",
        "comment",
        "--comment",
        "others",
        "-j",
        "ACCEPT",
    ]);
    let before = [
        ns.ip(&["-br", "-4", "addr"]),
        ns.exec(&["ipvsadm", "-Sn"]),
        ns.exec(&["iptables-legacy", "-t", "nat", "-S"]),
    ];

    let preview = ns.apply(folder.path(), &["--dry-run", "--packet-filter", "legacy"]);
    assert!(last(&preview).ends_with("Nothing was done."), "{preview:?}");
    assert_eq!(ns.exec(&["ipvsadm", "-Sn"]), before[1]);

    let applied = ns.apply(folder.path(), &["--packet-filter", "legacy"]);
    assert!(last(&applied).ends_with("The kernel is as wanted."), "{applied:?}");
    assert!(applied.status.success());
    let servers = ns.exec(&["ipvsadm", "-Sn"]);
    assert!(servers.contains("-A -t 10.243.21.14:8880 -s rr"), "{servers}");
    assert!(servers.contains("-a -t 192.0.2.1:30981 -r 10.244.5.23:80 -m -w 1"), "{servers}");
    assert!(ns.ip(&["-4", "addr", "show", "eth0"]).contains("192.0.2.15/24 scope global secondary"));
    assert!(ns.ip(&["route", "show", "table", "local"]).contains("10.243.0.0/16 dev nodenet0"));

    let again = ns.apply(folder.path(), &["--packet-filter", "legacy"]);
    assert_eq!(last(&again), "Nothing to do: the kernel is as wanted.");

    // One real server by another hand: one line puts it right.
    ns.exec(&["ipvsadm", "-d", "-t", "10.243.21.14:8880", "-r", "10.244.3.32:80"]);
    let repaired = ns.apply(folder.path(), &["--packet-filter", "legacy"]);
    assert_eq!(
        text(&repaired),
        "+ real server 10.244.3.32:80 of TCP 10.243.21.14:8880\n1 added. The kernel is as wanted.\n"
    );

    let cleaned = ns.agent(folder.path(), &["cleanup", "--packet-filter", "legacy"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    let after = [
        ns.ip(&["-br", "-4", "addr"]),
        ns.exec(&["ipvsadm", "-Sn"]),
        ns.exec(&["iptables-legacy", "-t", "nat", "-S"]),
    ];
    assert_eq!(after, before);
    assert_eq!(ns.exec(&["ipset", "list", "-n"]).trim(), "OTHERS");
    let shown = ns.agent(folder.path(), &["show", "--packet-filter", "legacy"]);
    assert!(text(&shown).contains("TCP 192.0.2.1:9 wlc, not ours"), "{}", text(&shown));
}
