//! What a Service does, from `kubectl apply` to the packet: nodenet and the real kube-proxy one after the other on the
//! same nodes, with the same objects, asked the same. The table stands in the files beside this one; where kube-proxy
//! answers otherwise, the table says so and why, and a difference that is no more is a failure too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod lasting;
mod run;
mod table;
mod world;

use nix::sys::signal::Signal;
use nodenet_e2e::lab::api::Api;
use nodenet_e2e::lab::error::LabError;
use nodenet_e2e::lab::kube_proxy::KubeProxy;
use nodenet_e2e::lab::scene::Scene;
use std::time::Instant;
use table::Case;

const TABLE: [(&str, &str); 3] = [
    ("basics", include_str!("basics.yaml")),
    ("outside", include_str!("outside.yaml")),
    ("policies", include_str!("policies.yaml")),
];

fn cases() -> Vec<Case> {
    let parse = |(name, text): &(&str, &str)| -> Vec<Case> {
        let read = || -> serde_yaml_ng::Result<Vec<Case>> {
            let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)?;
            value.apply_merge()?;
            serde_yaml_ng::from_value(value)
        };
        read().unwrap_or_else(|error| panic!("{name}.yaml: {error}"))
    };
    TABLE.iter().flat_map(parse).collect()
}

#[test]
fn services_do_what_kubernetes_says() {
    let cases = cases();
    let values = ["operator.replicas=1", "externalIPCIDRs={198.51.100.0/24}", "verifyPeriod=10s"];
    let Some(mut scene) = Scene::install_or_skip(world::spec(), &values, &[]).unwrap() else { return };
    world::furnish(&scene).unwrap();
    let names = world::names(scene.lab().topology().spec());
    let api = Api::start(scene.lab().site(), scene.lab().cluster()).unwrap();
    let minor = scene.lab().cluster().minor();
    let (known, unknown): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.since.api_server <= minor);
    for case in unknown {
        println!("  left out: {} (this API server is 1.{minor})", case.behaviour);
    }

    let begin = Instant::now();
    scene.start_operator(0).unwrap();
    for node in scene.nodes() {
        scene.start_agent(&node).unwrap();
    }
    let mut store = world::Store::new(&scene, &api, &names);
    let mut failures = run::run(&scene, &mut store, &names, &known, run::NODENET);
    failures.extend(run::lasting(&scene, store, run::NODENET));
    println!("  nodenet: {} behaviours ({:.1} s)", known.len(), begin.elapsed().as_secs_f64());

    let kube_proxy = match KubeProxy::find() {
        Ok(kube_proxy) => kube_proxy,
        Err(LabError::Missing { what, .. }) => {
            println!("  not compared with kube-proxy: {what} is missing");
            assert!(failures.is_empty(), "{} answers were wrong", failures.len());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let begin = Instant::now();
    for node in scene.nodes() {
        scene.end_agent(&node, Signal::SIGKILL).unwrap();
    }
    scene.kill_operator(0);
    world::wipe(&scene).unwrap();
    for node in scene.nodes() {
        scene.start_kube_proxy(&kube_proxy, &node).unwrap();
    }
    let known: Vec<&Case> =
        known.into_iter().filter(|case| case.since.kube_proxy <= kube_proxy.minor()).collect();
    let mut store = world::Store::new(&scene, &api, &names);
    let version = kube_proxy.version();
    let mut compared = run::run(&scene, &mut store, &names, &known, run::kube_proxy(version));
    compared.extend(run::lasting(&scene, store, run::kube_proxy(version)));
    println!("  kube-proxy {version}: {} behaviours ({:.1} s)", known.len(), begin.elapsed().as_secs_f64());
    for case in &known {
        for probe in case.steps.iter().flat_map(|step| &step.probes) {
            if let Some((given, why)) = probe.difference(version) {
                let asked = probe.asked(&names, None).unwrap();
                println!("    {}: {} -> {} where {given}: {why}", case.behaviour, asked.text, asked.expected);
            }
        }
    }
    failures.extend(compared);
    assert!(failures.is_empty(), "{} answers were not as the table says", failures.len());
}

#[test]
fn the_table_can_be_read() {
    let names = world::names(&world::spec().topology);
    for case in cases() {
        for probe in case.steps.iter().flat_map(|step| &step.probes) {
            for release in [None, Some("1.20.2")] {
                probe.asked(&names, release).unwrap_or_else(|error| panic!("{}: {error}", case.behaviour));
            }
        }
    }
}
