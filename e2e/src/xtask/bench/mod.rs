//! `cargo xtask bench`: nodenet beside kube-proxy in ipvs mode, on the same cluster in the same run.
//!
//! Control plane and operator run on the host; agent and kube-proxy take turns in the guest, each round on a
//! node of its own (a network namespace that nothing has touched), and leave nothing running behind them.
//! What is timed is not traced: messages and API writes are counted in a round of their own.

mod bare_loop;
mod bars;
mod change;
mod cost;
mod figures;
mod first_sync;
mod growth;
mod host_agent;
mod load;
mod machine;
mod metrics;
mod peers;
mod repair;
mod rounds;
mod table;
mod watcher;

use super::cargo;
use crate::lab::api::Api;
use crate::lab::kube_proxy;
use crate::lab::nodenet::{Nodenet, workspace};
use crate::lab::process::Process;
use crate::lab::progress::step;
use crate::lab::topology::{NodeSpec, TopologySpec, net};
use crate::lab::{Lab, LabSpec};
use anyhow::{Context, bail};
use figures::Report;
use load::Load;
use peers::{Agent, KubeProxy, Peer};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures first sync, the change of one endpoint, memory, kernel messages and API writes.
#[derive(Debug, clap::Args)]
pub struct BenchArguments {
    /// Services (2000, or 100 with --quick); several numbers, with commas between them, are measured one after the
    /// other, each in a lab of its own.
    #[arg(long, value_delimiter = ',')]
    services: Vec<usize>,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Rounds that are timed, alternating between the two (3, or 1 with --quick).
    #[arg(long)]
    rounds: Option<usize>,
    /// In how many of these rounds kube-proxy takes part, the last ones; in all by default. Its first sync takes
    /// minutes.
    #[arg(long)]
    peer_rounds: Option<usize>,
    /// Seconds that a first sync may take; the program that needs longer is ended, and the figures say so.
    #[arg(long, default_value_t = 900)]
    patience: u64,
    /// Changes of one endpoint (a twelfth of them for kube-proxy, which needs a minute for one).
    #[arg(long, default_value_t = 24)]
    changes: usize,
    /// Measures one of the two.
    #[arg(long)]
    only: Option<Only>,
    /// Measures the operator and the agent in this folder instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Few Services in one round: two minutes instead of a quarter of an hour.
    #[arg(long)]
    quick: bool,
}

/// One of the two that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// nodenet.
    Ours,
    /// kube-proxy in ipvs mode.
    KubeProxy,
}

/// What is measured, on which scale.
#[derive(Debug)]
struct Plan {
    load: Load,
    rounds: usize,
    /// The first of them that kube-proxy takes part in.
    peer_from: usize,
    changes: usize,
    patience: Duration,
    nodenet: Option<Nodenet>,
    kube_proxy: Option<kube_proxy::KubeProxy>,
}

/// A running lab with the load in it.
struct Bench {
    lab: Lab,
    api: Api,
    plan: Plan,
}

/// Runs it and prints the figures; they also stand with all samples in `target/bench/report.json`. The exit
/// code is 1 when a bar was missed.
///
/// # Errors
/// When the lab or a measured program does not come up.
pub fn run(arguments: &BenchArguments) -> anyhow::Result<i32> {
    let sizes = match (arguments.services.as_slice(), arguments.quick) {
        ([], true) => &[100],
        ([], false) => &[2000],
        (sizes, _) => sizes,
    };
    let mut reports = Vec::new();
    let mut missed = false;
    for services in sizes {
        let plan = Plan::new(arguments, *services)?;
        let mut report = Report::new(&plan.load, plan.rounds);
        let lab = Lab::start(LabSpec { topology: topology(plan.rounds), ..LabSpec::default() })?;
        let api = Api::start(lab.site(), lab.cluster())?;
        Bench { lab, api, plan }.measure(&reports, &mut report)?;
        let verdicts = bars::judge(&report);
        table::print(&report);
        table::print_bars(&verdicts);
        missed |= verdicts.iter().any(|verdict| !verdict.reached);
        reports.push(report);
    }
    table::print_growth(&reports);
    println!("\nall samples: {}", write(reports.iter())?.display());
    Ok(i32::from(missed))
}

/// Writes what is known by now: a long run that breaks off leaves its samples.
fn write<'r>(reports: impl Iterator<Item = &'r Report>) -> anyhow::Result<PathBuf> {
    let folder = workspace().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("report.json");
    let text: Vec<_> =
        reports.map(|report| json!({"figures": report, "bars": bars::judge(report)})).collect();
    std::fs::write(&path, serde_json::to_string_pretty(&text)? + "\n")
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

impl Plan {
    fn new(arguments: &BenchArguments, services: usize) -> anyhow::Result<Self> {
        let load = Load { services, endpoints: arguments.endpoints };
        let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 3 });
        let (changes, patience) = (arguments.changes, Duration::from_secs(arguments.patience));
        load.check()?;
        if rounds == 0 || rounds > MAX_ROUNDS || changes == 0 {
            bail!("at least one round (at most {MAX_ROUNDS}) and one change");
        }
        let peer_from = rounds.saturating_sub(arguments.peer_rounds.unwrap_or(rounds).max(1));
        cargo::build_lab_tool()?;
        let nodenet = match arguments.only {
            Some(Only::KubeProxy) => None,
            _ => Some(programs(arguments.programs.as_deref())?),
        };
        let kube_proxy = match arguments.only {
            Some(Only::Ours) => None,
            _ => {
                let pods = format!("--cluster-cidr={}", load::POD_CIDR);
                Some(kube_proxy::KubeProxy::find()?.with_flags(&[&pods]))
            }
        };
        Ok(Self { load, rounds, peer_from, changes, patience, nodenet, kube_proxy })
    }
}

