//! The synchronous index: every event goes in, every write comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::{AssignedState, NodeNetStateSpec, conditions};

use crate::accept::{self, Claim, Claims, Facts, InForce};
use crate::agents::{Agents, Life};
use crate::bindings;
use crate::node::{InFlight, NodeInfo, plan_node};
use crate::output::{Event, EventType};
use crate::placement::{Decision, decide};
use crate::service::{BoundFrontend, EndpointsInfo, Named, ServiceInfo, plan_service};
use crate::slices::Slices;
use crate::vip::{self, Holder, Vip, VipObject, Wait};
use crate::vip_status::{self, whole_seconds};
use crate::{Change, Key, Kind, Now, Object, ObjectRef, Output, Precondition, Settings};

/// Kinds that must be complete before a slice is written.
const FOR_SLICES: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::NodeNetSlice];
/// Kinds that must be complete before a VirtualIP is placed. A watch of Services that breaks later must not keep an
/// address from moving: what is known of them stays. While Leases cannot be read nobody's silence counts (`agents`).
const FOR_VIPS: [Kind; 3] = [Kind::Node, Kind::VirtualIP, Kind::NodeNetState];
/// Kinds that must have been complete once: what is in force for VirtualIPs is rebuilt from them.
const TO_ADOPT_VIPS: [Kind; 5] =
    [Kind::Node, Kind::VirtualIP, Kind::NodeNetState, Kind::Service, Kind::NodeNetSlice];
/// Kinds that must be complete before a NodeNetState is written.
const FOR_NODES: [Kind; 2] = [Kind::Node, Kind::NodeNetState];

/// All that is known of the cluster, and what follows from it.
#[derive(Debug)]
pub struct Index {
    facts: Facts,
    endpoints: BTreeMap<Named, EndpointsInfo>,
    endpoints_of: BTreeMap<Named, BTreeSet<Named>>,
    vips: BTreeMap<String, Vip>,
    agents: Agents,
    slices: Slices,
    /// Names of nodes, shared by the endpoints on them.
    names: BTreeSet<Arc<str>>,

    /// Objects that exist but were never decoded, with the Service of an EndpointSlice.
    unreadable: BTreeMap<ObjectRef, Option<Named>>,
    complete: BTreeSet<Kind>,
    /// What was shown since a list began.
    listing: BTreeMap<Kind, BTreeSet<ObjectRef>>,

    leading: bool,
    slices_adopted: bool,
    vips_adopted: bool,
    /// Keys whose input was not complete.
    held_back: BTreeSet<Key>,

    /// VirtualIPs that name a Service, in the spec or in what is in force.
    vips_of_service: BTreeMap<Named, BTreeSet<String>>,
    /// Who wants an address, by valid specs and by what is in force.
    wanted: Claims,
    /// Who has an address in force.
    in_force: Claims,
    /// Nodes that may have an address; more than there are, never fewer.
    near: BTreeMap<IpAddr, BTreeSet<String>>,

    todo_vips: BTreeSet<String>,
    todo_services: BTreeSet<Named>,
    todo_nodes: BTreeSet<String>,

    deadlines: BTreeMap<Key, Duration>,
    by_time: BTreeSet<(Duration, Key)>,
}

