//! NodeNetStates as they are published, and what their nodes may still hold from before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::{
    AssignedState, AssignedVirtualIP, NodeNetState, NodeNetStateSpec, NodeNetStateStatus, VirtualIPOnNode,
    VirtualIPState,
};

/// How long a node that reported a fault with a virtual IP is only a last resort for it: this long after the first one,
/// twice as long after each further one, and at most [`FAULT_PAUSE_MAX`]. A node whose fault shows only while it holds
/// the addresses would otherwise take them back at once, again and again.
const FAULT_PAUSE: Duration = Duration::from_secs(5);
const FAULT_PAUSE_MAX: Duration = Duration::from_secs(300);
/// A node without a fault for this long begins anew.
const FAULT_FORGOTTEN: Duration = Duration::from_secs(900);
/// A write of a NodeNetState that is under way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InFlight {
    /// This spec.
    Put(Box<NodeNetStateSpec>),
    /// A deletion.
    Delete,
}

/// A spec of which the API server keeps only a part: its definition of the kind is older.
#[derive(Debug)]
struct Cut {
    put: NodeNetStateSpec,
    kept: NodeNetStateSpec,
}

/// A NodeNetState as it is published, and what its node may still hold from before.
#[derive(Debug, Default)]
pub(crate) struct StateInfo {
    /// Whether the object exists.
    pub(crate) exists: bool,
    pub(crate) uid: Option<String>,
    /// Version that was seen last: what replaces another one was planned from something else.
    pub(crate) resource_version: Option<String>,
    /// UID of the Node that owns it.
    pub(crate) owner: Option<String>,
    pub(crate) generation: i64,
    pub(crate) spec: NodeNetStateSpec,
    pub(crate) status: Option<NodeNetStateStatus>,
    pub(crate) in_flight: Option<InFlight>,
    cut: Option<Cut>,
    /// Addresses that an earlier spec let the node hold, and the first generation that does not: until the agent has
    /// confirmed that generation it may have them.
    ghosts: BTreeMap<IpAddr, i64>,
    /// Those of them that stem from an object that was deleted.
    haunted: BTreeSet<IpAddr>,
    /// Addresses that some spec let the node hold, as far as this process can know. Of others its agent may say what it
    /// likes: one node's word must not keep an address from all nodes.
    ever_assigned: BTreeSet<IpAddr>,
    /// Faults that were reported, by virtual IP.
    faults: BTreeMap<String, Faults>,
    /// Since when the reported interfaces are as they are (monotonic).
    pub(crate) interfaces_since: Duration,
}

/// Faults of one virtual IP on one node.
#[derive(Debug, Default)]
struct Faults {
    /// When one was reported last (monotonic).
    last: Duration,
    /// How many began lately.
    count: u32,
}

/// What a new version of a NodeNetState changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StateChange {
    pub(crate) spec: bool,
    pub(crate) interfaces: bool,
    /// Virtual IPs whose placement or status may change.
    pub(crate) virtual_ips: BTreeSet<String>,
}

pub(crate) fn address_of(cidr: &str) -> Option<IpAddr> {
    cidr.parse::<IpNet>().ok().map(|n| n.addr())
}

fn active_addresses(spec: &NodeNetStateSpec) -> impl Iterator<Item = IpAddr> {
    let active = spec.virtual_ips.iter().filter(|v| v.state == AssignedState::Active);
    active.flat_map(|v| &v.addresses).filter_map(|a| address_of(a))
}

/// Names of the entries of `a` that `b` does not have.
fn changed_entries(a: &NodeNetStateSpec, b: &NodeNetStateSpec) -> Vec<String> {
    let other = |v: &&AssignedVirtualIP| !b.virtual_ips.contains(v);
    a.virtual_ips.iter().filter(other).map(|v| v.name.clone()).collect()
}

/// The generation that a status speaks of. One that is not there yet is that of an object of the same name which was
/// deleted: its agent has not seen the new one.
fn confirmed_generation(status: Option<&NodeNetStateStatus>, generation: i64) -> Option<i64> {
    status?.observed_generation.filter(|observed| *observed <= generation)
}

