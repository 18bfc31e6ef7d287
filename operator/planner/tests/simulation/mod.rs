//! A cluster in virtual time: an API server, agents with kernels, and the planner between them.
// Each test takes what it needs of this; outside of #[test] functions the lints know of no test.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::{
    AssignedState, NodeNetSlice, NodeNetState, NodeNetStateSpec, SLICE_FINALIZER, VirtualIP, VirtualIPState,
};
use nodenet_planner::{Change, Event, Index, Key, Kind, Now, Object, ObjectRef, Output, Settings};

mod agent;
mod objects;
mod reader;

pub use agent::Agent;
pub use objects::{endpoints, meta, node, service, virtual_ip};
pub use reader::{Reader, read, slices_in};

pub const STEP: Duration = Duration::from_millis(250);

pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Time of day when virtual time begins.
const BEGIN: i64 = 1_767_225_600;

pub fn at(monotonic: Duration) -> Now {
    let wall = Timestamp::from_second(BEGIN + monotonic.as_secs() as i64).unwrap();
    Now { monotonic, wall }
}

/// A check of all objects.
pub type Invariant = Box<dyn FnMut(&BTreeMap<ObjectRef, Object>)>;

/// The API server's content and the planner that works on it.
pub struct Cluster {
    pub now: Duration,
    pub index: Index,
    settings: Settings,
    pub objects: BTreeMap<ObjectRef, Object>,
    version: u64,
    pub agents: BTreeMap<String, Agent>,
    keys: BTreeSet<Key>,
    /// The API server answers at all.
    pub api: bool,
    /// The operator runs.
    pub operator: bool,
    /// Every write that the API server took.
    pub writes: Vec<Output>,
    pub events: Vec<Event>,
    /// Address -> nodes that had it at one time.
    pub doubles: Vec<String>,
    /// Chooses writes that fail.
    pub fail: Box<dyn FnMut() -> bool>,
    /// Checked after every write.
    pub invariant: Option<Invariant>,
    /// What the definition of the NodeNetStates, an older one, does not keep.
    pub cut_off: fn(&mut NodeNetStateSpec),
}

impl Cluster {
    /// An empty cluster whose operator leads.
    pub fn new(settings: Settings) -> Self {
        let mut cluster = Self {
            now: s(0),
            index: Index::new(settings.clone()),
            settings,
            objects: BTreeMap::new(),
            version: 0,
            agents: BTreeMap::new(),
            keys: BTreeSet::new(),
            api: true,
            operator: true,
            writes: Vec::new(),
            events: Vec::new(),
            doubles: Vec::new(),
            fail: Box::new(|| false),
            invariant: None,
            cut_off: |_| {},
        };
        cluster.restart_operator();
        cluster
    }

    /// A new operator process lists everything and leads.
    pub fn restart_operator(&mut self) {
        self.index = Index::new(self.settings.clone());
        self.keys = BTreeSet::new();
        self.operator = true;
        self.relist();
        self.keys.extend(self.index.lead(&at(self.now)));
    }

    /// The operator's watches list anew.
    pub fn relist(&mut self) {
        for kind in Kind::ALL {
            self.keys.extend(self.index.apply(Change::Listing(kind), &at(self.now)));
            for (name, object) in &self.objects {
                if name.kind == kind {
                    self.keys.extend(self.index.apply(Change::Upsert(object.clone()), &at(self.now)));
                }
            }
            self.keys.extend(self.index.apply(Change::Synced(kind), &at(self.now)));
        }
    }

    /// The API server goes away for everybody.
    pub fn stop_api(&mut self) {
        self.api = false;
        for kind in Kind::ALL {
            self.keys.extend(self.index.apply(Change::Lost(kind), &at(self.now)));
        }
    }

    pub fn start_api(&mut self) {
        self.api = true;
        if self.operator {
            self.relist();
        }
    }

    pub fn send(&mut self, change: Change) {
        let watched = matches!(change, Change::Upsert(_) | Change::Delete(_));
        if self.operator && (self.api || !watched) {
            let keys = self.index.apply(change, &at(self.now));
            self.keys.extend(keys);
        }
    }

    /// Stores an object as the API server does.
    pub fn put(&mut self, object: impl Into<Object>) -> Object {
        let object = self.store(object.into());
        self.send(Change::Upsert(object.clone()));
        object
    }

