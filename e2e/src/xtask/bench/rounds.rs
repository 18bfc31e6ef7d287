//! One turn of one of the two: on a node of its own, from its start until nothing of it runs.

use super::figures::Figures;
use super::first_sync::Outcome;
use super::peers::Peer;
use super::{Bench, change, cost, first_sync, growth, metrics, repair};
use crate::lab::guest::Started;
use crate::lab::progress::step;
use crate::lab::traffic::Place;
use nix::sys::signal::Signal;
use std::time::Duration;

/// kube-proxy goes on for a while after the table is complete.
const REST: Duration = Duration::from_secs(600);
/// Changes in the counted round: they differ little from each other.
const COUNTED_CHANGES: usize = 6;
/// How long it is looked at while nothing happens: three verify periods.
pub(super) const IDLE: Duration = Duration::from_secs(95);
/// How often another hand removes the route of the services.
const REPAIRS: usize = 8;

/// A first sync with nothing but the watcher beside the program; with changes of one endpoint after it when
/// `changes` is not 0.
pub(super) fn timed(
    bench: &Bench,
    peer: &dyn Peer,
    changes: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let place = bench.lab.place(peer.node());
    let programs = cost::programs(&bench.lab)?;
    let what = format!("{}: first sync on {}", peer.name(), peer.node());
    let first = match step(&what, || first_sync::measure(bench, peer))? {
        Outcome::Done(first) => first,
        Outcome::Unfinished(started) => {
            figures.unfinished_after_seconds = Some(bench.plan.patience.as_secs_f64());
            return end(&place, &started);
        }
    };
    figures.first_sync_seconds.push(first.took.as_secs_f64());
    figures.first_sync_resolution_seconds.push(first.resolution.as_secs_f64());
    let started = &first.started;
    if changes == 0 {
        return end(&place, started);
    }
    let complete =
        step(&format!("{}: until its sets are full", peer.name()), || first.complete(bench, peer))?;
    let Some((complete, looks)) = complete else {
        figures.unfinished_after_seconds = Some(bench.plan.patience.as_secs_f64());
        return end(&place, started);
    };
    figures.complete_seconds.push(complete.as_secs_f64());
    step(&format!("{}: until it rests", peer.name()), || cost::rest(&place, started.id(), REST))?;
    figures.first_sync_processor_seconds.push(cost::processor_millis(&place, started.id())? / 1000.0);
    let mut programs = cost::since(cost::programs(&bench.lab)?, &programs);
    if let Some(ipset) = programs.get_mut("ipset") {
        *ipset -= looks;
    }
    figures.first_sync_programs.push(programs.values().sum());
    let names: Vec<String> =
        programs.iter().filter(|it| *it.1 > 0.0).map(|(name, count)| format!("{name} {count}")).collect();
    figures.first_sync_programs_by_name = names.join(", ");
    figures.resident_mebibytes.push(cost::memory(&place, started.id())?.0);

    let what = format!("{}: {changes} changes of one endpoint", peer.name());
    step(&what, || {
        for number in 0..changes {
            cost::rest(&place, started.id(), REST)?;
            let change = change::measure(bench, peer, number)?;
            let samples = if change.added {
                &mut figures.endpoint_added_millis
            } else {
                &mut figures.endpoint_removed_millis
            };
            samples.push(change.millis);
        }
        anyhow::Ok(())
    })?;
    change::restore(bench, peer, changes)?;
    let rest = || cost::rest(&place, started.id(), REST);
    step(&format!("{}: new Services", peer.name()), || {
        for _ in 0..changes.div_ceil(4) {
            rest()?;
            figures.new_service_millis.push(growth::new_service(bench, peer)?);
        }
        anyhow::Ok(())
    })?;
    step(&format!("{}: a rolling update", peer.name()), || {
        let rolled = growth::rolling_update(bench, peer, rest)?;
        figures.rolling_millis.push(rolled.millis);
        figures.rolling_steps.push(rolled.steps);
        if peer.writes() {
            figures.rolling_api_writes.push(rolled.writes);
        }
        anyhow::Ok(())
    })?;
    rest()?;
    step(&format!("{}: {} s without any change", peer.name(), IDLE.as_secs()), || {
        let before = cost::processor_millis(&place, started.id())?;
        std::thread::sleep(IDLE);
        let used = cost::processor_millis(&place, started.id())? - before;
        figures.idle_percent.push(used / change::millis(IDLE) * 100.0);
        anyhow::Ok(())
    })?;
    if peer.writes() {
        step(&format!("{}: {REPAIRS} repairs of a route", peer.name()), || {
            for _ in 0..REPAIRS {
                cost::rest(&place, started.id(), REST)?;
                figures.route_repair_millis.push(repair::route(bench, peer)?);
            }
            anyhow::Ok(())
        })?;
    }
    figures.peak_resident_mebibytes.push(cost::memory(&place, started.id())?.1);
    end(&place, started)
}