impl StateInfo {
    /// Takes a new version in.
    pub(crate) fn observe(&mut self, object: NodeNetState, answer: bool, now: Duration) -> StateChange {
        let meta = object.metadata;
        let generation = meta.generation.unwrap_or(1);
        let same_object = self.exists && self.uid == meta.uid;
        let own = self.in_flight.is_some();
        match self.in_flight.take() {
            Some(InFlight::Put(spec)) if *spec == object.spec => self.cut = None,
            Some(InFlight::Put(spec)) if answer => {
                self.cut = Some(Cut { put: *spec, kept: object.spec.clone() });
            }
            other => self.in_flight = other,
        }
        if same_object && generation < self.generation {
            return StateChange::default();
        }
        // A list that was begun before may end after a newer version came by the watch; of one kind the numbers grow.
        let number = |version: &Option<String>| version.as_ref().and_then(|text| text.parse::<u64>().ok());
        if same_object && number(&meta.resource_version) < number(&self.resource_version) {
            return StateChange::default();
        }
        let mut change = StateChange {
            spec: !self.exists || self.spec != object.spec || self.generation != generation,
            ..Default::default()
        };
        if !same_object {
            // A new object counts its generations anew.
            for first in self.ghosts.values_mut() {
                *first = generation;
            }
        }
        let confirmed = confirmed_generation(object.status.as_ref(), generation).unwrap_or(0);
        if !self.exists && self.uid.is_none() && !own {
            // Of the specs before this process looked, only the entries are left.
            let all = object.spec.virtual_ips.iter().flat_map(|v| &v.addresses);
            self.ever_assigned.extend(all.filter_map(|a| address_of(a)));
        }
        self.ever_assigned.extend(active_addresses(&object.spec));
        if change.spec {
            let now_active: BTreeSet<IpAddr> = active_addresses(&object.spec).collect();
            let mut dropped: Vec<IpAddr> = active_addresses(&self.spec).collect();
            if !self.exists && self.uid.is_none() && !own && confirmed < generation {
                // First seen, not made by this process, and not confirmed by the agent: an earlier spec may have said
                // Active.
                let all = object.spec.virtual_ips.iter().flat_map(|v| &v.addresses);
                dropped.extend(all.filter_map(|a| address_of(a)));
            }
            for address in dropped.into_iter().filter(|a| !now_active.contains(a)) {
                self.ghosts.insert(address, generation);
            }
            for address in now_active {
                self.ghosts.remove(&address);
            }
            change.virtual_ips.extend(changed_entries(&self.spec, &object.spec));
            change.virtual_ips.extend(changed_entries(&object.spec, &self.spec));
        }
        let before = self.status.take().unwrap_or_default();
        let status = object.status;
        let interfaces = status.as_ref().map(|s| s.interfaces.as_slice()).unwrap_or_default();
        change.interfaces = before.interfaces != interfaces;
        if change.interfaces {
            self.interfaces_since = now;
        }
        let gateways = status.as_ref().map(|s| s.gateways.as_slice()).unwrap_or_default();
        change.interfaces |= before.gateways != gateways;
        if let Some(after) = &status {
            for v in &after.virtual_ips {
                if v.state == VirtualIPState::Fault && !for_a_dead_link(v, after) {
                    let known = before
                        .virtual_ips
                        .iter()
                        .any(|b| b.name == v.name && b.state == VirtualIPState::Fault);
                    let faults = self.faults.entry(v.name.clone()).or_default();
                    if !known {
                        let forgotten = now.saturating_sub(faults.last) >= FAULT_FORGOTTEN;
                        faults.count = if forgotten { 1 } else { faults.count.saturating_add(1) };
                    }
                    faults.last = now;
                }
            }
            if before.observed_generation != after.observed_generation
                || before.slice_revision != after.slice_revision
                || before.conditions != after.conditions
                || before.failures != after.failures
            {
                // Whether what the node holds is programmed; of what it does not hold nothing depends on it.
                let active = object.spec.virtual_ips.iter().filter(|v| v.state == AssignedState::Active);
                change.virtual_ips.extend(active.map(|v| v.name.clone()));
            }
            for (a, b) in [(&before, after), (after, &before)] {
                let other = |v: &&VirtualIPOnNode| !b.virtual_ips.contains(v);
                change.virtual_ips.extend(a.virtual_ips.iter().filter(other).map(|v| v.name.clone()));
            }
        }
        self.exists = true;
        self.uid = meta.uid;
        self.resource_version = meta.resource_version;
        let owners = meta.owner_references.unwrap_or_default();
        self.owner = owners.into_iter().find(|o| o.kind == "Node").map(|o| o.uid);
        self.generation = generation;
        self.spec = object.spec;
        self.status = status;
        self.ghosts.retain(|_, first| confirmed < *first);
        change
    }

