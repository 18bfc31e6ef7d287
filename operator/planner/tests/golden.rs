//! Golden directories: `input.yaml` (manifests, and `settings.yaml` where there is one) in, `expected.yaml` out.
//! `UPDATE_EXPECT=1 cargo test -p nodenet-planner --test golden` writes what is planned now.
// Outside of #[test] functions the lints know of no test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use expect_test::expect_file;
use k8s_openapi::jiff::Timestamp;
use nodenet_planner::{Now, Object, Rendered, Settings, render};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn directories() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut out: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    out.retain(|p| p.is_dir());
    out.sort();
    out
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|d| Value::deserialize(d).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .filter(|v| !v.is_null())
        .collect()
}

fn object(value: Value) -> Object {
    fn of<T: DeserializeOwned + Into<Object>>(value: Value) -> Object {
        let shown = value.to_string();
        serde_json::from_value::<T>(value).unwrap_or_else(|e| panic!("{e}: {shown}")).into()
    }
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "Node" => of::<k8s_openapi::api::core::v1::Node>(value),
        "Service" => of::<k8s_openapi::api::core::v1::Service>(value),
        "EndpointSlice" => of::<k8s_openapi::api::discovery::v1::EndpointSlice>(value),
        "VirtualIP" => of::<nodenet_crds::VirtualIP>(value),
        "NodeNetState" => of::<nodenet_crds::NodeNetState>(value),
        "NodeNetSlice" => of::<nodenet_crds::NodeNetSlice>(value),
        other => panic!("kind {other:?} is no input"),
    }
}

fn settings(directory: &Path) -> Settings {
    let mut settings = Settings::default();
    let path = directory.join("settings.yaml");
    if !path.exists() {
        return settings;
    }
    let value = documents(&path).remove(0);
    let ranges = |key: &str| {
        let list = value[key].as_array().cloned().unwrap_or_default();
        list.iter().map(|v| v.as_str().unwrap().parse().unwrap()).collect()
    };
    settings.service_cidrs = ranges("serviceCIDRs");
    settings.cluster_cidrs = ranges("clusterCIDRs");
    settings.scheduler = value["scheduler"].as_str().map(str::to_owned);
    settings
}

fn yaml(rendered: &Rendered) -> String {
    let mut out = String::new();
    let mut add = |value: serde_json::Result<Value>| {
        out.push_str("---\n");
        out.push_str(&serde_yaml_ng::to_string(&value.unwrap()).unwrap());
    };
    for state in &rendered.states {
        add(serde_json::to_value(state));
    }
    for slice in &rendered.slices {
        add(serde_json::to_value(slice));
    }
    for vip in &rendered.virtual_ips {
        let mut value = serde_json::to_value(vip);
        if let Ok(value) = &mut value {
            value.as_object_mut().unwrap().remove("spec");
        }
        add(value);
    }
    out
}

#[test]
fn manifests_are_planned_as_the_golden_directories_say() {
    let now = Now { monotonic: Duration::ZERO, wall: Timestamp::from_second(1_767_225_600).unwrap() };
    let all = directories();
    assert!(all.len() >= 8, "golden directories are missing");
    for directory in all {
        let objects: Vec<Object> = documents(&directory.join("input.yaml")).into_iter().map(object).collect();
        let mut backwards = objects.clone();
        backwards.reverse();
        let got = yaml(&render(settings(&directory), objects, &now));
        assert_eq!(
            got,
            yaml(&render(settings(&directory), backwards, &now)),
            "{}: the order of the manifests matters",
            directory.display()
        );
        expect_file![directory.join("expected.yaml")].assert_eq(&got);
    }
}
