//! `NodeNetSlice`: a shard of the virtual servers that all nodes share, as EndpointSlice shards Endpoints.
//!
//! Consistency is per Service: a plan is complete when all its `parts` of one `revision` are there. A plan that moves
//! is written to its new slice (with a higher revision) before it leaves the old one, so a reader takes the highest
//! complete revision of each `uid` and never sees a Service without a plan. The parts of one revision change one by one as
//! far as their endpoints go: each endpoint stands in one part, so a reader who has some parts as they were and some as
//! they are now has all endpoints that stay and none that never was. Anything else that changes is a new revision.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A shard of the virtual servers that all nodes share.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "nodenet.dev",
    version = "v1alpha1",
    kind = "NodeNetSlice",
    plural = "nodenetslices",
    shortname = "nnslice",
    category = "nodenet",
    derive = "PartialEq",
    doc = "A shard of the virtual servers that all nodes share. Written by the operator.",
    printcolumn(name = "Services", type_ = "string", json_path = ".spec.summary.services"),
    printcolumn(name = "Endpoints", type_ = "string", json_path = ".spec.summary.endpoints"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".spec.revision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetSliceSpec {
    /// Number of the publication that wrote this slice last; grows across all slices.
    #[schemars(range(min = 0))]
    pub revision: i64,
    /// Counts for the columns of `kubectl get nnslice`.
    #[serde(default)]
    pub summary: SliceSummary,
    /// Plans of Services, or parts of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub services: Vec<ServicePlan>,
}

/// Counts for the columns of `kubectl get nnslice`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceSummary {
    /// Number of Services with content here.
    #[serde(default)]
    pub services: i32,
    /// Number of endpoints here.
    #[serde(default)]
    pub endpoints: i32,
}

/// What every node must do for one Service, or one part of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePlan {
    /// Namespace of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// UID of the Service: a Service that was deleted and made again is another one.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Revision of this plan; all its parts carry the same. The highest complete one counts. Of a plan of several parts it
    /// stays the same while only endpoints change.
    #[schemars(range(min = 0))]
    pub revision: i64,
    /// Which part this is, from 0.
    #[schemars(range(min = 0, max = 1000))]
    pub part: i32,
    /// How many parts the plan has.
    #[schemars(range(min = 1, max = 1000))]
    pub parts: i32,
    /// Port on which every node says by HTTP whether it has endpoints of the Service, for load balancers: the Service's
    /// `healthCheckNodePort`, where its `externalTrafficPolicy` is `Local`. All parts carry the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub health_check_node_port: Option<i32>,
    /// One entry for each port of the Service; a port whose endpoints do not fit one slice stands in several parts,
    /// with the same frontends in each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ports: Vec<PortPlan>,
}

impl ServicePlan {
    /// Leaves out what only a newer version knows.
    #[must_use]
    pub fn known(mut self) -> Self {
        let policy = |policy: TrafficPolicy| policy != TrafficPolicy::Unknown;
        self.ports.retain(|port| {
            port.protocol != Protocol::Unknown
                && policy(port.internal_traffic_policy)
                && policy(port.external_traffic_policy)
        });
        for port in &mut self.ports {
            port.scheduler_flags.retain(|flag| *flag != SchedulerFlag::Unknown);
            port.frontends.retain(|frontend| frontend.kind != FrontendKind::Unknown);
        }
        self
    }
}

/// One port of a Service: where it answers and who answers.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortPlan {
    /// Name of the Service's port; empty where it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// IPVS scheduler, for example `rr`. Without it the agent's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub scheduler: Option<String>,
    /// What the scheduler `mh` or `sh` does beyond its default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub scheduler_flags: Vec<SchedulerFlag>,
    /// How long a client stays with the endpoint that it came to last, in seconds. Without it each connection is
    /// scheduled by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub persistence_seconds: Option<i32>,
    /// How long an endpoint that leaves keeps the connections that it has, in seconds. Without it the agent's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_timeout_seconds: Option<i32>,
    /// Which endpoints answer clients that come by the ClusterIP.
    #[serde(default, skip_serializing_if = "TrafficPolicy::is_cluster")]
    pub internal_traffic_policy: TrafficPolicy,
    /// Which endpoints answer clients from outside that come by any other address. The node itself and its pods reach
    /// all endpoints by these addresses whatever stands here.
    #[serde(default, skip_serializing_if = "TrafficPolicy::is_cluster")]
    pub external_traffic_policy: TrafficPolicy,
    /// Number of this port for as long as `externalTrafficPolicy` is `Local`, of its own in the cluster: agents make the
    /// packet mark of it by which they tell their own clients' packets from those from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2047))]
    pub inside_number: Option<i32>,
    /// Sources that may use the port by an address that a load balancer was given, or by a virtual IP. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 49)))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub source_ranges: Vec<String>,
    /// Addresses and ports that answer.
    #[schemars(length(max = 256))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub frontends: Vec<Frontend>,
    /// Who answers. Empty: connections are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub endpoints: Vec<Endpoint>,
}

