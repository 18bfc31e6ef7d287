//! One normal form for what a node must have and for what its kernel has, parts of it ([`Scope`]), and the operations
//! between the two ([`Operation`]).
//!
//! Comparison is `==` on these types: whatever is spelled in two ways elsewhere has one spelling here.

pub mod kube_proxy;
mod operation;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::kube_proxy::KubeProxy;
pub use self::operation::{Operation, Phase, Transaction};
pub use self::scope::{Scope, Which};

/// Interface that carries the local routes of service ranges. Ours.
pub const SERVICE_INTERFACE: &str = "nodenet0";
/// Route and address protocol (`rtm_protocol`, `IFA_PROTO`) by which our routes and addresses are known in the kernel.
pub const PROTOCOL: u8 = 0x6e;
/// Names of the timeouts of IPVS, in seconds: established TCP connections, those after a FIN, and UDP.
pub const IPVS_TIMEOUTS: [&str; 3] = ["ipvs.timeout.tcp", "ipvs.timeout.tcp_fin", "ipvs.timeout.udp"];
/// Prefix of our IPv4 sets and of our chains in both families.
pub const PREFIX: &str = "NODENET-";
/// Prefix of our IPv6 sets.
pub const PREFIX6: &str = "NODENET6-";

/// What a node must have, or has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeState {
    /// Kernel modules: desired ones map to `true`; observed ones say whether they are loaded or built in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub modules: BTreeMap<String, bool>,
    /// Kernel settings by dotted name; an interface name with dots is written with slashes (`net.ipv4.conf.eth0/1.x`). The
    /// timeouts of IPVS, which are no files, stand among them ([`IPVS_TIMEOUTS`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces. Desired: only ours ([`SERVICE_INTERFACE`]). Observed: all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, Link>,
    /// Interface addresses. Desired: ours. Observed: all.
    #[serde(with = "entries", skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Local routes of service ranges. Observed: only those of [`PROTOCOL`].
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub routes: BTreeSet<LocalRoute>,
    /// Next hops of the default routes, link-local ones left out. Observed only; `None` where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateways: Option<BTreeSet<IpAddr>>,
    /// Sets by name. Observed: only those with our prefixes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sets: BTreeMap<String, IpSet>,
    /// Packet filter rules. Observed: only our chains and the jumps to them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<Family, Ruleset>,
    /// Virtual servers. Observed: all of the network namespace, ours or not.
    #[serde(with = "entries", skip_serializing_if = "BTreeMap::is_empty")]
    pub virtual_servers: BTreeMap<VirtualServerKey, VirtualServer>,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    /// Kind (`dummy`, `bridge`, …), empty for a device without one.
    pub kind: String,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
}

/// Which address on which interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressKey {
    /// Interface name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Prefix length.
    pub prefix_length: u8,
    /// Its place among the addresses of the subnet. Desired: the place it must have, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<nodenet_crds::KernelAddressRole>,
    /// Seconds until it runs out (`valid_lft`); `None` is forever. Comparison ignores it: see `diff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u32>,
    /// Observed: whether `IFA_PROTO` says it is ours ([`PROTOCOL`]). Kernels before 5.18 never say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ours: bool,
    /// Observed, IPv6: duplicate address detection failed or is not finished.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unusable: bool,
}

/// A local route: the kernel takes every address of the range as its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRoute {
    /// The range.
    pub range: IpNet,
    /// Interface, always named when deleting.
    pub interface: String,
}

impl LocalRoute {
    /// Whether it is of a range and not of a single address.
    pub fn is_range(&self) -> bool {
        self.range.prefix_len() < self.range.max_prefix_len()
    }
}

/// A set of the kernel (ipset).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpSet {
    /// Type.
    pub kind: SetKind,
    /// Family of its addresses.
    pub family: Family,
    /// Most entries it takes (hash sets).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_entries: u32,
    /// Entries.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub entries: BTreeSet<SetEntry>,
}

/// Type of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SetKind {
    /// `hash:ip`
    #[serde(rename = "hash:ip")]
    HashIp,
    /// `hash:net`
    #[serde(rename = "hash:net")]
    HashNet,
    /// `hash:ip,port`
    #[serde(rename = "hash:ip,port")]
    HashIpPort,
    /// `hash:ip,port` whose entries carry a mark (`skbinfo`)
    #[serde(rename = "hash:ip,port skbinfo")]
    HashIpPortMark,
    /// `hash:ip,port,net`
    #[serde(rename = "hash:ip,port,net")]
    HashIpPortNet,
    /// `hash:ip,port,ip`
    #[serde(rename = "hash:ip,port,ip")]
    HashIpPortIp,
    /// `bitmap:port` over 0–65535
    #[serde(rename = "bitmap:port")]
    BitmapPort,
}

