//! `NodeNetState`: what one node must have (spec, by the operator) and what it has (status, by its agent).
//! It carries the Node's name and is owned by it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AddressRole, Announce};

/// What one node must have and what it has.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "nodenet.dev",
    version = "v1alpha1",
    kind = "NodeNetState",
    plural = "nodenetstates",
    shortname = "nns",
    category = "nodenet",
    status = "NodeNetStateStatus",
    derive = "PartialEq",
    doc = "What one node's network must be (spec, by the operator) and what it is (status, by the node's agent).",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "VIPs", type_ = "string", json_path = ".status.summary.virtualIPs"),
    printcolumn(name = "Servers", type_ = "string", json_path = ".status.summary.virtualServers"),
    printcolumn(name = "Policies", type_ = "string", json_path = ".status.summary.policies"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetStateSpec {
    /// Virtual IPs that this node holds or may hold.
    #[serde(default, rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    // One writer, so atomic: API servers of 1.20 keep the old order of a keyed list and refuse to empty one.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub virtual_ips: Vec<AssignedVirtualIP>,
    /// Addresses of Services: how they are made local to this node.
    #[serde(default)]
    pub service_addresses: ServiceAddresses,
    /// Ranges of the node's own addresses on which node ports answer. Without it: all its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    pub node_port_addresses: Option<Vec<String>>,
    /// Zone of the node, by its label `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub zone: Option<String>,
    /// Kernel modules and settings that the node needs.
    #[serde(default)]
    pub kernel: KernelRequirements,
    /// Pod networks of the whole cluster: a source within them is a pod.
    #[serde(default, rename = "clusterCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49)))]
    pub cluster_cidrs: Vec<String>,
    /// Pod networks of this node.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49)))]
    pub pod_cidrs: Vec<String>,
    /// The Node is being deleted, or the cluster autoscaler is about to: load balancers are told to send no new clients,
    /// while those that are there are served on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub being_deleted: bool,
}

/// A virtual IP as one node sees it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignedVirtualIP {
    /// Name of the VirtualIP.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether this node holds the addresses.
    pub state: AssignedState,
    /// The addresses with their prefix length.
    #[schemars(length(min = 1, max = 16), inner(length(max = 49)))]
    pub addresses: Vec<String>,
    /// Interface that carries them; without it the one whose subnet holds the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub interface: Option<String>,
    /// Role of the addresses.
    #[serde(default)]
    pub address_role: AddressRole,
    /// This node's priority.
    #[schemars(range(min = 1, max = 254))]
    pub priority: i32,
    /// How the addresses are announced.
    #[serde(default)]
    pub announce: Announce,
}

/// Whether a node holds a virtual IP, by the operator's word.
#[derive(
    Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema,
)]
pub enum AssignedState {
    /// This node holds the addresses.
    Active,
    /// This node may get them.
    #[default]
    Backup,
}

/// How the addresses of Services are made local to a node.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAddresses {
    /// By what.
    #[serde(default)]
    pub mode: ServiceAddressMode,
    /// The ranges of ClusterIPs.
    #[serde(default, rename = "cidrs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49)))]
    pub cidrs: Vec<String>,
}

/// How the addresses of Services are made local to a node.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ServiceAddressMode {
    /// One local route for each range.
    #[default]
    Route,
}

/// Kernel modules and settings that a node needs. Both come from a compiled-in list: a free list would be root on
/// every node for whoever may write this object.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelRequirements {
    /// Modules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64), regex(pattern = r"^[a-z0-9_]+$")))]
    pub modules: Vec<String>,
    /// Settings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sysctls: Vec<Sysctl>,
}

/// One kernel setting.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sysctl {
    /// Name with dots, for example `net.ipv4.ip_forward`.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Value, as the kernel prints it.
    #[schemars(length(max = 64))]
    pub value: String,
}

/// Modules that an agent may load.
pub const ALLOWED_MODULES: &[&str] = &[
    "br_netfilter",
    "dummy",
    "ip_set",
    "ip_set_bitmap_port",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "ip_set_hash_ipportnet",
    "ip_set_hash_net",
    "ip_vs",
    "ip_vs_dh",
    "ip_vs_fo",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_lc",
    "ip_vs_mh",
    "ip_vs_nq",
    "ip_vs_ovf",
    "ip_vs_rr",
    "ip_vs_sed",
    "ip_vs_sh",
    "ip_vs_twos",
    "ip_vs_wlc",
    "ip_vs_wrr",
    "nf_conntrack",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_ipvs",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_physdev",
    "xt_set",
];

