//! Parts of the state: what to look at, and what of a state lies in that.

use std::collections::{BTreeMap, BTreeSet};

use super::{IpSet, NodeState, SetEntry, VirtualServerKey, of_address_lane};

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
    /// Next hops of default routes. They are asked for, never wanted: no operation touches them.
    pub gateways: bool,
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

impl Scope {
    /// All that a node may have; modules and settings are those of `desired`.
    pub fn all(desired: &NodeState) -> Self {
        Self {
            modules: desired.modules.keys().cloned().collect(),
            sysctls: desired.sysctls.keys().cloned().collect(),
            links: true,
            addresses: true,
            routes: true,
            gateways: false,
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
        self.gateways |= other.gateways;
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
            gateways: self.gateways.clone().filter(|_| scope.gateways),
            sets,
            rules: if scope.rules { self.rules.clone() } else { BTreeMap::new() },
            virtual_servers: scope.virtual_servers.restrict(&self.virtual_servers),
        }
    }
}