/// An entry of a set; the variant follows the set's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SetEntry {
    /// An address.
    Ip(IpAddr),
    /// A network.
    Net(IpNet),
    /// An address and a port.
    IpPort(IpAddr, Protocol, u16),
    /// An address and a port, and the mark (all 32 bits of it) that packets there get.
    IpPortMark(IpAddr, Protocol, u16, u32),
    /// An address, a port and a second address.
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// An address, a port and a network.
    IpPortNet(IpAddr, Protocol, u16, IpNet),
    /// A port.
    Port(u16),
}

impl SetEntry {
    /// Whether the kernel takes both for one entry: what is added replaces the other, and to remove either removes it.
    pub fn is_same_element(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::IpPortMark(a, p, n, _), Self::IpPortMark(b, q, m, _)) => (a, p, n) == (b, q, m),
            _ => self == other,
        }
    }
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// 6
    TCP,
    /// 17
    UDP,
    /// 132
    SCTP,
}

impl Protocol {
    /// Number of the protocol (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::TCP => 6,
            Self::UDP => 17,
            Self::SCTP => 132,
        }
    }

    /// Protocol of a number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::TCP),
            17 => Some(Self::UDP),
            132 => Some(Self::SCTP),
            _ => None,
        }
    }
}

/// Our part of one family's packet filter: whole chains that are ours, and the jumps to them from built-in chains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ruleset {
    /// Table → chain → rules, each as `iptables-save` prints it without the leading `-A CHAIN `.
    pub chains: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// (table, built-in chain) → jumps to our chains, in order.
    #[serde(with = "entries")]
    pub jumps: BTreeMap<(String, String), Vec<String>>,
}

/// Which virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VirtualServerKey {
    /// By protocol, address and port.
    Address(Protocol, IpAddr, u16),
    /// By firewall mark.
    FirewallMark(Family, u32),
}

impl std::fmt::Display for VirtualServerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(protocol, address, port) => {
                write!(f, "virtual server {protocol:?} {}", std::net::SocketAddr::new(*address, *port))
            }
            Self::FirewallMark(family, mark) => write!(f, "virtual server FWM {mark} ({family:?})"),
        }
    }
}

/// A virtual server of IPVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServer {
    /// Scheduler, for example `rr`.
    pub scheduler: String,
    /// Flags (`IP_VS_SVC_F_*`) without those the kernel sets itself (hashed).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flags: u32,
    /// Persistence timeout in seconds; 0 is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub persistence: u32,
    /// Desired: seconds that a real server may take to leave; `None` is the default. The kernel knows nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<u32>,
    /// Real servers.
    #[serde(with = "entries", default)]
    pub real_servers: BTreeMap<RealServerKey, RealServer>,
}

/// Which real server of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RealServerKey {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A real server of IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealServer {
    /// Weight; 0 takes no new connection.
    pub weight: u32,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Observed: connections in an active state. Not compared.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub active_connections: u32,
    /// Observed: other connections. Not compared.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inactive_connections: u32,
}

impl RealServer {
    /// Whether both ask the same of the kernel.
    pub fn same(&self, other: &Self) -> bool {
        self.weight == other.weight && self.forwarding == other.forwarding
    }
}

/// Forwarding method of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Forwarding {
    /// NAT.
    Masquerade,
    /// By link-layer address.
    DirectRoute,
    /// IP in IP.
    Tunnel,
}

/// The setting by which an IPv4 address that goes leaves the others of its subnet in place.
pub fn promote_secondaries(interface: &str) -> String {
    // A dot in the name is a slash in the dotted form, as sysctl(8) has it.
    format!("net.ipv4.conf.{}.promote_secondaries", interface.replace('.', "/"))
}

/// Whether a setting belongs to the lane of the addresses: it must be in force before an address comes or goes.
pub(crate) fn of_address_lane(sysctl: &str) -> bool {
    sysctl.ends_with(".promote_secondaries")
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Maps whose keys are not strings, as a list of pairs.
mod entries {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
