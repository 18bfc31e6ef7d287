//! How long one endpoint takes from the API server's answer to the kernel.

use super::Bench;
use super::peers::Peer;
use super::watcher::Watcher;
use crate::lab::process::lab_tool;
use anyhow::Context;
use std::time::{Duration, Instant};

pub(super) const PATIENCE: Duration = Duration::from_secs(400);

/// One change that has reached the kernel.
pub(super) struct Change {
    /// Whether the endpoint came or went.
    pub(super) added: bool,
    /// From the API server's answer to the kernel.
    pub(super) millis: f64,
    /// Netlink messages of the watcher.
    pub(super) asked: f64,
}

/// Change number so and so of a round: each Service in turn gets one endpoint more, then loses it again.
///
/// Both times are taken on the host: the guest's watcher asks its kernel every 2 ms and tells over an open
/// connection when it sees the real server, or no longer sees it with a weight above 0.
pub(super) fn measure(bench: &Bench, peer: &dyn Peer, number: usize) -> anyhow::Result<Change> {
    let load = &bench.plan.load;
    let (service, added) = (load.service_to_change(number / 2), number.is_multiple_of(2));
    let mut argv = vec![
        lab_tool()?.display().to_string(),
        "await-destination".into(),
        "--timeout-seconds".into(),
        PATIENCE.as_secs().to_string(),
        load.server(service).to_string(),
        load.added(service).to_string(),
    ];
    if !added {
        argv.push("--absent".into());
    }
    let act = || load.change(&bench.api, service, added, peer.legacy());
    let (millis, asked) = watched(bench, peer, argv, act)?.with_context(|| {
        let server = load.server(service);
        format!("{} did not program {server} within {} s", peer.name(), PATIENCE.as_secs())
    })?;
    Ok(Change { added, millis, asked })
}

/// Starts a watcher of the node's table, writes to the API, and waits until the watcher sees what came of it: milliseconds
/// from the API server's answer, and the netlink messages of the watcher. `None` where it gives up.
pub(super) fn watched(
    bench: &Bench,
    peer: &dyn Peer,
    argv: Vec<String>,
    act: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<(f64, f64)>> {
    let watcher = Watcher::start(bench, peer, argv);
    watcher.hear(PATIENCE).context("the watcher of the IPVS table does not start")?;
    act()?;
    let answered = Instant::now();
    let (line, seen) = watcher.last(PATIENCE + Duration::from_secs(30))?;
    if !line.starts_with("seen ") {
        return Ok(None);
    }
    let asked = line.rsplit(' ').next().unwrap_or_default().parse()?;
    Ok(Some((millis(seen.saturating_duration_since(answered)), asked)))
}

/// Takes back what so many changes have left.
pub(super) fn restore(bench: &Bench, peer: &dyn Peer, changes: usize) -> anyhow::Result<()> {
    if !changes.is_multiple_of(2) {
        let service = bench.plan.load.service_to_change(changes / 2);
        bench.plan.load.change(&bench.api, service, false, peer.legacy())?;
    }
    Ok(())
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
