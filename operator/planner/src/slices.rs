//! Which slice holds which Service, and how content gets from one to another without a moment in which a reader of
//! all slices finds no complete plan.
//!
//! * A Service stays in its slice while it fits (sticky), so one change is one write.
//! * A plan that moves (it outgrew the slice, or the slice is being deleted), and a new layout of a plan of several parts,
//!   is written beside the old one. The old one leaves only when the new one was *seen* complete among the published
//!   slices. That holds for a Service that was deleted and made again, too: its plan is under another UID, its virtual
//!   servers are the same.
//! * Within a layout each endpoint stands in one part, and parts change one by one (`layout`): a change of an endpoint is
//!   one write however large its Service is.
//! * A slice that is being deleted is never written again: its content goes to a new one, then its finalizer goes.
//! * While a write to a slice is under way the slice gets no other: changes meanwhile go into the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nodenet_crds::{PortPlan, ServicePlan, SliceSummary};

use crate::Precondition;
use crate::layout;
use crate::parts::{json_bytes, lay_out};
use crate::service::{Named, Planned};

mod published;
mod writes;

/// Revisions above are not ours (the counter would take millennia): they are overwritten, not continued.
const REVISION_MAX: i64 = 1 << 53;
/// Passed over when a slice turns up that was never read: its plans may be newer than all that is known, and agents that
/// can read it follow the highest revision.
const UNREAD_REVISIONS: i64 = 1 << 20;
/// Most Services in one slice (the schema's bound).
const SERVICES_MAX: usize = 1000;

/// Place of an entry within a slice: the order in which entries stand there.
type EntryKey = (Named, i64, i32);

#[derive(Debug)]
struct Entry {
    plan: Arc<ServicePlan>,
    bytes: usize,
}

/// A write that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    /// Content with this revision.
    Put(i64),
    /// A deletion.
    Delete,
    /// The removal of the finalizer.
    Release,
}

/// A slice as it is published.
#[derive(Debug)]
struct Seen {
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    terminating: bool,
    finalizer: bool,
    revision: i64,
    summary: SliceSummary,
    entries: Vec<Arc<ServicePlan>>,
}

impl Seen {
    fn precondition(&self) -> Precondition {
        Precondition { uid: self.uid.clone(), resource_version: self.resource_version.clone() }
    }
}

#[derive(Debug, Default)]
struct Slice {
    want: BTreeMap<EntryKey, Entry>,
    bytes: usize,
    seen: Option<Seen>,
    in_flight: Option<InFlight>,
    /// What this process wrote last.
    put: Vec<Arc<ServicePlan>>,
    /// That is not what the API server keeps of it: its definition of the kind is older. To write the same again would
    /// never end.
    cut: bool,
    /// It exists, but what it holds could not be read: it keeps its name and is left alone.
    unreadable: bool,
}

impl Slice {
    /// Whether it takes no content any more.
    fn retired(&self) -> bool {
        self.unreadable
            || matches!(self.in_flight, Some(InFlight::Delete | InFlight::Release))
            || self.seen.as_ref().is_some_and(|s| s.terminating)
    }
}

/// Where the plan of a Service stands.
#[derive(Debug)]
struct Placed {
    uid: Arc<str>,
    /// The newest plan: (slice, part).
    current: Vec<(String, Arc<ServicePlan>)>,
    /// Parts of an older plan that stay until the newest was seen complete.
    leaving: Vec<(String, Arc<ServicePlan>)>,
}

fn key_of(plan: &ServicePlan) -> EntryKey {
    (Named::new(&plan.namespace, &plan.name), plan.revision, plan.part)
}

/// All slices: what they should hold and what they hold.
#[derive(Debug)]
pub(crate) struct Slices {
    slice_bytes: usize,
    part_bytes: usize,
    revision: i64,
    /// A slice turned up that was never read.
    unread: bool,
    /// Plans of a lower revision may be outdone by one in a slice that was never read.
    outdone: i64,
    slices: BTreeMap<String, Slice>,
    services: BTreeMap<Named, Placed>,
    /// (bytes, name) of slices that take content.
    room: BTreeSet<(usize, String)>,
    dirty: BTreeSet<String>,
    first_free: u64,
}

impl Slices {
    pub(crate) fn new(slice_bytes: usize, part_bytes: usize) -> Self {
        Self {
            slice_bytes,
            part_bytes,
            revision: 0,
            unread: false,
            outdone: 0,
            slices: BTreeMap::new(),
            services: BTreeMap::new(),
            room: BTreeSet::new(),
            dirty: BTreeSet::new(),
            first_free: 0,
        }
    }