impl Index {
    /// An index that knows nothing: every kind is incomplete.
    pub fn new(settings: Settings) -> Self {
        let slices = Slices::new(settings.slice_bytes, settings.part_bytes);
        Self {
            facts: Facts { settings, ..Facts::default() },
            endpoints: BTreeMap::new(),
            endpoints_of: BTreeMap::new(),
            vips: BTreeMap::new(),
            agents: Agents::default(),
            slices,
            names: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            complete: BTreeSet::new(),
            listing: BTreeMap::new(),
            leading: false,
            slices_adopted: false,
            vips_adopted: false,
            held_back: BTreeSet::new(),
            vips_of_service: BTreeMap::new(),
            wanted: Claims::default(),
            in_force: Claims::default(),
            near: BTreeMap::new(),
            todo_vips: BTreeSet::new(),
            todo_services: BTreeSet::new(),
            todo_nodes: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.facts.settings
    }

    /// Begins to lead: what is published now is taken over as the plan so far (holders, places in slices, revisions).
    /// Before, [`Index::plan`] yields nothing: a follower keeps its index warm by [`Index::apply`] alone. Returns
    /// everything there is to plan.
    pub fn lead(&mut self, _now: &Now) -> BTreeSet<Key> {
        self.leading = true;
        self.all_keys()
    }

    /// The kinds whose list is not complete: outputs that need them are withheld.
    pub fn incomplete(&self) -> BTreeSet<Kind> {
        Kind::ALL.into_iter().filter(|k| !self.complete.contains(k)).collect()
    }

    /// Number of objects known of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let states = self.facts.states.values().filter(|s| s.exists).count();
        [
            (Kind::Node, self.facts.nodes.len()),
            (Kind::Service, self.facts.services.len()),
            (Kind::EndpointSlice, self.endpoints.len()),
            (Kind::VirtualIP, self.vips.values().filter(|v| v.object.is_some()).count()),
            (Kind::NodeNetState, states),
            (Kind::NodeNetSlice, self.slices.names().count()),
        ]
        .into()
    }

