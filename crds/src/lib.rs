//! The kinds of `nodenet.dev/v1alpha1`: what users write, what the operator publishes and what agents report.
//!
//! * [`VirtualIP`]: addresses that live on one node at a time. Written by users.
//! * [`NodeNetState`]: what one node must have (spec, by the operator) and what it has (status, by its agent).
//! * [`NodeNetSlice`]: a shard of the virtual servers that all nodes share. Written by the operator.
//!
//! Fields whose behaviour does not exist yet are not in the schema: a field is never accepted and ignored.
//! Rules that span fields are CEL in the schema ([`rules`]) and the same rules again in [`validate`], because
//! API servers before 1.25 drop CEL and an offline reader has no API server at all.

// Columns are attributes of one name with the same keys: that is how the derive takes several of them.
#![allow(clippy::duplicated_attributes)]

pub mod conditions;
mod node_net_slice;
mod node_net_state;
pub mod rules;
pub mod schema;
pub mod timing;
pub mod validate;
mod virtual_ip;

pub use node_net_slice::*;
pub use node_net_state::*;
pub use virtual_ip::*;

/// API group of all kinds.
pub const GROUP: &str = "nodenet.dev";
/// Served and stored version.
pub const VERSION: &str = "v1alpha1";
/// Keeps a deleted [`NodeNetSlice`]'s content readable until the operator has published it elsewhere.
pub const SLICE_FINALIZER: &str = "nodenet.dev/slice-content";
/// Annotation of the operator's Lease: all that follows from the cluster's Services stands in slices of this
/// [`revision`](NodeNetSliceSpec::revision) or lower, and nothing waits to be written. Absent while that is not so.
pub const PUBLISHED_ANNOTATION: &str = "nodenet.dev/published";
/// Field manager of every write by the operator.
pub const OPERATOR_FIELD_MANAGER: &str = "nodenet-operator";
/// Field manager of every write by an agent.
pub const AGENT_FIELD_MANAGER: &str = "nodenet-agent";
/// Label that takes a Service away from every proxy but the one named (any value takes it away from nodenet).
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label that makes a Service headless for proxies whatever its ClusterIP.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation of a Service: sources that its load balancer lets in, with commas. Older than the field of that meaning.
pub const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Annotation of a Service: the IPVS scheduler of its virtual servers, for example `lc`.
pub const ANNOTATION_SCHEDULER: &str = "nodenet.dev/scheduler";
/// Annotation of a Service: how long an endpoint that leaves keeps its connections, for example `90s`, `1m 30s` or `0s`.
pub const ANNOTATION_DRAIN_TIMEOUT: &str = "nodenet.dev/drain-timeout";
/// Annotation of a Service: weights of endpoints that are not 1, by address or by Node, with commas:
/// `10.244.1.5=3,k8s-node-2=0`.
pub const ANNOTATION_ENDPOINT_WEIGHTS: &str = "nodenet.dev/endpoint-weights";
/// Annotation of a Service: flags of the scheduler `mh` or `sh`, with commas ([`SchedulerFlag`]).
pub const ANNOTATION_SCHEDULER_FLAGS: &str = "nodenet.dev/scheduler-flags";
/// Label of a Node with its zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a Node that the cluster autoscaler is about to delete.
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Label of an EndpointSlice with its Service's name.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
