//! The node's Lease: the agent's sign of life. The operator counts from when it last saw it renewed.
//!
//! It says that held addresses are renewed. So it is renewed only while the lane that renews them is alive and well.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::ObjectMeta;
use nodenet_crds::AGENT_FIELD_MANAGER;
use nodenet_crds::timing::{
    FENCE_LIFETIME, FENCE_LIFETIME_RESTART, LEASE_RENEW_CANDIDATE, LEASE_RENEW_IDLE, lease_duration_seconds,
};

/// Longest wait for an answer: a renewal that takes longer counts as lost, and the next one is due by then.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// What kind of holder renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A virtual IP is assigned to the node.
    Candidate,
    /// None is.
    Idle,
    /// The agent stops on purpose; its successor is expected soon.
    Restart,
}

impl Pace {
    /// Time between renewals.
    pub fn period(self) -> Duration {
        match self {
            Self::Candidate | Self::Restart => LEASE_RENEW_CANDIDATE,
            Self::Idle => LEASE_RENEW_IDLE,
        }
    }

    /// `leaseDurationSeconds`.
    pub fn duration_seconds(self) -> i32 {
        match self {
            Self::Candidate => lease_duration_seconds(FENCE_LIFETIME, LEASE_RENEW_CANDIDATE),
            Self::Idle => lease_duration_seconds(FENCE_LIFETIME, LEASE_RENEW_IDLE),
            Self::Restart => lease_duration_seconds(FENCE_LIFETIME_RESTART, LEASE_RENEW_CANDIDATE),
        }
    }
}

/// Why a Lease was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The API server refused, or was not reached.
    #[error("renew Lease {namespace}/{name}: {source}")]
    Api {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Cause.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("renew Lease {namespace}/{name}: no answer for {} ms", TIMEOUT.as_millis())]
    Timeout {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
}

impl LeaseError {
    /// Whether the API server answered: a renewal without an answer may still be on its way.
    pub fn answered(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(**source, kube::Error::Api(_)))
    }
}

/// The Lease of one node.
pub struct NodeLease {
    api: Api<Lease>,
    namespace: String,
    node: String,
}

impl NodeLease {
    /// The Lease named as the node in `namespace`.
    pub fn new(client: kube::Client, namespace: &str, node: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, namespace: namespace.to_owned(), node: node.to_owned() }
    }

    /// Renews it; makes it where there is none. One request.
    pub async fn renew(&self, pace: Pace) -> Result<(), LeaseError> {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(self.node.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.node.clone()),
                lease_duration_seconds: Some(pace.duration_seconds()),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let parameters = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        let patch = Patch::Apply(&lease);
        let request = self.api.patch(&self.node, &parameters, &patch);
        let (namespace, name) = (self.namespace.clone(), self.node.clone());
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(LeaseError::Api { namespace, name, source: Box::new(source) }),
            Err(_) => Err(LeaseError::Timeout { namespace, name }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_covers_the_fence_and_one_renewal() {
        assert_eq!(Pace::Candidate.duration_seconds(), 8);
        assert_eq!(Pace::Idle.duration_seconds(), 16);
        assert_eq!(Pace::Restart.duration_seconds(), 32);
    }
}
