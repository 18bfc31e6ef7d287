//! What happens outside, and what must be planned again because of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Index, service_key};
use crate::accept;
use crate::node::NodeInfo;
use crate::service::{EndpointsInfo, Named, ServiceInfo};
use crate::vip::{Vip, VipObject, Wait};
use crate::{Change, Key, Kind, Now, Object, ObjectRef};

impl Index {
    /// Takes one event in and returns what must be planned again because of it. Costs what the one object costs.
    pub fn apply(&mut self, change: Change, now: &Now) -> BTreeSet<Key> {
        let keys = match change {
            Change::Upsert(object) => self.upsert(object, false, now),
            Change::Wrote(object) => self.upsert(object, true, now),
            Change::Delete(object) => {
                self.shown(&object, false);
                self.delete(&object)
            }
            Change::Undecodable { object, service, error } => self.undecodable(object, service, error),
            Change::Listing(kind) => {
                self.stop(kind);
                self.listing.insert(kind, BTreeSet::new());
                BTreeSet::new()
            }
            Change::Lost(kind) => {
                self.stop(kind);
                self.listing.remove(&kind);
                BTreeSet::new()
            }
            Change::Synced(kind) => self.synced(kind, now),
            Change::WriteFailed(object) => self.write_failed(&object),
        };
        if self.leading { keys } else { BTreeSet::new() }
    }

    fn stop(&mut self, kind: Kind) {
        self.complete.remove(&kind);
        if kind == Kind::Lease {
            self.agents.lost();
        }
    }

    fn shown(&mut self, object: &ObjectRef, exists: bool) {
        if let Some(shown) = self.listing.get_mut(&object.kind) {
            if exists {
                shown.insert(object.clone());
            } else {
                shown.remove(object);
            }
        }
    }

