//! `cargo xtask operator-bench`: the operator alone at the size of a large cluster, and what its slices cost the API
//! server beside EndpointSlices.
//!
//! etcd, kube-apiserver and operator run on the host, without a guest; nodes are objects without agents, but for the
//! hollow ones of the second half, whose kernel is in memory.

mod load;
mod operator;
mod processor;
mod watch;
mod watchers;

use super::cargo;
use crate::lab::api::Api;
use crate::lab::cluster::{Cluster, ClusterSpec};
use crate::lab::nodenet::workspace;
use crate::lab::prerequisites;
use crate::lab::progress::step;
use crate::lab::site::Site;
use anyhow::Context;
use load::Load;
use operator::Operator;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use watch::Watch;

/// Namespaces as the chart has them.
const NAMESPACES: [&str; 3] = ["nodenet-system", "nodenet-nodes", load::NAMESPACE];
/// Between two changes: what the one before has caused is over by then.
const PAUSE: Duration = Duration::from_millis(120);
/// What is to be reached: change of an endpoint until its slice is written, in milliseconds.
const MEDIAN_MILLIS: f64 = 50.0;
const P99_MILLIS: f64 = 150.0;

/// Measures the operator: first sync, change of an endpoint, restart, memory and processor time.
#[derive(Debug, clap::Args)]
pub struct OperatorBenchArguments {
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Node objects.
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    /// Changes of one endpoint.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Agents with their kernel in memory, and as many plain watchers of EndpointSlices before them; 0 leaves both out.
    #[arg(long, default_value_t = 200)]
    agents: usize,
    /// Measures the operator and the agent in this folder instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// What is measured with.
struct Bench {
    operator: Option<Operator>,
    api: Api,
    cluster: Cluster,
    site: Site,
    load: Load,
    programs: PathBuf,
    changed: usize,
}

/// Runs it and prints the figures; they also stand in `target/bench/operator.json`. The exit code is 1 when what is to be
/// reached was not.
///
/// # Errors
/// When the control plane or a measured program does not come up.
pub fn run(arguments: &OperatorBenchArguments) -> anyhow::Result<i32> {
    cargo::build_lab_tool()?;
    let programs = match &arguments.programs {
        Some(folder) => folder.clone(),
        None => {
            step("building operator and agent (release)", || {
                cargo::build_release(&["nodenet-operator", "nodenet-agent"])
            })?;
            workspace().join("target/release")
        }
    };
    let site = Site::create()?;
    // Without the limits of a server that has others to serve: nobody waits for the bench's own writes.
    let spec = ClusterSpec {
        service_cidrs: vec![load::SERVICE_CIDR.into()],
        flags: vec!["--max-requests-inflight=2000".into(), "--max-mutating-requests-inflight=1000".into()],
        ..ClusterSpec::default()
    };
    let cluster =
        step("starting the control plane", || Cluster::start(&site, prerequisites::control_plane()?, &spec))?;
    let crds = workspace().join("charts/nodenet/crds").display().to_string();
    // A server before 1.25 does not know the rules of the schemas.
    cluster.kubectl(&["create", "--validate=false", "-f", &crds])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "customresourcedefinitions", "--all"])?;
    for namespace in NAMESPACES {
        cluster.kubectl(&["create", "namespace", namespace])?;
    }
    let api = Api::start(&site, &cluster)?;
    let load = Load { services: arguments.services, endpoints: arguments.endpoints, nodes: arguments.nodes };
    let what = format!(
        "creating {} Services with {} endpoints each and {} Nodes",
        load.services, load.endpoints, load.nodes
    );
    step(&what, || load.create(&api))?;
    let mut bench = Bench { operator: None, api, cluster, site, load, programs, changed: 0 };
    let mut report = json!({
        "services": arguments.services, "endpoints": arguments.services * arguments.endpoints,
        "nodes": arguments.nodes, "machine": processor::machine()?,
        "kubeApiserver": format!("1.{}", bench.cluster.minor()),
    });
    let measured = bench.measure(arguments, &mut report);
    if measured.is_err()
        && let Some(operator) = &bench.operator
    {
        eprintln!("{}", operator.tail());
    }
    // A run that breaks off leaves what it has found.
    let folder = workspace().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("operator.json");
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    println!("{text}");
    let reached = measured?;
    println!("{} ({})", if reached { "reached" } else { "MISSED" }, path.display());
    Ok(i32::from(!reached))
}

fn add(report: &mut Value, name: &str, value: Value) {
    if let Some(map) = report.as_object_mut() {
        map.insert(name.to_owned(), value);
    }
}

impl Bench {
    /// All of it. Returns whether what is to be reached was.
    fn measure(&mut self, arguments: &OperatorBenchArguments, report: &mut Value) -> anyhow::Result<bool> {
        let reached = self.alone(arguments.changes, report)?;
        if arguments.agents > 0 {
            self.beside_watchers(arguments.agents, report)?;
        }
        add(report, "operatorAtTheEnd", self.operator()?.cost()?);
        Ok(reached && report["restart"]["writes"].as_f64() == Some(0.0))
    }