/// The network of the nodes has room for so many of them.
const MAX_ROUNDS: usize = 20;

fn programs(folder: Option<&Path>) -> anyhow::Result<Nodenet> {
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => {
            step("building operator and agent (release)", || {
                cargo::build_release(&["nodenet-operator", "nodenet-agent"])
            })?;
            workspace().join("target/release")
        }
    };
    Ok(Nodenet {
        operator: folder.join("nodenet-operator"),
        agent: folder.join("nodenet-agent"),
        chart: workspace().join("charts/nodenet"),
    })
}

impl Bench {
    /// Fills `report`, which comes after the `earlier` ones.
    fn measure(&self, earlier: &[Report], report: &mut Report) -> anyhow::Result<()> {
        report.machine = machine::describe(&self.lab)?;
        report.channel_round_trip_millis = machine::channel_round_trip(&self.lab)?;
        cost::prepare(&self.lab)?;
        if let Some(nodenet) = &self.plan.nodenet {
            self.lab.install_chart(nodenet, &["logLevel=warn"])?;
        }
        let load = &self.plan.load;
        step(&format!("creating {} Services", load.services), || load.create(&self.api, self.lab.cluster()))?;
        report.bare_loop = Some(step("the same messages in a bare loop", || bare_loop::measure(self))?);
        let mut operator: Option<Process> = None;
        if let Some(nodenet) = &self.plan.nodenet {
            let (process, took) =
                step("operator: publishing the slices", || first_sync::publish(&self.lab, nodenet, load))?;
            report.publish_seconds = Some(took.as_secs_f64());
            operator = Some(process);
        }
        for round in 0..=self.plan.rounds {
            for peer in self.peers(round) {
                let figures = if peer.writes() { &mut report.nodenet } else { &mut report.kube_proxy };
                let figures = figures.get_or_insert_default();
                if round == self.plan.rounds {
                    // Counted is what was seen to end.
                    if figures.unfinished_after_seconds.is_some() {
                        continue;
                    }
                    rounds::counted(self, peer.as_ref(), figures)?;
                } else {
                    let last = round + 1 == self.plan.rounds;
                    let changes = if last { peer.changes(self.plan.changes) } else { 0 };
                    rounds::timed(self, peer.as_ref(), changes, figures)?;
                }
                write(earlier.iter().chain([&*report]))?;
            }
        }
        if let Some(nodenet) = &self.plan.nodenet {
            let figures = host_agent::measure(self, nodenet, self.plan.changes)?;
            report.nodenet_on_fake_kernel = Some(figures);
        }
        if let Some(operator) = &operator {
            report.operator_resident_mebibytes.extend(cost::memory_of_host(operator.id()).ok());
        }
        Ok(())
    }

    /// Who is measured in a round, in order.
    fn peers(&self, round: usize) -> Vec<Box<dyn Peer + '_>> {
        let mut peers: Vec<Box<dyn Peer + '_>> = Vec::new();
        if let Some(nodenet) = &self.plan.nodenet {
            peers.push(Box::new(Agent { nodenet, node: node_name("nodenet", round) }));
        }
        if let Some(program) = self.plan.kube_proxy.as_ref().filter(|_| round >= self.plan.peer_from) {
            peers.push(Box::new(KubeProxy { program, node: node_name("kube-proxy", round) }));
        }
        peers
    }
}

/// The node whose agent runs on the host.
const HOST_AGENT_NODE: &str = "bench-host";

fn node_name(who: &str, round: usize) -> String {
    format!("bench-{who}-{round}")
}

/// A node for each round of each of the two, the counted round included. Pods are not needed: nothing is sent.
fn topology(rounds: usize) -> TopologySpec {
    let mut spec = TopologySpec::default();
    let template = spec.nodes.remove(0);
    spec.clients.clear();
    spec.nodes = ["nodenet", "kube-proxy"]
        .into_iter()
        .flat_map(|who| (0..=rounds).map(move |round| node_name(who, round)))
        .chain([HOST_AGENT_NODE.to_owned()])
        .zip(10u8..)
        .map(|(name, number)| NodeSpec {
            name,
            addresses: vec![net([192, 168, 0, number])],
            pod_cidrs: vec![net([10, 60, number, 0])],
            pods: Vec::new(),
            ..template.clone()
        })
        .collect();
    spec
}
