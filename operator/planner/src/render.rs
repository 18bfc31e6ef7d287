//! The planner without a cluster: objects in, objects out.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nodenet_crds::{NodeNetSlice, NodeNetState, NodeNetStateStatus, SLICE_FINALIZER, VirtualIP};

use crate::{Change, Index, Kind, Now, Object, ObjectRef, Output, Settings};

/// Rounds after which planning has surely ended: a move takes three.
const ROUNDS_MAX: usize = 32;

/// What the operator would publish for a set of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// One for each Node, by name. Metadata holds the name only.
    pub states: Vec<NodeNetState>,
    /// By name. Metadata holds the name only.
    pub slices: Vec<NodeNetSlice>,
    /// The VirtualIPs that were given, with the status that they would get: conditions say what is wrong with one.
    pub virtual_ips: Vec<VirtualIP>,
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn lease(node: &str, renew: Timestamp) -> Object {
    let spec = LeaseSpec { renew_time: Some(MicroTime(renew)), ..LeaseSpec::default() };
    Lease { metadata: named(node), spec: Some(spec) }.into()
}

/// Plans `objects` as if they were all there is, every agent lived and let go what it is told to: of the candidates of
/// a VirtualIP the one with the highest priority is to hold it, then the first by name. What an agent would report is
/// not made up: `Held` and `Programmed` stay Unknown, while `Accepted` says what is wrong with a spec. An interface that
/// a VirtualIP names is taken to be there.
///
/// NodeNetStates and NodeNetSlices among the objects are taken as published: holders and places stay. `now` appears as
/// the time of conditions.
pub fn render(settings: Settings, objects: Vec<Object>, now: &Now) -> Rendered {
    let mut index = Index::offline(settings);
    let mut states: BTreeMap<String, NodeNetState> = BTreeMap::new();
    let mut slices: BTreeMap<String, NodeNetSlice> = BTreeMap::new();
    let mut virtual_ips: BTreeMap<String, VirtualIP> = BTreeMap::new();
    let mut nodes = BTreeSet::new();
    for object in objects {
        let name = object.object_ref().name;
        match &object {
            Object::Node(_) => {
                nodes.insert(name);
            }
            Object::VirtualIP(o) => {
                virtual_ips.insert(name, (**o).clone());
            }
            Object::NodeNetState(o) => {
                let mut state = (**o).clone();
                confirm(&mut state, 1);
                states.insert(name, state);
                continue;
            }
            Object::NodeNetSlice(o) => {
                let mut slice = (**o).clone();
                slice.metadata.finalizers = Some(vec![SLICE_FINALIZER.to_owned()]);
                slices.insert(name, slice.clone());
                index.apply(Change::Upsert(slice.into()), now);
                continue;
            }
            Object::Service(_) | Object::EndpointSlice(_) | Object::Lease(_) => {}
        }
        index.apply(Change::Upsert(object), now);
    }
    for state in states.values() {
        index.apply(Change::Upsert(state.clone().into()), now);
    }
    for kind in Kind::ALL {
        index.apply(Change::Synced(kind), now);
    }
    let mut keys = index.lead(now);
    let later = now.wall.checked_add(SignedDuration::from_secs(1)).unwrap_or(now.wall);
    for node in &nodes {
        for renew in [now.wall, later] {
            keys.extend(index.apply(Change::Upsert(lease(node, renew)), now));
        }
    }
    let mut generation = 1;
    for _ in 0..ROUNDS_MAX {
        let outputs = index.plan(&keys, now);
        keys = BTreeSet::new();
        if outputs.is_empty() {
            break;
        }
        generation += 1;
        for output in outputs {
            let changes = match output {
                Output::PutState { node, spec, .. } => {
                    let state =
                        states.entry(node.clone()).or_insert_with(|| NodeNetState::new(&node, spec.clone()));
                    state.spec = spec;
                    confirm(state, generation);
                    vec![Change::Wrote(state.clone().into())]
                }
                Output::DeleteState { node, .. } => {
                    states.remove(&node);
                    vec![Change::Delete(ObjectRef::cluster(Kind::NodeNetState, node))]
                }
                Output::PutSlice { name, spec, .. } => {
                    let mut metadata = named(&name);
                    metadata.generation = Some(generation);
                    metadata.finalizers = Some(vec![SLICE_FINALIZER.to_owned()]);
                    let slice = NodeNetSlice { metadata, spec };
                    slices.insert(name, slice.clone());
                    vec![Change::Wrote(slice.into())]
                }
                Output::DeleteSlice { name, .. } | Output::ReleaseSlice { name, .. } => {
                    slices.remove(&name);
                    vec![Change::Delete(ObjectRef::cluster(Kind::NodeNetSlice, name))]
                }
                Output::VirtualIPStatus { name, status, .. } => {
                    if let Some(vip) = virtual_ips.get_mut(&name) {
                        vip.status = Some(status);
                    }
                    Vec::new()
                }
                Output::Event(_) => Vec::new(),
            };
            for change in changes {
                keys.extend(index.apply(change, now));
            }
        }
    }
    for state in states.values_mut() {
        state.metadata = named(state.metadata.name.as_deref().unwrap_or_default());
        state.status = None;
    }
    for slice in slices.values_mut() {
        slice.metadata = named(slice.metadata.name.as_deref().unwrap_or_default());
    }
    Rendered {
        states: states.into_values().collect(),
        slices: slices.into_values().collect(),
        virtual_ips: virtual_ips.into_values().collect(),
    }
}

/// The state as an agent leaves it that does as it is told.
fn confirm(state: &mut NodeNetState, generation: i64) {
    state.metadata.generation = Some(generation);
    let status = state.status.get_or_insert_with(NodeNetStateStatus::default);
    status.observed_generation = Some(generation);
    status.virtual_ips.clear();
}
