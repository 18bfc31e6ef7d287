//! What a program has cost: memory, processor time, programs started, messages to the kernel.

use crate::lab::Lab;
use crate::lab::guest::Started;
use crate::lab::process::lab_tool;
use crate::lab::protocol::Exec;
use crate::lab::traffic::Place;
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Where the guest's kernel accounts for the programs it has run.
const ACCOUNT: &str = "/run/programs";

/// Programs that the bench itself runs in the guest.
const OF_THE_BENCH: &[&str] = &["lab-tool", "cat", "sh", "ip", "modprobe", "ipvsadm", "ln", "mkdir"];

/// Makes the guest count.
pub(super) fn prepare(lab: &Lab) -> anyhow::Result<()> {
    let tool = lab_tool()?.display().to_string();
    let guest = lab.guest().channel();
    guest.run(Exec::new([tool.as_str(), "account", ACCOUNT]))?;
    guest.run(Exec::new(["modprobe", "nlmon"]))?;
    Ok(())
}

/// Programs that the guest has run until now, by name, without the bench's own.
pub(super) fn programs(lab: &Lab) -> anyhow::Result<BTreeMap<String, f64>> {
    let tool = lab_tool()?.display().to_string();
    // Of the guest's root: a node's /run is private.
    let text = lab.guest().channel().run(Exec::new([tool.as_str(), "accounted", ACCOUNT]))?;
    let line = |line: &str| {
        let (count, name) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).filter(|(name, _)| !OF_THE_BENCH.contains(&name.as_str())).collect())
}

/// What came since `before`.
pub(super) fn since(now: BTreeMap<String, f64>, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    now.into_iter()
        .map(|(name, count)| {
            let earlier = before.get(&name).copied().unwrap_or(0.0);
            (name, count - earlier)
        })
        .filter(|(_, count)| *count > 0.0)
        .collect()
}

/// Processor time of a program and of those it has started and waited for, in milliseconds.
pub(super) fn processor_millis(place: &Place, id: u32) -> anyhow::Result<f64> {
    let tool = lab_tool()?.display().to_string();
    let text = place.run(&[&tool, "processor-time", &id.to_string()])?;
    text.trim().parse().with_context(|| format!("processor time `{text}`"))
}

/// The same of a process on the host.
pub(super) fn processor_millis_of_host(id: u32) -> anyhow::Result<f64> {
    let tool = lab_tool()?;
    let said = std::process::Command::new(&tool).args(["processor-time", &id.to_string()]).output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.trim().parse().with_context(|| format!("processor time `{text}`"))
}

/// Waits until the program rests, so that what is measured next does not wait for what it did before.
pub(super) fn rest(place: &Place, id: u32, timeout: Duration) -> anyhow::Result<()> {
    let tool = lab_tool()?.display().to_string();
    let seconds = timeout.as_secs().to_string();
    let outcome = place.attempt(&[&tool, "await-rest", "--timeout-seconds", &seconds, &id.to_string()])?;
    if outcome.code != 0 {
        bail!("process {id} on {} does not come to rest: {}", place.name(), outcome.stderr);
    }
    Ok(())
}

/// Resident memory of a process in the guest and its peak, in MiB.
pub(super) fn memory(place: &Place, id: u32) -> anyhow::Result<(f64, f64)> {
    parse(&place.run(&["cat", &format!("/proc/{id}/status")])?)
}

/// The same of a process on the host.
pub(super) fn memory_of_host(id: u32) -> anyhow::Result<(f64, f64)> {
    parse(&std::fs::read_to_string(format!("/proc/{id}/status"))?)
}

fn parse(status: &str) -> anyhow::Result<(f64, f64)> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<f64>().ok().map(|kibibytes| kibibytes / 1024.0)
    };
    field("VmRSS:").zip(field("VmHWM:")).context("a process without resident memory")
}

/// What the programs of a node have asked of the kernel over netlink.
#[derive(Debug, Clone, Copy)]
pub(super) struct Requests {
    pub(super) messages: f64,
    /// Messages that do more than ask.
    pub(super) changes: f64,
    pub(super) sends: f64,
}

/// Counts what the programs of a node ask of the kernel over netlink.
pub(super) struct Tap {
    place: Place,
    started: Started,
    log: String,
}

impl Tap {
    pub(super) fn start(place: &Place) -> anyhow::Result<Self> {
        place.run(&["ip", "link", "add", "tap-nl", "type", "nlmon"])?;
        place.run(&["ip", "link", "set", "tap-nl", "up"])?;
        let tool = lab_tool()?.display().to_string();
        let name = format!("requests-{}.log", place.name());
        let started = place.spawn(Exec::new([tool.as_str(), "count-requests"]), &name)?;
        let log = format!("{}/{name}", crate::tool::init::SHARED);
        let tap = Self { place: place.clone(), started, log };
        crate::lab::process::wait_for(
            "the netlink tap",
            Duration::from_secs(10),
            Path::new(&tap.log),
            || {
                let outcome = tap.place.attempt(&["cat", &tap.log])?;
                Ok(outcome.stdout.starts_with("ready").then_some(()))
            },
        )?;
        Ok(tap)
    }

    /// What was seen until now.
    pub(super) fn read(&self) -> anyhow::Result<Requests> {
        let mut last = None;
        // It looks every 50 ms; to read its log takes longer than that.
        loop {
            let text = self.place.run(&["cat", &self.log])?;
            let line = text.lines().last().unwrap_or_default().to_owned();
            if last.as_ref() == Some(&line) {
                let mut numbers = line.split(' ').map(|number| number.parse().unwrap_or(0.0));
                let mut next = || numbers.next().unwrap_or(0.0);
                return Ok(Requests { messages: next(), changes: next(), sends: next() });
            }
            last = Some(line);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.started.signal(Signal::SIGKILL)?;
        self.started.wait(Duration::from_secs(5))?;
        Ok(())
    }
}
