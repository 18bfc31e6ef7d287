//! How long an empty node takes to have everything.

use super::load::Load;
use super::peers::Peer;
use crate::lab::Lab;
use crate::lab::guest::Started;
use crate::lab::nodenet::Nodenet;
use crate::lab::process::{Process, lab_tool, wait_for};
use crate::lab::protocol::{Event, Exec};
use anyhow::{Context, bail};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// kube-proxy's first sync of 2,000 Services takes minutes in the guest.
const PATIENCE: Duration = Duration::from_secs(900);

/// Starts the operator and waits until the slices hold every Service.
pub(super) fn publish(lab: &Lab, nodenet: &Nodenet, load: &Load) -> anyhow::Result<(Process, Duration)> {
    let begin = Instant::now();
    let operator = lab.start_operator(nodenet, 0)?;
    wait_for("the slices of all Services", Duration::from_secs(120), operator.log(), || {
        let arguments =
            ["get", "nnslice", "-o", "jsonpath={range .items[*].spec.services[*]}{.name}{\"\\n\"}{end}"];
        let published =
            lab.cluster().kubectl(&arguments)?.lines().filter(|name| name.starts_with("service-")).count();
        Ok((published >= load.services).then_some(()))
    })?;
    Ok((operator, begin.elapsed()))
}

/// Starts the program and waits until its node's table is complete.
pub(super) fn measure(lab: &Lab, load: &Load, peer: &dyn Peer) -> anyhow::Result<(Started, Duration)> {
    let (servers, destinations) = load.counts();
    let argv = [
        lab_tool()?.display().to_string(),
        "await-counts".into(),
        "--timeout-seconds".into(),
        PATIENCE.as_secs().to_string(),
        servers.to_string(),
        destinations.to_string(),
    ];
    let exec = Exec::new(argv).within(peer.node());
    let channel = lab.guest().channel().clone();
    let (tell, ready) = mpsc::channel();
    let watcher = std::thread::spawn(move || {
        let mut last = String::new();
        let code = channel.stream(exec, |event| {
            if let Event::Out { text } = event {
                if text.starts_with("ready") {
                    let _ = tell.send(());
                }
                last.push_str(text);
            }
        });
        (code, last, Instant::now())
    });
    ready.recv().context("the watcher of the IPVS table does not start")?;
    let begin = Instant::now();
    let started = peer.start(lab)?;
    let (code, last, end) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
    if code? != 0 {
        bail!("{} did not finish its first sync within {} s: {last}", peer.name(), PATIENCE.as_secs());
    }
    Ok((started, end - begin))
}
