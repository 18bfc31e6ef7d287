//! What nodenet promises of its speed, and whether the figures keep it.

use super::figures::{Figures, Report, Samples};
use serde::Serialize;

/// Services from which on the distance to kube-proxy is to be the larger one.
const LARGE: usize = 10_000;
/// Services up to which the agent's memory has the smaller limit.
const SMALL: usize = 2_000;

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
    // Asked for at 10,000 Services; with less of them the distance is smaller.
    let large = report.services >= LARGE;
    if let Some(peer) = &report.kube_proxy {
        // Where it did not finish, the time that it had stands for what it would have needed: it is less.
        let ratio = |of: fn(&Figures) -> &Samples| {
            let theirs = of(peer).median().or(peer.unfinished_after_seconds);
            theirs.zip(of(nodenet).median()).map(|(theirs, ours)| theirs / ours)
        };
        let (factor, bars) = if large {
            (
                20.0,
                [
                    "first sync, sets and all: at least 20 times faster than kube-proxy",
                    "first sync, real servers alone: at least 20 times faster than kube-proxy",
                ],
            )
        } else {
            (
                10.0,
                [
                    "first sync, sets and all: at least 10 times faster than kube-proxy",
                    "first sync, real servers alone: at least 10 times faster than kube-proxy",
                ],
            )
        };
        judge(bars[0], ratio(|figures| &figures.complete_seconds), "times", &|ratio| ratio >= factor);
        judge(bars[1], ratio(|figures| &figures.first_sync_seconds), "times", &|ratio| ratio >= factor);
    }
    if let Some(bare) = report.bare_loop.as_ref().filter(|_| large) {
        let of = |seconds: f64| nodenet.first_sync_seconds.median().map(|ours| ours / seconds);
        let (single, together) = (of(bare.single_seconds), of(bare.together_seconds));
        let bar = "first sync within 2 times of a bare loop that sends the same messages one by one";
        judge(bar, single, "times", &|ratio| ratio <= 2.0);
        let bar = "first sync within 2 times of a bare loop that sends the same messages in large sends";
        judge(bar, together, "times", &|ratio| ratio <= 2.0);
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
    if let Some(fake) = &report.nodenet_on_fake_kernel {
        let samples = fake.change_millis();
        if samples.len() >= 100 {
            let late = samples.percentile(99);
            judge("99 of 100 of these under 150 ms", late, "ms", &|millis| millis < 150.0);
        }
        let idle = fake.idle_percent.greatest();
        judge("idle, kernel in memory: under 0.5 % of one processor", idle, "%", &|percent| percent < 0.5);
    }
    if let Some(steps) = nodenet.rolling_steps.greatest() {
        let writes = nodenet.rolling_api_writes.greatest();
        judge("rolling update: no more writes than it consisted of", writes, "", &|writes| writes <= steps);
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
    let (limit, bar) = if report.services > SMALL {
        (60.0, "agent under 60 MB resident after the first sync")
    } else {
        (20.0, "agent under 20 MB resident after the first sync")
    };
    let resident = nodenet.resident_mebibytes.greatest().map(|mebibytes| mebibytes * 1.048_576);
    judge(bar, resident, "MB", &|megabytes| megabytes < limit);
    verdicts
}

/// The value that all samples have, or the one farthest from it.
fn exactly(samples: &Samples, wanted: f64) -> Option<f64> {
    let (least, greatest) = (samples.least()?, samples.greatest()?);
    Some(if wanted - least > greatest - wanted { least } else { greatest })
}
