//! Slices, kept compactly, and which revision of each Service's plan is in force.

mod compact;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nodenet_crds::{FrontendKind, NodeNetSliceSpec};

pub(super) use self::compact::Zones;
use self::compact::{ZoneNames, compact};
use super::problem::Problem;
use crate::filter::InsideMarks;
use crate::state::Protocol;

/// UID of a Service.
pub(super) type Uid = Arc<str>;

/// One part of a plan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub revision: i64,
    pub part: u16,
    pub parts: u16,
    /// Port on which load balancers ask whether this node has endpoints. All parts carry the same.
    pub health_check_node_port: Option<u16>,
    pub ports: Box<[Port]>,
}

/// One port of a Service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub protocol: Protocol,
    pub scheduler: Option<Box<str>>,
    /// Flags of the scheduler as the kernel has them (`IP_VS_SVC_F_SCHED*`).
    pub scheduler_flags: u32,
    /// Seconds that a client stays with its real server; 0 is none.
    pub persistence: u32,
    /// Seconds that a real server may take to leave, where the plan says so.
    pub drain_timeout: Option<u32>,
    /// Clients that come by the ClusterIP are answered by this node's endpoints only.
    pub internal_local: bool,
    /// Clients from outside are answered by this node's endpoints only.
    pub external_local: bool,
    /// Sources that load balancers let in; empty: all.
    pub source_ranges: Box<[IpNet]>,
    /// Tells apart packets of this node's own clients where `external_local` holds.
    pub inside_number: Option<u16>,
    pub frontends: Box<[Frontend]>,
    pub endpoints: Box<[Endpoint]>,
}

/// Where a port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frontend {
    pub kind: FrontendKind,
    pub address: Option<IpAddr>,
    pub port: u16,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    /// Runs on this node.
    pub local: bool,
    /// Serves only where there is none that does not terminate.
    pub terminating: bool,
    /// Zones whose nodes should use it; none where nothing is said.
    pub for_zones: Zones,
    /// Whether nodes are named that should use it, and this one among them.
    pub for_nodes: Option<bool>,
}

/// A plan in force: all parts of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub revision: i64,
    pub parts: Box<[Arc<Part>]>,
}

impl Plan {
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.parts.iter().flat_map(|part| part.ports.iter())
    }

    pub fn health_check_node_port(&self) -> Option<u16> {
        self.parts.first()?.health_check_node_port
    }
}

/// What is known of a Service.
#[derive(Debug)]
pub(super) struct Service {
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// All parts of all revisions, with the slice that holds them, in the order of the slices' names: what the choice
    /// comes to does not depend on the order in which they were read.
    parts: Vec<(Arc<str>, Arc<Part>)>,
    pub plan: Option<Plan>,
}

impl Service {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn highest(&self) -> Option<i64> {
        self.parts.iter().map(|(_, part)| part.revision).max()
    }

    fn part(&self, revision: i64, number: u16) -> Option<&Arc<Part>> {
        let mut there = self.parts.iter().map(|(_, part)| part);
        there.find(|part| part.revision == revision && part.part == number)
    }

    fn complete(&self, revision: i64) -> Option<Plan> {
        let mut of_it = self.parts.iter().map(|(_, part)| part).filter(|part| part.revision == revision);
        let of = of_it.next()?.parts;
        if of_it.any(|part| part.parts != of) {
            return None;
        }
        let parts: Option<Box<[Arc<Part>]>> =
            (0..of).map(|number| self.part(revision, number).cloned()).collect();
        Some(Plan { revision, parts: parts? })
    }

    /// The plan to follow now: the highest complete revision, but not a lower one than is in force while a higher one
    /// is still being written.
    fn choose(&self) -> Option<Plan> {
        let revisions: BTreeSet<i64> = self.parts.iter().map(|(_, part)| part.revision).collect();
        let found = revisions.iter().rev().find_map(|revision| self.complete(*revision));
        match (&self.plan, found) {
            (Some(old), Some(new)) if new.revision < old.revision && self.highest() > Some(new.revision) => {
                Some(old.clone())
            }
            (Some(old), None) => Some(old.clone()),
            (_, found) => found,
        }
    }
}

/// A Service whose newest plan lacks parts; the last complete one stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// `namespace/name` of the Service.
    pub service: String,
    /// Newest revision seen.
    pub revision: i64,
    /// Revision in force, if any.
    pub in_force: Option<i64>,
    /// How many parts are there.
    pub parts: usize,
    /// How many there should be.
    pub of: usize,
}

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { service, revision, in_force, parts, of } = self;
        write!(f, "Service {service}: {parts} of {of} parts of plan {revision} are there")?;
        match in_force {
            Some(old) => write!(f, "; plan {old} stays in force"),
            None => write!(f, "; none was complete yet"),
        }
    }
}

