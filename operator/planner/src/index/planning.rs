//! From what is known to what is written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nodenet_crds::{Frontend, FrontendKind, NodeNetStateSpec};

use super::{Index, service_key};
use crate::agents::Life;
use crate::complaints::Complaint;
use crate::node::{InFlight, plan_node};
use crate::service::{BoundFrontend, Named, ServiceInfo, plan_service};
use crate::slices::Slices;
use crate::{Key, Kind, Now, ObjectRef, Output, Precondition};

/// Kinds that must be complete before a slice is written.
const FOR_SLICES: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::NodeNetSlice];
/// Kinds that must be complete before a VirtualIP is placed. A watch of Services that breaks later must not keep an
/// address from moving: what is known of them stays. While Leases cannot be read nobody's silence counts (`agents`).
const FOR_VIPS: [Kind; 3] = [Kind::Node, Kind::VirtualIP, Kind::NodeNetState];
/// Kinds that must be complete before it is judged whose an address from outside is.
const FOR_EXTERNAL: [Kind; 3] = [Kind::Node, Kind::VirtualIP, Kind::NodeNetState];
/// Kinds that must be complete before a NodeNetState is written.
const FOR_NODES: [Kind; 2] = [Kind::Node, Kind::NodeNetState];

impl Index {
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
        if slices_ready {
            if self.vips_adopted && self.has(&FOR_EXTERNAL) {
                self.todo_services.extend(self.external.outdated(self.in_force.version()));
                self.todo_services.extend(self.external.within(&std::mem::take(&mut self.moved)));
            }
            if self.inside.is_blind() && !self.slices.any_unreadable() {
                self.todo_services.extend(self.inside.adopt(self.slices.published(), false));
            }
            while let Some(service) = self.todo_services.pop_first() {
                let new = self.plan_service(&service);
                if !new.is_empty() {
                    self.note_publication(&service, &new);
                }
            }
            out.extend(self.complaints.take_events().into_iter().map(Output::Event));
            if self.slices.is_dirty() {
                out.extend(self.slices.flush());
            }
        } else {
            self.held_back.extend(std::mem::take(&mut self.todo_services).iter().map(service_key));
        }
        for node in std::mem::take(&mut self.todo_nodes) {
            // A state that does not exist yet comes after the slices: with an empty list of them beside it, an agent
            // would take nothing for the wish.
            let exists = self.facts.states.get(&node).is_some_and(|s| s.exists);
            if nodes_ready && (exists || slices_ready) {
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

    /// Plans one Service. Returns the frontends on virtual IPs that it did not have before.
    fn plan_service(&mut self, service: &Named) -> BTreeSet<Frontend> {
        if self.is_frozen(service) && self.slices.revision_of(service).is_some() {
            return BTreeSet::new();
        }
        let Some(info) = self.facts.services.get(service) else {
            let uid: Arc<str> = "-".into();
            self.inside.assign(service, &mut []);
            self.complaints.set(service, None, Vec::new());
            let others = self.external.remove(service);
            self.todo_services.extend(others);
            self.slices.set(service, &uid, None);
            return BTreeSet::new();
        };
        let mut bound: Vec<BoundFrontend> = if self.vips_adopted {
            let vips = self.vips_of_service.get(service).into_iter().flatten();
            vips.filter_map(|v| self.vips.get(v)?.bound.get(service)).flatten().cloned().collect()
        } else {
            // VirtualIPs cannot be read: what they gave stays.
            let on_virtual_ips = [FrontendKind::VirtualIP, FrontendKind::VirtualIPNodePort];
            carried_over(&self.slices, service, info, &on_virtual_ips)
        };
        let mut refused = Vec::new();
        if self.vips_adopted && self.has(&FOR_EXTERNAL) {
            let virtual_ip = |address| {
                let owner = self.in_force.owner(address)?;
                let named = self.vips_of_service.get(service).is_some_and(|vips| vips.contains(owner));
                Some((owner.to_owned(), named))
            };
            let served = |address: IpAddr| {
                let text = address.to_string();
                let mut frontends =
                    self.slices.plan_of(service).flat_map(|p| &p.ports).flat_map(|p| &p.frontends);
                frontends.any(|frontend| frontend.address.as_ref() == Some(&text))
            };
            let judged = self.external.judge(service, info, &self.facts, virtual_ip, served);
            bound.extend(judged.frontends);
            refused = judged.complaints;
            self.todo_services.extend(judged.others);
        } else {
            // Whose an address is cannot be told: what is published stays.
            let from_outside = [FrontendKind::ExternalIP, FrontendKind::LoadBalancer];
            bound.extend(carried_over(&self.slices, service, info, &from_outside));
            self.external.wait();
        }
        let of = self.endpoints_of.get(service).into_iter().flatten();
        let endpoints = of.filter_map(|n| self.endpoints.get(n));
        let scheduler = self.facts.settings.scheduler.as_deref();
        let mut planned = plan_service(info, endpoints, &bound, scheduler);
        let ports = planned.as_mut().map(|planned| planned.ports.as_mut_slice()).unwrap_or_default();
        let too_few = self.inside.assign(service, ports);
        let unknown = self.inside.is_blind();
        self.complaints.set(service, Some(&info.uid), complaints(info, refused, too_few, unknown));
        let before = on_virtual_ips(self.slices.plan_of(service));
        let uid = Arc::clone(&info.uid);
        if !self.slices.set(service, &uid, planned) {
            return BTreeSet::new();
        }
        let after = on_virtual_ips(self.slices.plan_of(service));
        after.difference(&before).cloned().collect()
    }

    /// Remembers for the VirtualIPs that gave a Service these frontends which publication brings them.
    fn note_publication(&mut self, service: &Named, new: &BTreeSet<Frontend>) {
        let Some(revision) = self.slices.revision_of(service) else { return };
        for name in self.vips_of_service.get(service).into_iter().flatten() {
            let Some(vip) = self.vips.get_mut(name) else { continue };
            if vip.bound.get(service).is_some_and(|b| b.iter().any(|b| new.contains(&b.frontend))) {
                vip.bound_revision = revision;
            }
        }
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
        let published = self.facts.states.get_mut(name);
        if published.is_some_and(|s| s.has(&spec) && !orphan(&s.owner)) {
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
        let replaces = state.exists.then(|| Precondition {
            uid: state.uid.clone(),
            resource_version: state.resource_version.clone(),
        });
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
        let expect =
            Precondition { uid: state.uid.clone(), resource_version: state.resource_version.clone() };
        Some(Output::DeleteState { node: name.to_owned(), expect })
    }
}

fn complaints(
    service: &ServiceInfo,
    refused: Vec<Complaint>,
    too_few_numbers: bool,
    numbers_unknown: bool,
) -> Vec<Complaint> {
    let annotations = service.unusable().iter();
    let mut all: Vec<Complaint> = annotations
        .map(|unusable| Complaint { reason: "AnnotationIgnored", note: unusable.to_string() })
        .collect();
    all.extend(refused);
    if too_few_numbers && numbers_unknown {
        let note = "externalTrafficPolicy Local: a NodeNetSlice cannot be read, and which numbers it holds is not known; \
                    until it can be, or is deleted, nodes and their pods reach the endpoints of their own node only by \
                    this one's node port and external addresses";
        all.push(Complaint { reason: "TooManyLocalPorts", note: note.to_owned() });
    } else if too_few_numbers {
        let note = "externalTrafficPolicy Local: more than 2047 ports have it; nodes and their pods reach the \
                    endpoints of their own node only by this one's node port and external addresses";
        all.push(Complaint { reason: "TooManyLocalPorts", note: note.to_owned() });
    }
    all
}

/// The frontends on virtual IPs in a plan.
fn on_virtual_ips<'a>(parts: impl Iterator<Item = &'a nodenet_crds::ServicePlan>) -> BTreeSet<Frontend> {
    use nodenet_crds::FrontendKind::{VirtualIP, VirtualIPNodePort};
    let all = parts.flat_map(|p| &p.ports).flat_map(|p| &p.frontends);
    all.filter(|f| matches!(f.kind, VirtualIP | VirtualIPNodePort)).cloned().collect()
}

/// The frontends on virtual IPs that the plan of a Service has already.
fn carried_over(
    slices: &Slices,
    service: &Named,
    info: &ServiceInfo,
    kinds: &[FrontendKind],
) -> Vec<BoundFrontend> {
    let mut out = Vec::new();
    for port in slices.plan_of(service).flat_map(|p| &p.ports) {
        let Some(own) = info.ports.iter().find(|p| *p.name == *port.name && p.protocol == port.protocol)
        else {
            continue;
        };
        let kept = port.frontends.iter().filter(|f| kinds.contains(&f.kind));
        out.extend(kept.map(|f| BoundFrontend {
            protocol: port.protocol,
            service_port: own.port,
            frontend: f.clone(),
        }));
    }
    out
}
