//! `nodenet-operator render` as a person uses it: manifests in, YAML out, what is wrong in words.
//!
//! Each folder of `golden/` has an `input.yaml`, and what must come of it. `UPDATE_EXPECT=1` writes the latter anew:
//! read the difference.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use expect_test::expect_file;

fn render(path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nodenet-operator"))
        .args(["render", "--service-cidr", "10.243.0.0/16", "--cluster-cidr", "10.244.0.0/16", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn compare(name: &str, input: &Path, code: i32) {
    let output = render(input);
    let folder = input.parent().unwrap().display().to_string();
    expect_file![golden(name).join("output.yaml")].assert_eq(&text(output.stdout));
    let problems = text(output.stderr).replace(&format!("{folder}/"), "");
    expect_file![golden(name).join("problems.txt")].assert_eq(&problems);
    assert_eq!(output.status.code(), Some(code));
}

#[test]
fn the_node_port_of_a_service_on_a_virtual_ip() {
    compare("node-port-on-a-virtual-ip", &golden("node-port-on-a-virtual-ip/input.yaml"), 0);
}

#[test]
fn three_pods_on_two_nodes() {
    compare("three-pods-on-two-nodes", &golden("three-pods-on-two-nodes/input.yaml"), 0);
}

#[test]
fn the_examples() {
    for name in ["000-keepalived-vip", "002-what-forwards-the-packet"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
        std::fs::create_dir_all(golden(name)).unwrap();
        compare(name, &example, 0);
    }
}

#[test]
fn mistakes_are_named_with_what_must_change() {
    compare("mistakes", &golden("mistakes/input.yaml"), 0);
}

#[test]
fn what_is_rendered_is_accepted_as_input_again() {
    let output = render(&golden("node-port-on-a-virtual-ip/input.yaml"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rendered.yaml");
    std::fs::write(&file, output.stdout).unwrap();
    let again = render(&file);
    assert_eq!((text(again.stderr), again.status.code()), (String::new(), Some(0)));
}

#[test]
fn a_document_that_cannot_be_decoded_fails_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: none}\n")
        .unwrap();
    let output = render(&file);
    assert_eq!(output.status.code(), Some(1));
    let problems = text(output.stderr);
    assert!(problems.contains("a.yaml: document 1: Service default/a: spec.ports: "), "{problems}");
}