    /// Whether `spec`, which is what is wanted now, is published, or as much of it as the API server keeps: to write the
    /// same again would never end. What was wanted before and is wanted again is tried again.
    pub(crate) fn has(&mut self, spec: &NodeNetStateSpec) -> bool {
        self.cut = self.cut.take().filter(|cut| cut.put == *spec);
        let kept = self.cut.as_ref().map(|cut| &cut.kept);
        self.exists && (self.spec == *spec || kept == Some(&self.spec))
    }

    /// Whether the agent has reported on the spec as it is now.
    pub(crate) fn confirmed(&self) -> bool {
        self.exists && confirmed_generation(self.status.as_ref(), self.generation) == Some(self.generation)
    }

    /// The object is gone; what its node held it may still hold, as nobody can confirm anything now.
    pub(crate) fn gone(&mut self) {
        self.exists = false;
        let held: Vec<IpAddr> = active_addresses(&self.spec).chain(self.believed_addresses()).collect();
        for address in held {
            self.ghosts.insert(address, i64::MAX);
            self.haunted.insert(address);
        }
        for first in self.ghosts.values_mut() {
            *first = i64::MAX;
        }
        self.spec = NodeNetStateSpec::default();
        self.status = None;
        self.generation = 0;
        self.in_flight = None;
        self.cut = None;
    }

    fn reported_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let active = self.status.iter().flat_map(|s| &s.virtual_ips);
        let active = active.filter(|v| v.state == VirtualIPState::Active);
        active.flat_map(|v| &v.addresses).filter_map(|a| address_of(&a.address))
    }

    /// The node was said to have `address`, by an object that may be gone. Unless the one that is there says so too, the
    /// node may still have it: until that one, or a new one, is confirmed, or the agent has surely ended.
    pub(crate) fn haunt(&mut self, address: IpAddr) {
        self.ever_assigned.insert(address);
        if active_addresses(&self.spec).any(|a| a == address) {
            return;
        }
        self.haunted.insert(address);
        if !self.exists {
            self.ghosts.insert(address, i64::MAX);
        } else if !self.confirmed() {
            self.ghosts.insert(address, self.generation);
        }
    }

    /// Whether the node may have `address` because of an object that was deleted: of that its agent confirms nothing.
    pub(crate) fn is_haunted(&self, address: IpAddr) -> bool {
        self.haunted.contains(&address) && self.lingers(address)
    }

    fn believed_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reported_addresses().filter(|a| self.ever_assigned.contains(a))
    }

    /// Whether a spec that is published, or is just being written, lets the node hold `address`.
    pub(crate) fn is_assigned(&self, address: IpAddr) -> bool {
        let in_flight = match &self.in_flight {
            Some(InFlight::Put(spec)) => Some(&**spec),
            _ => None,
        };
        active_addresses(&self.spec)
            .chain(in_flight.into_iter().flat_map(active_addresses))
            .any(|a| a == address)
    }

    /// Whether the node may still have `address` although no spec lets it: its agent says so, or has not confirmed yet.
    pub(crate) fn lingers(&self, address: IpAddr) -> bool {
        self.ghosts.contains_key(&address) || self.believed_addresses().any(|a| a == address)
    }

    /// Whether the node may have any virtual IP.
    pub(crate) fn holds_anything(&self) -> bool {
        !self.ghosts.is_empty()
            || active_addresses(&self.spec).next().is_some()
            || self.believed_addresses().next().is_some()
    }

    /// All addresses that the node may have, or says it has.
    pub(crate) fn may_have(&self) -> BTreeSet<IpAddr> {
        let in_flight = match &self.in_flight {
            Some(InFlight::Put(spec)) => Some(&**spec),
            _ => None,
        };
        active_addresses(&self.spec)
            .chain(in_flight.into_iter().flat_map(active_addresses))
            .chain(self.reported_addresses())
            .chain(self.ghosts.keys().copied())
            .collect()
    }

    /// Until when the node is only a last resort for a virtual IP, because of a fault that it reported.
    pub(crate) fn faulty_until(&self, virtual_ip: &str) -> Option<Duration> {
        let faults = self.faults.get(virtual_ip)?;
        let doubled = FAULT_PAUSE * 2_u32.saturating_pow(faults.count.saturating_sub(1).min(10));
        Some(faults.last + doubled.min(FAULT_PAUSE_MAX))
    }

    /// The addresses of its interfaces and its gateways, as reported.
    pub(crate) fn reported_ranges(&self) -> BTreeSet<IpNet> {
        let interfaces = self.status.iter().flat_map(|s| &s.interfaces).flat_map(|i| &i.addresses);
        let gateways = self.status.iter().flat_map(|s| &s.gateways).filter_map(|text| text.parse().ok());
        interfaces.filter_map(|text| address_of(text)).chain(gateways).map(IpNet::from).collect()
    }

    /// Whether the agent has reported its interfaces.
    pub(crate) fn reported(&self) -> Option<&NodeNetStateStatus> {
        self.status.as_ref().filter(|s| !s.interfaces.is_empty())
    }
}

