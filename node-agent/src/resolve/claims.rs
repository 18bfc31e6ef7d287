//! Which Service has which virtual server and which entries of sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::plans::{Plans, Uid};
use super::problem::{Problem, Reason};
use super::services::{Derived, Entry};
use crate::filter::max_entries;
use crate::state::{
    LocalRoute, NodeState, SERVICE_INTERFACE, Scope, SetEntry, VirtualServer, VirtualServerKey, Which,
};

/// What a Service has. All lists are sorted.
#[derive(Debug, Default)]
struct Held {
    servers: Box<[VirtualServerKey]>,
    entries: Box<[Entry]>,
    addresses: Box<[IpAddr]>,
}

/// Which Service has what. A virtual server has one owner, the first by namespace and name of those that want it; an
/// entry of a set is there as long as one Service wants it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: HashMap<Uid, Held>,
    owners: HashMap<VirtualServerKey, Uid>,
    /// Those that want a virtual server of another.
    waiting: BTreeMap<VirtualServerKey, BTreeSet<Uid>>,
    /// How many Services beyond the first want an entry.
    surplus: HashMap<Entry, u32>,
    /// Addresses from outside that are made local, with the number of Services that want each.
    addresses: BTreeMap<IpAddr, u32>,
    /// Virtual servers by scheduler.
    schedulers: BTreeMap<String, usize>,
    schedulers_changed: bool,
    ipv6: bool,
}

/// A lookup into the plans.
type Lookup<'a, T> = &'a dyn Fn(&Uid) -> T;

impl Claims {
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    pub fn set_ipv6(&mut self, ipv6: bool) {
        self.ipv6 = ipv6;
    }

    pub fn schedulers(&self) -> impl Iterator<Item = &str> {
        self.schedulers.keys().map(String::as_str)
    }

    /// The local routes of addresses from outside.
    pub fn routes(&self) -> impl Iterator<Item = LocalRoute> {
        self.addresses.keys().map(|address| host_route(*address))
    }

    /// Whether a scheduler came or went since the last call.
    pub fn schedulers_changed(&mut self) -> bool {
        std::mem::take(&mut self.schedulers_changed)
    }

    /// Virtual servers that more than one Service wants.
    pub fn problems(&self, plans: &Plans) -> Vec<Problem> {
        let name = |uid: &Uid| plans.get(uid).map(|service| service.full_name()).unwrap_or_default();
        let mut problems = Vec::new();
        for (key, uids) in &self.waiting {
            let owner = self.owners.get(key).map(name).unwrap_or_default();
            // Beside the plan of a Service that was made again stands that of the old one, until the new one was seen.
            for other in uids.iter().map(name).filter(|other| *other != owner) {
                let reason = Reason::Claimed { what: key.to_string(), owner: owner.clone() };
                problems.push(Problem::new(format!("Service {other}"), reason));
            }
        }
        problems
    }

