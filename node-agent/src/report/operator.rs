//! Whether the operator is alive, by its leader Lease. Counted from what this agent itself saw, never from the Lease's
//! own time: clocks of machines differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;

/// Name of the operator's leader Lease.
pub const LEASE: &str = "nodenet-operator";

/// What was last seen of the Lease.
#[derive(Debug)]
pub struct OperatorWatch {
    namespace: String,
    limit: Duration,
    /// `renewTime` and holder as text, and when they were first seen.
    seen: Option<(String, Instant)>,
    started: Instant,
}

impl OperatorWatch {
    /// Nothing was seen yet. The operator is called silent when its Lease does not change for `limit`.
    pub fn new(namespace: &str, limit: Duration, now: Instant) -> Self {
        Self { namespace: namespace.to_owned(), limit, seen: None, started: now }
    }

    /// Reads the Lease.
    pub async fn look(&mut self, client: &kube::Client) -> Result<(), kube::Error> {
        let lease = Api::<Lease>::namespaced(client.clone(), &self.namespace).get_opt(LEASE).await?;
        let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
        let renewed = spec.renew_time.map(|t| format!("{} {:?}", t.0, spec.holder_identity));
        self.saw(renewed, Instant::now());
        Ok(())
    }

    /// Takes note of what was read; `None` where there is no Lease.
    pub fn saw(&mut self, renewed: Option<String>, now: Instant) {
        if let Some(renewed) = renewed
            && self.seen.as_ref().is_none_or(|(last, _)| *last != renewed)
        {
            self.seen = Some((renewed, now));
        }
    }

    /// Words about an operator that is silent; `None` while it is not, or while nothing can be said.
    pub fn silent(&self, now: Instant) -> Option<String> {
        let (since, what) = match &self.seen {
            Some((_, since)) => (*since, "has not renewed its Lease"),
            None => (self.started, "has no Lease"),
        };
        let silent = now.saturating_duration_since(since);
        (silent > self.limit).then(|| {
            format!(
                "the operator {what} {}/{LEASE} for {} s, as seen from this node; the last plans stay in force",
                self.namespace,
                silent.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_what_was_seen() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = OperatorWatch::new("nodenet-system", Duration::from_secs(60), start);
        watch.saw(Some("1".into()), after(1));
        assert_eq!(watch.silent(after(61)), None);
        watch.saw(Some("2".into()), after(61));
        watch.saw(Some("2".into()), after(121));
        assert_eq!(watch.silent(after(121)), None);
        let words = watch.silent(after(140)).unwrap();
        assert!(words.contains("nodenet-system/nodenet-operator for 79 s"), "{words}");
        watch.saw(Some("3".into()), after(141));
        assert_eq!(watch.silent(after(141)), None);
    }

    #[test]
    fn an_operator_that_never_was_is_silent_too() {
        let start = Instant::now();
        let watch = OperatorWatch::new("n", Duration::from_secs(60), start);
        assert!(watch.silent(start + Duration::from_secs(61)).unwrap().contains("has no Lease"));
    }
}
