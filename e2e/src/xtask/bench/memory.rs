//! Resident memory of a process, now and at its peak, in MiB.

use crate::lab::traffic::Place;
use anyhow::Context;

/// Of a process in the guest.
pub(super) fn read(place: &Place, id: u32) -> anyhow::Result<(f64, f64)> {
    parse(&place.run(&["cat", &format!("/proc/{id}/status")])?)
}

/// Of a process on the host.
pub(super) fn of_host(id: u32) -> anyhow::Result<(f64, f64)> {
    parse(&std::fs::read_to_string(format!("/proc/{id}/status"))?)
}

fn parse(status: &str) -> anyhow::Result<(f64, f64)> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<f64>().ok().map(|kibibytes| kibibytes / 1024.0)
    };
    field("VmRSS:").zip(field("VmHWM:")).context("a process without resident memory")
}