    /// Gives a Service what it asks for now and takes what it no longer asks for.
    pub fn put(
        &mut self,
        uid: &Uid,
        derived: Derived,
        desired: &mut NodeState,
        touched: &mut Scope,
        derive: Lookup<'_, Option<Derived>>,
        name: Lookup<'_, String>,
    ) {
        let old = self.held.remove(uid).unwrap_or_default();
        for key in old.servers.iter().filter(|key| !derived.servers.contains_key(key)) {
            self.release(*key, uid, desired, touched, derive, name);
        }
        let held = Held {
            servers: derived.servers.keys().copied().collect(),
            entries: derived.entries.iter().copied().collect(),
            addresses: derived.addresses.iter().copied().collect(),
        };
        for (key, server) in derived.servers {
            self.claim(key, server, uid, desired, touched, name);
        }
        for entry in &held.entries {
            if old.entries.binary_search(entry).is_err() {
                self.add_entry(*entry, desired, touched);
            }
        }
        for entry in &old.entries {
            if held.entries.binary_search(entry).is_err() {
                self.remove_entry(*entry, desired, touched);
            }
        }
        for address in held.addresses.iter().filter(|address| !old.addresses.contains(address)) {
            *self.addresses.entry(*address).or_default() += 1;
            touched.routes |= desired.routes.insert(host_route(*address));
        }
        for address in old.addresses.iter().filter(|address| !held.addresses.contains(address)) {
            if let Some(count) = self.addresses.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(address);
                    touched.routes |= desired.routes.remove(&host_route(*address));
                }
            }
        }
        if !held.servers.is_empty() || !held.entries.is_empty() {
            self.held.insert(uid.clone(), held);
        }
    }

    fn claim(
        &mut self,
        key: VirtualServerKey,
        server: VirtualServer,
        uid: &Uid,
        desired: &mut NodeState,
        touched: &mut Scope,
        name: Lookup<'_, String>,
    ) {
        match self.owners.get(&key) {
            Some(owner) if owner != uid => {
                let owner = owner.clone();
                if (name(&owner), &owner) < (name(uid), uid) {
                    self.waiting.entry(key).or_default().insert(uid.clone());
                    return;
                }
                let waiting = self.waiting.entry(key).or_default();
                waiting.remove(uid);
                waiting.insert(owner);
                self.owners.insert(key, uid.clone());
            }
            Some(_) => {}
            None => {
                self.owners.insert(key, uid.clone());
            }
        }
        self.set(key, Some(server), desired, touched);
    }

    fn release(
        &mut self,
        key: VirtualServerKey,
        uid: &Uid,
        desired: &mut NodeState,
        touched: &mut Scope,
        derive: Lookup<'_, Option<Derived>>,
        name: Lookup<'_, String>,
    ) {
        if self.owners.get(&key) != Some(uid) {
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.remove(uid);
                if waiting.is_empty() {
                    self.waiting.remove(&key);
                }
            }
            return;
        }
        self.owners.remove(&key);
        let mut heirs: Vec<Uid> = self.waiting.remove(&key).unwrap_or_default().into_iter().collect();
        heirs.sort_by_key(|heir| (name(heir), heir.clone()));
        let mut server = None;
        let mut rest = heirs.into_iter();
        for heir in rest.by_ref() {
            server = derive(&heir).and_then(|mut derived| derived.servers.remove(&key));
            if server.is_some() {
                self.owners.insert(key, heir);
                break;
            }
        }
        let rest: BTreeSet<Uid> = rest.collect();
        if !rest.is_empty() {
            self.waiting.insert(key, rest);
        }
        self.set(key, server, desired, touched);
    }

    fn set(
        &mut self,
        key: VirtualServerKey,
        server: Option<VirtualServer>,
        desired: &mut NodeState,
        touched: &mut Scope,
    ) {
        if desired.virtual_servers.get(&key) == server.as_ref() {
            return;
        }
        touched.virtual_servers.merge(Which::Only(BTreeSet::from([key])));
        let scheduler = server.as_ref().map(|server| server.scheduler.clone());
        let old = match server {
            Some(server) => desired.virtual_servers.insert(key, server),
            None => desired.virtual_servers.remove(&key),
        };
        let old = old.map(|server| server.scheduler);
        if old != scheduler {
            self.count_scheduler(old, scheduler);
        }
    }

    fn count_scheduler(&mut self, old: Option<String>, new: Option<String>) {
        if let Some(new) = new {
            let count = self.schedulers.entry(new).or_default();
            *count += 1;
            self.schedulers_changed |= *count == 1;
        }
        if let Some(old) = old
            && let Some(count) = self.schedulers.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.schedulers.remove(&old);
                self.schedulers_changed = true;
            }
        }
    }

    fn add_entry(&mut self, entry: Entry, desired: &mut NodeState, touched: &mut Scope) {
        let (set, family, value) = entry;
        let name = set.name(family);
        let Some(set) = desired.sets.get_mut(&name) else { return };
        if !set.entries.insert(value) {
            *self.surplus.entry(entry).or_default() += 1;
            return;
        }
        let needed = max_entries(set.kind, set.entries.len());
        if needed > set.max_entries {
            set.max_entries = needed;
            touched.sets.merge(Which::Only(BTreeSet::from([name.clone()])));
        }
        touch(touched, name, value);
    }

    fn remove_entry(&mut self, entry: Entry, desired: &mut NodeState, touched: &mut Scope) {
        if let Some(count) = self.surplus.get_mut(&entry) {
            *count -= 1;
            if *count == 0 {
                self.surplus.remove(&entry);
            }
            return;
        }
        let (set, family, value) = entry;
        let name = set.name(family);
        if let Some(set) = desired.sets.get_mut(&name)
            && set.entries.remove(&value)
        {
            touch(touched, name, value);
        }
    }
}

fn host_route(address: IpAddr) -> LocalRoute {
    LocalRoute { range: address.into(), interface: SERVICE_INTERFACE.into() }
}

fn touch(touched: &mut Scope, set: String, entry: SetEntry) {
    match entry {
        // Whether an entry is there does not say with which mark: such a set, a small one, is read whole.
        SetEntry::IpPortMark(..) => touched.sets.merge(Which::Only(BTreeSet::from([set]))),
        _ => _ = touched.set_entries.entry(set).or_default().insert(entry),
    }
}