/// Settings that an agent may write, with the values it may write.
pub const ALLOWED_SYSCTLS: &[(&str, &[&str])] = &[
    ("net.bridge.bridge-nf-call-ip6tables", &["0", "1"]),
    ("net.bridge.bridge-nf-call-iptables", &["0", "1"]),
    ("net.ipv4.conf.all.arp_announce", &["0", "1", "2"]),
    ("net.ipv4.conf.all.arp_ignore", &["0", "1", "2"]),
    ("net.ipv4.ip_forward", &["1"]),
    ("net.ipv4.vs.conn_reuse_mode", &["0", "1"]),
    ("net.ipv4.vs.conntrack", &["1"]),
    ("net.ipv4.vs.expire_nodest_conn", &["0", "1"]),
    ("net.ipv4.vs.expire_quiescent_template", &["0", "1"]),
    ("net.ipv6.conf.all.forwarding", &["1"]),
];

/// What a node has, as its agent saw it. Written by the agent.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetStateStatus {
    /// Generation of the spec whose virtual IPs are as `virtualIPs` says: nothing of an earlier one is held any more. The
    /// rest of the status follows by itself, and each condition names its own generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Highest publication number ([`crate::NodeNetSliceSpec::revision`]) of the slices that are in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice_revision: Option<i64>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// Strings of the columns of `kubectl get nns`.
    #[serde(default)]
    pub summary: NodeSummary,
    /// Virtual IPs on this node.
    #[serde(default, rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub virtual_ips: Vec<VirtualIPOnNode>,
    /// Interfaces with a global address that is not a virtual IP of ours: what subnets the node has on link. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub interfaces: Vec<InterfaceOnNode>,
    /// Gateways of the node: next hops of its default routes that are no link-local addresses, in order. At most 16.
    /// No Service and no virtual IP may have one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 45)))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub gateways: Vec<String>,
    /// Virtual servers in the kernel.
    #[serde(default)]
    pub virtual_servers: Progress,
    /// What could not be done, with the object and the kernel's own words. At most 32 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub failures: Vec<Failure>,
    /// See [`crate::conditions`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// Strings of the columns of `kubectl get nns`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// `held/assigned`.
    #[serde(default, rename = "virtualIPs")]
    #[schemars(length(max = 32))]
    pub virtual_ips: String,
    /// `programmed/desired`.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub virtual_servers: String,
    /// `realized/selected`, `-` where no policy selects the node.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub policies: String,
}

/// Desired, programmed and failed objects of one sort.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Wanted on this node.
    #[serde(default)]
    pub desired: i32,
    /// Seen in the kernel as wanted.
    #[serde(default)]
    pub programmed: i32,
    /// Refused by the kernel.
    #[serde(default)]
    pub failed: i32,
}

/// A virtual IP on a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPOnNode {
    /// Name of the VirtualIP.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What the node does with it.
    pub state: VirtualIPState,
    /// Why, in words, where the state is `Fault`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// Where its addresses are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<AddressOnNode>,
}

/// What a node does with a virtual IP.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum VirtualIPState {
    /// Holds it: the addresses are in the kernel.
    Active,
    /// May get it.
    Backup,
    /// Cannot hold it; the message says why.
    Fault,
}

/// An address of a virtual IP in the kernel.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressOnNode {
    /// The address with its prefix length.
    #[schemars(length(max = 49))]
    pub address: String,
    /// Interface that carries it, or would carry it.
    #[schemars(length(max = 15))]
    pub interface: String,
    /// Its role, where it is in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<KernelAddressRole>,
}

/// Role of an address as the kernel has it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
pub enum KernelAddressRole {
    /// IPv4: first of its subnet; source of the node's own traffic.
    Primary,
    /// IPv4: behind a primary of its subnet (`IFA_F_SECONDARY`).
    Secondary,
    /// IPv6: may become a source address.
    Preferred,
    /// IPv6: never a source address of new traffic (`IFA_F_DEPRECATED`).
    Deprecated,
}

/// An interface of a node and the subnets it has on link.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceOnNode {
    /// Name.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Whether it is up and has a carrier.
    #[serde(default)]
    pub up: bool,
    /// Its addresses with their prefix length, ours excepted. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49)))]
    pub addresses: Vec<String>,
}

/// One thing that could not be done.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The object, for example `virtual server TCP 10.0.0.1:443`.
    #[schemars(length(max = 256))]
    pub object: String,
    /// What was tried, for example `add`.
    #[schemars(length(max = 64))]
    pub operation: String,
    /// Why it failed, in the kernel's own words where it gave any.
    #[schemars(length(max = 512))]
    pub message: String,
}