    /// Number of endpoints known, in all EndpointSlices.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.values().map(EndpointsInfo::len).sum()
    }

    /// The monotonic time at which something must be planned although nothing happens (a fence runs out, a delay
    /// ends): [`Index::take_due`] has its key from then on.
    pub fn due(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The keys whose time has come. Each is returned once.
    pub fn take_due(&mut self, now: &Now) -> BTreeSet<Key> {
        let mut out = BTreeSet::new();
        while let Some((at, key)) = self.by_time.first().cloned() {
            if at > now.monotonic {
                break;
            }
            self.set_deadline(key.clone(), None);
            out.insert(key);
        }
        out
    }

    fn set_deadline(&mut self, key: Key, at: Option<Duration>) {
        if let Some(old) = self.deadlines.remove(&key) {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key.clone()));
            self.deadlines.insert(key, at);
        }
    }

    fn all_keys(&self) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        keys.extend(self.all_vips());
        let services = self.facts.services.keys().chain(self.slices.services());
        keys.extend(services.map(service_key));
        keys.extend(self.slices.names().map(|n| Key::Slice(n.clone())));
        let nodes = self.facts.nodes.keys().chain(self.facts.states.keys());
        keys.extend(nodes.map(|n| Key::Node(n.clone())));
        keys
    }

    fn all_vips(&self) -> impl Iterator<Item = Key> + '_ {
        self.vips.keys().map(|n| Key::VirtualIP(n.clone()))
    }

    fn has(&self, kinds: &[Kind]) -> bool {
        kinds.iter().all(|k| self.complete.contains(k))
    }

    // ---- events -------------------------------------------------------------------------------------------------

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
                self.facts.nodes.insert(name.name.clone(), info);
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
                keys.extend(self.keys_of_service(&named));
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
            }
            Object::VirtualIP(object) => keys.extend(self.upsert_vip(*object)),
            Object::NodeNetState(state) => {
                let info = self.facts.states.entry(name.name.clone()).or_default();
                let change = info.observe(*state, answer, now.monotonic);
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
                    keys.extend(self.all_vips());
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
        if reborn {
            // Deleted and made again between two looks: what was accepted for the old one is not this one's.
            vip.in_force = None;
            vip.refusal = None;
            vip.written = None;
            let others = self.in_force.set(claim.clone(), BTreeSet::new());
            keys.extend(others.into_iter().map(Key::VirtualIP));
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
        let others = self.wanted.set(claim, wanted);
        keys.extend(others.into_iter().map(Key::VirtualIP));
        keys.insert(Key::VirtualIP(name));
        keys
    }

    fn keys_of_service(&self, service: &Named) -> BTreeSet<Key> {
        let vips = self.vips_of_service.get(service).into_iter().flatten();
        let mut keys: BTreeSet<Key> = vips.map(|v| Key::VirtualIP(v.clone())).collect();
        keys.insert(service_key(service));
        keys
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
                if self.facts.nodes.remove(&object.name).is_some() {
                    keys.extend(self.all_vips());
                    keys.insert(Key::Node(object.name.clone()));
                }
            }
            Kind::Service => {
                if self.facts.services.remove(&named()).is_some() {
                    keys.extend(self.keys_of_service(&named()));
                }
            }
            Kind::EndpointSlice => keys.extend(self.remove_endpoints(&named())),
            Kind::VirtualIP => {
                if let Some(vip) = self.vips.get_mut(&object.name) {
                    vip.object = None;
                    vip.error = None;
                    vip.deleted = true;
                    keys.insert(Key::VirtualIP(object.name.clone()));
                }
            }
            Kind::NodeNetState => {
                if let Some(state) = self.facts.states.get_mut(&object.name) {
                    state.gone();
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
    fn is_frozen(&self, service: &Named) -> bool {
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

    // ---- the start ----------------------------------------------------------------------------------------------

    /// Takes over what is published, once it is known in full. Returns whether that happened now.
    fn adopt(&mut self, now: &Now) -> bool {
        let mut adopted = false;
        if !self.slices_adopted && self.has(&[Kind::NodeNetSlice, Kind::Service]) {
            let services = &self.facts.services;
            self.slices.adopt(|s| services.get(s).map(|i| Arc::clone(&i.uid)));
            self.slices_adopted = true;
            adopted = true;
        }
        if !self.vips_adopted && self.slices_adopted && self.has(&TO_ADOPT_VIPS) {
            self.adopt_vips(now);
            self.vips_adopted = true;
            adopted = true;
        }
        adopted
    }

    fn adopt_vips(&mut self, now: &Now) {
        let mut entries: BTreeMap<String, Vec<(&str, &nodenet_crds::AssignedVirtualIP)>> = BTreeMap::new();
        for (node, state) in &self.facts.states {
            for v in &state.spec.virtual_ips {
                entries.entry(v.name.clone()).or_default().push((node, v));
            }
        }
        let mut claims = Vec::new();
        for (name, entries) in entries {
            let Some(mut in_force) = InForce::from_published(entries.iter().copied()) else { continue };
            let plain: Vec<IpAddr> = in_force.addresses.iter().map(|(_, n)| n.addr()).collect();
            in_force.bindings = bindings::published(&plain, self.slices.published());
            let vip = self.vips.entry(name.clone()).or_default();
            if let Some(object) = &vip.object {
                let accepted = conditions::get(&vip.status.conditions, conditions::virtual_ip::ACCEPTED);
                let known = accepted.filter(|c| c.status == "True");
                in_force.generation =
                    known.and_then(|c| c.observed_generation).filter(|g| Some(*g) == object.generation);
            }
            let told = |node: &str| vip.status.addresses.iter().find(|a| a.node == node);
            let active = entries.iter().filter(|(_, v)| v.state == AssignedState::Active);
            let best = active.min_by_key(|(node, _)| (told(node).is_none(), *node));
            if let Some((node, entry)) = best {
                let told = told(node);
                vip.holder = Some(Holder {
                    node: (*node).to_owned(),
                    since: told
                        .and_then(|t| t.since.as_ref())
                        .map_or_else(|| whole_seconds(now.wall), |t| t.0),
                    reason: told.map_or_else(
                        || "it held the addresses when the operator started".to_owned(),
                        |t| t.reason.clone(),
                    ),
                });
                let parsed = entry.addresses.iter().filter_map(|a| a.parse::<IpNet>().ok());
                vip.granted = parsed.map(|n| n.addr()).collect();
            }
            vip.assigned =
                entries.iter().map(|(node, entry)| ((*node).to_owned(), (*entry).clone())).collect();
            let created = vip.object.as_ref().and_then(|o| o.created);
            claims.push(((created, name.clone()), plain.into_iter().collect::<BTreeSet<_>>()));
            for binding in &in_force.bindings {
                let service = Named::new(&binding.namespace, &binding.name);
                self.vips_of_service.entry(service).or_default().insert(name.clone());
            }
            vip.in_force = Some(in_force);
        }
        for (claim, addresses) in claims {
            let mut wanted = addresses.clone();
            if let Some(object) = self.vips.get(&claim.1).and_then(|v| v.object.as_ref()) {
                wanted.extend(accept::claimed(&object.spec));
            }
            self.wanted.set(claim.clone(), wanted);
            self.in_force.set(claim, addresses);
        }
    }

    // ---- planning -----------------------------------------------------------------------------------------------

    /// Plans the keys and all that follows from them, and returns what must be written, each write once. A key whose
    /// input is not complete yields nothing and comes back from the [`Change::Synced`] that completes it.
    pub fn plan(&mut self, keys: &BTreeSet<Key>, now: &Now) -> Vec<Output> {
        if !self.leading {
            return Vec::new();
        }
        let all = if self.adopt(now) { self.all_keys() } else { BTreeSet::new() };
        let vips_ready = self.vips_adopted && self.has(&FOR_VIPS);
        let slices_ready = self.slices_adopted && self.has(&FOR_SLICES);
        let nodes_ready = self.has(&FOR_NODES);
        for key in keys.iter().chain(&all) {
            let ready = match key {
                Key::VirtualIP(name) => {
                    if vips_ready {
                        self.todo_vips.insert(name.clone());
                    }
                    vips_ready
                }
                Key::Service { namespace, name } => {
                    if slices_ready {
                        self.todo_services.insert(Named::new(namespace, name));
                    }
                    slices_ready
                }
                Key::Slice(_) => slices_ready,
                Key::Node(name) => {
                    if nodes_ready {
                        self.todo_nodes.insert(name.clone());
                    }
                    nodes_ready
                }
            };
            if !ready {
                self.held_back.insert(key.clone());
            }
        }

        let mut out = Vec::new();
        let mut planned = BTreeSet::new();
        while let Some(name) = self.todo_vips.pop_first() {
            if !vips_ready {
                self.held_back.insert(Key::VirtualIP(name));
                continue;
            }
            self.plan_vip(&name, now, &mut out);
            planned.insert(name);
        }
        let services = std::mem::take(&mut self.todo_services);
        if slices_ready {
            let mut bound = BTreeSet::new();
            for service in services {
                if self.plan_service(&service) {
                    bound.extend(self.vips_of_service.get(&service).into_iter().flatten().cloned());
                }
            }
            for name in bound {
                self.note_publication(&name);
            }
            if self.slices.is_dirty() {
                out.extend(self.slices.flush());
            }
        } else {
            self.held_back.extend(services.iter().map(service_key));
        }
        for node in std::mem::take(&mut self.todo_nodes) {
            if nodes_ready {
                out.extend(self.plan_node(&node, vips_ready, now));
            } else {
                self.held_back.insert(Key::Node(node));
            }
        }
        for name in planned {
            out.extend(self.plan_status(&name, now));
        }
        out
    }

    /// Plans one Service. Returns whether its frontends on virtual IPs became others.
    fn plan_service(&mut self, service: &Named) -> bool {
        if self.is_frozen(service) && self.slices.revision_of(service).is_some() {
            return false;
        }
        let Some(info) = self.facts.services.get(service) else {
            let uid: Arc<str> = "-".into();
            self.slices.set(service, &uid, None);
            return false;
        };
        let bound: Vec<BoundFrontend> = if self.vips_adopted {
            let vips = self.vips_of_service.get(service).into_iter().flatten();
            vips.filter_map(|v| self.vips.get(v)?.bound.get(service)).flatten().cloned().collect()
        } else {
            // VirtualIPs cannot be read: what they gave stays.
            carried_over(&self.slices, service, info)
        };
        let of = self.endpoints_of.get(service).into_iter().flatten();
        let endpoints = of.filter_map(|n| self.endpoints.get(n));
        let scheduler = self.facts.settings.scheduler.as_deref();
        let ports = plan_service(info, endpoints, &bound, scheduler);
        let before = on_virtual_ips(self.slices.plan_of(service));
        let uid = Arc::clone(&info.uid);
        self.slices.set(service, &uid, ports) && before != on_virtual_ips(self.slices.plan_of(service))
    }

    /// Remembers which publication brings the frontends that a VirtualIP gave to its Services.
    fn note_publication(&mut self, name: &str) {
        let Some(vip) = self.vips.get_mut(name) else { return };
        let newest = vip.bound.keys().filter_map(|s| self.slices.revision_of(s)).max();
        vip.bound_revision = newest.unwrap_or(0);
    }

    fn plan_node(&mut self, name: &str, vips_ready: bool, now: &Now) -> Option<Output> {
        let readable = !self.unreadable.contains_key(&ObjectRef::cluster(Kind::Node, name));
        let Some(node) = self.facts.nodes.get(name) else {
            return if readable { self.retire_node(name, vips_ready, now) } else { None };
        };
        let published = self.facts.states.get(name);
        if published.is_some_and(|s| s.in_flight.is_some()) {
            return None;
        }
        let virtual_ips = if vips_ready {
            self.vips.values().filter_map(|v| v.assigned.get(name).cloned()).collect()
        } else {
            published.map(|s| s.spec.virtual_ips.clone()).unwrap_or_default()
        };
        let spec = plan_node(node, virtual_ips, &self.facts.settings);
        // An owner that does not exist any more would take the state with it.
        let orphan = |owner: &Option<String>| owner.is_some() && node.uid.is_some() && *owner != node.uid;
        if published.is_some_and(|s| s.exists && s.spec == spec && !orphan(&s.owner)) {
            return None;
        }
        let node_uid = node.uid.clone();
        Some(self.put_state(name, node_uid, spec))
    }

    fn put_state(&mut self, name: &str, node_uid: Option<String>, spec: NodeNetStateSpec) -> Output {
        let state = self.facts.states.entry(name.to_owned()).or_default();
        state.in_flight = Some(InFlight::Put(Box::new(spec.clone())));
        for address in state.may_have() {
            self.near.entry(address).or_default().insert(name.to_owned());
        }
        let replaces = state.exists.then(|| Precondition { uid: state.uid.clone(), resource_version: None });
        Output::PutState { node: name.to_owned(), node_uid, spec, replaces }
    }

    /// The NodeNetState of a Node that is gone: its agent lets everything go first.
    fn retire_node(&mut self, name: &str, vips_ready: bool, now: &Now) -> Option<Output> {
        let state = self.facts.states.get_mut(name)?;
        if !state.exists {
            if self.agents.life(name, now.monotonic) == Life::Fenced || !state.holds_anything() {
                self.facts.states.remove(name);
                self.agents.forget(name);
                self.set_deadline(Key::Node(name.to_owned()), None);
            } else {
                let again = self.agents.next_step(name, now.monotonic);
                self.set_deadline(Key::Node(name.to_owned()), again);
            }
            return None;
        }
        if state.in_flight.is_some() || !vips_ready {
            return None;
        }
        if !state.spec.virtual_ips.is_empty() {
            let spec = NodeNetStateSpec { virtual_ips: Vec::new(), ..state.spec.clone() };
            return Some(self.put_state(name, None, spec));
        }
        if state.holds_anything() && self.agents.life(name, now.monotonic) != Life::Fenced {
            let again = self.agents.next_step(name, now.monotonic);
            self.set_deadline(Key::Node(name.to_owned()), again);
            return None;
        }
        state.in_flight = Some(InFlight::Delete);
        let expect = Precondition { uid: state.uid.clone(), resource_version: None };
        Some(Output::DeleteState { node: name.to_owned(), expect })
    }

    fn plan_vip(&mut self, name: &str, now: &Now, out: &mut Vec<Output>) {
        let Some(mut vip) = self.vips.remove(name) else { return };
        let claim: Claim = (vip.object.as_ref().and_then(|o| o.created), name.to_owned());
        if vip.object.is_none() && vip.error.is_none() {
            self.forget_vip(vip, claim);
            return;
        }
        self.judge(name, &mut vip, &claim, out);

        // Addresses that an older VirtualIP has in force are lost to this one.
        let addresses: Vec<(String, IpNet)> = vip
            .in_force
            .iter()
            .flat_map(|f| &f.addresses)
            .filter(|(_, n)| self.in_force.owner(n.addr()).is_none_or(|o| o == name))
            .cloned()
            .collect();
        let plain: Vec<IpAddr> = addresses.iter().map(|(_, n)| n.addr()).collect();

        let bound = match &vip.in_force {
            Some(f) => accept::frontends(f, &plain, &self.facts),
            None => bindings::Frontends::new(),
        };
        if bound != vip.bound {
            for service in vip.bound.keys().chain(bound.keys()) {
                if vip.bound.get(service) != bound.get(service) {
                    self.todo_services.insert(service.clone());
                    self.vips_of_service.entry(service.clone()).or_default().insert(name.to_owned());
                }
            }
            vip.bound = bound;
        }

        let again = self.place(name, &mut vip, &addresses, now, out);
        self.set_deadline(Key::VirtualIP(name.to_owned()), again);

        let assigned = vip.assign(name, &addresses);
        if assigned != vip.assigned {
            for node in vip.assigned.keys().chain(assigned.keys()) {
                if vip.assigned.get(node) != assigned.get(node) {
                    self.todo_nodes.insert(node.clone());
                }
            }
            vip.assigned = assigned;
        }
        self.vips.insert(name.to_owned(), vip);
    }

    fn forget_vip(&mut self, vip: Vip, claim: Claim) {
        self.set_deadline(Key::VirtualIP(claim.1.clone()), None);
        self.todo_services.extend(vip.bound.into_keys());
        self.todo_nodes.extend(vip.assigned.into_keys());
        for of in self.vips_of_service.values_mut() {
            of.remove(&claim.1);
        }
        self.vips_of_service.retain(|_, of| !of.is_empty());
        // Its claim may stand under another age than the object's last one.
        let mut others = self.wanted.set(claim.clone(), BTreeSet::new());
        others.extend(self.in_force.set(claim, BTreeSet::new()));
        self.todo_vips.extend(others);
    }

    /// Judges the spec and puts it in force if it may be.
    fn judge(&mut self, name: &str, vip: &mut Vip, claim: &Claim, out: &mut Vec<Output>) {
        let Some(object) = vip.object.as_ref().filter(|_| vip.error.is_none()) else { return };
        let held = vip.in_force.iter().flat_map(|f| &f.addresses).map(|(_, n)| n.addr()).collect();
        let verdict = accept::judge(name, &object.spec, object.generation, &self.facts, &self.wanted, &held);
        let spec_unchanged =
            vip.in_force.as_ref().is_none_or(|f| f.generation.is_some() && f.generation == object.generation);
        let take = match &verdict.refusal {
            None => true,
            // Only single Services are at fault: the rest holds, unless it would replace something better.
            Some(_) => spec_unchanged,
        };
        if vip.refusal != verdict.refusal {
            if let Some(refusal) = &verdict.refusal {
                out.push(Output::Event(event(
                    name,
                    vip,
                    EventType::Warning,
                    "NotAccepted",
                    "Accept",
                    refusal.message.clone(),
                )));
            } else if vip.refusal.is_some() {
                let note = "the spec is in force".to_owned();
                out.push(Output::Event(event(name, vip, EventType::Normal, "Accepted", "Accept", note)));
            }
            vip.refusal = verdict.refusal;
        }
        if let Some(usable) = verdict.usable.filter(|_| take)
            && vip.in_force.as_ref() != Some(&usable)
        {
            let addresses: BTreeSet<IpAddr> = usable.addresses.iter().map(|(_, n)| n.addr()).collect();
            for binding in &usable.bindings {
                let service = Named::new(&binding.namespace, &binding.name);
                self.vips_of_service.entry(service).or_default().insert(name.to_owned());
            }
            let spec = vip.object.as_ref().map(|o| accept::claimed(&o.spec)).unwrap_or_default();
            vip.in_force = Some(usable);
            let mut others = self.in_force.set(claim.clone(), addresses.clone());
            others.extend(self.wanted.set(claim.clone(), addresses.union(&spec).copied().collect()));
            self.todo_vips.extend(others);
        }
    }

    /// Decides who holds it and which of its addresses that node may have by now. Returns when to look again.
    fn place(
        &mut self,
        name: &str,
        vip: &mut Vip,
        addresses: &[(String, IpNet)],
        now: &Now,
        out: &mut Vec<Output>,
    ) -> Option<Duration> {
        let Some(in_force) = vip.in_force.clone().filter(|_| !addresses.is_empty()) else {
            vip.holder = None;
            vip.granted.clear();
            vip.wait = Wait::Nothing;
            return None;
        };
        let nets: Vec<IpNet> = addresses.iter().map(|(_, n)| *n).collect();
        let (candidates, mut again) =
            vip::candidates(name, &in_force, &nets, &self.facts, &self.agents, now.monotonic);
        let mut earlier = |t: Option<Duration>| {
            again = match (again, t) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        let holder =
            vip.holder.as_ref().map(|h| vip::current(h, &in_force, &self.facts, &self.agents, now.monotonic));
        let (decision, at) =
            decide(holder.as_ref(), &candidates, in_force.preempt, in_force.preempt_delay, now.monotonic);
        earlier(at);
        vip.wait = match decision {
            Decision::Stay => Wait::Nothing,
            Decision::WaitForFence => {
                if vip.wait != Wait::Fence {
                    let node = holder.as_ref().map_or("-", |h| h.node.as_str());
                    let note = format!(
                        "the agent of {node} is silent; another node takes over once its addresses have surely run out"
                    );
                    out.push(Output::Event(event(
                        name,
                        vip,
                        EventType::Warning,
                        "HolderSilent",
                        "WaitForFence",
                        note,
                    )));
                }
                Wait::Fence
            }
            Decision::AgentsSilent => {
                if vip.wait != Wait::AgentsSilent {
                    let note = "most agents fell silent at once, so the API server was away: nothing moves";
                    out.push(Output::Event(event(
                        name,
                        vip,
                        EventType::Warning,
                        "AgentsSilent",
                        "Stay",
                        note.to_owned(),
                    )));
                }
                Wait::AgentsSilent
            }
            Decision::NoOther => Wait::NoOther,
            Decision::Nobody(why) => Wait::Nobody(why),
            Decision::Move { node, reason, lost } => {
                let (type_, word, note) = match &vip.holder {
                    None => (EventType::Normal, "HolderChosen", format!("{node} is to hold it: {reason}")),
                    Some(old) => (
                        if lost { EventType::Warning } else { EventType::Normal },
                        if lost { "HolderLost" } else { "HolderMoved" },
                        format!("moves from {} to {node}: {reason}", old.node),
                    ),
                };
                out.push(Output::Event(event(name, vip, type_, word, "Place", note)));
                vip.holder = Some(Holder { node, since: whole_seconds(now.wall), reason });
                vip.granted.clear();
                Wait::Nothing
            }
        };
        let Some(holder) = vip.holder.clone() else {
            vip.granted.clear();
            return again;
        };
        // The lives that this decision leans on end by time alone.
        earlier(self.agents.next_step(&holder.node, now.monotonic));
        vip.granted.retain(|a| nets.iter().any(|n| n.addr() == *a));
        for net in &nets {
            let address = net.addr();
            if vip.granted.contains(&address) {
                continue;
            }
            match self.in_the_way(address, &holder.node, now) {
                None => {
                    vip.granted.insert(address);
                }
                Some(node) => {
                    earlier(self.agents.next_step(&node, now.monotonic));
                    if vip.wait == Wait::Nothing {
                        vip.wait = Wait::Release(node);
                    }
                }
            }
        }
        again
    }

    /// A node other than `holder` that may have `address` now, or is still told to have it.
    fn in_the_way(&mut self, address: IpAddr, holder: &str, now: &Now) -> Option<String> {
        let near = self.near.get_mut(&address)?;
        let states = &self.facts.states;
        near.retain(|n| states.get(n).is_some_and(|s| s.is_assigned(address) || s.lingers(address)));
        near.iter()
            .filter(|n| *n != holder)
            .find(|n| {
                let assigned = states.get(*n).is_some_and(|s| s.is_assigned(address));
                assigned || self.agents.life(n, now.monotonic) != Life::Fenced
            })
            .cloned()
    }

    fn plan_status(&mut self, name: &str, now: &Now) -> Option<Output> {
        let vip = self.vips.get(name)?;
        let addresses: Vec<(String, IpNet)> = vip
            .in_force
            .iter()
            .flat_map(|f| &f.addresses)
            .filter(|(_, n)| self.in_force.owner(n.addr()).is_none_or(|o| o == name))
            .cloned()
            .collect();
        let near: BTreeSet<String> = addresses
            .iter()
            .filter_map(|(_, n)| self.near.get(&n.addr()))
            .flatten()
            .chain(vip.holder.iter().map(|h| &h.node))
            .cloned()
            .collect();
        let status = vip_status::status(name, vip, &addresses, &near, &self.facts, &self.agents, now);
        if *vip.known_status() == status {
            return None;
        }
        let uid = vip.object.as_ref().and_then(|o| o.uid.clone());
        if let Some(vip) = self.vips.get_mut(name) {
            vip.written = Some(status.clone());
        }
        Some(Output::VirtualIPStatus { name: name.to_owned(), uid, status })
    }
}

fn event(
    name: &str,
    vip: &Vip,
    type_: EventType,
    reason: &'static str,
    action: &'static str,
    mut note: String,
) -> Event {
    if note.len() > 1024 {
        let mut end = 1021;
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push('…');
    }
    Event {
        regarding: ObjectRef::cluster(Kind::VirtualIP, name),
        uid: vip.object.as_ref().and_then(|o| o.uid.clone()),
        type_,
        reason,
        action,
        note,
    }
}

fn service_key(service: &Named) -> Key {
    Key::service(&*service.namespace, &*service.name)
}

/// The frontends on virtual IPs in a plan.
fn on_virtual_ips<'a>(
    parts: impl Iterator<Item = &'a nodenet_crds::ServicePlan>,
) -> BTreeSet<nodenet_crds::Frontend> {
    use nodenet_crds::FrontendKind::{VirtualIP, VirtualIPNodePort};
    let all = parts.flat_map(|p| &p.ports).flat_map(|p| &p.frontends);
    all.filter(|f| matches!(f.kind, VirtualIP | VirtualIPNodePort)).cloned().collect()
}

/// The frontends on virtual IPs that the plan of a Service has already.
fn carried_over(slices: &Slices, service: &Named, info: &ServiceInfo) -> Vec<BoundFrontend> {
    use nodenet_crds::FrontendKind::{VirtualIP, VirtualIPNodePort};
    let mut out = Vec::new();
    for port in slices.plan_of(service).flat_map(|p| &p.ports) {
        let Some(own) = info.ports.iter().find(|p| *p.name == *port.name && p.protocol == port.protocol)
        else {
            continue;
        };
        let kept = port.frontends.iter().filter(|f| matches!(f.kind, VirtualIP | VirtualIPNodePort));
        out.extend(kept.map(|f| BoundFrontend {
            protocol: port.protocol,
            service_port: own.port,
            frontend: f.clone(),
        }));
    }
    out
}