    fn store(&mut self, mut object: Object) -> Object {
        let name = object.object_ref();
        self.version += 1;
        let before = self.objects.get(&name).cloned();
        let old = before.as_ref().map(Object::metadata).cloned().unwrap_or_default();
        let same_spec = match (&before, &object) {
            (Some(Object::NodeNetState(a)), Object::NodeNetState(b)) => a.spec == b.spec,
            (Some(Object::NodeNetSlice(a)), Object::NodeNetSlice(b)) => a.spec == b.spec,
            (Some(Object::VirtualIP(a)), Object::VirtualIP(b)) => a.spec == b.spec,
            _ => false,
        };
        let version = self.version;
        let now = self.now;
        let metadata = match &mut object {
            Object::Node(o) => &mut o.metadata,
            Object::Service(o) => &mut o.metadata,
            Object::EndpointSlice(o) => &mut o.metadata,
            Object::VirtualIP(o) => &mut o.metadata,
            Object::NodeNetState(o) => &mut o.metadata,
            Object::NodeNetSlice(o) => &mut o.metadata,
            Object::Lease(o) => &mut o.metadata,
        };
        metadata.resource_version = Some(version.to_string());
        metadata.uid = old.uid.or_else(|| metadata.uid.take()).or(Some(format!("uid-{version}")));
        metadata.creation_timestamp = old
            .creation_timestamp
            .or_else(|| metadata.creation_timestamp.take())
            .or(Some(Time(at(now).wall)));
        metadata.generation = Some(old.generation.map_or(1, |g| if same_spec { g } else { g + 1 }));
        self.objects.insert(name, object.clone());
        if let Some(check) = &mut self.invariant {
            check(&self.objects);
        }
        object
    }

