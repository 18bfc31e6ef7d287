//! `VirtualIP`: addresses that live on one node at a time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that live on one node at a time, and the Services that answer on them.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "nodenet.dev",
    version = "v1alpha1",
    kind = "VirtualIP",
    plural = "virtualips",
    shortname = "vip",
    category = "nodenet",
    status = "VirtualIPStatus",
    derive = "PartialEq",
    doc = "Addresses that live on one node at a time, and the Services that answer on them.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.summary.addresses"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.summary.holder"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.failover.protocol"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPSpec {
    /// Addresses with the prefix length of their subnet, of one or both families, for example `192.168.0.15/24`.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 49), regex(pattern = r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"))
    )]
    pub addresses: Vec<String>,
    /// Interface that carries the addresses. Without it each address goes to the interface whose subnet holds it, and
    /// only nodes that have such an interface are candidates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^/\s]+$"))]
    pub interface: Option<String>,
    /// Nodes that may hold the addresses. Without it every node may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Which nodes are preferred: the first entry whose selector matches gives the node's priority, 100 where none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub priorities: Vec<NodePriority>,
    /// Whether the addresses are primary or secondary addresses of the interface.
    #[serde(default)]
    pub address_role: AddressRole,
    /// How the holder is chosen and changed.
    #[serde(default)]
    pub failover: Failover,
    /// How a new holder makes itself known on the link (gratuitous ARP, unsolicited neighbour advertisement).
    #[serde(default)]
    pub announce: Announce,
    /// Services that answer on the addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub services: Vec<ServiceBinding>,
}

/// Priority of the nodes that a selector matches.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePriority {
    /// Labels of the nodes.
    pub node_selector: LabelSelector,
    /// 1 (last) to 254 (first).
    #[schemars(range(min = 1, max = 254))]
    pub priority: i32,
}

/// Priority of a node that no entry of `priorities` matches.
pub const DEFAULT_PRIORITY: i32 = 100;

/// Place of an IPv4 address among the addresses of its subnet. IPv6 addresses are always deprecated
/// (`preferred_lft 0`), so that they never become a source address.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema,
)]
pub enum AddressRole {
    /// The kernel decides by subnet and mask: secondary where the interface has an address of the subnet already.
    #[default]
    Auto,
    /// Secondary: an interface without a primary address of the subnet is an error.
    Secondary,
    /// Primary, by a host mask (/32).
    Primary,
}

/// How the holder of a virtual IP is chosen and changed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// Who decides.
    #[serde(default)]
    pub protocol: FailoverProtocol,
    /// Whether a node of higher priority takes the addresses back when it returns.
    #[serde(default = "yes")]
    pub preempt: bool,
    /// How long a node of higher priority must have been ready before it takes the addresses back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub preempt_delay_seconds: Option<i32>,
}

fn yes() -> bool {
    true
}

impl Default for Failover {
    fn default() -> Self {
        Self { protocol: FailoverProtocol::default(), preempt: true, preempt_delay_seconds: None }
    }
}

/// Who decides which node holds a virtual IP.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum FailoverProtocol {
    /// The operator places the addresses; a dead agent's addresses run out by their lifetime before they move.
    #[default]
    Operator,
}

/// How a new holder makes itself known on the link.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announce {
    /// Announcements sent when an address is taken.
    #[serde(default = "Announce::default_count")]
    #[schemars(range(min = 0, max = 100))]
    pub count: i32,
    /// Milliseconds between them.
    #[serde(default = "Announce::default_interval")]
    #[schemars(range(min = 10, max = 10000))]
    pub interval_millis: i32,
    /// Seconds between announcements while an address is held; 0 sends none.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3600))]
    pub refresh_seconds: i32,
}

impl Announce {
    fn default_count() -> i32 {
        5
    }
    fn default_interval() -> i32 {
        200
    }
}

impl Default for Announce {
    fn default() -> Self {
        Self { count: Self::default_count(), interval_millis: Self::default_interval(), refresh_seconds: 0 }
    }
}

/// A Service that answers on the addresses of a virtual IP.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceBinding {
    /// Namespace of the Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Service ports that answer. Without it all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<i32>>,
    /// Whether the Service's node ports answer on the addresses too.
    #[serde(default)]
    pub node_ports: bool,
}

/// What became of a virtual IP. Written by the operator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Who holds which address. A list, so that a duplicate holder can be shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<HeldAddress>,
    /// Strings of the columns of `kubectl get vip`.
    #[serde(default)]
    pub summary: VirtualIPSummary,
    /// `Accepted`, `Programmed`, `Held` and their summary `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// One address on one node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldAddress {
    /// The address with its prefix length, as in the spec.
    #[schemars(length(max = 49))]
    pub address: String,
    /// Node that has it.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Interface that carries it, once the node's agent has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub interface: Option<String>,
    /// Since when the node is the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why this node holds it, in words.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// Strings of the columns of `kubectl get vip`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPSummary {
    /// The addresses, separated by commas.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub addresses: String,
    /// The holder, or `-`.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub holder: String,
}
