//! The Lease in an API server.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use nodenet_crds::PUBLISHED_ANNOTATION;

use super::{LeaseStore, Record, StoreError};

/// One Lease, by namespace and name.
#[derive(Clone)]
pub struct KubeLease {
    api: Api<Lease>,
    namespace: String,
    name: String,
}

impl std::fmt::Debug for KubeLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease {}/{}", self.namespace, self.name)
    }
}

impl KubeLease {
    /// The Lease `namespace/name`; it need not exist.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn lease(&self, record: &Record) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                annotations: record
                    .published
                    .map(|revision| [(PUBLISHED_ANNOTATION.to_owned(), revision.to_string())].into()),
                resource_version: (!record.version.is_empty()).then(|| record.version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: record.acquired.map(MicroTime),
                // An empty holder is how client-go writes a release; the API refuses none at all in some versions.
                holder_identity: Some(record.holder.clone().unwrap_or_default()),
                lease_duration_seconds: Some(i32::try_from(record.duration.as_secs()).unwrap_or(i32::MAX)),
                lease_transitions: Some(record.transitions),
                renew_time: record.renewed.map(MicroTime),
                ..LeaseSpec::default()
            }),
        }
    }

    fn error(&self, operation: &'static str, source: kube::Error) -> StoreError {
        match source {
            kube::Error::Api(status) if status.code == 409 => StoreError::Conflict,
            source => StoreError::Request {
                operation,
                name: format!("{}/{}", self.namespace, self.name),
                source: Box::new(source),
            },
        }
    }
}

fn record(lease: Lease) -> Record {
    let spec = lease.spec.unwrap_or_default();
    let published = lease.metadata.annotations.unwrap_or_default();
    Record {
        version: lease.metadata.resource_version.unwrap_or_default(),
        holder: spec.holder_identity.filter(|h| !h.is_empty()),
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(1).max(1).unsigned_abs().into()),
        acquired: spec.acquire_time.map(|t| t.0),
        renewed: spec.renew_time.map(|t| t.0),
        transitions: spec.lease_transitions.unwrap_or(0),
        published: published.get(PUBLISHED_ANNOTATION).and_then(|revision| revision.parse().ok()),
    }
}

impl LeaseStore for KubeLease {
    async fn get(&self) -> Result<Option<Record>, StoreError> {
        let found = self.api.get_opt(&self.name).await.map_err(|e| self.error("get", e))?;
        Ok(found.map(record))
    }

    async fn create(&self, new: &Record) -> Result<Record, StoreError> {
        let made = self.api.create(&PostParams::default(), &self.lease(new)).await;
        made.map(record).map_err(|e| self.error("create", e))
    }

    async fn replace(&self, new: &Record) -> Result<Record, StoreError> {
        let written = self.api.replace(&self.name, &PostParams::default(), &self.lease(new)).await;
        written.map(record).map_err(|e| self.error("replace", e))
    }
}
