//! From what is known to what is written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::{Frontend, NodeNetStateSpec, conditions};

use super::{Index, service_key};
use crate::accept::{self, Claim, Refusal};
use crate::agents::Life;
use crate::bindings::Frontends;
use crate::complaints::Complaint;
use crate::node::{InFlight, plan_node};
use crate::output::{Event, EventType};
use crate::placement::{Decision, decide};
use crate::service::{BoundFrontend, Named, ServiceInfo, plan_service};
use crate::slices::Slices;
use crate::vip::{self, Holder, Vip, Wait};
use crate::vip_status::{self, whole_seconds};
use crate::{Key, Kind, Now, ObjectRef, Output, Precondition};

/// Kinds that must be complete before a slice is written.
const FOR_SLICES: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::NodeNetSlice];
/// Kinds that must be complete before a VirtualIP is placed. A watch of Services that breaks later must not keep an
/// address from moving: what is known of them stays. While Leases cannot be read nobody's silence counts (`agents`).
const FOR_VIPS: [Kind; 3] = [Kind::Node, Kind::VirtualIP, Kind::NodeNetState];
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
        let services = std::mem::take(&mut self.todo_services);
        if slices_ready {
            for service in services {
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
            self.held_back.extend(services.iter().map(service_key));
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
            self.slices.set(service, &uid, None);
            return BTreeSet::new();
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
        let mut ports = plan_service(info, endpoints, &bound, scheduler);
        let too_few = self.inside.assign(service, ports.as_deref_mut().unwrap_or_default());
        self.complaints.set(service, Some(&info.uid), complaints(info, too_few));
        let before = on_virtual_ips(self.slices.plan_of(service));
        let uid = Arc::clone(&info.uid);
        if !self.slices.set(service, &uid, ports) {
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
            None => Frontends::new(),
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
        self.claims_changed(others);
    }

    /// Judges the spec and puts it in force if it may be.
    fn judge(&mut self, name: &str, vip: &mut Vip, claim: &Claim, out: &mut Vec<Output>) {
        if vip.judged == Some(self.epoch) {
            return;
        }
        let Some(object) = vip.object.as_ref().filter(|_| vip.error.is_none()) else { return };
        vip.judged = Some(self.epoch);
        let held = vip.in_force.iter().flat_map(|f| &f.addresses).map(|(_, n)| n.addr()).collect();
        let holder = vip.holder.as_ref().map(|h| h.node.as_str());
        let verdict =
            accept::judge(name, &object.spec, object.generation, &self.facts, &self.wanted, &held, holder);
        let spec_unchanged =
            vip.in_force.as_ref().is_none_or(|f| f.generation.is_some() && f.generation == object.generation);
        let take = match &verdict.refusal {
            None => true,
            // Only single Services are at fault: the rest holds, unless it would replace something better.
            Some(_) => spec_unchanged,
        };
        if vip.refusal != verdict.refusal {
            let told = |refusal: &Refusal| {
                let known = conditions::get(&vip.known_status().conditions, conditions::virtual_ip::ACCEPTED);
                known.is_some_and(|c| {
                    c.status == "False"
                        && c.reason == refusal.reason
                        && c.message.starts_with(&refusal.message)
                })
            };
            if let Some(refusal) = &verdict.refusal {
                // After a restart what is wrong for long is no news.
                if !refusal.waits && !told(refusal) {
                    out.push(Output::Event(event(
                        name,
                        vip,
                        EventType::Warning,
                        "NotAccepted",
                        "Accept",
                        refusal.message.clone(),
                    )));
                }
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
            self.claims_changed(others);
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
        // What the holder is not told to have, by a write that failed or by another hand, another node may have by now.
        let told = self.facts.states.get(&holder.node);
        vip.granted.retain(|a| {
            nets.iter().any(|n| n.addr() == *a) && told.is_some_and(|state| state.is_assigned(*a))
        });
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
        near.retain(|n| states.get(n).is_some_and(|s| s.may_have().contains(&address)));
        near.iter()
            .filter(|n| *n != holder)
            .find(|n| {
                let Some(state) = states.get(*n) else { return false };
                let alive = || self.agents.life(n, now.monotonic) != Life::Fenced;
                state.is_assigned(address) || (state.lingers(address) && alive())
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

fn complaints(service: &ServiceInfo, too_few_numbers: bool) -> Vec<Complaint> {
    let annotations = service.unusable().iter();
    let mut all: Vec<Complaint> = annotations
        .map(|unusable| Complaint { reason: "AnnotationIgnored", note: unusable.to_string() })
        .collect();
    if too_few_numbers {
        let note = "externalTrafficPolicy Local: more than 4095 ports have it; nodes and their pods reach the \
                    endpoints of their own node only by this one's node port and external addresses";
        all.push(Complaint { reason: "TooManyLocalPorts", note: note.to_owned() });
    }
    all
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

/// The frontends on virtual IPs in a plan.
fn on_virtual_ips<'a>(parts: impl Iterator<Item = &'a nodenet_crds::ServicePlan>) -> BTreeSet<Frontend> {
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
