//! The command line as a person sees it, on a kernel in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // What helpers of tests meet fails the test.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{expect, expect_file};

fn agent(arguments: &[&str]) -> Output {
    let run_dir = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_nodenet-agent"))
        .args(arguments)
        .args(if ["apply", "show", "cleanup"].contains(&arguments[0]) {
            vec!["--kernel", "fake", "--run-dir", run_dir.path().to_str().unwrap()]
        } else {
            vec![]
        })
        .env_remove("NODE_NAME")
        .env_remove("KUBECONFIG")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn input(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name).display().to_string()
}

fn golden(name: &str, got: &str) {
    expect_file![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name)].assert_eq(got);
}

#[test]
fn a_dry_run_shows_each_change_on_a_line() {
    let out = agent(&["apply", "-f", &input("node.yaml"), "--node", "k8s-node-1", "--dry-run"]);
    assert_eq!(text(&out.stderr), "");
    golden("dry-run.txt", &text(&out.stdout));
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn a_dry_run_for_programs_is_json() {
    let out = agent(&["apply", "-f", &input("node.yaml"), "--node", "k8s-node-2", "--dry-run", "-o", "json"]);
    assert_eq!(text(&out.stderr), "");
    golden("dry-run.json", &text(&out.stdout));
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn apply_makes_it_so_and_counts() {
    let out = agent(&["apply", "-f", &input("node.yaml"), "--node", "k8s-node-1"]);
    assert_eq!(text(&out.stderr), "");
    let stdout = text(&out.stdout);
    let summary = stdout.lines().last().unwrap_or_default();
    assert!(summary.ends_with("The kernel is as wanted."), "{stdout}");
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn show_on_an_empty_node_says_what_there_is() {
    let out = agent(&["show"]);
    assert_eq!(text(&out.stderr), "");
    expect![[r#"
        Interfaces
          eth0 up
            192.0.2.1/24 primary
          lo up
            127.0.0.1/8 primary
        Settings
          net.ipv4.conf.all.arp_announce = 0
          net.ipv4.conf.all.arp_ignore = 0
          net.ipv4.ip_forward = 0
          net.ipv6.conf.all.forwarding = 0
    "#]]
    .assert_eq(&text(&out.stdout));
}

#[test]
fn show_speaks_yaml_and_json_in_one_form() {
    let yaml = agent(&["show", "-o", "yaml"]);
    let json = agent(&["show", "-o", "json"]);
    let from_yaml: serde_json::Value = serde_yaml_ng::from_slice(&yaml.stdout).unwrap();
    let from_json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(from_yaml, from_json);
}

#[test]
fn cleanup_of_a_node_without_ours_has_nothing_to_do() {
    let out = agent(&["cleanup"]);
    assert_eq!(text(&out.stdout), "Nothing to do: the kernel is as wanted.\n");
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn what_cannot_be_tried_ends_with_two_and_words() {
    let out = agent(&["apply", "-f", &input("node.yaml"), "--node", "k8s-node-9"]);
    assert_eq!(out.status.code(), Some(2));
    let words = text(&out.stderr);
    assert!(words.contains("no NodeNetState named \"k8s-node-9\""), "{words}");
    assert!(words.contains("k8s-node-1, k8s-node-2"), "{words}");
    let out = agent(&["apply", "-f", "/nowhere.yaml", "--node", "a"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("read /nowhere.yaml: No such file"), "{}", text(&out.stderr));
    let out = agent(&["run", "--node", "a", "--service-account", "/nowhere", "--api-server", "127.0.0.1:1"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("/nowhere/token"), "{}", text(&out.stderr));
}

#[test]
fn apply_leaves_a_node_to_the_agent_that_runs_there() {
    let run_dir = tempfile::tempdir().unwrap();
    let _running = nodenet_agent::agent::lock::Lock::take(run_dir.path()).unwrap();
    let run_dir = run_dir.path().to_str().unwrap();
    let file = input("node.yaml");
    let mut arguments =
        vec!["apply", "-f", &file, "--node", "k8s-node-1", "--kernel", "fake", "--run-dir", run_dir];
    let bin = env!("CARGO_BIN_EXE_nodenet-agent");
    let out = Command::new(bin).args(&arguments).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let words = text(&out.stderr);
    assert!(
        words.contains(&format!("another nodenet-agent works on this node (process {})", std::process::id()))
    );
    assert!(words.contains("--dry-run"), "{words}");
    arguments.push("--dry-run");
    assert!(Command::new(bin).args(&arguments).output().unwrap().status.success());
}

#[test]
fn the_version_is_told() {
    let out = agent(&["version"]);
    assert_eq!(text(&out.stdout), format!("nodenet-agent {}\n", env!("CARGO_PKG_VERSION")));
}
