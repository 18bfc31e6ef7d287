//! Writes the status, by server-side apply on the status subresource, and only when it says something new: at once when
//! somebody waits for it, otherwise not more often than the coalescing time.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use nodenet_crds::{AGENT_FIELD_MANAGER, GROUP, NodeNetState, NodeNetStateStatus, VERSION};
use serde_json::json;
use tokio::time::Instant;

use super::facts::{AddressFacts, ServiceFacts, SourceFacts};
use super::status;

/// Decides what is written and when. No I/O.
#[derive(Debug)]
pub struct Pending {
    coalesce: Duration,
    /// What the API server has, as far as is known.
    written: Option<NodeNetStateStatus>,
    wanted: Option<NodeNetStateStatus>,
    last_write: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
}

impl Pending {
    /// Nothing is known. Writes that nobody waits for are at least `coalesce` apart.
    pub fn new(coalesce: Duration) -> Self {
        Self { coalesce, written: None, wanted: None, last_write: None, not_before: None, failures: 0 }
    }

    /// The API server has this status (`None`: none at all).
    pub fn seen(&mut self, status: Option<NodeNetStateStatus>) {
        self.written = Some(status.unwrap_or_default());
    }

    /// The node has no NodeNetState: nothing can be written.
    pub fn gone(&mut self) {
        self.written = None;
    }

    /// The facts changed.
    pub fn facts(&mut self, addresses: &AddressFacts, services: &ServiceFacts, source: &SourceFacts) {
        let empty = NodeNetStateStatus::default();
        let previous = self.wanted.as_ref().or(self.written.as_ref()).unwrap_or(&empty);
        // The API keeps whole seconds: what comes back must equal what was written.
        let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH));
        self.wanted = Some(status::compose(previous, addresses, services, source, &now));
    }

    /// When to write, if there is anything to write.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let (written, wanted) = (self.written.as_ref()?, self.wanted.as_ref()?);
        if written == wanted {
            return None;
        }
        let due = match self.last_write {
            Some(last) if !status::urgent(written, wanted) => last + self.coalesce,
            _ => now,
        };
        Some(self.not_before.map_or(due, |earliest| due.max(earliest)))
    }

    /// What to write now; answer with [`Pending::done`] or [`Pending::failed`].
    pub fn take(&self) -> Option<NodeNetStateStatus> {
        self.wanted.clone()
    }

    /// It was written.
    pub fn done(&mut self, status: NodeNetStateStatus, now: Instant) {
        self.written = Some(status);
        self.last_write = Some(now);
        self.failures = 0;
        // Many changes in a row share writes even when each is worth one.
        self.not_before = Some(now + Duration::from_millis(100));
    }

    /// It was not written: later again.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let wait = Duration::from_millis(500 << self.failures.min(6)).min(Duration::from_secs(4));
        self.not_before = Some(now + crate::agent::clock::jitter(wait, 0.2));
    }
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The API server refused, or was not reached.
    #[error("write status of NodeNetState {node}: {source}")]
    Api {
        /// Name.
        node: String,
        /// Cause.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("write status of NodeNetState {node}: no answer")]
    Timeout {
        /// Name.
        node: String,
    },
}

/// Writes `status` for `node`, to the object with this UID and to no other: what is reported of a deleted one says
/// nothing about one that was made since.
pub async fn write(
    api: &Api<NodeNetState>,
    node: &str,
    uid: Option<&str>,
    status: &NodeNetStateStatus,
) -> Result<(), PublishError> {
    let metadata = match uid {
        Some(uid) => json!({ "name": node, "uid": uid }),
        None => json!({ "name": node }),
    };
    let patch = Patch::Apply(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "NodeNetState",
        "metadata": metadata,
        "status": status,
    }));
    let parameters = PatchParams::apply(AGENT_FIELD_MANAGER).force();
    let request = api.patch_status(node, &parameters, &patch);
    match tokio::time::timeout(super::lease::TIMEOUT, request).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(PublishError::Api { node: node.to_owned(), source: Box::new(source) }),
        Err(_) => Err(PublishError::Timeout { node: node.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::facts::Verdict;

    fn services(revision: i64) -> ServiceFacts {
        ServiceFacts { slice_revision: Some(revision), ..ServiceFacts::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn news_that_nobody_waits_for_are_collected() {
        let (addresses, source) = (AddressFacts::default(), SourceFacts::default());
        let mut pending = Pending::new(Duration::from_secs(30));
        pending.facts(&addresses, &services(1), &source);
        let start = Instant::now();
        assert_eq!(pending.due(start), None, "nothing is written before the object was seen");
        pending.seen(None);
        assert_eq!(pending.due(start), Some(start), "the first is written at once");
        pending.done(pending.take().unwrap(), start);
        assert_eq!(pending.due(start), None);
        pending.facts(&addresses, &services(2), &source);
        assert_eq!(pending.due(start), Some(start + Duration::from_secs(30)));
        let mut failed = services(3);
        failed.packet_filter = Verdict::not("KernelRefused", "x");
        pending.facts(&addresses, &failed, &source);
        assert!(
            pending.due(start).unwrap() < start + Duration::from_secs(1),
            "a condition is written at once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_hand_wrote_is_written_again() {
        let (addresses, source) = (AddressFacts::default(), SourceFacts::default());
        let mut pending = Pending::new(Duration::from_secs(30));
        pending.seen(None);
        pending.facts(&addresses, &services(1), &source);
        let now = Instant::now();
        pending.done(pending.take().unwrap(), now);
        pending.seen(pending.take());
        assert_eq!(pending.due(now), None, "the own write comes back through the watch");
        pending.seen(Some(NodeNetStateStatus::default()));
        assert!(pending.due(now).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let mut pending = Pending::new(Duration::ZERO);
        pending.seen(None);
        pending.facts(&Default::default(), &services(1), &Default::default());
        let now = Instant::now();
        for _ in 0..20 {
            pending.failed(now);
        }
        let wait = pending.due(now).unwrap() - now;
        assert!(wait > Duration::from_secs(3) && wait < Duration::from_secs(6), "{wait:?}");
    }
}
