//! One normal form for what a node must have and for what its kernel has, and the operations between the two.
//! Comparison is `==` on these types: whatever is spelled in two ways elsewhere has one spelling here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Interface that carries the local routes of service ranges. Ours.
pub const SERVICE_INTERFACE: &str = "nodenet0";
/// Route and address protocol (`rtm_protocol`, `IFA_PROTO`) by which our routes and addresses are known in the kernel.
pub const PROTOCOL: u8 = 0x6e;
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
    /// Kernel settings by dotted name; an interface name with dots is written with slashes (`net.ipv4.conf.eth0/1.x`).
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

/// Part of the state to look at: cost follows what changed, not what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Modules and settings by name (what to look at must be named).
    pub modules: BTreeSet<String>,
    /// Settings by name.
    pub sysctls: BTreeSet<String>,
    /// Interfaces.
    pub links: bool,
    /// Interfaces and all their addresses.
    pub addresses: bool,
    /// Local routes.
    pub routes: bool,
    /// Sets with all their entries.
    pub sets: Which<String>,
    /// Single entries of sets that are not read whole: only whether each is there. The observed set then holds those
    /// that are; its type and size are not compared. A set that does not exist is left out.
    pub set_entries: BTreeMap<String, BTreeSet<SetEntry>>,
    /// Packet filter rules.
    pub rules: bool,
    /// Virtual servers with their real servers.
    pub virtual_servers: Which<VirtualServerKey>,
}

/// None, some or all of the objects of one sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which<K: Ord> {
    /// All.
    All,
    /// Those named; none where empty.
    Only(BTreeSet<K>),
}

impl<K: Ord> Default for Which<K> {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl<K: Ord> Which<K> {
    /// Whether `key` is among them.
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(key),
        }
    }

    /// Whether it is none.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Only(keys) if keys.is_empty())
    }

    /// Adds what `other` has.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Only(mine), Self::Only(theirs)) => mine.extend(theirs),
        }
    }

    fn restrict<V: Clone>(&self, map: &BTreeMap<K, V>) -> BTreeMap<K, V>
    where
        K: Clone,
    {
        match self {
            Self::All => map.clone(),
            Self::Only(keys) => keys
                .iter()
                .filter_map(|k| map.get_key_value(k))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        }
    }
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