struct Slice {
    revision: i64,
    uids: BTreeSet<Uid>,
    problems: Box<[Problem]>,
}

/// All slices and the Services in them.
pub(super) struct Plans {
    node: String,
    inside: InsideMarks,
    zones: ZoneNames,
    slices: BTreeMap<Arc<str>, Slice>,
    /// Slices that are there and cannot be read. A Service that no other slice mentions may stand in one of them.
    unreadable: BTreeSet<String>,
    services: HashMap<Uid, Service>,
    incomplete: BTreeSet<Uid>,
    /// The complete list was read at least once.
    complete: bool,
    /// A list is being read: a Service that no slice mentions may stand in one that is still to come.
    listing: bool,
    /// No slice held a plan any more, which no cluster can wish: each has the Service `kubernetes`. What is missing may
    /// still come, although no list is being read.
    emptied: bool,
    /// A slice came since the last [`Self::confirm`].
    grew: bool,
    orphans: BTreeSet<Uid>,
}

/// At most so many problems are kept for a slice.
const PROBLEMS_KEPT: usize = 16;

impl Plans {
    /// The zone of a name, for comparison with those of endpoints.
    pub fn zone(&mut self, name: Option<&str>) -> Zones {
        name.map(|name| self.zones.zone(name)).unwrap_or_default()
    }

    pub fn new(node: String, inside: InsideMarks) -> Self {
        Self {
            node,
            inside,
            zones: ZoneNames::default(),
            slices: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            services: HashMap::new(),
            incomplete: BTreeSet::new(),
            complete: false,
            listing: false,
            emptied: false,
            grew: false,
            orphans: BTreeSet::new(),
        }
    }

    pub fn complete(&self) -> bool {
        self.complete && !self.emptied
    }

    /// Whether the content of every slice is known, be it an earlier one.
    pub fn all_known(&self) -> bool {
        self.unknown().next().is_none()
    }

