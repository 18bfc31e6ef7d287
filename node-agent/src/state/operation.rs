//! Changes to the kernel, and the order in which it gets them.

use serde::{Deserialize, Serialize};

use super::{
    Address, AddressKey, Family, LocalRoute, RealServer, RealServerKey, Ruleset, SetEntry, SetKind,
    VirtualServer, VirtualServerKey,
};

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
    /// Take kube-proxy's chains and jumps out, in whichever of the two packet filters they are.
    RemoveKubeProxyRules(Family),
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
    /// Entries that lead packets to a virtual server by a mark: without them they go to the one by address.
    Marks,
    /// Addresses of virtual IPs come and go here.
    Addresses,
    /// Marks go, before the virtual server that they lead to.
    RemoveMarks,
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
            Self::AddEntry(_, SetEntry::IpPortMark(..)) => Phase::Marks,
            Self::DeleteEntry(_, SetEntry::IpPortMark(..)) => Phase::RemoveMarks,
            Self::CreateSet(..) | Self::AddEntry(..) => Phase::Sets,
            Self::ReplaceRules(_, rules) if *rules == Ruleset::default() => Phase::RemoveRules,
            Self::RemoveKubeProxyRules(_) => Phase::RemoveRules,
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
