//! What processes of this host cost.

use anyhow::Context;
use std::fs;

/// Processor time of a process so far.
pub(super) fn millis(id: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{id}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may hold anything; what follows its bracket does not.
    let (_, rest) = text.rsplit_once(')').context("a stat line")?;
    let field = |number: usize| rest.split_whitespace().nth(number)?.parse::<f64>().ok();
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system).context("processor time")?;
    // USER_HZ is 100 on every architecture that Linux runs on here.
    Ok(ticks * 10.0)
}

/// Resident memory now.
pub(super) fn resident_mebibytes(id: u32) -> anyhow::Result<f64> {
    field(id, "VmRSS:")
}

/// Resident memory at its highest.
pub(super) fn peak_mebibytes(id: u32) -> anyhow::Result<f64> {
    field(id, "VmHWM:")
}

fn field(id: u32, name: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{id}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("resident memory")?;
    Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

/// Processor, cores, memory and load: the figures mean nothing without them.
pub(super) fn machine() -> anyhow::Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let (processor, memory, load) = (read("/proc/cpuinfo")?, read("/proc/meminfo")?, read("/proc/loadavg")?);
    let of = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load: Vec<&str> = load.split(' ').take(3).collect();
    Ok(format!(
        "{cores} × {}, {}, load {}",
        of(&processor, "model name"),
        of(&memory, "MemTotal"),
        load.join(" ")
    ))
}
