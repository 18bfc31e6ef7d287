//! `cargo xtask bench`: nodenet beside kube-proxy in ipvs mode, on the same cluster in the same run.
//!
//! Every round has a fresh node, so that each first sync begins with an empty kernel. Control plane and
//! operator run on the host, agent and kube-proxy in the guest, one after the other.

mod change;
mod first_sync;
mod load;
mod memory;
mod metrics;
mod peers;

use super::cargo;
use crate::lab::api::Api;
use crate::lab::nodenet::{Nodenet, workspace};
use crate::lab::prerequisites;
use crate::lab::progress::step;
use crate::lab::topology::{NodeSpec, TopologySpec};
use crate::lab::{Lab, LabSpec};
use anyhow::Context;
use load::Load;
use serde::Serialize;
use std::time::Duration;

/// Measures first sync, the change of one endpoint, memory, kernel messages and API writes.
#[derive(Debug, clap::Args)]
pub struct BenchArguments {
    /// Services.
    #[arg(long, default_value_t = 2000)]
    services: usize,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Rounds of the first sync.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes of one endpoint.
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Measures nodenet alone.
    #[arg(long)]
    without_kube_proxy: bool,
}

/// What was measured, of one of the two.
#[derive(Debug, Default, Serialize)]
struct Figures {
    /// From the start of the process to the last real server in the kernel, each round.
    first_sync_seconds: Vec<f64>,
    /// From the API server's answer to the kernel, each change.
    change_millis: Vec<f64>,
    /// Messages to the kernel for all those changes.
    change_kernel_messages: Option<f64>,
    /// Writes of NodeNetSlices for all those changes.
    change_slice_writes: Option<f64>,
    /// Messages to the kernel of a first sync.
    first_sync_kernel_messages: Option<f64>,
    /// Resident memory after the first sync, in MiB, each round.
    resident_mebibytes: Vec<f64>,
    /// Its peak.
    peak_resident_mebibytes: Vec<f64>,
}

/// The report.
#[derive(Debug, Serialize)]
struct Results {
    services: usize,
    endpoints: usize,
    /// From the operator's start to the last slice.
    publish_seconds: f64,
    nodenet: Figures,
    /// The agent on the host with its fake kernel: the way to it, without the guest's slow processor.
    nodenet_on_fake_kernel: Figures,
    kube_proxy: Option<Figures>,
}

/// Runs it and prints the figures; they also stand in `target/bench/report.json`. The exit code says
/// whether the bars hold.
///
/// # Errors
/// When the lab or a measured program does not come up.
pub fn run(arguments: &BenchArguments) -> anyhow::Result<i32> {
    step("building operator and agent (release)", || {
        cargo::build_lab_tool()?;
        cargo::build_release(&["nodenet-operator", "nodenet-agent"])
    })?;
    let peer = if arguments.without_kube_proxy { None } else { Some(prerequisites::kube_proxy()?) };
    let release = workspace().join("target/release");
    let nodenet = Nodenet {
        operator: release.join("nodenet-operator"),
        agent: release.join("nodenet-agent"),
        chart: workspace().join("charts/nodenet"),
    };
    let lab = Lab::start(LabSpec { topology: topology(arguments.rounds), ..LabSpec::default() })?;
    let api = Api::start(lab.site(), lab.cluster())?;
    let load = Load { services: arguments.services, endpoints: arguments.endpoints };
    lab.install_chart(&nodenet, &["logLevel=warn"])?;
    step(&format!("creating {} Services", load.services), || load.create(&api, lab.cluster()))?;

    let (operator, publish) =
        step("operator: publishing the slices", || first_sync::publish(&lab, &nodenet, &load))?;
    let mut results = Results {
        services: load.services,
        endpoints: load.endpoints,
        publish_seconds: publish.as_secs_f64(),
        nodenet: Figures::default(),
        nodenet_on_fake_kernel: Figures::default(),
        kube_proxy: None,
    };
    for round in 0..arguments.rounds {
        let node = node_name("nodenet", round);
        let agent = peers::Agent { nodenet: &nodenet, node: &node };
        let last = round + 1 == arguments.rounds;
        let changes = if last { arguments.changes } else { 0 };
        peers::measure(&lab, &api, &load, &agent, changes, &mut results.nodenet)?;
    }
    peers::measure_on_fake_kernel(
        &lab,
        &api,
        &load,
        &nodenet,
        arguments.changes,
        &mut results.nodenet_on_fake_kernel,
    )?;
    drop(operator);
    if let Some(program) = &peer {
        let mut figures = Figures::default();
        for round in 0..arguments.rounds {
            let node = node_name("kube-proxy", round);
            let proxy = peers::KubeProxy { program, node: &node };
            let changes = if round + 1 == arguments.rounds { arguments.changes } else { 0 };
            peers::measure(&lab, &api, &load, &proxy, changes, &mut figures)?;
        }
        results.kube_proxy = Some(figures);
    }
    let folder = workspace().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&results)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    print(&results);
    Ok(i32::from(!bars_hold(&results, arguments)))
}

