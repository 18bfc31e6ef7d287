//! What the index keeps of a VirtualIP, and the step from what is in force to what each node is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::{
    AssignedState, AssignedVirtualIP, DEFAULT_PRIORITY, VirtualIPSpec, VirtualIPState, VirtualIPStatus,
};

use crate::accept::{Facts, InForce, Refusal};
use crate::agents::{Agents, Life};
use crate::bindings::Frontends;
use crate::node::{Fit, StateInfo, fit};
use crate::placement::{Candidate, CurrentHolder, Standing};

/// The object, as last decoded.
#[derive(Clone, Debug)]
pub(crate) struct VipObject {
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) spec: VirtualIPSpec,
}

/// The node that is to hold it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holder {
    pub(crate) node: String,
    pub(crate) since: Timestamp,
    pub(crate) reason: String,
}

/// What stands between the plan and a held address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing.
    #[default]
    Nothing,
    /// No candidate can hold it; in words why.
    Nobody(String),
    /// This node may still have an address: its agent has not confirmed that it let go.
    Release(String),
    /// The holder's agent is silent, its addresses have not run out yet.
    Fence,
    /// Most agents are silent.
    AgentsSilent,
    /// The holder's agent is gone, and nobody else can take over.
    NoOther,
}

/// A VirtualIP.
#[derive(Debug, Default)]
pub(crate) struct Vip {
    pub(crate) object: Option<VipObject>,
    /// The object was deleted, and that was not planned yet.
    pub(crate) deleted: bool,
    /// The newest version could not be decoded, for this reason.
    pub(crate) error: Option<String>,
    pub(crate) status: VirtualIPStatus,
    /// A status that was written and not seen yet.
    pub(crate) written: Option<VirtualIPStatus>,
    pub(crate) in_force: Option<InForce>,
    pub(crate) refusal: Option<Refusal>,
    /// The epoch in which the spec was judged; `None`: it must be judged again.
    pub(crate) judged: Option<u64>,
    pub(crate) holder: Option<Holder>,
    /// Addresses that the holder may have: no other node can have them any more.
    pub(crate) granted: BTreeSet<IpAddr>,
    pub(crate) wait: Wait,
    pub(crate) bound: Frontends,
    /// Publication that brought the frontends of the bound Services: before, they cannot be in a kernel.
    pub(crate) bound_revision: i64,
    /// What each node is told.
    pub(crate) assigned: BTreeMap<String, AssignedVirtualIP>,
}

impl Vip {
    /// The status as the API server has it, or is about to have it.
    pub(crate) fn known_status(&self) -> &VirtualIPStatus {
        self.written.as_ref().unwrap_or(&self.status)
    }

    /// What each node is to be told.
    pub(crate) fn assign(
        &self,
        name: &str,
        addresses: &[(String, IpNet)],
    ) -> BTreeMap<String, AssignedVirtualIP> {
        let Some(in_force) = self.in_force.as_ref().filter(|_| !addresses.is_empty()) else {
            return BTreeMap::new();
        };
        let holder = self.holder.as_ref().map(|h| h.node.as_str());
        let nodes = in_force.candidates.iter().map(|(n, p)| (n.as_str(), *p));
        let stays = holder.filter(|h| !in_force.candidates.contains_key(*h));
        let nodes = nodes.chain(stays.map(|h| (h, DEFAULT_PRIORITY)));
        nodes
            .map(|(node, priority)| {
                let active = holder == Some(node) && !self.granted.is_empty();
                let list = addresses.iter().filter(|(_, n)| !active || self.granted.contains(&n.addr()));
                let entry = AssignedVirtualIP {
                    name: name.to_owned(),
                    state: if active { AssignedState::Active } else { AssignedState::Backup },
                    addresses: list.map(|(text, _)| text.clone()).collect(),
                    interface: in_force.interface.clone(),
                    address_role: in_force.address_role,
                    priority,
                    announce: in_force.announce.clone(),
                };
                (node.to_owned(), entry)
            })
            .collect()
    }
}

/// The candidates of what is in force, as they are now, and when a fault is forgotten at the earliest.
pub(crate) fn candidates(
    name: &str,
    in_force: &InForce,
    addresses: &[IpNet],
    facts: &Facts,
    agents: &Agents,
    now: Duration,
) -> (Vec<Candidate>, Option<Duration>) {
    let mut again: Option<Duration> = None;
    let mut out = Vec::with_capacity(in_force.candidates.len());
    for (node, priority) in &in_force.candidates {
        let Some(info) = facts.nodes.get(node) else { continue };
        let state = facts.states.get(node);
        let life = agents.life(node, now);
        let mut well_since = info.since;
        if let Life::Alive { since } = life {
            well_since = well_since.max(since);
        }
        let (mut standing, mut against) = if !info.ready {
            (Standing::NotReady, "its Node is not Ready".to_owned())
        } else if info.cordoned {
            (Standing::Cordoned, "its Node is cordoned".to_owned())
        } else {
            (Standing::Well, String::new())
        };
        // The first cause counts: an agent also reports a fault where its interface is down.
        let mut unable = |why: String| {
            if standing != Standing::Unable {
                (standing, against) = (Standing::Unable, why);
            }
        };
        let fit = match state.and_then(StateInfo::reported) {
            Some(_) => fit(Some(info), state, addresses, in_force.interface.as_deref()),
            // It was found fit before, and nothing says that it is not any more.
            None => Fit::Yes { down: None },
        };
        match fit {
            Fit::Yes { down: None } => {}
            Fit::Yes { down: Some(interface) } => unable(format!("its interface {interface} is down")),
            Fit::NoInterface => unable("the interface is not there any more".to_owned()),
            Fit::NoSubnet(net) => unable(format!("no interface has a subnet that holds {}", net.addr())),
        }
        if let Some(state) = state {
            well_since = well_since.max(state.interfaces_since);
            let reported = state.status.iter().flat_map(|s| &s.virtual_ips).find(|v| v.name == name);
            if let Some(v) = reported.filter(|v| v.state == VirtualIPState::Fault) {
                let words = v.message.as_deref().unwrap_or("its agent reports a fault");
                unable(format!("its agent reports: {words}"));
            } else if let Some(until) = state.faulty_until(name) {
                if until > now {
                    unable("its agent reported a fault not long ago".to_owned());
                    again = Some(again.map_or(until, |a| a.min(until)));
                } else {
                    well_since = well_since.max(until);
                }
            }
        }
        out.push(Candidate { node: node.clone(), priority: *priority, life, standing, against, well_since });
    }
    (out, again)
}

/// The holder of the plan so far, as it is now.
pub(crate) fn current(
    holder: &Holder,
    in_force: &InForce,
    facts: &Facts,
    agents: &Agents,
    now: Duration,
) -> CurrentHolder {
    let node = holder.node.clone();
    let life = agents.life(&node, now);
    let no_candidate = if !facts.nodes.contains_key(&node) {
        Some("its Node was deleted".to_owned())
    } else if !in_force.candidates.contains_key(&node) {
        Some("the VirtualIP does not select it any more, or it lost the interface".to_owned())
    } else {
        None
    };
    let silent_together = if life == Life::Fenced { agents.silent_together(&node, now) } else { None };
    CurrentHolder {
        silent_seconds: agents.age_seconds(&node, now),
        node,
        life,
        silent_together,
        no_candidate,
    }
}
