//! What is ours, and may therefore be removed. Read from the kernel where it says so; the rest stands in a journal.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::state::{AddressKey, NodeState, VirtualServerKey};

/// What the kernel cannot say is ours. Written to disk before the commit that makes it so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Journal {
    /// Service ranges: virtual servers within them are ours. Kept when a range leaves the configuration, until nothing
    /// of ours is left in it.
    pub ranges: BTreeSet<IpNet>,
    /// Virtual servers outside of the service ranges: at addresses of nodes and virtual IPs, or by firewall mark.
    pub virtual_servers: BTreeSet<VirtualServerKey>,
    /// Addresses on kernels that have no `IFA_PROTO` (before 5.18).
    pub addresses: BTreeSet<AddressKey>,
}

impl Journal {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` has; whether anything was new (and must be written before the commit).
    pub fn merge(&mut self, other: Self) -> bool {
        let before = (self.ranges.len(), self.virtual_servers.len(), self.addresses.len());
        self.ranges.extend(other.ranges);
        self.virtual_servers.extend(other.virtual_servers);
        self.addresses.extend(other.addresses);
        before != (self.ranges.len(), self.virtual_servers.len(), self.addresses.len())
    }

    /// Forgets what `observed`, a look at all of these objects, no longer has and `desired` does not ask for. Call it
    /// at the verify period, never with a partial look. Whether anything went.
    pub fn tidy(&mut self, desired: &NodeState, observed: &NodeState, look: Look) -> bool {
        let before = (self.ranges.len(), self.virtual_servers.len(), self.addresses.len());
        match look {
            Look::Addresses => {
                let there =
                    |k: &AddressKey| observed.addresses.contains_key(k) || desired.addresses.contains_key(k);
                self.addresses.retain(there);
            }
            Look::Services => {
                let there = |k: &VirtualServerKey| {
                    observed.virtual_servers.contains_key(k) || desired.virtual_servers.contains_key(k)
                };
                self.virtual_servers.retain(there);
                let routed: BTreeSet<IpNet> = desired
                    .routes
                    .iter()
                    .chain(&observed.routes)
                    .filter(|r| r.is_range())
                    .map(|r| r.range)
                    .collect();
                let used: BTreeSet<IpAddr> = observed.virtual_servers.keys().filter_map(address_of).collect();
                self.ranges.retain(|range| routed.contains(range) || used.iter().any(|a| range.contains(a)));
            }
        }
        before != (self.ranges.len(), self.virtual_servers.len(), self.addresses.len())
    }

    /// Whether the virtual server is ours.
    pub fn owns_virtual_server(&self, key: &VirtualServerKey) -> bool {
        self.virtual_servers.contains(key) || self.in_ranges(key)
    }

    /// Whether the virtual server's address is in a service range: the kernel itself says that it is ours.
    pub fn in_ranges(&self, key: &VirtualServerKey) -> bool {
        address_of(key).is_some_and(|address| self.ranges.iter().any(|range| range.contains(&address)))
    }

    /// Sets `ours` on the observed addresses that the journal knows, for kernels that cannot say it.
    pub fn mark(&self, observed: &mut NodeState) {
        for (key, address) in &mut observed.addresses {
            address.ours |= self.addresses.contains(key);
        }
    }
}

/// What a look covered whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Interfaces and addresses.
    Addresses,
    /// Routes and virtual servers.
    Services,
}

fn address_of(key: &VirtualServerKey) -> Option<IpAddr> {
    match key {
        VirtualServerKey::Address(_, address, _) => Some(*address),
        VirtualServerKey::FirewallMark(..) => None,
    }
}
