//! The agent on the host with its kernel in memory: the way to the kernel without the guest's slow processor.

use super::change::millis;
use super::figures::Figures;
use super::rounds::IDLE;
use super::{Bench, HOST_AGENT_NODE, cost, metrics};
use crate::lab::nodenet::Nodenet;
use crate::lab::process::wait_for;
use crate::lab::progress::step;
use anyhow::{Context, bail};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the agent's metrics; a look takes about as long again.
const LOOK: Duration = Duration::from_millis(1);
/// Between two changes: what the one before has caused is over by then.
const PAUSE: Duration = Duration::from_millis(400);

/// Changes for one of the guest's: nothing waits here, and one of a hundred is to be seen.
const CHANGES: usize = 6;

/// Changes and memory. That the kernel has it is read from the agent's own count of what it has done to it.
pub(super) fn measure(bench: &Bench, nodenet: &Nodenet, changes: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let changes = changes * CHANGES;
    let load = &bench.plan.load;
    let begin = Instant::now();
    let agent = bench.lab.start_host_agent(nodenet, HOST_AGENT_NODE)?;
    let told = || metrics::of_host_agent(&bench.lab);
    let done = |added: bool| {
        let told = told().context("the agent's metrics")?;
        anyhow::Ok(if added { told.added } else { told.removed })
    };
    step("nodenet on its kernel in memory: first sync", || {
        wait_for("the first sync on the kernel in memory", PATIENCE * 2, agent.log(), || {
            Ok(told().filter(|told| told.servers >= load.services as f64).map(drop))
        })
    })?;
    figures.first_sync_seconds.push(begin.elapsed().as_secs_f64());
    let (resident, _) = cost::memory_of_host(agent.id())?;
    figures.resident_mebibytes.push(resident);
    let what = format!("nodenet on its kernel in memory: {changes} changes of one endpoint");
    step(&what, || {
        for number in 0..changes {
            std::thread::sleep(PAUSE);
            let (service, added) = (load.service_to_change(number / 2), number.is_multiple_of(2));
            let before = done(added)?;
            let writes = metrics::writes(&bench.lab)?.planned;
            load.change(&bench.api, service, added, false)?;
            let answered = Instant::now();
            while done(added)? <= before {
                if answered.elapsed() > PATIENCE {
                    bail!(
                        "the agent did not program {} within {} s",
                        load.server(service),
                        PATIENCE.as_secs()
                    );
                }
                std::thread::sleep(LOOK);
            }
            let samples =
                if added { &mut figures.endpoint_added_millis } else { &mut figures.endpoint_removed_millis };
            samples.push(millis(answered.elapsed()));
            figures.change_api_writes.push(metrics::writes(&bench.lab)?.planned - writes);
        }
        anyhow::Ok(())
    })?;
    step(&format!("nodenet on its kernel in memory: {} s without any change", IDLE.as_secs()), || {
        let before = cost::processor_millis_of_host(agent.id())?;
        std::thread::sleep(IDLE);
        let used = cost::processor_millis_of_host(agent.id())? - before;
        figures.idle_percent.push(used / millis(IDLE) * 100.0);
        anyhow::Ok(())
    })?;
    figures.peak_resident_mebibytes.push(cost::memory_of_host(agent.id())?.1);
    Ok(figures)
}
