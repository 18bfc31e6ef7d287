//! Whether the operator is alive, and whether what it published is whole: by its leader Lease. Counted from what this
//! agent itself saw, never from the Lease's own time: clocks of machines differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use nodenet_crds::PUBLISHED_ANNOTATION;

/// Name of the operator's leader Lease.
pub const LEASE: &str = "nodenet-operator";
/// A leader renews every 2 s, and 15 s after its last renewal another one may lead.
const RENEWED: Duration = Duration::from_secs(15);

/// What the operator says of the plans that it has published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Publication {
    /// Nothing is known: it was not seen to renew its Lease yet.
    #[default]
    Unknown,
    /// It does not renew its Lease: what it said before may be old.
    Silent,
    /// It lives, and does not say that all is published.
    Incomplete,
    /// All that follows from the Services that there are is in slices up to this revision.
    Whole {
        /// Highest revision of them.
        revision: i64,
        /// When it said so.
        at: Instant,
    },
}

/// What was last seen of the Lease.
#[derive(Debug)]
pub struct OperatorWatch {
    namespace: String,
    limit: Duration,
    /// `renewTime` and holder as text, and when they were first seen.
    seen: Option<(String, Instant)>,
    /// This agent itself saw it being renewed.
    renews: bool,
    published: Option<i64>,
    started: Instant,
}

impl OperatorWatch {
    /// Nothing was seen yet. The operator is called silent when its Lease does not change for `limit`.
    pub fn new(namespace: &str, limit: Duration, now: Instant) -> Self {
        let namespace = namespace.to_owned();
        Self { namespace, limit, seen: None, renews: false, published: None, started: now }
    }

    /// Reads the Lease.
    pub async fn look(&mut self, client: &kube::Client) -> Result<(), kube::Error> {
        let lease = Api::<Lease>::namespaced(client.clone(), &self.namespace).get_opt(LEASE).await?;
        let Some(lease) = lease else {
            self.saw(None, None, Instant::now());
            return Ok(());
        };
        let said = lease.metadata.annotations.and_then(|mut all| all.remove(PUBLISHED_ANNOTATION));
        let spec = lease.spec.unwrap_or_default();
        // Who released it says nothing any more.
        let published =
            said.filter(|_| spec.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty()));
        let renewed = spec.renew_time.map(|t| format!("{} {:?}", t.0, spec.holder_identity));
        self.saw(renewed, published.and_then(|revision| revision.parse().ok()), Instant::now());
        Ok(())
    }

    /// Takes note of what was read; `None` where there is no Lease, and where it does not say that all is published.
    pub fn saw(&mut self, renewed: Option<String>, published: Option<i64>, now: Instant) {
        self.published = published;
        if let Some(renewed) = renewed
            && self.seen.as_ref().is_none_or(|(last, _)| *last != renewed)
        {
            self.renews = self.seen.is_some();
            self.seen = Some((renewed, now));
        }
    }

    /// What the operator says of what it published, by the last look.
    pub fn publication(&self, now: Instant) -> Publication {
        let Some((_, at)) = &self.seen else { return Publication::Unknown };
        if now.saturating_duration_since(*at) > RENEWED {
            return Publication::Silent;
        }
        match self.published {
            _ if !self.renews => Publication::Unknown,
            None => Publication::Incomplete,
            Some(revision) => Publication::Whole { revision, at: *at },
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
        watch.saw(Some("1".into()), None, after(1));
        assert_eq!(watch.silent(after(61)), None);
        watch.saw(Some("2".into()), None, after(61));
        watch.saw(Some("2".into()), None, after(121));
        assert_eq!(watch.silent(after(121)), None);
        let words = watch.silent(after(140)).unwrap();
        assert!(words.contains("nodenet-system/nodenet-operator for 79 s"), "{words}");
        watch.saw(Some("3".into()), None, after(141));
        assert_eq!(watch.silent(after(141)), None);
    }

    #[test]
    fn an_operator_that_never_was_is_silent_too() {
        let start = Instant::now();
        let watch = OperatorWatch::new("n", Duration::from_secs(60), start);
        assert!(watch.silent(start + Duration::from_secs(61)).unwrap().contains("has no Lease"));
    }

    #[test]
    fn a_publication_counts_while_the_lease_is_seen_to_be_renewed() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = OperatorWatch::new("n", Duration::from_secs(120), start);
        assert_eq!(watch.publication(start), Publication::Unknown);
        watch.saw(Some("1".into()), Some(7), after(1));
        assert_eq!(watch.publication(after(1)), Publication::Unknown, "it may be a week old");
        watch.saw(Some("1".into()), Some(7), after(17));
        assert_eq!(watch.publication(after(17)), Publication::Silent);
        watch.saw(Some("2".into()), Some(8), after(20));
        assert_eq!(watch.publication(after(20)), Publication::Whole { revision: 8, at: after(20) });
        watch.saw(Some("3".into()), None, after(22));
        assert_eq!(watch.publication(after(22)), Publication::Incomplete);
        watch.saw(None, None, after(24));
        assert_eq!(watch.publication(after(24)), Publication::Incomplete);
        watch.saw(Some("4".into()), Some(9), after(60));
        assert_eq!(watch.publication(after(76)), Publication::Silent);
    }
}