    fn synced(&mut self, kind: Kind, now: &Now) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        if let Some(shown) = self.listing.remove(&kind) {
            for object in self.known(kind) {
                if !shown.contains(&object) {
                    keys.extend(self.delete(&object));
                }
            }
        }
        self.complete.insert(kind);
        if kind == Kind::Lease {
            self.agents.synced(now.monotonic);
            keys.extend(self.all_vips());
        }
        keys.extend(std::mem::take(&mut self.held_back));
        keys
    }

    /// All objects of a kind that the index takes to exist.
    fn known(&self, kind: Kind) -> Vec<ObjectRef> {
        let cluster = |n: &String| ObjectRef::cluster(kind, n.clone());
        let named = |n: &Named| ObjectRef::namespaced(kind, &*n.namespace, &*n.name);
        let mut out: Vec<ObjectRef> = match kind {
            Kind::Node => self.facts.nodes.keys().map(cluster).collect(),
            Kind::Service => self.facts.services.keys().map(named).collect(),
            Kind::EndpointSlice => self.endpoints.keys().map(named).collect(),
            Kind::VirtualIP => {
                let known = self.vips.iter().filter(|(_, v)| v.object.is_some() || v.error.is_some());
                known.map(|(n, _)| cluster(n)).collect()
            }
            Kind::NodeNetState => {
                self.facts.states.iter().filter(|(_, s)| s.exists).map(|(n, _)| cluster(n)).collect()
            }
            Kind::NodeNetSlice => self.slices.names().map(cluster).collect(),
            // A Lease that is gone is a Lease that is not renewed.
            Kind::Lease => Vec::new(),
        };
        out.extend(self.unreadable.keys().filter(|o| o.kind == kind).cloned());
        out
    }

    fn upsert(&mut self, object: Object, answer: bool, now: &Now) -> BTreeSet<Key> {
        let name = object.object_ref();
        self.shown(&name, true);
        let mut keys = BTreeSet::new();
        if let Some(service) = self.unreadable.remove(&name) {
            keys.extend(self.frozen_by(&name, service.as_ref()));
        }
        match object {
            Object::Node(node) => {
                let before = self.facts.nodes.get(&name.name);
                let info = NodeInfo::new(&node, before, now.monotonic);
                if before == Some(&info) {
                    return keys;
                }
                let (old, new) = (before.map(NodeInfo::ranges).unwrap_or_default(), info.ranges());
                self.moved.extend(old.symmetric_difference(&new));
                if old != new
                    && let Some(state) = self.facts.states.get(&name.name)
                {
                    // What its agent says counts by where the Node is.
                    self.moved.extend(state.reported_ranges());
                }
                self.facts.nodes.insert(name.name.clone(), info);
                self.epoch += 1;
                keys.extend(self.all_vips());
                keys.insert(Key::Node(name.name));
            }
            Object::Service(service) => {
                let named = Named::new(&name.namespace, &name.name);
                let info = ServiceInfo::new(&service);
                if self.facts.services.get(&named) == Some(&info) {
                    return keys;
                }
                self.facts.services.insert(named.clone(), info);
                keys.extend(self.service_changed(&named));
            }
            Object::EndpointSlice(slice) => {
                let named = Named::new(&name.namespace, &name.name);
                let names = &mut self.names;
                let info = EndpointsInfo::new(&slice, &mut |n| match names.get(n) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let new: Arc<str> = n.into();
                        names.insert(Arc::clone(&new));
                        new
                    }
                });
                if self.endpoints.get(&named) == info.as_ref() {
                    return keys;
                }
                keys.extend(self.remove_endpoints(&named));
                if let Some(info) = info {
                    keys.insert(service_key(&info.service));
                    self.endpoints_of.entry(info.service.clone()).or_default().insert(named.clone());
                    self.endpoints.insert(named, info);
                }
                keys.extend(self.api_servers_changed());
            }
            Object::VirtualIP(object) => keys.extend(self.upsert_vip(*object)),
            Object::NodeNetState(state) => {
                let info = self.facts.states.entry(name.name.clone()).or_default();
                let before = info.reported_ranges();
                let change = info.observe(*state, answer, now.monotonic);
                if change.interfaces {
                    self.moved.extend(before.into_iter().chain(info.reported_ranges()));
                }
                for address in info.may_have() {
                    self.near.entry(address).or_default().insert(name.name.clone());
                }
                if change.spec || answer {
                    keys.insert(Key::Node(name.name.clone()));
                }
                if !self.facts.nodes.contains_key(&name.name) {
                    keys.insert(Key::Node(name.name.clone()));
                }
                if change.interfaces {
                    self.epoch += 1;
                    keys.extend(self.all_vips());
                    // Something must be planned, that Services with addresses from outside are judged again.
                    keys.insert(Key::Node(name.name.clone()));
                } else {
                    let vips = change.virtual_ips.into_iter().filter(|v| self.vips.contains_key(v));
                    keys.extend(vips.map(Key::VirtualIP));
                }
                keys.extend(self.waiting_for(&name.name));
            }
            Object::NodeNetSlice(slice) => {
                if self.slices.observe(*slice, answer) {
                    keys.insert(Key::Slice(name.name));
                }
            }
            Object::Lease(lease) => {
                if self.agents.observe(&lease, now.monotonic) {
                    keys.extend(self.all_vips());
                }
            }
        }
        keys
    }

    /// VirtualIPs that wait until this node lets an address go.
    fn waiting_for(&self, node: &str) -> Vec<Key> {
        let waiting = self.vips.iter().filter(|(_, v)| matches!(&v.wait, Wait::Release(n) if n == node));
        waiting.map(|(name, _)| Key::VirtualIP(name.clone())).collect()
    }

    fn upsert_vip(&mut self, object: nodenet_crds::VirtualIP) -> BTreeSet<Key> {
        let meta = object.metadata;
        let name = meta.name.unwrap_or_default();
        let mut keys = BTreeSet::new();
        let vip = self.vips.entry(name.clone()).or_default();
        let status = object.status.unwrap_or_default();
        if vip.written.as_ref().is_some_and(|w| *w == status) {
            vip.written = None;
        }
        let new = VipObject {
            uid: meta.uid,
            generation: meta.generation,
            created: meta.creation_timestamp.map(|t| t.0),
            spec: object.spec,
        };
        let same = vip.error.is_none()
            && vip
                .object
                .as_ref()
                .is_some_and(|o| o.uid == new.uid && o.generation == new.generation && o.spec == new.spec);
        let status_changed = vip.status != status;
        vip.status = status;
        vip.error = None;
        if same {
            if status_changed && vip.written.is_none() {
                keys.insert(Key::VirtualIP(name));
            }
            return keys;
        }
        let reborn = vip.deleted || vip.object.as_ref().is_some_and(|o| o.uid != new.uid);
        vip.deleted = false;
        let claim = (new.created, name.clone());
        let mut unclaimed = BTreeSet::new();
        vip.judged = None;
        if reborn {
            // Deleted and made again between two looks: what was accepted for the old one is not this one's.
            vip.in_force = None;
            vip.refusal = None;
            vip.written = None;
            let others = self.in_force.set(claim.clone(), BTreeSet::new());
            keys.extend(others.iter().cloned().map(Key::VirtualIP));
            unclaimed = others;
        }
        let mut wanted = accept::claimed(&new.spec);
        if let Some(in_force) = &vip.in_force {
            wanted.extend(in_force.addresses.iter().map(|(_, n)| n.addr()));
        }
        let services: Vec<Named> =
            new.spec.services.iter().map(|s| Named::new(&s.namespace, &s.name)).collect();
        vip.object = Some(new);
        for service in services {
            self.vips_of_service.entry(service).or_default().insert(name.clone());
        }
        let mut others = self.wanted.set(claim, wanted);
        keys.extend(others.iter().cloned().map(Key::VirtualIP));
        others.extend(unclaimed);
        self.claims_changed(others);
        keys.insert(Key::VirtualIP(name));
        keys
    }

    /// The VirtualIPs that name a Service must be judged again, and it itself be planned.
    fn service_changed(&mut self, service: &Named) -> BTreeSet<Key> {
        let names = self.vips_of_service.get(service).into_iter().flatten();
        let mut keys: BTreeSet<Key> = names.map(|v| Key::VirtualIP(v.clone())).collect();
        for name in self.vips_of_service.get(service).into_iter().flatten() {
            if let Some(vip) = self.vips.get_mut(name) {
                vip.judged = None;
            }
        }
        keys.insert(service_key(service));
        keys
    }

    /// VirtualIPs that may own an address now, or own it no more, are judged again.
    pub(super) fn claims_changed(&mut self, names: BTreeSet<String>) {
        for name in names {
            if let Some(vip) = self.vips.get_mut(&name) {
                vip.judged = None;
            }
            self.todo_vips.insert(name);
        }
    }

    /// VirtualIPs are judged again where the API servers have other addresses now.
    fn api_servers_changed(&mut self) -> Vec<Key> {
        let of = self.endpoints_of.get(&self.api_service).into_iter().flatten();
        let now: BTreeSet<IpAddr> =
            of.filter_map(|n| self.endpoints.get(n)).flat_map(EndpointsInfo::addresses).collect();
        if now == self.facts.api_servers {
            return Vec::new();
        }
        self.moved.extend(now.symmetric_difference(&self.facts.api_servers).copied().map(IpNet::from));
        self.facts.api_servers = now;
        self.epoch += 1;
        self.all_vips().collect()
    }

    fn remove_endpoints(&mut self, slice: &Named) -> Option<Key> {
        let old = self.endpoints.remove(slice)?;
        if let Some(of) = self.endpoints_of.get_mut(&old.service) {
            of.remove(slice);
            if of.is_empty() {
                self.endpoints_of.remove(&old.service);
            }
        }
        Some(service_key(&old.service))
    }

    fn delete(&mut self, object: &ObjectRef) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        if let Some(service) = self.unreadable.remove(object) {
            keys.extend(self.frozen_by(object, service.as_ref()));
        }
        let named = || Named::new(&object.namespace, &object.name);
        match object.kind {
            Kind::Node => {
                if let Some(node) = self.facts.nodes.remove(&object.name) {
                    self.moved.extend(node.ranges());
                    self.epoch += 1;
                    keys.extend(self.all_vips());
                    keys.insert(Key::Node(object.name.clone()));
                }
            }
            Kind::Service => {
                if self.facts.services.remove(&named()).is_some() {
                    keys.extend(self.service_changed(&named()));
                }
            }
            Kind::EndpointSlice => {
                keys.extend(self.remove_endpoints(&named()));
                keys.extend(self.api_servers_changed());
            }
            Kind::VirtualIP => {
                if let Some(vip) = self.vips.get_mut(&object.name) {
                    vip.object = None;
                    vip.error = None;
                    vip.deleted = true;
                    vip.judged = None;
                    keys.insert(Key::VirtualIP(object.name.clone()));
                }
            }
            Kind::NodeNetState => {
                if let Some(state) = self.facts.states.get_mut(&object.name) {
                    self.moved.extend(state.reported_ranges());
                    state.gone();
                    self.epoch += 1;
                    for address in state.may_have() {
                        self.near.entry(address).or_default().insert(object.name.clone());
                    }
                    keys.extend(self.all_vips());
                    keys.insert(Key::Node(object.name.clone()));
                }
            }
            Kind::NodeNetSlice => {
                if self.slices.gone(&object.name) {
                    keys.insert(Key::Slice(object.name.clone()));
                }
            }
            Kind::Lease => {}
        }
        keys
    }

    fn undecodable(&mut self, object: ObjectRef, service: Option<String>, error: String) -> BTreeSet<Key> {
        self.shown(&object, true);
        let mut keys = BTreeSet::new();
        let named = Named::new(&object.namespace, &object.name);
        let known = match object.kind {
            Kind::Node => self.facts.nodes.contains_key(&object.name),
            Kind::Service => self.facts.services.contains_key(&named),
            Kind::EndpointSlice => self.endpoints.contains_key(&named),
            Kind::VirtualIP => {
                self.vips.entry(object.name.clone()).or_default().error = Some(error);
                keys.insert(Key::VirtualIP(object.name.clone()));
                true
            }
            Kind::NodeNetSlice => {
                self.slices.unreadable(&object.name);
                true
            }
            // Both are only read for what is there.
            Kind::NodeNetState | Kind::Lease => true,
        };
        if !known {
            let service = service.map(|s| Named::new(&object.namespace, &s));
            self.unreadable.insert(object, service);
        }
        keys
    }

    /// Services whose plan was frozen by an object that could not be read.
    fn frozen_by(&self, object: &ObjectRef, service: Option<&Named>) -> Vec<Key> {
        match (object.kind, service) {
            (Kind::EndpointSlice, Some(service)) => vec![service_key(service)],
            (Kind::EndpointSlice, None) => {
                let of = self.facts.services.keys().filter(|s| *s.namespace == *object.namespace);
                of.map(service_key).collect()
            }
            (Kind::Service, _) => vec![Key::service(&*object.namespace, &*object.name)],
            (Kind::Node, _) => vec![Key::Node(object.name.clone())],
            _ => Vec::new(),
        }
    }

    /// Whether part of a Service's input exists but was never read: then what is published for it stays.
    pub(super) fn is_frozen(&self, service: &Named) -> bool {
        self.unreadable.iter().any(|(object, of)| match object.kind {
            Kind::Service => *object.namespace == *service.namespace && *object.name == *service.name,
            Kind::EndpointSlice => {
                of.as_ref().map_or(*object.namespace == *service.namespace, |of| of == service)
            }
            _ => false,
        })
    }

    fn write_failed(&mut self, object: &ObjectRef) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        match object.kind {
            Kind::NodeNetSlice => {
                self.slices.write_failed(&object.name);
                keys.insert(Key::Slice(object.name.clone()));
            }
            Kind::NodeNetState => {
                if let Some(state) = self.facts.states.get_mut(&object.name) {
                    state.in_flight = None;
                }
                // What it was to be given was not: who may have it is asked again.
                let holds = |v: &&Vip| v.holder.as_ref().is_some_and(|h| h.node == object.name);
                let given = self.vips.iter().filter(|(_, v)| holds(v));
                keys.extend(given.map(|(name, _)| Key::VirtualIP(name.clone())));
                keys.insert(Key::Node(object.name.clone()));
            }
            Kind::VirtualIP => {
                if let Some(vip) = self.vips.get_mut(&object.name) {
                    vip.written = None;
                }
                keys.insert(Key::VirtualIP(object.name.clone()));
            }
            Kind::Node | Kind::Service | Kind::EndpointSlice | Kind::Lease => {}
        }
        keys
    }
}