    /// Deletes an object; one with finalizers stays, terminating.
    pub fn delete(&mut self, name: &ObjectRef) {
        let Some(object) = self.objects.get(name).cloned() else { return };
        if let Object::NodeNetSlice(mut slice) = object
            && slice.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty())
        {
            if slice.metadata.deletion_timestamp.is_none() {
                slice.metadata.deletion_timestamp = Some(Time(at(self.now).wall));
                self.put(*slice);
            }
            return;
        }
        self.objects.remove(name);
        if let Some(check) = &mut self.invariant {
            check(&self.objects);
        }
        self.send(Change::Delete(name.clone()));
    }

    pub fn delete_named(&mut self, kind: Kind, name: &str) {
        self.delete(&ObjectRef::cluster(kind, name));
    }

    /// Adds a node with a living agent whose interface `eth0` has `ip`/24.
    pub fn add_node(&mut self, name: &str, ip: &str) {
        self.put(node(name, ip));
        self.add_agent(name);
    }

    pub fn add_agent(&mut self, name: &str) {
        self.agents.insert(name.to_owned(), Agent::new());
    }

    pub fn state(&self, node: &str) -> Option<&NodeNetState> {
        match self.objects.get(&ObjectRef::cluster(Kind::NodeNetState, node)) {
            Some(Object::NodeNetState(state)) => Some(state),
            _ => None,
        }
    }

    pub fn vip(&self, name: &str) -> &VirtualIP {
        match self.objects.get(&ObjectRef::cluster(Kind::VirtualIP, name)) {
            Some(Object::VirtualIP(vip)) => vip,
            _ => panic!("no VirtualIP {name}"),
        }
    }

    pub fn find_vip(&self, name: &str) -> Option<VirtualIP> {
        match self.objects.get(&ObjectRef::cluster(Kind::VirtualIP, name)) {
            Some(Object::VirtualIP(vip)) => Some((**vip).clone()),
            _ => None,
        }
    }

    pub fn condition(&self, vip: &str, type_: &str) -> (String, String, String) {
        let status = self.vip(vip).status.clone().unwrap_or_default();
        let c = nodenet_crds::conditions::get(&status.conditions, type_).cloned();
        c.map(|c| (c.status, c.reason, c.message)).unwrap_or_default()
    }

    pub fn slices(&self) -> Vec<&NodeNetSlice> {
        slices_in(&self.objects)
    }

    /// The node whose NodeNetState says Active.
    pub fn active(&self, vip: &str) -> Vec<String> {
        let all = self.objects.values().filter_map(|o| match o {
            Object::NodeNetState(state) => Some(state),
            _ => None,
        });
        all.filter(|s| s.spec.virtual_ips.iter().any(|v| v.name == vip && v.state == AssignedState::Active))
            .filter_map(|s| s.metadata.name.clone())
            .collect()
    }

    /// Nodes that have the address in their kernel.
    pub fn has_address(&self, address: &str) -> Vec<String> {
        let now = self.now;
        let all = self.agents.iter().filter(|(_, a)| a.kernel.get(address).is_some_and(|t| *t > now));
        all.map(|(n, _)| n.clone()).collect()
    }

    /// Writes since the last call.
    pub fn take_writes(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.writes)
    }

    /// Plans and writes until there is nothing to write; no time passes.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            if !self.operator {
                return;
            }
            self.keys.extend(self.index.take_due(&at(self.now)));
            let keys = std::mem::take(&mut self.keys);
            let outputs = self.index.plan(&keys, &at(self.now));
            if outputs.is_empty() && self.keys.is_empty() {
                return;
            }
            for output in outputs {
                self.write(output);
            }
        }
        panic!("the planner does not come to rest");
    }

    /// Plans and writes once.
    pub fn plan_once(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        for output in self.index.plan(&keys, &at(self.now)) {
            self.write(output);
        }
    }

    /// Another replica that leads, with what is there now: it hears of no later change.
    pub fn another_leader(&self) -> Index {
        let now = at(self.now);
        let mut index = Index::new(self.settings.clone());
        for kind in Kind::ALL {
            index.apply(Change::Listing(kind), &now);
            for object in self.objects.values().filter(|o| o.kind() == kind) {
                index.apply(Change::Upsert(object.clone()), &now);
            }
            index.apply(Change::Synced(kind), &now);
        }
        let keys = index.lead(&now);
        assert_eq!(index.plan(&keys, &now), Vec::<Output>::new(), "it has nothing to do");
        index
    }

    /// Does one write, as the API server does.
    pub fn write(&mut self, output: Output) {
        let failed = |name: &str, kind: Kind| Change::WriteFailed(ObjectRef::cluster(kind, name));
        let fails = !self.api || (self.fail)();
        match output.clone() {
            Output::PutSlice { name, spec, replaces } => {
                let reference = ObjectRef::cluster(Kind::NodeNetSlice, &*name);
                let current = self.objects.get(&reference).map(|o| o.metadata().clone());
                let wanted = replaces.map(|p| p.resource_version);
                let have = current.as_ref().map(|m| m.resource_version.clone());
                if fails || wanted != have {
                    return self.send(failed(&name, Kind::NodeNetSlice));
                }
                let mut metadata = current.unwrap_or_else(|| meta(&name));
                metadata.finalizers = Some(vec![SLICE_FINALIZER.to_owned()]);
                let stored = self.store(NodeNetSlice { metadata, spec }.into());
                self.writes.push(output);
                self.send(Change::Wrote(stored.clone()));
                self.send(Change::Upsert(stored));
            }
            Output::DeleteSlice { name, expect } => {
                let reference = ObjectRef::cluster(Kind::NodeNetSlice, &*name);
                let have = self.objects.get(&reference).map(|o| o.metadata().resource_version.clone());
                if fails || have != Some(expect.resource_version) {
                    return self.send(failed(&name, Kind::NodeNetSlice));
                }
                self.writes.push(output);
                self.delete(&reference);
            }
            Output::ReleaseSlice { name, expect } => {
                let reference = ObjectRef::cluster(Kind::NodeNetSlice, &*name);
                let Some(Object::NodeNetSlice(mut slice)) = self.objects.get(&reference).cloned() else {
                    return;
                };
                if fails || slice.metadata.resource_version != expect.resource_version {
                    return self.send(failed(&name, Kind::NodeNetSlice));
                }
                self.writes.push(output);
                slice.metadata.finalizers = None;
                self.objects.insert(reference.clone(), (*slice).into());
                self.delete(&reference);
            }
            Output::PutState { node, spec, replaces, .. } => {
                let current = self.state(&node).cloned();
                let version =
                    |s: &NodeNetState| (s.metadata.uid.clone(), s.metadata.resource_version.clone());
                let have = current.as_ref().map(version);
                if fails || replaces.map(|p| (p.uid, p.resource_version)) != have {
                    return self.send(failed(&node, Kind::NodeNetState));
                }
                let mut state = current.unwrap_or_else(|| NodeNetState::new(&node, spec.clone()));
                state.spec = spec;
                (self.cut_off)(&mut state.spec);
                let stored = self.store(state.into());
                self.writes.push(output);
                self.send(Change::Wrote(stored.clone()));
                self.send(Change::Upsert(stored));
            }
            Output::DeleteState { node, expect } => {
                let have = self.state(&node).map(|s| s.metadata.resource_version.clone());
                if fails || have != Some(expect.resource_version) {
                    return self.send(failed(&node, Kind::NodeNetState));
                }
                self.writes.push(output);
                self.delete_named(Kind::NodeNetState, &node);
            }
            Output::VirtualIPStatus { name, status, .. } => {
                let reference = ObjectRef::cluster(Kind::VirtualIP, &*name);
                let Some(Object::VirtualIP(mut vip)) = self.objects.get(&reference).cloned() else { return };
                if fails {
                    return self.send(failed(&name, Kind::VirtualIP));
                }
                vip.status = Some(status);
                self.writes.push(output);
                self.put(*vip);
            }
            Output::Event(event) => self.events.push(event),
        }
    }

    /// Lets `time` pass, with agents and operator at work.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.tick();
        while self.now < until {
            self.now += STEP;
            self.tick();
        }
    }

    /// Runs until `done`, at most `limit`; returns how long it took.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let begin = self.now;
        self.tick();
        while !done(self) {
            assert!(self.now - begin < limit, "did not happen within {limit:?}");
            self.now += STEP;
            self.tick();
        }
        self.now - begin
    }

    fn tick(&mut self) {
        for name in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.agent(&name);
        }
        self.settle();
        for name in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.agent(&name);
        }
        self.settle();
        let mut holders: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        for (node, agent) in &self.agents {
            for (address, until) in &agent.kernel {
                if *until > self.now {
                    holders.entry(address).or_default().push(node);
                }
            }
        }
        for (address, nodes) in holders.into_iter().filter(|(_, n)| n.len() > 1) {
            self.doubles.push(format!("{address} on {nodes:?} at {:?}", self.now));
        }
    }

    /// Changes what the agent of a node reports of its interface.
    pub fn set_interface(&mut self, node: &str, up: bool) {
        let mut state = self.state(node).cloned().unwrap();
        let status = state.status.as_mut().unwrap();
        for i in &mut status.interfaces {
            i.up = up;
        }
        for v in status.virtual_ips.iter_mut().filter(|v| up && v.state == VirtualIPState::Fault) {
            v.state = VirtualIPState::Backup;
        }
        self.put(state);
    }

    /// Another hand gives the first interface of a node an address.
    pub fn add_interface_address(&mut self, node: &str, address: &str) {
        let mut state = self.state(node).cloned().unwrap();
        state.status.as_mut().unwrap().interfaces[0].addresses.push(address.to_owned());
        self.put(state);
    }

    /// What the agent of a node calls its gateways.
    pub fn set_gateways(&mut self, node: &str, gateways: &[&str]) {
        let mut state = self.state(node).cloned().unwrap();
        state.status.as_mut().unwrap().gateways = gateways.iter().map(ToString::to_string).collect();
        self.put(state);
    }

    pub fn set_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let reference = ObjectRef::cluster(Kind::Node, name);
        let Some(Object::Node(mut node)) = self.objects.get(&reference).cloned() else {
            panic!("no Node {name}")
        };
        change(&mut node);
        self.put(*node);
    }

    pub fn set_ready(&mut self, name: &str, ready: bool) {
        self.set_node(name, |n| {
            let conditions = n.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions[0].status = if ready { "True" } else { "False" }.to_owned();
        });
    }

    /// The power goes: agent and kernel are dead, the addresses with them after their lifetime at the latest.
    pub fn kill(&mut self, node: &str) {
        self.agents.get_mut(node).unwrap().alive = false;
    }

    pub fn revive(&mut self, node: &str) {
        let agent = self.agents.get_mut(node).unwrap();
        agent.alive = true;
        agent.spec = None;
    }
}

/// A new operator that has read every kind but `missing`; of that one it has only begun the list.
pub fn without(c: &Cluster, missing: Kind) -> (Index, BTreeSet<Key>) {
    let now = at(c.now);
    let mut index = Index::new(c.index.settings().clone());
    let mut keys = BTreeSet::new();
    for kind in Kind::ALL {
        keys.extend(index.apply(Change::Listing(kind), &now));
        if kind == missing {
            continue;
        }
        for object in c.objects.values().filter(|o| o.kind() == kind) {
            keys.extend(index.apply(Change::Upsert(object.clone()), &now));
        }
        keys.extend(index.apply(Change::Synced(kind), &now));
    }
    keys.extend(index.lead(&now));
    (index, keys)
}