/// Whether a fault is no more than an interface that is down: that is over as soon as the interface is up again.
fn for_a_dead_link(fault: &VirtualIPOnNode, status: &NodeNetStateStatus) -> bool {
    let carries =
        |name: &str| fault.addresses.is_empty() || fault.addresses.iter().any(|a| a.interface == name);
    status.interfaces.iter().any(|i| !i.up && carries(&i.name))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::node) fn reports(fault: bool) -> NodeNetState {
        let mut state = NodeNetState::new("a", NodeNetStateSpec::default());
        state.status = Some(NodeNetStateStatus {
            virtual_ips: vec![VirtualIPOnNode {
                name: "web".into(),
                state: if fault { VirtualIPState::Fault } else { VirtualIPState::Backup },
                message: None,
                addresses: Vec::new(),
            }],
            ..Default::default()
        });
        state
    }

    #[test]
    fn a_status_that_speaks_of_a_deleted_object_confirms_nothing() {
        let mut object = reports(false);
        object.metadata.generation = Some(2);
        let mut confirmed = |observed| {
            object.status.as_mut().unwrap().observed_generation = Some(observed);
            let mut state = StateInfo::default();
            state.observe(object.clone(), false, Duration::ZERO);
            state.confirmed()
        };
        assert_eq!([1, 2, 7].map(&mut confirmed), [false, true, false]);
    }

    #[test]
    fn a_node_that_fails_again_and_again_is_a_last_resort_for_longer_and_longer() {
        let mut state = StateInfo::default();
        let s = Duration::from_secs;
        assert_eq!(state.faulty_until("web"), None);
        let mut now = s(1000);
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            state.observe(reports(true), false, now);
            assert_eq!(state.faulty_until("web"), Some(now + s(pause)));
            now += s(1);
            state.observe(reports(false), false, now);
            now += s(1);
        }
        now += FAULT_FORGOTTEN;
        state.observe(reports(true), false, now);
        assert_eq!(state.faulty_until("web"), Some(now + s(5)), "long ago is forgotten");
        state.observe(reports(true), false, now + s(30));
        assert_eq!(state.faulty_until("web"), Some(now + s(35)), "one fault that lasts is one fault");
    }
}
