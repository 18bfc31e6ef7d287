//! What nodenet promises of its speed, and whether the figures keep it.

use super::figures::{Figures, Report, Samples};
use serde::Serialize;

/// A bar and what was seen.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) bar: &'static str,
    pub(super) seen: String,
    pub(super) reached: bool,
}

/// Judges what was measured; what was left out is not judged.
pub(super) fn judge(report: &Report) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let Some(nodenet) = &report.nodenet else { return verdicts };
    let mut judge = |bar, seen: Option<f64>, unit: &str, holds: &dyn Fn(f64) -> bool| {
        let text =
            seen.map_or("not measured".into(), |seen| format!("{seen:.1} {unit}").trim_end().to_owned());
        verdicts.push(Verdict { bar, seen: text, reached: seen.is_some_and(holds) });
    };
    if let Some(peer) = &report.kube_proxy {
        let ratio = |of: fn(&Figures) -> &Samples| {
            of(peer).median().zip(of(nodenet).median()).map(|(theirs, ours)| theirs / ours)
        };
        judge(
            "first sync, sets and all: at least 10 times faster than kube-proxy",
            ratio(|figures| &figures.complete_seconds),
            "times",
            &|ratio| ratio >= 10.0,
        );
        judge(
            "first sync, real servers alone: at least 10 times faster than kube-proxy",
            ratio(|figures| &figures.first_sync_seconds),
            "times",
            &|ratio| ratio >= 10.0,
        );
    }
    judge(
        "one endpoint, API server's answer to the guest's kernel: under 150 ms",
        nodenet.change_millis().median(),
        "ms",
        &|millis| millis < 150.0,
    );
    if let Some(fake) = &report.nodenet_on_fake_kernel {
        let seen = fake.change_millis().median();
        judge("the same with a kernel in memory on the host: under 50 ms", seen, "ms", &|millis| {
            millis < 50.0
        });
    }
    judge("one API write a change, never more", exactly(&nodenet.change_api_writes, 1.0), "", &|writes| {
        (writes - 1.0).abs() < f64::EPSILON
    });
    judge(
        "one endpoint of one virtual server: at most one message that changes the kernel",
        nodenet.change_changing_messages.greatest(),
        "",
        &|messages| messages <= 1.0,
    );
    judge(
        "a route removed by another hand is back: under 1 s, always",
        nodenet.route_repair_millis.greatest(),
        "ms",
        &|millis| millis < 1000.0,
    );
    judge(
        "agent under 20 MB resident after the first sync",
        nodenet.resident_mebibytes.greatest().map(|mebibytes| mebibytes * 1.048_576),
        "MB",
        &|megabytes| megabytes < 20.0,
    );
    verdicts
}

/// The value that all samples have, or the one farthest from it.
fn exactly(samples: &Samples, wanted: f64) -> Option<f64> {
    let (least, greatest) = (samples.least()?, samples.greatest()?);
    Some(if wanted - least > greatest - wanted { least } else { greatest })
}