    /// Names of all Services that have a plan.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Named> {
        self.services.keys()
    }

    /// Names of all slices.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.slices.keys()
    }

    /// The parts of the newest plan of a Service.
    pub(crate) fn plan_of(&self, service: &Named) -> impl Iterator<Item = &ServicePlan> {
        self.services.get(service).into_iter().flat_map(|p| p.current.iter().map(|(_, plan)| &**plan))
    }

    /// Revision of the newest plan of a Service: an agent that has programmed slices up to a higher publication has it.
    pub(crate) fn revision_of(&self, service: &Named) -> Option<i64> {
        self.services.get(service)?.current.first().map(|(_, plan)| plan.revision)
    }

    /// All published plans, complete or not.
    pub(crate) fn published(&self) -> impl Iterator<Item = &ServicePlan> {
        self.slices.values().filter_map(|s| s.seen.as_ref()).flat_map(|s| s.entries.iter().map(|e| &**e))
    }

    /// Sets the plan of a Service; `None` removes it. Returns whether anything changed.
    pub(crate) fn set(&mut self, service: &Named, uid: &Arc<str>, planned: Option<Planned>) -> bool {
        let Some(Planned { health_check_node_port, ports }) = planned else { return self.remove(service) };
        if let Some(parts) = self.kept(service, uid, health_check_node_port, &ports) {
            return self.change_parts(service, parts);
        }
        let parts = lay_out(ports, self.part_bytes);
        let same = |plan: &ServicePlan, ports: &[PortPlan]| {
            plan.health_check_node_port == health_check_node_port && plan.ports == ports
        };
        if let Some(placed) = self.services.get(service)
            && placed.uid == *uid
            && placed.current.len() == parts.len()
            && placed.current.iter().zip(&parts).all(|((_, plan), ports)| same(plan, ports))
        {
            return false;
        }
        self.place(service, uid, health_check_node_port, parts, None);
        true
    }

    /// The parts of a plan of several, changed in place; `None` where it needs a new layout, which readers take as a whole.
    fn kept(
        &self,
        service: &Named,
        uid: &Arc<str>,
        health_check_node_port: Option<i32>,
        ports: &[PortPlan],
    ) -> Option<Vec<Vec<PortPlan>>> {
        let placed = self.services.get(service).filter(|p| p.uid == *uid && p.current.len() > 1)?;
        let outdone = |(_, plan): &(String, Arc<ServicePlan>)| plan.revision < self.outdone;
        let other =
            |(_, plan): &(String, Arc<ServicePlan>)| plan.health_check_node_port != health_check_node_port;
        if self.unread || placed.current.iter().any(|at| outdone(at) || other(at) || self.is_retired(&at.0)) {
            return None;
        }
        let old: Vec<&[PortPlan]> = placed.current.iter().map(|(_, plan)| plan.ports.as_slice()).collect();
        let parts = layout::keep(&old, ports, self.part_bytes)?;
        let held: Vec<Vec<&[PortPlan]>> = placed
            .current
            .iter()
            .map(|(name, plan)| {
                let slice = self.slices.get(name);
                let seen = slice.and_then(|s| s.seen.as_ref()).into_iter().flat_map(|s| &s.entries);
                let put = slice.into_iter().flat_map(|s| &s.put);
                let this = |entry: &&Arc<ServicePlan>| key_of(entry) == key_of(plan) && entry.uid == plan.uid;
                seen.chain(put).filter(this).map(|entry| entry.ports.as_slice()).collect()
            })
            .collect();
        layout::is_safe(&held, &parts).then_some(parts)
    }

    /// Gives the parts of a plan other endpoints. Returns whether any changed.
    fn change_parts(&mut self, service: &Named, parts: Vec<Vec<PortPlan>>) -> bool {
        let Some(placed) = self.services.get_mut(service) else { return false };
        let mut changed = Vec::new();
        for ((name, plan), ports) in placed.current.iter_mut().zip(parts) {
            if plan.ports != ports {
                *plan = Arc::new(ServicePlan { ports, ..ServicePlan::clone(plan) });
                changed.push((name.clone(), Arc::clone(plan)));
            }
        }
        for (name, plan) in &changed {
            self.insert(name, plan);
        }
        !changed.is_empty()
    }

    fn remove(&mut self, service: &Named) -> bool {
        let Some(placed) = self.services.remove(service) else { return false };
        for (name, plan) in placed.current.iter().chain(&placed.leaving) {
            self.take(name, plan);
        }
        true
    }

    /// Writes the plan of a Service under a new revision; `to` is where parts go that have to leave a slice.
    fn place(
        &mut self,
        service: &Named,
        uid: &Arc<str>,
        health_check_node_port: Option<i32>,
        parts: Vec<Vec<PortPlan>>,
        to: Option<&str>,
    ) {
        let revision = self.next_revision();
        let (mut old, mut leaving) = match self.services.remove(service) {
            Some(placed) => (placed.current, placed.leaving),
            None => (Vec::new(), Vec::new()),
        };
        let count = i32::try_from(parts.len()).unwrap_or(i32::MAX);
        let plans: Vec<Arc<ServicePlan>> = (0..)
            .zip(parts)
            .map(|(part, ports)| {
                Arc::new(ServicePlan {
                    namespace: service.namespace.to_string(),
                    name: service.name.to_string(),
                    uid: uid.to_string(),
                    revision,
                    part,
                    parts: count,
                    health_check_node_port,
                    ports,
                })
            })
            .collect();
        let current = if let [plan] = plans.as_slice() {
            let bytes = json_bytes(plan);
            let home = match old.as_slice() {
                [(name, _)] => self.stays(service, name, bytes).then(|| name.clone()),
                _ => None,
            };
            match home {
                Some(name) => {
                    // One write replaces the one by the other, so nothing has to wait.
                    for (at, plan) in old.drain(..) {
                        self.take(&at, &plan);
                    }
                    if leaving.iter().any(|(at, plan)| *at == name && plan.parts == 1) {
                        for (at, plan) in leaving.drain(..) {
                            self.take(&at, &plan);
                        }
                    }
                    vec![(name, Arc::clone(plan))]
                }
                None => {
                    let name = match to {
                        Some(to) => to.to_owned(),
                        None => self.choose(bytes),
                    };
                    vec![(name, Arc::clone(plan))]
                }
            }
        } else {
            // Each part stays where its predecessor is, beside it, unless that slice goes away.
            let mut at = Vec::with_capacity(plans.len());
            for (i, plan) in plans.into_iter().enumerate() {
                let home = old.get(i).filter(|(name, o)| o.parts > 1 && !self.is_retired(name));
                let name = match home {
                    Some((name, _)) => name.clone(),
                    None => self.new_name(),
                };
                self.insert(&name, &plan);
                at.push((name, plan));
            }
            at
        };
        for (name, plan) in &current {
            self.insert(name, plan);
        }
        if leaving.is_empty() {
            leaving = old;
        } else {
            // What left first was seen complete; what came between perhaps never was.
            for (name, plan) in old {
                self.take(&name, &plan);
            }
        }
        self.services.insert(service.clone(), Placed { uid: Arc::clone(uid), current, leaving });
    }

    /// Whether a plan of `bytes` can stay in the slice that holds the Service's plan now.
    fn stays(&self, service: &Named, name: &str, bytes: usize) -> bool {
        let Some(slice) = self.slices.get(name).filter(|s| !s.retired()) else { return false };
        let own = slice.want.range((service.clone(), i64::MIN, 0)..=(service.clone(), i64::MAX, i32::MAX));
        let own: usize = own.map(|(_, e)| e.bytes).sum();
        let others = slice.bytes.saturating_sub(own);
        others == 0 || others + bytes <= self.slice_bytes
    }

    /// A slice with room for a new plan of `bytes`: the fullest, so that there are few, but with some room to grow.
    fn choose(&mut self, bytes: usize) -> String {
        let fill = self.slice_bytes - self.slice_bytes / 8;
        let found = fill.checked_sub(bytes).and_then(|most| {
            let fits = self.room.range(..(most + 1, String::new())).rev();
            fits.map(|(_, name)| name)
                .find(|n| self.slices.get(*n).is_some_and(|s| s.want.len() < SERVICES_MAX))
                .cloned()
        });
        match found {
            Some(name) => name,
            None => self.new_name(),
        }
    }

    fn new_name(&mut self) -> String {
        let mut number = self.first_free;
        let name = loop {
            let name = format!("nodenet-{number:04}");
            number += 1;
            if !self.slices.contains_key(&name) {
                break name;
            }
        };
        self.first_free = number;
        self.slices.insert(name.clone(), Slice::default());
        self.dirty.insert(name.clone());
        name
    }

    fn is_retired(&self, name: &str) -> bool {
        self.slices.get(name).is_none_or(Slice::retired)
    }

    fn next_revision(&mut self) -> i64 {
        if std::mem::take(&mut self.unread) {
            self.revision += UNREAD_REVISIONS;
            self.outdone = self.revision;
        } else {
            self.revision += 1;
        }
        self.revision
    }

    fn insert(&mut self, name: &str, plan: &Arc<ServicePlan>) {
        self.unroom(name);
        let bytes = json_bytes(plan);
        let slice = self.slices.entry(name.to_owned()).or_default();
        let entry = Entry { plan: Arc::clone(plan), bytes };
        let before = slice.want.insert(key_of(plan), entry).map_or(0, |e| e.bytes);
        slice.bytes = slice.bytes + bytes - before;
        self.reroom(name);
        self.dirty.insert(name.to_owned());
    }

    fn take(&mut self, name: &str, plan: &ServicePlan) {
        self.unroom(name);
        if let Some(slice) = self.slices.get_mut(name)
            && let Some(entry) = slice.want.remove(&key_of(plan))
        {
            slice.bytes -= entry.bytes;
            self.dirty.insert(name.to_owned());
        }
        self.reroom(name);
    }

    fn unroom(&mut self, name: &str) {
        if let Some(slice) = self.slices.get(name) {
            self.room.remove(&(slice.bytes, name.to_owned()));
        }
    }

    fn reroom(&mut self, name: &str) {
        self.unroom(name);
        if let Some(slice) = self.slices.get(name)
            && !slice.retired()
            && !slice.want.is_empty()
        {
            self.room.insert((slice.bytes, name.to_owned()));
        }
    }
}