/// A turn with a tap on the node's netlink, untimed.
pub(super) fn counted(bench: &Bench, peer: &dyn Peer, figures: &mut Figures) -> anyhow::Result<()> {
    let place = bench.lab.place(peer.node());
    let tap = cost::Tap::start(&place)?;
    let writes = metrics::writes(&bench.lab)?;
    let what = format!("{}: counting a first sync on {}", peer.name(), peer.node());
    let first = step(&what, || {
        let first = first_sync::measure(bench, peer)?;
        if let Outcome::Done(first) = &first {
            cost::rest(&place, first.started.id(), REST)?;
        }
        anyhow::Ok(first)
    })?;
    let first = match first {
        Outcome::Done(first) => first,
        Outcome::Unfinished(started) => {
            figures.unfinished_after_seconds = Some(bench.plan.patience.as_secs_f64());
            tap.stop()?;
            return end(&place, &started);
        }
    };
    let started = &first.started;
    let requests = tap.read()?;
    figures.first_sync_messages.push(requests.messages - first.asked);
    figures.first_sync_changing_messages.push(requests.changes);
    figures.first_sync_sends.push(requests.sends - first.asked);
    if peer.writes() {
        figures.first_sync_api_writes.push(metrics::writes(&bench.lab)?.all - writes.all);
    }
    let changes = peer.changes(COUNTED_CHANGES);
    let what = format!("{}: counting {changes} changes of one endpoint", peer.name());
    step(&what, || {
        for number in 0..changes {
            cost::rest(&place, started.id(), REST)?;
            let before = tap.read()?;
            let writes = metrics::writes(&bench.lab)?;
            let spent = cost::processor_millis(&place, started.id())?;
            let programs = cost::programs(&bench.lab)?;
            let change = change::measure(bench, peer, number)?;
            cost::rest(&place, started.id(), REST)?;
            figures.change_processor_millis.push(cost::processor_millis(&place, started.id())? - spent);
            let after = tap.read()?;
            // The watcher only asks.
            figures.change_messages.push(after.messages - before.messages - change.asked);
            figures.change_changing_messages.push(after.changes - before.changes);
            figures
                .change_programs
                .push(cost::since(cost::programs(&bench.lab)?, &programs).values().sum::<f64>().abs());
            if peer.writes() {
                figures.change_api_writes.push(metrics::writes(&bench.lab)?.planned - writes.planned);
            }
        }
        anyhow::Ok(())
    })?;
    change::restore(bench, peer, changes)?;
    tap.stop()?;
    end(&place, started)
}

/// Ends the program and empties the table: the kernel walks all of them, of all nodes, every two seconds.
fn end(place: &Place, started: &Started) -> anyhow::Result<()> {
    started.signal(Signal::SIGKILL)?;
    started.wait(Duration::from_secs(10))?;
    place.run(&["ipvsadm", "-C"])?;
    Ok(())
}
