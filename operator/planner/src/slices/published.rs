//! What is published: seen by a watch or in the answer to a write, and taken over at the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use nodenet_crds::{NodeNetSlice, SLICE_FINALIZER, ServicePlan};

use super::{InFlight, Placed, REVISION_MAX, Seen, Slices, key_of};
use crate::service::Named;

impl Slices {
    /// A watch or the answer to a write shows a slice. Returns whether it must be looked at ([`Slices::flush`]).
    pub(crate) fn observe(&mut self, object: NodeNetSlice, answer: bool) -> bool {
        let meta = object.metadata;
        let Some(name) = meta.name else { return false };
        let slice = self.slices.entry(name.clone()).or_default();
        let terminating = meta.deletion_timestamp.is_some();
        let mut answered = false;
        match slice.in_flight {
            Some(InFlight::Put(revision)) if answer || object.spec.revision == revision => {
                answered = object.spec.revision == revision;
                slice.in_flight = None;
                self.dirty.insert(name.clone());
            }
            Some(InFlight::Delete) if terminating => slice.in_flight = None,
            _ => {}
        }
        if let Some(seen) = &slice.seen
            && seen.uid == meta.uid
            && seen.generation.is_some()
            && meta.generation.is_some()
            && meta.generation < seen.generation
        {
            return answer;
        }
        slice.unreadable = false;
        let want = &slice.want;
        // What a newer operator wrote is not this one's to go on with.
        let share = |plan: ServicePlan| {
            let plan = plan.known();
            match want.get(&key_of(&plan)) {
                Some(entry) if *entry.plan == plan => Arc::clone(&entry.plan),
                _ => Arc::new(plan),
            }
        };
        let entries: Vec<_> = object.spec.services.into_iter().map(share).collect();
        if answered {
            slice.cut = entries != slice.put;
        }
        for revision in entries.iter().map(|e| e.revision).chain([object.spec.revision]) {
            if revision <= REVISION_MAX {
                self.revision = self.revision.max(revision);
            }
        }
        let seen = Seen {
            uid: meta.uid,
            resource_version: meta.resource_version,
            generation: meta.generation,
            terminating,
            finalizer: meta.finalizers.iter().flatten().any(|f| f == SLICE_FINALIZER),
            revision: object.spec.revision,
            summary: object.spec.summary,
            entries,
        };
        let services: Vec<Named> = seen.entries.iter().map(|e| Named::new(&e.namespace, &e.name)).collect();
        slice.seen = Some(seen);
        self.reroom(&name);
        self.dirty.insert(name);
        for service in services {
            self.settle(&service);
        }
        true
    }

    /// A watch shows a slice whose content cannot be read.
    pub(crate) fn unreadable(&mut self, name: &str) {
        let slice = self.slices.entry(name.to_owned()).or_default();
        if slice.seen.is_none() {
            self.unread |= !slice.unreadable;
            slice.unreadable = true;
            self.reroom(name);
        }
    }

    /// Whether a slice exists that could never be read.
    pub(crate) fn any_unreadable(&self) -> bool {
        self.slices.values().any(|slice| slice.unreadable)
    }

    /// Highest revision of the slices that are published.
    pub(crate) fn seen_revision(&self) -> i64 {
        self.slices.values().filter_map(|slice| Some(slice.seen.as_ref()?.revision)).max().unwrap_or(0)
    }

    /// A slice is gone.
    pub(crate) fn gone(&mut self, name: &str) -> bool {
        let Some(slice) = self.slices.get_mut(name) else { return false };
        slice.seen = None;
        slice.unreadable = false;
        if matches!(slice.in_flight, Some(InFlight::Delete | InFlight::Release)) {
            slice.in_flight = None;
        }
        self.reroom(name);
        self.dirty.insert(name.to_owned());
        true
    }

    /// A write to a slice failed.
    pub(crate) fn write_failed(&mut self, name: &str) {
        if let Some(slice) = self.slices.get_mut(name) {
            slice.in_flight = None;
            self.reroom(name);
            self.dirty.insert(name.to_owned());
        }
    }

    /// Takes what is published over as the plan so far: for each Service its highest complete revision. `uid_of` names
    /// the Service that exists now; a plan of another one with the same name is left behind.
    pub(crate) fn adopt(&mut self, uid_of: impl Fn(&Named) -> Option<Arc<str>>) {
        self.services.clear();
        self.room.clear();
        for slice in self.slices.values_mut() {
            slice.want.clear();
            slice.bytes = 0;
            slice.in_flight = None;
        }
        // (uid, revision) -> parts
        type Found = BTreeMap<(String, i64), BTreeMap<i32, (String, Arc<ServicePlan>)>>;
        let mut found: BTreeMap<Named, Found> = BTreeMap::new();
        for (name, slice) in &self.slices {
            // A slice that is being deleted comes last: where a plan stands twice, the other place is the better one.
            let terminating = slice.seen.as_ref().is_some_and(|s| s.terminating);
            for plan in slice.seen.iter().flat_map(|s| &s.entries) {
                if plan.revision > REVISION_MAX {
                    continue;
                }
                let service = found.entry(Named::new(&plan.namespace, &plan.name)).or_default();
                let parts = service.entry((plan.uid.clone(), plan.revision)).or_default();
                let place = (name.clone(), Arc::clone(plan));
                if terminating {
                    parts.entry(plan.part).or_insert(place);
                } else {
                    parts.insert(plan.part, place);
                }
            }
        }
        for (service, plans) in found {
            let uid = uid_of(&service);
            let complete = plans.into_iter().filter(|((_, _), parts)| {
                let count = parts.values().next().map_or(0, |(_, plan)| plan.parts);
                let same = parts.values().all(|(_, plan)| plan.parts == count);
                let whole = parts.keys().copied().eq(0..count);
                same && whole && count > 0
            });
            let best = complete
                .max_by_key(|((u, revision), _)| (uid.as_deref().is_some_and(|uid| uid == u), *revision));
            let Some(((uid, _), parts)) = best else { continue };
            let current: Vec<_> = parts.into_values().collect();
            for (name, plan) in &current {
                self.insert(name, plan);
            }
            self.services.insert(service, Placed { uid: uid.as_str().into(), current, leaving: Vec::new() });
        }
        self.dirty = self.slices.keys().cloned().collect();
        for name in self.dirty.clone() {
            self.reroom(&name);
        }
    }

    /// Lets an older plan go once the newest one is seen complete.
    fn settle(&mut self, service: &Named) {
        let Some(placed) = self.services.get_mut(service) else { return };
        if placed.leaving.is_empty() {
            return;
        }
        let slices = &self.slices;
        let seen = placed.current.iter().all(|(name, plan)| {
            let seen = slices.get(name).and_then(|s| s.seen.as_ref());
            // Of this layout; its endpoints may have changed since.
            let this = |e: &Arc<ServicePlan>| {
                key_of(e) == key_of(plan) && e.uid == plan.uid && e.parts == plan.parts
            };
            seen.is_some_and(|s| s.entries.iter().any(this))
        });
        if seen {
            for (name, plan) in std::mem::take(&mut placed.leaving) {
                self.take(&name, &plan);
            }
        }
    }
}
