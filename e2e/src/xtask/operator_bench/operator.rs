//! The operator under measure.

use super::processor;
use crate::lab::cluster::Cluster;
use crate::lab::process::{Process, wait_for};
use crate::lab::site::Site;
use anyhow::bail;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Port of the first one's health and metrics endpoints in the lab's namespace.
const PORT: u16 = 10357;
const PATIENCE: Duration = Duration::from_secs(600);
/// It is done when it has written nothing for so long.
pub(super) const REST: Duration = Duration::from_secs(2);

pub(super) struct Operator {
    process: Process,
    port: u16,
}

impl Operator {
    /// Starts one and waits until it leads and knows all.
    pub(super) fn start(
        site: &Site,
        cluster: &Cluster,
        programs: &Path,
        number: u16,
    ) -> anyhow::Result<Self> {
        let port = PORT + number;
        let argv = [
            programs.join("nodenet-operator").display().to_string(),
            "run".into(),
            "--kubeconfig".into(),
            cluster.inner_kubeconfig().display().to_string(),
            format!("--identity=operator-{number}"),
            format!("--service-cidr={}", super::load::SERVICE_CIDR),
            format!("--http-address=127.0.0.1:{port}"),
            "--log=info".into(),
        ];
        let process = Process::start(Some(site.netns()), &site.log(&format!("operator-{number}")), &argv)?;
        let operator = Self { process, port };
        wait_for("the operator to lead", PATIENCE, operator.process.log(), || {
            let ready = site.http_get(port, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
            let leads = operator.metric(site, "nodenet_operator_leader").unwrap_or(0.0) > 0.0;
            Ok((ready && leads).then_some(()))
        })?;
        Ok(operator)
    }

    /// Ends it as a kubelet does and waits until it has gone.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let begin = Instant::now();
        while self.process.is_running() {
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("the operator does not end: {}", self.process.tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until it has written nothing for a while.
    pub(super) fn settled(&self, site: &Site) -> anyhow::Result<()> {
        let (begin, mut since, mut last) = (Instant::now(), Instant::now(), -1.0);
        while since.elapsed() < REST {
            if begin.elapsed() > PATIENCE {
                bail!("the operator does not come to rest: {}", self.process.tail());
            }
            std::thread::sleep(Duration::from_millis(50));
            let waits = self.metric(site, "nodenet_operator_queue_depth")?;
            let writes = self.writes(site)?;
            if writes != last || waits > 0.0 {
                (since, last) = (Instant::now(), writes);
            }
        }
        Ok(())
    }

    /// Writes so far.
    pub(super) fn writes(&self, site: &Site) -> anyhow::Result<f64> {
        self.metric(site, "nodenet_operator_api_writes_total")
    }

    /// A metric, summed over its labels.
    fn metric(&self, site: &Site, name: &str) -> anyhow::Result<f64> {
        let text = site.http_get(self.port, "/metrics")?;
        let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        Ok(text
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .fold(0.0, |all, one| all + one))
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        self.process.tail()
    }

    /// Processor time so far.
    pub(super) fn processor_millis(&self) -> anyhow::Result<f64> {
        processor::millis(self.process.id())
    }

    /// Memory and processor time so far.
    pub(super) fn cost(&self) -> anyhow::Result<Value> {
        let id = self.process.id();
        Ok(json!({
            "residentMebibytes": processor::resident_mebibytes(id)?,
            "peakMebibytes": processor::peak_mebibytes(id)?,
            "processorSeconds": processor::millis(id)? / 1000.0,
        }))
    }
}
