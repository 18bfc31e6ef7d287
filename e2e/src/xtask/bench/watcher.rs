//! A watcher of a node's IPVS table, in the guest, and when each of its words came, by the host's clock.

use super::Bench;
use super::peers::Peer;
use crate::lab::error::LabError;
use crate::lab::protocol::{Event, Exec};
use anyhow::Context;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A line, and when it came.
pub(super) type Heard = (String, Instant);

/// One that runs.
pub(super) struct Watcher {
    heard: Receiver<Heard>,
    thread: JoinHandle<Result<i32, LabError>>,
}

impl Watcher {
    /// Starts it on the node of `peer`.
    pub(super) fn start(bench: &Bench, peer: &dyn Peer, argv: Vec<String>) -> Self {
        let exec = Exec::new(argv).within(peer.node());
        let channel = bench.lab.guest().channel().clone();
        let (tell, heard) = mpsc::channel();
        let thread = thread::spawn(move || {
            channel.stream(exec, |event| {
                if let Event::Out { text } = event {
                    for line in text.lines() {
                        let _ = tell.send((line.to_owned(), Instant::now()));
                    }
                }
            })
        });
        Self { heard, thread }
    }

    /// Its next line.
    pub(super) fn hear(&self, patience: Duration) -> anyhow::Result<Heard> {
        Ok(self.heard.recv_timeout(patience)?)
    }

    /// Its last line; it has ended then.
    pub(super) fn last(self, patience: Duration) -> anyhow::Result<Heard> {
        let heard = self.hear(patience).context("the watcher of the IPVS table went away")?;
        self.thread.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
        Ok(heard)
    }
}