    /// Slices that cannot be read and never could.
    fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unreadable.iter().map(String::as_str).filter(|name| !self.slices.contains_key(*name))
    }

    /// Slices that cannot be read, each with whether an earlier content of it is in force.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, bool)> {
        self.unreadable.iter().map(|name| (name.as_str(), self.slices.contains_key(name.as_str())))
    }

    /// A slice is there and cannot be read. What it held before stays.
    pub fn set_unreadable(&mut self, name: &str) {
        self.unreadable.insert(name.to_owned());
    }

    fn hold_plans(&self) -> bool {
        self.slices.values().any(|slice| !slice.uids.is_empty())
    }

    pub fn list_started(&mut self) {
        self.listing = true;
    }

    /// Services whose plan changed; one that is gone has none any more.
    pub fn list_completed(&mut self, names: &BTreeSet<String>) -> BTreeSet<Uid> {
        let gone: Vec<String> = self
            .slices
            .keys()
            .filter(|name| !names.contains(&***name))
            .map(|name| name.to_string())
            .collect();
        let mut changed = BTreeSet::new();
        // Until all of them are gone their Services are orphans: the list may turn out to be empty.
        self.listing = true;
        for name in gone {
            changed.extend(self.remove(&name));
        }
        self.listing = false;
        self.complete = true;
        self.unreadable.retain(|name| names.contains(name));
        self.emptied = !self.hold_plans();
        self.grew = false;
        changed.extend(self.drop_orphans());
        changed
    }

    /// After a list that was empty the slices come one by one, and nothing says which is the last. When none came between
    /// two calls of this they are taken for all there are. Services whose plan changed.
    pub fn confirm(&mut self) -> BTreeSet<Uid> {
        if !self.emptied || self.listing || !self.hold_plans() || std::mem::take(&mut self.grew) {
            return BTreeSet::new();
        }
        self.emptied = false;
        self.drop_orphans()
    }

    /// Whether a Service that no slice mentions may stand in one that is not known.
    fn may_stand_elsewhere(&self) -> bool {
        self.listing || self.emptied || !self.all_known()
    }

    fn drop_orphans(&mut self) -> BTreeSet<Uid> {
        if self.may_stand_elsewhere() {
            return BTreeSet::new();
        }
        let mut changed = std::mem::take(&mut self.orphans);
        changed.retain(|uid| self.choose(uid));
        changed
    }

    pub fn get(&self, uid: &Uid) -> Option<&Service> {
        self.services.get(uid)
    }

    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.services.keys()
    }

    /// Services whose plan changed.
    pub fn put(&mut self, name: &str, spec: &NodeNetSliceSpec) -> BTreeSet<Uid> {
        let name: Arc<str> =
            self.slices.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone());
        let mut before =
            self.slices.get_mut(&name).map(|slice| std::mem::take(&mut slice.uids)).unwrap_or_default();
        let mut problems = Vec::new();
        let mut fresh: BTreeMap<Uid, Vec<Arc<Part>>> = BTreeMap::new();
        let mut touched = BTreeSet::new();
        for plan in &spec.services {
            let Some(part) = compact(plan, &self.node, self.inside, &mut self.zones, &mut problems) else {
                continue;
            };
            let uid = match self.services.get_key_value(plan.uid.as_str()) {
                Some((uid, _)) => uid.clone(),
                None => {
                    let uid: Uid = plan.uid.as_str().into();
                    let service = Service {
                        namespace: plan.namespace.as_str().into(),
                        name: plan.name.as_str().into(),
                        parts: Vec::new(),
                        plan: None,
                    };
                    self.services.insert(uid.clone(), service);
                    uid
                }
            };
            fresh.entry(uid).or_default().push(Arc::new(part));
        }
        let uids: BTreeSet<Uid> = fresh.keys().cloned().collect();
        before.retain(|uid| !uids.contains(uid));
        for (uid, parts) in fresh {
            let Some(service) = self.services.get_mut(&uid) else { continue };
            let old: Vec<Arc<Part>> = service
                .parts
                .iter()
                .filter(|(slice, _)| *slice == name)
                .map(|(_, part)| part.clone())
                .collect();
            if old != parts {
                service.parts.retain(|(slice, _)| *slice != name);
                service.parts.extend(parts.into_iter().map(|part| (name.clone(), part)));
                service.parts.sort_by(|(a, _), (b, _)| a.cmp(b));
                touched.insert(uid);
            }
        }
        for uid in before {
            self.drop_parts(&uid, &name);
            touched.insert(uid);
        }
        problems.truncate(PROBLEMS_KEPT);
        let empty = uids.is_empty();
        let slice = Slice { revision: spec.revision, uids, problems: problems.into() };
        let known_before = self.all_known();
        self.unreadable.remove(&*name);
        self.grew |= self.slices.insert(name, slice).is_none();
        self.emptied |= empty && !touched.is_empty() && !self.hold_plans();
        touched.retain(|uid| self.choose(uid));
        if !known_before {
            touched.extend(self.drop_orphans());
        }
        touched
    }

    /// Services whose plan changed.
    pub fn remove(&mut self, name: &str) -> BTreeSet<Uid> {
        self.unreadable.remove(name);
        let Some((name, slice)) = self.slices.remove_entry(name) else { return self.drop_orphans() };
        let mut touched = slice.uids;
        for uid in &touched {
            self.drop_parts(uid, &name);
        }
        self.emptied |= !touched.is_empty() && !self.hold_plans();
        touched.retain(|uid| self.choose(uid));
        touched
    }

    fn drop_parts(&mut self, uid: &Uid, slice: &Arc<str>) {
        if let Some(service) = self.services.get_mut(uid) {
            service.parts.retain(|(at, _)| at != slice);
        }
    }

    /// Chooses the plan of a Service again; whether it changed.
    fn choose(&mut self, uid: &Uid) -> bool {
        let Some(service) = self.services.get_mut(uid) else { return false };
        let Some(highest) = service.highest() else {
            self.incomplete.remove(uid);
            if self.may_stand_elsewhere() {
                self.orphans.insert(uid.clone());
                return false;
            }
            return self.services.remove(uid).is_some_and(|service| service.plan.is_some());
        };
        let chosen = service.choose();
        if service.complete(highest).is_some() {
            self.incomplete.remove(uid);
        } else {
            self.incomplete.insert(uid.clone());
        }
        let changed = chosen != service.plan;
        service.plan = chosen;
        changed
    }

    pub fn incomplete(&self) -> Vec<Incomplete> {
        let mut list: Vec<Incomplete> = self
            .incomplete
            .iter()
            .filter_map(|uid| self.services.get(uid))
            .filter_map(|service| {
                let revision = service.highest()?;
                let mut of_it = service.parts.iter().filter(|(_, part)| part.revision == revision);
                let parts = of_it.clone().count();
                let of = of_it.next().map_or(0, |(_, part)| part.parts.into());
                let in_force = service.plan.as_ref().map(|plan| plan.revision);
                Some(Incomplete { service: service.full_name(), revision, in_force, parts, of })
            })
            .collect();
        list.sort_by(|a, b| a.service.cmp(&b.service));
        list
    }

    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.slices.values().flat_map(|slice| slice.problems.iter())
    }

    pub fn revision(&self) -> Option<i64> {
        self.slices.values().map(|slice| slice.revision).max()
    }
}