    /// The operator without anybody who reads what it writes. Returns whether it is as fast as it is to be.
    fn alone(&mut self, changes: usize, report: &mut Value) -> anyhow::Result<bool> {
        let begin = Instant::now();
        let operator =
            step("operator: first sync", || Operator::start(&self.site, &self.cluster, &self.programs, 0))?;
        operator.settled(&self.site)?;
        // What it waited at the end for more to come is not its own time.
        let took = begin.elapsed().saturating_sub(operator::REST);
        let first = json!({"seconds": seconds(took), "writes": operator.writes(&self.site)?, "cost": operator.cost()?});
        add(report, "firstSync", first);
        self.operator = Some(operator);

        let what = format!("operator: {changes} changes of one endpoint");
        let (mut millis, mut most) = (Vec::new(), 0.0_f64);
        let processor = self.operator()?.processor_millis()?;
        step(&what, || {
            let watch = Watch::start(&self.api)?;
            for _ in 0..changes {
                let before = self.operator()?.writes(&self.site)?;
                millis.push(self.change(&watch)?.as_secs_f64() * 1000.0);
                std::thread::sleep(PAUSE);
                most = most.max(self.operator()?.writes(&self.site)? - before);
            }
            anyhow::Ok(())
        })?;
        let spent = (self.operator()?.processor_millis()? - processor) / changes.max(1) as f64;
        millis.sort_by(f64::total_cmp);
        let at = |share: f64| -> f64 {
            let last = millis.len().saturating_sub(1);
            millis.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        let (median, p99) = (at(0.5), at(0.99));
        let change = json!({
            "medianMillis": median, "p90Millis": at(0.9), "p99Millis": p99, "maxMillis": at(1.0),
            "mostWrites": most, "operatorProcessorMillis": spent,
        });
        add(report, "change", change);
        add(report, "operator", self.operator()?.cost()?);

        let begin = Instant::now();
        let operator = step("operator: restart", || {
            self.operator.take().context("the operator")?.stop()?;
            Operator::start(&self.site, &self.cluster, &self.programs, 1)
        })?;
        let leads = begin.elapsed();
        operator.settled(&self.site)?;
        let restart = json!({"seconds": seconds(leads), "writes": operator.writes(&self.site)?, "cost": operator.cost()?});
        add(report, "restart", restart);
        self.operator = Some(operator);
        Ok(median <= MEDIAN_MILLIS && p99 <= P99_MILLIS && most <= 1.0)
    }

    /// What the API server spends for one change of an endpoint: with nobody but the operator, with watchers of
    /// EndpointSlices, and with agents.
    fn beside_watchers(&mut self, count: usize, report: &mut Value) -> anyhow::Result<()> {
        const CHANGES: usize = 100;
        let alone = self.spent(CHANGES)?;
        let watchers = step(&format!("{count} watchers of EndpointSlices"), || {
            watchers::plain(&self.site, &self.cluster, count)
        })?;
        let endpoint_slices = self.spent(CHANGES)?;
        drop(watchers);
        let agents = step(&format!("{count} agents"), || {
            watchers::agents(&self.site, &self.cluster, &self.programs, count)
        })?;
        let slices = self.spent(CHANGES)?;
        let resident = agents
            .iter()
            .map(|agent| processor::resident_mebibytes(agent.id()))
            .collect::<Result<Vec<_>, _>>()?;
        let mean = resident.iter().sum::<f64>() / resident.len().max(1) as f64;
        let figures = json!({
            "count": count, "alone": alone, "watchersOfEndpointSlices": endpoint_slices, "agents": slices,
            "agentResidentMebibytes": mean,
        });
        add(report, "apiServerProcessorMillisPerChange", figures);
        Ok(())
    }

    /// Processor time of API server and etcd for one change, without what they spend when nothing changes.
    fn spent(&mut self, changes: usize) -> anyhow::Result<Value> {
        let ids = [self.cluster.apiserver().context("the API server")?.id(), self.cluster.etcd().id()];
        let now = || ids.iter().map(|id| processor::millis(*id)).sum::<anyhow::Result<f64>>();
        let watch = Watch::start(&self.api)?;
        let window = (PAUSE + Duration::from_millis(30)) * u32::try_from(changes)?;
        let (before, begin) = (now()?, Instant::now());
        std::thread::sleep(window);
        let idle = (now()? - before) / begin.elapsed().as_secs_f64();
        let (before, begin) = (now()?, Instant::now());
        for _ in 0..changes {
            self.change(&watch)?;
            std::thread::sleep(PAUSE);
        }
        let busy = now()? - before - idle * begin.elapsed().as_secs_f64();
        Ok(json!({"perChange": busy / changes as f64, "idlePerSecond": idle}))
    }

    /// Replaces one endpoint of a Service; the time from the request until its slice was seen written.
    fn change(&mut self, watch: &Watch) -> anyhow::Result<Duration> {
        self.changed += 1;
        let begin = Instant::now();
        let address = self.load.change(&self.api, self.changed)?;
        Ok(watch.wait_for(&address)?.saturating_duration_since(begin))
    }

    fn operator(&self) -> anyhow::Result<&Operator> {
        self.operator.as_ref().context("the operator")
    }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}
