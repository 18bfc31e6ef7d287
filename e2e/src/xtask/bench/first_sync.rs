//! How long an empty node takes to have everything.

use super::Bench;
use super::load::Load;
use super::peers::Peer;
use super::watcher::Watcher;
use crate::lab::Lab;
use crate::lab::guest::Started;
use crate::lab::nodenet::Nodenet;
use crate::lab::process::{Process, lab_tool, wait_for};
use anyhow::Context;
use std::time::{Duration, Instant};

/// A program that was started, and what became of its first sync.
pub(super) enum Outcome {
    /// It has finished.
    Done(FirstSync),
    /// It has not within the time that it had.
    Unfinished(Started),
}

/// A first sync.
pub(super) struct FirstSync {
    /// The program, which goes on.
    pub(super) started: Started,
    /// From its start to the look that saw everything.
    pub(super) took: Duration,
    /// How long that look took: so much earlier it may have been.
    pub(super) resolution: Duration,
    /// Netlink messages of the watcher, a send each.
    pub(super) asked: f64,
    begin: Instant,
}

impl FirstSync {
    /// Waits until the set of service addresses is full too; returns the time from the start, and how many
    /// programs of its own it has run for that; `None` when the time that it has is over. It looks at a fiftieth of
    /// the time: to fill a set takes long where each entry is a program of its own.
    pub(super) fn complete(&self, bench: &Bench, peer: &dyn Peer) -> anyhow::Result<Option<(Duration, f64)>> {
        let place = bench.lab.place(peer.node());
        let entries = "Number of entries: ";
        let mut looks = 0.0;
        while self.begin.elapsed() < bench.plan.patience {
            looks += 1.0;
            let listing = place.attempt(&["ipset", "list", "-terse", peer.cluster_ip_set()])?.stdout;
            let count = listing.lines().find_map(|line| line.strip_prefix(entries)?.parse().ok());
            if count.is_some_and(|count: usize| count >= bench.plan.load.services) {
                return Ok(Some((self.begin.elapsed(), looks)));
            }
            std::thread::sleep((self.begin.elapsed() / 50).max(Duration::from_millis(100)));
        }
        Ok(None)
    }
}

/// Starts the operator and waits until the slices hold every Service.
pub(super) fn publish(lab: &Lab, nodenet: &Nodenet, load: &Load) -> anyhow::Result<(Process, Duration)> {
    let begin = Instant::now();
    let operator = lab.start_operator(nodenet, 0)?;
    wait_for("the slices of all Services", Duration::from_secs(120), operator.log(), || {
        let arguments =
            ["get", "nnslice", "-o", "jsonpath={range .items[*].spec.services[*]}{.name}{\"\\n\"}{end}"];
        let published = lab.cluster().kubectl(&arguments)?;
        let published = published.lines().filter(|name| name.starts_with("service-")).count();
        Ok((published >= load.services).then_some(()))
    })?;
    Ok((operator, begin.elapsed()))
}

/// Starts the program and waits until its node's table is complete. The host's clock measures both ends; the
/// watcher in the guest says when.
pub(super) fn measure(bench: &Bench, peer: &dyn Peer) -> anyhow::Result<Outcome> {
    let load = &bench.plan.load;
    let argv = [
        lab_tool()?.display().to_string(),
        "await-range".into(),
        "--timeout-seconds".into(),
        bench.plan.patience.as_secs().to_string(),
        load.server(0).to_string(),
        load.services.to_string(),
        load.endpoints.to_string(),
    ];
    let program = peer.prepare(&bench.lab)?;
    let log = format!("{}.log", peer.node());
    let watcher = Watcher::start(bench, peer, argv.to_vec());
    watcher.hear(bench.plan.patience).context("the watcher of the IPVS table does not start")?;
    let begin = Instant::now();
    let started = bench.lab.place(peer.node()).spawn(program, &log)?;
    // It gives up by itself when its time is over.
    let (line, end) = watcher.last(bench.plan.patience + Duration::from_secs(60))?;
    let words: Vec<&str> = line.split(' ').collect();
    let &["seen", look, asked] = words.as_slice() else { return Ok(Outcome::Unfinished(started)) };
    let resolution = Duration::from_millis(look.parse()?);
    Ok(Outcome::Done(FirstSync {
        started,
        took: (end - begin).saturating_sub(resolution),
        resolution,
        asked: asked.parse()?,
        begin,
    }))
}
