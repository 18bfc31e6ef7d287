//! How long one endpoint takes from the API server's answer to the kernel.

use super::load::Load;
use super::peers::Peer;
use super::{metrics, millis};
use crate::lab::Lab;
use crate::lab::api::Api;
use crate::lab::process::lab_tool;
use crate::lab::protocol::{Event, Exec};
use anyhow::{Context, bail};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// Changes an endpoint of one Service after the other. Both times are taken on the host: the guest's watcher
/// tells over the connection (0.2 ms) when it sees the new real server.
pub(super) fn measure(
    lab: &Lab,
    api: &Api,
    load: &Load,
    peer: &dyn Peer,
    changes: usize,
) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for change in 0..changes {
        let number = change * load.services / changes;
        // Each of the two moves the endpoint to a place of its own.
        let turn = if peer.legacy() { 2 } else { 1 };
        let argv = [
            lab_tool()?.display().to_string(),
            "await-destination".into(),
            "--timeout-seconds".into(),
            PATIENCE.as_secs().to_string(),
            load.server(number).to_string(),
            load.changed(number, turn).to_string(),
        ];
        let exec = Exec::new(argv).within(peer.node());
        let channel = lab.guest().channel().clone();
        let (tell, heard) = mpsc::channel();
        let watcher = std::thread::spawn(move || {
            channel.stream(exec, |event| {
                if let Event::Out { text } = event {
                    for word in text.split_whitespace() {
                        let _ = tell.send((word.to_owned(), Instant::now()));
                    }
                }
            })
        });
        heard.recv_timeout(PATIENCE).context("the watcher of the IPVS table does not start")?;
        load.change(api, number, turn, peer.legacy())?;
        let answered = Instant::now();
        let (word, seen) = heard.recv_timeout(PATIENCE * 2).context("the watcher went away")?;
        if word != "seen" {
            bail!("{} did not program {} within {} s", peer.name(), load.server(number), PATIENCE.as_secs());
        }
        times.push(millis(seen.saturating_duration_since(answered)));
        watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    }
    Ok(times)
}

/// The same for the agent on the host, by its own count of what it has programmed.
pub(super) fn measure_on_host(lab: &Lab, api: &Api, load: &Load, changes: usize) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for change in 0..changes {
        let number = change * load.services / changes;
        let before = metrics::programmed_on_host(lab).context("the agent's metrics")?.messages;
        load.change(api, number, 3, false)?;
        let answered = Instant::now();
        while metrics::programmed_on_host(lab).context("the agent's metrics")?.messages <= before {
            if answered.elapsed() > PATIENCE {
                bail!("the agent did not program {} within {} s", load.server(number), PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(millis(answered.elapsed()));
    }
    Ok(times)
}
