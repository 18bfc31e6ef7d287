//! Where it is measured: the figures mean nothing without it.

use super::change::millis;
use super::figures::{Machine, Samples};
use crate::lab::Lab;
use crate::lab::protocol::Exec;
use anyhow::Context;
use std::fs;
use std::time::Instant;

/// Names processor, memory and kernels.
pub(super) fn describe(lab: &Lab) -> anyhow::Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let kibibytes: f64 = memory.trim_end_matches("kB").trim().parse().unwrap_or(0.0);
    Ok(Machine {
        processor: field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gibibytes: (kibibytes / (1024.0 * 1024.0)).round(),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        guest_kernel: guest_kernel(lab)?,
        kube_apiserver: format!("1.{}", lab.cluster().minor()),
        load_average: read("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "),
    })
}

fn guest_kernel(lab: &Lab) -> anyhow::Result<String> {
    let release = lab.guest().channel().run(Exec::new(["cat", "/proc/sys/kernel/osrelease"]))?;
    Ok(format!("{} (user-mode Linux, 1 processor)", release.trim()))
}

/// How long a question to the guest and its answer take.
pub(super) fn channel_round_trip(lab: &Lab) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..20 {
        let begin = Instant::now();
        lab.guest().channel().ping()?;
        samples.push(millis(begin.elapsed()));
    }
    Ok(samples)
}
