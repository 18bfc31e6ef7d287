//! What becomes of a VirtualIP: whether its spec is put in force, who is to hold it, and what is said of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::conditions;

use super::Index;
use crate::accept::{self, Claim, Refusal};
use crate::agents::Life;
use crate::bindings::Frontends;
use crate::output::{Event, EventType};
use crate::placement::{Decision, decide};
use crate::service::Named;
use crate::vip::{self, Holder, Vip, Wait};
use crate::vip_status::{self, whole_seconds};
use crate::{Key, Kind, Now, ObjectRef, Output};

impl Index {
    pub(super) fn plan_vip(&mut self, name: &str, now: &Now, out: &mut Vec<Output>) {
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

    pub(super) fn plan_status(&mut self, name: &str, now: &Now) -> Option<Output> {
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
        again: false,
    }
}
