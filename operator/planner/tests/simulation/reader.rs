//! The slices as a reader of them has them.

use std::collections::BTreeMap;

use nodenet_crds::{NodeNetSlice, PortPlan, ServicePlan};
use nodenet_planner::{Object, ObjectRef};

pub fn slices_in(objects: &BTreeMap<ObjectRef, Object>) -> Vec<&NodeNetSlice> {
    objects
        .values()
        .filter_map(|o| match o {
            Object::NodeNetSlice(slice) => Some(&**slice),
            _ => None,
        })
        .collect()
}

/// A Service as a reader of the slices knows it: namespace, name, UID.
pub type Reader = BTreeMap<(String, String, String), Vec<PortPlan>>;

/// What a reader of all slices takes as the plan of each Service: of each UID the highest complete revision, with the
/// parts of one port put together.
pub fn read(slices: &[&NodeNetSlice]) -> Reader {
    type Parts<'a> = BTreeMap<i32, &'a ServicePlan>;
    let mut found: BTreeMap<(String, String, String), BTreeMap<i64, Parts<'_>>> = BTreeMap::new();
    for plan in slices.iter().flat_map(|s| &s.spec.services) {
        let id = (plan.namespace.clone(), plan.name.clone(), plan.uid.clone());
        found.entry(id).or_default().entry(plan.revision).or_default().insert(plan.part, plan);
    }
    let mut out = Reader::new();
    for (id, revisions) in found {
        let complete = revisions.into_values().rev().find(|parts| {
            let count = parts.values().next().map_or(0, |p| p.parts);
            parts.len() as i32 == count && parts.values().all(|p| p.parts == count)
        });
        let Some(parts) = complete else { continue };
        let mut ports: Vec<PortPlan> = Vec::new();
        for port in parts.values().flat_map(|p| &p.ports) {
            let same = |p: &&mut PortPlan| {
                p.name == port.name && p.protocol == port.protocol && p.frontends == port.frontends
            };
            match ports.iter_mut().find(same) {
                Some(known) => known.endpoints.extend(port.endpoints.clone()),
                None => ports.push(port.clone()),
            }
        }
        ports.sort_by(|a, b| (&a.name, a.protocol, &a.frontends).cmp(&(&b.name, b.protocol, &b.frontends)));
        ports.iter_mut().for_each(|port| port.endpoints.sort());
        out.insert(id, ports);
    }
    out
}