/// A node for each round of each of the two. Pods are not needed: nothing is sent.
fn topology(rounds: usize) -> TopologySpec {
    let mut spec = TopologySpec::default();
    let template = spec.nodes.remove(0);
    spec.nodes = ["nodenet", "kube-proxy"]
        .into_iter()
        .flat_map(|who| (0..rounds).map(move |round| node_name(who, round)))
        .chain([FAKE_KERNEL_NODE.to_owned()])
        .zip(0u8..)
        .map(|(name, number)| NodeSpec {
            name,
            addresses: vec![crate::lab::topology::net([192, 168, 0, 10 + number])],
            pod_cidrs: vec![crate::lab::topology::net([10, 60, number, 0])],
            pods: Vec::new(),
            ..template.clone()
        })
        .collect();
    spec
}

/// The node whose agent runs on the host.
const FAKE_KERNEL_NODE: &str = "bench-fake-kernel";

fn node_name(who: &str, round: usize) -> String {
    format!("bench-{who}-{round}")
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The 95th of a hundred.
fn high(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * 95 / 100).min(sorted.len().saturating_sub(1))).copied()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn print(results: &Results) {
    let number =
        |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
    let fake = &results.nodenet_on_fake_kernel;
    let columns = [Some(&results.nodenet), Some(fake), results.kube_proxy.as_ref()];
    let row = |name: &str, value: &dyn Fn(&Figures) -> String| {
        let cells = columns.map(|figures| figures.map_or("–".into(), value));
        println!("| {name} | {} | {} | {} |", cells[0], cells[1], cells[2]);
    };
    println!("\n{} Services with {} endpoints each, medians:\n", results.services, results.endpoints);
    println!("| | nodenet | nodenet, fake kernel on the host | kube-proxy, ipvs mode |\n|---|---|---|---|");
    row("first sync, s", &|figures| number(median(&figures.first_sync_seconds), 2));
    row("first sync, messages to the kernel", &|figures| number(figures.first_sync_kernel_messages, 0));
    row("one endpoint, API answer to kernel, ms", &|figures| number(median(&figures.change_millis), 1));
    row("the same, 95th percentile, ms", &|figures| number(high(&figures.change_millis), 1));
    let per_change = |total: Option<f64>, figures: &Figures| {
        number(total.map(|total| total / figures.change_millis.len().max(1) as f64), 2)
    };
    row("messages to the kernel a change", &|figures| per_change(figures.change_kernel_messages, figures));
    row("writes of slices a change", &|figures| per_change(figures.change_slice_writes, figures));
    row("resident memory, MiB", &|figures| number(median(&figures.resident_mebibytes), 1));
    row("its peak, MiB", &|figures| number(median(&figures.peak_resident_mebibytes), 1));
    println!("\nthe operator published all slices {:.2} s after its start", results.publish_seconds);
}

/// The bars; each is printed with its verdict.
fn bars_hold(results: &Results, arguments: &BenchArguments) -> bool {
    let mut held = true;
    let mut bar = |name: &str, seen: Option<f64>, holds: &dyn Fn(f64) -> bool| {
        let ok = seen.is_some_and(holds);
        let seen = seen.map_or("not measured".into(), |seen| format!("{seen:.2}"));
        println!("{} {name}: {seen}", if ok { "ok" } else { "MISSED" });
        held &= ok;
    };
    let nodenet = &results.nodenet;
    if let Some(peer) = &results.kube_proxy {
        let ratio =
            median(&peer.first_sync_seconds).zip(median(&nodenet.first_sync_seconds)).map(|(a, b)| a / b);
        bar("first sync at least 10 times faster than kube-proxy", ratio, &|ratio| ratio >= 10.0);
    }
    bar("one endpoint under 150 ms", median(&nodenet.change_millis), &|millis| millis < 150.0);
    let fake = &results.nodenet_on_fake_kernel;
    bar("under 50 ms with the fake kernel on the host", median(&fake.change_millis), &|millis| millis < 50.0);
    let changes = arguments.changes.max(1) as f64;
    bar("one slice write a change", nodenet.change_slice_writes.map(|all| all / changes), &|writes| {
        writes <= 1.0
    });
    bar("agent under 20 MB resident", median(&nodenet.resident_mebibytes), &|mebibytes| {
        mebibytes * 1.048_576 < 20.0
    });
    held
}
