//! A watch of all NodeNetSlices: when an address is seen in one.

use crate::lab::api::Api;
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PATH: &str = "/apis/nodenet.dev/v1alpha1/nodenetslices";
const PATIENCE: Duration = Duration::from_secs(60);

/// Events as they come. It ends with the API server's time limit of a watch, which is longer than any measurement here.
pub(super) struct Watch {
    events: Receiver<(Instant, String)>,
}

impl Watch {
    /// Watches from now on.
    pub(super) fn start(api: &Api) -> anyhow::Result<Self> {
        let list = api.send("GET", &format!("{PATH}?limit=1"), "application/json", "")?;
        // The list's own comes after those of its items; a watch from one of theirs may begin too far back.
        let version =
            list.text.rsplit("\"resourceVersion\":\"").next().and_then(|rest| rest.split('"').next());
        let version = version.context("the version of the list of NodeNetSlices")?;
        let stream = api.stream(&format!("{PATH}?watch=1&timeoutSeconds=3600&resourceVersion={version}"))?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            // It ends with the connection, or when nobody hears it.
            let _ = follow(BufReader::new(stream), |event| sender.send((Instant::now(), event)).is_ok());
        });
        Ok(Self { events })
    }

    /// When an event with this address came.
    pub(super) fn wait_for(&self, address: &str) -> anyhow::Result<Instant> {
        let needle = format!("\"{address}\"");
        let until = Instant::now() + PATIENCE;
        while let Ok((at, event)) = self.events.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            if event.contains(&needle) {
                return Ok(at);
            }
        }
        bail!("{address} stands in no slice after {} s", PATIENCE.as_secs())
    }
}

/// Tells the lines of a chunked answer until nobody wants more.
fn follow(mut stream: BufReader<TcpStream>, mut told: impl FnMut(String) -> bool) -> anyhow::Result<()> {
    let mut line = String::new();
    while {
        line.clear();
        stream.read_line(&mut line)? > 0
    } && !line.trim().is_empty()
    {}
    let mut rest = Vec::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let length = usize::from_str_radix(line.trim(), 16).context("the length of a chunk")?;
        let begin = rest.len();
        rest.resize(begin + length, 0);
        stream.read_exact(rest.get_mut(begin..).unwrap_or_default())?;
        line.clear();
        stream.read_line(&mut line)?;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let event: Vec<u8> = rest.drain(..=end).collect();
            if !told(String::from_utf8_lossy(&event).into_owned()) {
                return Ok(());
            }
        }
    }
}
