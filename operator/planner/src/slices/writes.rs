//! What is to be written so that what is published becomes what is wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use nodenet_crds::{NodeNetSliceSpec, SliceSummary};

use super::{Entry, InFlight, REVISION_MAX, Seen, Slices};
use crate::Output;
use crate::service::Named;

impl Slices {
    /// Whether there is something to look at.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Moves what stands in slices that are being deleted, then says what must be written to all that changed.
    pub(crate) fn flush(&mut self) -> Vec<Output> {
        self.evacuate();
        let mut out = Vec::new();
        let mut later = BTreeSet::new();
        for name in std::mem::take(&mut self.dirty) {
            let Some(slice) = self.slices.get_mut(&name) else { continue };
            if slice.unreadable {
                continue;
            }
            if slice.in_flight.is_some() {
                later.insert(name);
                continue;
            }
            match &slice.seen {
                Some(seen) if seen.terminating => {
                    if slice.want.is_empty() && seen.finalizer {
                        let expect = seen.precondition();
                        slice.in_flight = Some(InFlight::Release);
                        out.push(Output::ReleaseSlice { name, expect });
                    }
                }
                Some(seen) if slice.want.is_empty() => {
                    let expect = seen.precondition();
                    slice.in_flight = Some(InFlight::Delete);
                    out.push(Output::DeleteSlice { name, expect });
                }
                None if slice.want.is_empty() => {
                    self.slices.remove(&name);
                    // The lowest free name is taken first; one that was just in use comes after the others.
                    self.first_free = 0;
                }
                seen => {
                    let right = seen.as_ref().is_some_and(|seen| {
                        seen.finalizer
                            && seen.revision <= REVISION_MAX
                            && seen.summary == summary(slice.want.values())
                            && seen.entries.len() == slice.want.len()
                            && seen
                                .entries
                                .iter()
                                .zip(slice.want.values())
                                .all(|(a, b)| Arc::ptr_eq(a, &b.plan) || **a == *b.plan)
                    });
                    let want = || slice.want.values().map(|e| &e.plan);
                    let in_vain = slice.cut && want().eq(&slice.put);
                    if right || in_vain {
                        continue;
                    }
                    slice.put = want().cloned().collect();
                    self.revision += 1;
                    let spec = NodeNetSliceSpec {
                        revision: self.revision,
                        summary: summary(slice.want.values()),
                        services: slice.want.values().map(|e| (*e.plan).clone()).collect(),
                    };
                    let replaces = seen.as_ref().map(Seen::precondition);
                    slice.in_flight = Some(InFlight::Put(self.revision));
                    out.push(Output::PutSlice { name, spec, replaces });
                }
            }
        }
        self.dirty = later;
        out
    }

    /// Gives every newest plan that stands in a slice that is being deleted a new place; what stood together stays
    /// together.
    fn evacuate(&mut self) {
        let leaving: Vec<String> = self
            .dirty
            .iter()
            .filter(|n| self.slices.get(*n).is_some_and(|s| s.retired() && !s.want.is_empty()))
            .cloned()
            .collect();
        for name in leaving {
            let Some(slice) = self.slices.get(&name) else { continue };
            let services: BTreeSet<Named> =
                slice.want.keys().map(|(service, _, _)| service.clone()).collect();
            let mut to = None;
            for service in services {
                let Some(placed) = self.services.get(&service) else { continue };
                if !placed.current.iter().any(|(at, _)| *at == name) {
                    continue;
                }
                let uid = Arc::clone(&placed.uid);
                let health_check = placed.current.first().and_then(|(_, plan)| plan.health_check_node_port);
                let parts = placed.current.iter().map(|(_, plan)| plan.ports.clone()).collect();
                let to = match &to {
                    Some(to) => to,
                    None => &*to.insert(self.new_name()),
                };
                let to = to.clone();
                self.place(&service, &uid, health_check, parts, Some(&to));
            }
        }
    }
}

fn summary<'a>(entries: impl Iterator<Item = &'a Entry>) -> SliceSummary {
    let mut services: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut endpoints = 0;
    for e in entries {
        services.insert((&e.plan.namespace, &e.plan.name));
        endpoints += e.plan.ports.iter().map(|p| p.endpoints.len()).sum::<usize>();
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    SliceSummary { services: count(services.len()), endpoints: count(endpoints) }
}
