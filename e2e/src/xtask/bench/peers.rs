//! The two programs that are measured, and the order of measurements.

use super::load::Load;
use super::{FAKE_KERNEL_NODE, Figures, change, first_sync, memory, metrics};
use crate::lab::api::Api;
use crate::lab::guest::Started;
use crate::lab::nodenet::Nodenet;
use crate::lab::progress::step;
use crate::lab::protocol::Exec;
use crate::lab::{Lab, error::LabError};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

/// A program that makes a node's IPVS table.
pub(super) trait Peer {
    fn name(&self) -> &'static str;
    fn node(&self) -> &str;
    fn start(&self, lab: &Lab) -> Result<Started, LabError>;
    /// Whether it reads Endpoints.
    fn legacy(&self) -> bool;
    /// Where it tells its metrics on the node, if these count messages to the kernel.
    fn metrics(&self) -> Option<&'static str>;
}

/// nodenet's agent.
pub(super) struct Agent<'a> {
    pub(super) nodenet: &'a Nodenet,
    pub(super) node: &'a str,
}

impl Peer for Agent<'_> {
    fn name(&self) -> &'static str {
        "nodenet"
    }

    fn node(&self) -> &str {
        self.node
    }

    fn start(&self, lab: &Lab) -> Result<Started, LabError> {
        lab.start_agent(self.nodenet, self.node)
    }

    fn legacy(&self) -> bool {
        false
    }

    fn metrics(&self) -> Option<&'static str> {
        Some(metrics::AGENT)
    }
}

/// kube-proxy in ipvs mode.
pub(super) struct KubeProxy<'a> {
    pub(super) program: &'a Path,
    pub(super) node: &'a str,
}

impl Peer for KubeProxy<'_> {
    fn name(&self) -> &'static str {
        "kube-proxy"
    }

    fn node(&self) -> &str {
        self.node
    }

    fn start(&self, lab: &Lab) -> Result<Started, LabError> {
        let place = lab.place(self.node);
        let kubeconfig = std::fs::read_to_string(lab.cluster().inner_kubeconfig()).unwrap_or_default();
        place.put("/run/lab/kubeconfig", &kubeconfig)?;
        // The guest's kernel has no nft families, so what it calls must be the legacy iptables.
        let tools = "mkdir -p /run/lab/bin; for name in iptables ip6tables; do for verb in '' -save -restore; do \
                     ln -sf /usr/sbin/xtables-legacy-multi /run/lab/bin/$name$verb; done; done";
        place.run(&["sh", "-c", tools])?;
        let argv = [
            &self.program.display().to_string(),
            "--kubeconfig=/run/lab/kubeconfig",
            "--proxy-mode=ipvs",
            "--cluster-cidr=10.64.0.0/10",
            // It reads EndpointSlices in v1beta1 only.
            "--feature-gates=EndpointSliceProxying=false",
            // Settable in the root network namespace only.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            &format!("--hostname-override={}", self.node),
        ]
        .map(str::to_owned);
        let exec = Exec::new(argv).env("PATH", "/run/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        place.spawn(exec, &format!("kube-proxy-{}.log", self.node))
    }

    fn legacy(&self) -> bool {
        true
    }

    fn metrics(&self) -> Option<&'static str> {
        None
    }
}

/// First sync, memory, and so many changes.
pub(super) fn measure(
    lab: &Lab,
    api: &Api,
    load: &Load,
    peer: &dyn Peer,
    changes: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let place = lab.place(peer.node());
    let what = format!("{}: first sync on {}", peer.name(), peer.node());
    let (started, took) = step(&what, || first_sync::measure(lab, load, peer))?;
    figures.first_sync_seconds.push(took.as_secs_f64());
    let messages = || peer.metrics().and_then(|url| metrics::kernel_messages(&place, url));
    figures.first_sync_kernel_messages = messages().or(figures.first_sync_kernel_messages);
    let (resident, peak) = memory::read(&place, started.id())?;
    figures.resident_mebibytes.push(resident);
    if changes > 0 {
        let what = format!("{}: {changes} changes of one endpoint", peer.name());
        let before = (messages(), metrics::slice_writes(lab));
        figures.change_millis = step(&what, || change::measure(lab, api, load, peer, changes))?;
        let after = (messages(), metrics::slice_writes(lab));
        figures.change_kernel_messages = after.0.zip(before.0).map(|(after, before)| after - before);
        if !peer.legacy() {
            figures.change_slice_writes = Some(after.1? - before.1?);
        }
    }
    let (_, last_peak) = memory::read(&place, started.id())?;
    figures.peak_resident_mebibytes.push(last_peak.max(peak));
    started.signal(Signal::SIGKILL)?;
    started.wait(Duration::from_secs(10))?;
    Ok(())
}

/// The agent on the host, with the fake kernel: changes only, and its memory.
pub(super) fn measure_on_fake_kernel(
    lab: &Lab,
    api: &Api,
    load: &Load,
    nodenet: &Nodenet,
    changes: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let agent =
        step("nodenet on its fake kernel: first sync", || lab.start_host_agent(nodenet, FAKE_KERNEL_NODE))?;
    let told = || metrics::programmed_on_host(lab);
    let servers = load.services as f64;
    crate::lab::process::wait_for(
        "the first sync on the fake kernel",
        Duration::from_secs(120),
        agent.log(),
        || Ok(told().filter(|told| told.servers >= servers).map(drop)),
    )?;
    let (resident, peak) = memory::of_host(agent.id())?;
    figures.resident_mebibytes.push(resident);
    figures.peak_resident_mebibytes.push(peak);
    let what = format!("nodenet on its fake kernel: {changes} changes of one endpoint");
    figures.change_millis = step(&what, || change::measure_on_host(lab, api, load, changes))?;
    Ok(())
}
