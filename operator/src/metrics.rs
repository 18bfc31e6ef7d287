//! What is counted: `nodenet_operator_*`, base units, labels from closed sets only.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use nodenet_planner::Kind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    verb: &'static str,
    result: &'static str,
}

/// How a write ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Somebody else wrote in between.
    Conflict,
    /// Refused or lost.
    Error,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Conflict => "conflict",
            Self::Error => "error",
        }
    }
}

/// All counters; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    writes: Family<Write, Counter>,
    plan: Histogram,
    change_to_written: Histogram,
    queue: Gauge,
    leader: Gauge,
    restarts: Family<OfKind, Counter>,
    undecodable: Family<OfKind, Gauge<i64, AtomicI64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("nodenet_operator");
        // 100 µs to 3 s; a plan of one Service takes microseconds, the first of all of them a second.
        let plan = Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]);
        let change_to_written = Histogram::new([
            0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ]);
        let writes = Family::<Write, Counter>::default();
        let queue = Gauge::default();
        let leader = Gauge::default();
        let restarts = Family::<OfKind, Counter>::default();
        let undecodable = Family::<OfKind, Gauge<i64, AtomicI64>>::default();
        registry.register("api_writes", "Writes to the API server", writes.clone());
        registry.register_with_unit(
            "plan_duration",
            "Time to plan what changed together",
            Unit::Seconds,
            plan.clone(),
        );
        registry.register_with_unit(
            "change_to_written",
            "Time from the arrival of a Service's or endpoint's change to the answer to the last write it caused",
            Unit::Seconds,
            change_to_written.clone(),
        );
        registry.register("queue_depth", "Keys that wait to be planned or written", queue.clone());
        registry.register("leader", "1 where this replica leads", leader.clone());
        registry.register("watch_restarts", "Watches that broke and were taken up again", restarts.clone());
        registry.register("undecodable_objects", "Objects that cannot be decoded", undecodable.clone());
        for kind in Kind::ALL {
            let label = OfKind { kind: kind.as_str() };
            drop(restarts.get_or_create(&label));
            drop(undecodable.get_or_create(&label));
        }
        Self(Arc::new(Inner {
            registry,
            writes,
            plan,
            change_to_written,
            queue,
            leader,
            restarts,
            undecodable,
        }))
    }

    /// A write ended.
    pub fn wrote(&self, kind: &'static str, verb: &'static str, outcome: Outcome) {
        self.0.writes.get_or_create(&Write { kind, verb, result: outcome.as_str() }).inc();
    }

    /// Planning took this long.
    pub fn planned(&self, took: Duration) {
        self.0.plan.observe(took.as_secs_f64());
    }

    /// A change has been written completely.
    pub fn change_written(&self, took: Duration) {
        self.0.change_to_written.observe(took.as_secs_f64());
    }

    /// Keys in the queue.
    pub fn queue_depth(&self, depth: usize) {
        self.0.queue.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    /// Whether this replica leads.
    pub fn leader(&self, leads: bool) {
        self.0.leader.set(leads.into());
    }

    /// A watch broke.
    pub fn watch_restarted(&self, kind: Kind) {
        self.0.restarts.get_or_create(&OfKind { kind: kind.as_str() }).inc();
    }

    /// Objects of `kind` that cannot be decoded now.
    pub fn undecodable(&self, kind: Kind, objects: usize) {
        let label = OfKind { kind: kind.as_str() };
        self.0.undecodable.get_or_create(&label).set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_prefix_unit_and_total() {
        let metrics = Metrics::new();
        metrics.wrote("NodeNetSlice", "replace", Outcome::Ok);
        metrics.planned(Duration::from_millis(2));
        metrics.change_written(Duration::from_millis(30));
        let text = metrics.encode().unwrap();
        for line in [
            r#"nodenet_operator_api_writes_total{kind="NodeNetSlice",verb="replace",result="ok"} 1"#,
            r#"nodenet_operator_change_to_written_seconds_bucket{le="0.03"} 1"#,
            "nodenet_operator_plan_duration_seconds_count 1",
            "nodenet_operator_leader 0",
            r#"nodenet_operator_watch_restarts_total{kind="Service"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
    }
}