/// Transport protocol of a port.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema,
)]
pub enum Protocol {
    /// Transmission Control Protocol.
    #[default]
    TCP,
    /// User Datagram Protocol.
    UDP,
    /// Stream Control Transmission Protocol.
    SCTP,
    /// Of a version that is newer than this one: what carries it is left out, the rest of the slice is followed. Never
    /// written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Addresses that no client has (RFC 5737, RFC 3849). Source ranges that cannot be read come down to these: they let
/// nobody in, not everybody.
pub const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0))];

/// Which endpoints answer.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema,
)]
pub enum TrafficPolicy {
    /// All of the cluster's.
    #[default]
    Cluster,
    /// Those on the node that the connection came to.
    Local,
    /// Of a version that is newer than this one: what carries it is left out, the rest of the slice is followed. Never
    /// written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl TrafficPolicy {
    /// Whether it is the default.
    pub fn is_cluster(&self) -> bool {
        *self == Self::Cluster
    }
}

/// What a hashing scheduler of IPVS (`mh`, `sh`) does beyond its default.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
pub enum SchedulerFlag {
    /// A client of an endpoint with weight 0 goes to another one (`mh-fallback`, `sh-fallback`).
    Fallback,
    /// The client's port takes part in the hash (`mh-port`, `sh-port`).
    Port,
    /// Of a version that is newer than this one: what carries it is left out, the rest of the slice is followed. Never
    /// written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One place where a port answers.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// What kind of address this is: it decides masquerading and who may reach it.
    pub kind: FrontendKind,
    /// The address; absent for `NodePort`, which answers on each node's own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub address: Option<String>,
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// What kind of address a frontend is.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema,
)]
pub enum FrontendKind {
    /// A ClusterIP, reached from pods and nodes.
    #[default]
    ClusterIP,
    /// The node port on each node's own addresses.
    NodePort,
    /// One of the Service's `externalIPs`.
    ExternalIP,
    /// An address that a load balancer was given.
    LoadBalancer,
    /// A port of the Service on a VirtualIP's address.
    VirtualIP,
    /// The node port on a VirtualIP's address.
    VirtualIPNodePort,
    /// Of a version that is newer than this one: what carries it is left out, the rest of the slice is followed. Never
    /// written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One endpoint of a port.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address of the pod.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Port of the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Node the pod runs on, where known: the agent filters by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Its share of new connections beside the others', for schedulers that weigh; 0 takes none. Without it 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub weight: Option<i32>,
    /// It terminates, and serves only where there is no endpoint that does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminating: bool,
    /// Zones whose nodes should use it, where the EndpointSlice says so (hints).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 63)))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub for_zones: Vec<String>,
    /// Nodes that should use it, where the EndpointSlice says so (hints).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub for_nodes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_version_writes_can_be_read_and_is_never_written() {
        let newer = serde_json::json!({
            "revision": 7, "sort": "New", "services": [{
                "namespace": "default", "name": "web", "uid": "u", "revision": 7, "part": 0, "parts": 1,
                "ports": [
                    { "protocol": "QUIC", "frontends": [{ "kind": "ClusterIP", "address": "10.96.0.1", "port": 443 }] },
                    { "protocol": "TCP", "internalTrafficPolicy": "Zone", "frontends": [] },
                    { "protocol": "TCP", "schedulerFlags": ["Port", "Sticky"], "weather": "fine", "frontends": [
                        { "kind": "ClusterIP", "address": "10.96.0.1", "port": 80 },
                        { "kind": "Anycast", "address": "192.0.2.1", "port": 80 }
                    ] }
                ]
            }]
        });
        let slice: NodeNetSliceSpec = serde_json::from_value(newer).unwrap();
        let plan = slice.services[0].clone();
        assert_eq!(plan.ports.len(), 3);
        assert_eq!(plan.ports[2].frontends[1].kind, FrontendKind::Unknown);
        let known = plan.known();
        assert_eq!(known.ports.len(), 1);
        assert_eq!((known.ports[0].frontends.len(), known.ports[0].scheduler_flags.len()), (1, 1));
        let schema = serde_json::to_string(&schemars::schema_for!(NodeNetSliceSpec)).unwrap();
        assert!(!schema.contains("Unknown"), "{schema}");
    }

    #[test]
    fn what_the_first_version_wrote_can_be_read() {
        let older = serde_json::json!({
            "revision": 1, "services": [{
                "namespace": "default", "name": "web", "uid": "u", "revision": 1, "part": 0, "parts": 1,
                "ports": [{ "protocol": "TCP", "frontends": [{ "kind": "NodePort", "port": 30080 }],
                            "endpoints": [{ "address": "10.244.1.5", "port": 8080 }] }]
            }]
        });
        let slice: NodeNetSliceSpec = serde_json::from_value(older).unwrap();
        assert_eq!(slice.services[0].clone().known(), slice.services[0]);
        let port = &slice.services[0].ports[0];
        assert_eq!((port.external_traffic_policy, port.endpoints[0].weight), (TrafficPolicy::Cluster, None));
    }
}