impl Scope {
    /// All that a node may have; modules and settings are those of `desired`.
    pub fn all(desired: &NodeState) -> Self {
        Self {
            modules: desired.modules.keys().cloned().collect(),
            sysctls: desired.sysctls.keys().cloned().collect(),
            links: true,
            addresses: true,
            routes: true,
            sets: Which::All,
            set_entries: BTreeMap::new(),
            rules: true,
            virtual_servers: Which::All,
        }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` covers.
    pub fn merge(&mut self, other: Self) {
        self.modules.extend(other.modules);
        self.sysctls.extend(other.sysctls);
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.sets.merge(other.sets);
        for (set, entries) in other.set_entries {
            self.set_entries.entry(set).or_default().extend(entries);
        }
        self.rules |= other.rules;
        self.virtual_servers.merge(other.virtual_servers);
        let Self { sets, set_entries, .. } = self;
        set_entries.retain(|name, _| !sets.contains(name.as_str()));
    }

    /// The two lanes' shares: addresses with the settings that they need, and everything else.
    pub fn lanes(mut self) -> (Self, Self) {
        let (of_addresses, sysctls) =
            std::mem::take(&mut self.sysctls).into_iter().partition(|n| of_address_lane(n));
        let addresses = Self { sysctls: of_addresses, addresses: self.addresses, ..Self::default() };
        (addresses, Self { sysctls, addresses: false, ..self })
    }
}

impl NodeState {
    /// The part of it that `scope` names. Of a set of which only entries are named, only those.
    pub fn within(&self, scope: &Scope) -> Self {
        let named = |names: &BTreeSet<String>| Which::Only(names.clone());
        let mut sets = scope.sets.restrict(&self.sets);
        for (name, entries) in
            scope.set_entries.iter().filter(|(name, _)| !scope.sets.contains(name.as_str()))
        {
            if let Some(set) = self.sets.get(name) {
                let entries = entries.intersection(&set.entries).copied().collect();
                let part =
                    IpSet { kind: set.kind, family: set.family, max_entries: set.max_entries, entries };
                sets.insert(name.clone(), part);
            }
        }
        Self {
            modules: named(&scope.modules).restrict(&self.modules),
            sysctls: named(&scope.sysctls).restrict(&self.sysctls),
            links: if scope.links || scope.addresses { self.links.clone() } else { BTreeMap::new() },
            addresses: if scope.addresses { self.addresses.clone() } else { BTreeMap::new() },
            routes: if scope.routes { self.routes.clone() } else { BTreeSet::new() },
            sets,
            rules: if scope.rules { self.rules.clone() } else { BTreeMap::new() },
            virtual_servers: scope.virtual_servers.restrict(&self.virtual_servers),
        }
    }
}

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Load a module.
    LoadModule(String),
    /// Write a setting.
    SetSysctl(String, String),
    /// Make an interface of ours and set it up.
    AddLink(String),
    /// Remove an interface of ours.
    DeleteLink(String),
    /// Make an empty set. One that is there with another size gets this size and keeps its entries, because rules that
    /// match it must never miss them.
    CreateSet(String, SetKind, Family, u32),
    /// Remove a set.
    DestroySet(String),
    /// Add an entry.
    AddEntry(String, SetEntry),
    /// Remove an entry.
    DeleteEntry(String, SetEntry),
    /// Replace our chains and jumps of one family in one `iptables-restore`; an empty ruleset removes them.
    ReplaceRules(Family, Ruleset),
    /// Add a local route.
    AddRoute(LocalRoute),
    /// Remove a local route.
    DeleteRoute(LocalRoute),
    /// Add a virtual server without its real servers.
    AddVirtualServer(VirtualServerKey, VirtualServer),
    /// Change scheduler, flags or persistence.
    SetVirtualServer(VirtualServerKey, VirtualServer),
    /// Remove a virtual server and all its real servers.
    DeleteVirtualServer(VirtualServerKey),
    /// Add a real server.
    AddRealServer(VirtualServerKey, RealServerKey, RealServer),
    /// Change a real server's weight or forwarding.
    SetRealServer(VirtualServerKey, RealServerKey, RealServer),
    /// Remove a real server.
    DeleteRealServer(VirtualServerKey, RealServerKey),
    /// Forget tracked connections to a removed backend (UDP, SCTP): virtual server, backend or all of them.
    ForgetConnections(VirtualServerKey, Option<RealServerKey>),
    /// Add an address.
    AddAddress(AddressKey, Address),
    /// Give an address a new lifetime or role-neutral attribute; the address stays.
    SetAddress(AddressKey, Address),
    /// Remove an address.
    DeleteAddress(AddressKey, u8),
}

/// Place of an operation in a transaction. Lower first; within a phase the order of the list stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Modules and settings.
    Kernel,
    /// Our interface.
    Link,
    /// Sets and their new entries.
    Sets,
    /// Rules, masquerading included.
    Rules,
    /// Local routes of service ranges.
    ServiceAddresses,
    /// Virtual servers.
    VirtualServers,
    /// Real servers.
    RealServers,
    /// Addresses of virtual IPs come and go here.
    Addresses,
    /// Real servers go, then their virtual servers.
    RemoveServers,
    /// Tracked connections of what went.
    RemoveConnections,
    /// Local routes go.
    RemoveServiceAddresses,
    /// Rules go, once nothing needs masquerading any more.
    RemoveRules,
    /// Entries and sets go; after the rules, because those name them.
    RemoveSets,
    /// Our interface goes.
    RemoveLink,
}

impl Operation {
    /// Its place in a transaction (design: order is data; removal in reverse).
    pub fn phase(&self) -> Phase {
        match self {
            Self::LoadModule(_) | Self::SetSysctl(..) => Phase::Kernel,
            Self::AddLink(_) => Phase::Link,
            Self::CreateSet(..) | Self::AddEntry(..) => Phase::Sets,
            Self::ReplaceRules(_, rules) if *rules == Ruleset::default() => Phase::RemoveRules,
            Self::ReplaceRules(..) => Phase::Rules,
            Self::AddRoute(_) => Phase::ServiceAddresses,
            Self::AddVirtualServer(..) | Self::SetVirtualServer(..) => Phase::VirtualServers,
            Self::AddRealServer(..) | Self::SetRealServer(..) => Phase::RealServers,
            Self::AddAddress(..) | Self::SetAddress(..) | Self::DeleteAddress(..) => Phase::Addresses,
            Self::DeleteRealServer(..) | Self::DeleteVirtualServer(_) => Phase::RemoveServers,
            Self::ForgetConnections(..) => Phase::RemoveConnections,
            Self::DeleteRoute(_) => Phase::RemoveServiceAddresses,
            Self::DeleteEntry(..) | Self::DestroySet(_) => Phase::RemoveSets,
            Self::DeleteLink(_) => Phase::RemoveLink,
        }
    }
}

/// Operations in the order in which the kernel gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction(Vec<Operation>);

impl Transaction {
    /// Sorts operations into their phases; within a phase they keep their order.
    pub fn new(mut operations: Vec<Operation>) -> Self {
        operations.sort_by_key(Operation::phase);
        Self(operations)
    }

    /// The operations, in order.
    pub fn operations(&self) -> &[Operation] {
        &self.0
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
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
