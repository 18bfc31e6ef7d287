use std::path::Path;

use super::*;

fn rendered(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
    let mut output = render(&[folder.path().into()], Settings::default(), Timestamp::UNIX_EPOCH).unwrap();
    for problem in &mut output.problems {
        *problem = problem.replace(&format!("{}/", folder.path().display()), "");
    }
    output
}

#[test]
fn a_problem_names_file_object_field_and_remedy() {
    let output = rendered(
        "apiVersion: nodenet.dev/v1alpha1
kind: VirtualIP
metadata: {name: a}
spec:
  addresses: [192.168.0.15/24]
  annouce: {count: 1}
  announce: {count: five}
---
apiVersion: nodenet.dev/v1
kind: VirtualIP
metadata: {name: b}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: not-ours}
---
foo: bar
",
    );
    expect_test::expect![[r#"
        a.yaml: document 1: VirtualIP a: spec.annouce: there is no such field, it has no effect; remove it or correct its name
        a.yaml: document 1: VirtualIP a: spec.announce.count: invalid type: string "five", expected i32; the object is left out
        a.yaml: document 2: VirtualIP b: apiVersion: "nodenet.dev/v1" is not known; write "nodenet.dev/v1alpha1"
        a.yaml: document 3: Service: metadata.name is missing; give the object a name
        a.yaml: document 5: no apiVersion and kind; write for example `kind: Service`
    "#]]
    .assert_eq(&(output.problems.join("\n") + "\n"));
    assert!(output.undecodable);
}

#[test]
fn an_unknown_field_alone_loses_nothing() {
    let output = rendered(
        "apiVersion: nodenet.dev/v1alpha1
kind: VirtualIP
metadata: {name: a}
spec:
  addresses: [192.168.0.15/24]
  transport: Unicast
",
    );
    assert!(!output.undecodable);
    assert!(output.problems[0].contains("spec.transport"), "{:?}", output.problems);
}

#[test]
fn lists_are_unfolded_and_the_last_of_a_name_counts() {
    let mut input = Input::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list.json");
    let one = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}"#;
    let two = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{}}"#;
    let list = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{one},{two},{two}]}}"#);
    std::fs::write(&file, list).unwrap();
    read(&file, &mut input).unwrap();
    assert_eq!(input.objects.len(), 1);
    assert_eq!(input.objects[0].metadata().namespace.as_deref(), Some("default"));
    assert!(input.problems[0].to_string().contains("stands in"));
    assert_eq!(input.problems.len(), 1, "the same object twice says nothing new");
    assert!(!input.problems[0].what.loses_the_object());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = render(&[Path::new("/does/not/exist").into()], Settings::default(), Timestamp::UNIX_EPOCH);
    assert!(error.unwrap_err().to_string().starts_with("/does/not/exist: "));
}
