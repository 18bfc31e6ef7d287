//! The status of a VirtualIP: who holds it and why, and what must change where it is not Ready.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::conditions::{self, READY, Status, node as node_conditions, reason, virtual_ip};
use nodenet_crds::{
    AddressOnNode, HeldAddress, NodeNetStateStatus, VirtualIPOnNode, VirtualIPState, VirtualIPStatus,
    VirtualIPSummary,
};

use crate::Now;
use crate::accept::Facts;
use crate::agents::{Agents, Life};
use crate::node::{StateInfo, has_subnet};
use crate::vip::{Vip, Wait};

/// Why an address is listed at a node whose NodeNetState went while it had the address.
const HAUNTED: &str =
    "its NodeNetState was deleted while it had the address; it has not confirmed yet that it let go";

/// Whether a status entry says that the node was told to have the address, and not only that it says so itself.
pub(crate) fn is_by_grant(held: &HeldAddress) -> bool {
    held.since.is_some() || held.reason == HAUNTED
}

/// One condition before it is set.
struct Word {
    status: Status,
    reason: &'static str,
    message: String,
}

fn word(status: Status, reason: &'static str, message: impl Into<String>) -> Word {
    Word { status, reason, message: message.into() }
}

/// Cuts `text` to `max` bytes.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Times in the API have whole seconds.
pub(crate) fn whole_seconds(wall: Timestamp) -> Timestamp {
    Timestamp::from_second(wall.as_second()).unwrap_or(wall)
}

/// The status of the VirtualIP `name`. `addresses` are those in force, `near` the nodes that may have one of them.
pub(crate) fn status(
    name: &str,
    vip: &Vip,
    addresses: &[(String, IpNet)],
    near: &BTreeSet<String>,
    facts: &Facts,
    agents: &Agents,
    now: &Now,
) -> VirtualIPStatus {
    let on_node = |node: &str| reported(facts, node, name);
    // What a dead agent reported last says nothing any more.
    let claims: Vec<(&String, &VirtualIPOnNode)> = near
        .iter()
        .filter(|n| agents.life(n, now.monotonic) != Life::Fenced)
        .filter_map(|n| Some((n, on_node(n)?.1)))
        .filter(|(_, v)| v.state == VirtualIPState::Active)
        .collect();
    let mut held = Vec::new();
    let mut duplicates = Vec::new();
    for (text, net) in addresses {
        let address = net.addr();
        let granted = vip.holder.as_ref().filter(|_| vip.granted.contains(&address));
        if let Some(holder) = granted {
            let at = on_node(&holder.node).and_then(|(_, v)| has(v, address));
            held.push(HeldAddress {
                address: text.clone(),
                node: holder.node.clone(),
                interface: at.map(|a| a.interface.clone()).filter(|i| !i.is_empty()),
                since: Some(Time(holder.since)),
                reason: cut(holder.reason.clone(), 512),
            });
        }
        for (node, v) in &claims {
            let Some(at) = has(v, address) else { continue };
            // A status from before the spec that took the address away proves nothing against the holder.
            let knows = facts.states.get(*node).is_some_and(StateInfo::confirmed);
            if granted.is_some_and(|h| h.node == **node || !knows) {
                continue;
            }
            let why = if granted.is_some() {
                duplicates.push(format!("{node} reports {address} too"));
                "its agent reports that it has the address, although another node is to hold it"
            } else {
                "it has not confirmed yet that it let go"
            };
            held.push(HeldAddress {
                address: text.clone(),
                node: (*node).clone(),
                interface: Some(at.interface.clone()).filter(|i| !i.is_empty()),
                since: None,
                reason: why.to_owned(),
            });
        }
    }
    // Of a node whose NodeNetState is gone nothing is reported; the next operator must know of it all the same.
    for (text, net) in addresses {
        for node in near.iter().filter(|node| agents.life(node, now.monotonic) != Life::Fenced) {
            let state = facts.states.get(node);
            let haunted = state.is_some_and(|state| state.is_haunted(net.addr()));
            if haunted && !held.iter().any(|h| h.node == *node && h.address == *text) {
                held.push(HeldAddress {
                    address: text.clone(),
                    node: node.clone(),
                    interface: None,
                    since: None,
                    reason: HAUNTED.to_owned(),
                });
            }
        }
    }
    held.truncate(64);

    let accepted = accepted(vip);
    let held_word = if duplicates.is_empty() {
        held_condition(name, vip, addresses, facts, agents, now)
    } else {
        word(Status::False, reason::DUPLICATE_OWNER, duplicates.join("; "))
    };
    let programmed = programmed(name, vip, addresses, facts, held_word.status == Status::True);
    let ready = [&accepted, &held_word, &programmed].into_iter().find(|w| w.status != Status::True);
    let ready = match ready {
        Some(w) => word(
            if w.status == Status::Unknown { Status::Unknown } else { Status::False },
            w.reason,
            w.message.clone(),
        ),
        None if programmed.reason == reason::SERVICE_PROXY_OFF => {
            word(Status::True, programmed.reason, programmed.message.clone())
        }
        None => ready_word(vip, addresses, facts, &held_word),
    };

    let before = vip.known_status();
    let mut list = before.conditions.clone();
    let generation = vip.object.as_ref().and_then(|o| o.generation);
    let wall = Time(whole_seconds(now.wall));
    for (type_, w) in [
        (virtual_ip::ACCEPTED, accepted),
        (virtual_ip::PROGRAMMED, programmed),
        (virtual_ip::HELD, held_word),
        (READY, ready),
    ] {
        conditions::set(&mut list, type_, w.status, w.reason, w.message, generation, wall.clone());
    }
    let mut holders: Vec<&str> = held.iter().map(|h| h.node.as_str()).collect();
    holders.sort_unstable();
    holders.dedup();
    let shown: Vec<&str> = if addresses.is_empty() {
        vip.object.iter().flat_map(|o| &o.spec.addresses).map(String::as_str).collect()
    } else {
        addresses.iter().map(|(text, _)| text.as_str()).collect()
    };
    VirtualIPStatus {
        observed_generation: generation.or(before.observed_generation),
        summary: VirtualIPSummary {
            addresses: cut(shown.join(","), 1024),
            holder: if holders.is_empty() { "-".to_owned() } else { cut(holders.join(","), 1024) },
        },
        addresses: held,
        conditions: list,
    }
}

fn has(v: &VirtualIPOnNode, address: IpAddr) -> Option<&AddressOnNode> {
    v.addresses.iter().find(|a| a.address.parse::<IpNet>().is_ok_and(|n| n.addr() == address))
}

fn reported<'a>(
    facts: &'a Facts,
    node: &str,
    name: &str,
) -> Option<(&'a NodeNetStateStatus, &'a VirtualIPOnNode)> {
    let status = facts.states.get(node)?.status.as_ref()?;
    Some((status, status.virtual_ips.iter().find(|v| v.name == name)?))
}

fn accepted(vip: &Vip) -> Word {
    if let Some(error) = &vip.error {
        return word(
            Status::False,
            reason::INVALID,
            format!("the object cannot be read, what was accepted before stays in force: {error}"),
        );
    }
    match &vip.refusal {
        None => word(Status::True, reason::ACCEPTED, "the spec is in force"),
        Some(refusal) => {
            let generation = vip.object.as_ref().and_then(|o| o.generation);
            let nowhere = [reason::PENDING, reason::NO_CANDIDATE, reason::NO_MATCHING_NODES];
            let stays = match &vip.in_force {
                None => "",
                Some(f) if f.generation == generation && !nowhere.contains(&refusal.reason) => {
                    "; the rest of the spec is in force"
                }
                Some(_) => "; until then, what was accepted before stays in force",
            };
            let status = if refusal.waits { Status::Unknown } else { Status::False };
            word(status, refusal.reason, format!("{}{stays}", refusal.message))
        }
    }
}

fn held_condition(
    name: &str,
    vip: &Vip,
    addresses: &[(String, IpNet)],
    facts: &Facts,
    agents: &Agents,
    now: &Now,
) -> Word {
    if addresses.is_empty() {
        return word(Status::False, reason::NOT_HELD, "no spec was accepted yet");
    }
    let holder = vip.holder.as_ref();
    let node = holder.map_or("-", |h| h.node.as_str());
    match &vip.wait {
        Wait::Nobody(why) => return word(Status::False, reason::NOT_HELD, why.clone()),
        Wait::Release(old) => {
            let message = if !facts.nodes.contains_key(old) {
                format!(
                    "Node {old} was deleted, but its agent still runs and may hold the addresses: stop it, or restart \
                     that machine; {node} takes over once the agent has let go or is gone"
                )
            } else if holder.is_some_and(|h| h.node != *old) {
                format!("{node} takes over as soon as {old} has let go, or its addresses have surely run out")
            } else {
                format!("waits until {old} has let go, or its addresses have surely run out")
            };
            return word(Status::False, reason::WAITING_FOR_FENCE, message);
        }
        Wait::Fence => {
            let message = format!(
                "the agent of {node} is silent: another node takes over once its addresses have surely run out"
            );
            return word(Status::Unknown, reason::WAITING_FOR_FENCE, message);
        }
        Wait::AgentsSilent => {
            let message = format!(
                "the agent of {node} fell silent together with most others, so the API server was away rather than the \
                 nodes: nothing moves"
            );
            return word(Status::Unknown, reason::AGENTS_SILENT, message);
        }
        Wait::NoOther => {
            let message = format!("the agent of {node} is gone, and no other candidate can take over");
            return word(Status::False, reason::NOT_HELD, message);
        }
        Wait::Nothing => {}
    }
    let Some(holder) = holder else {
        return word(Status::False, reason::NOT_HELD, "no node was chosen yet");
    };
    match reported(facts, &holder.node, name) {
        Some((_, v)) if v.state == VirtualIPState::Fault => {
            let why = v.message.as_deref().unwrap_or("it does not say why");
            word(Status::False, reason::NOT_HELD, format!("{} cannot hold it: {why}", holder.node))
        }
        Some((_, v)) if v.state == VirtualIPState::Active => {
            let missing = addresses.iter().find(|(_, net)| has(v, net.addr()).is_none());
            match missing {
                None => word(Status::True, reason::HELD, format!("{} holds it", holder.node)),
                Some((text, _)) => {
                    word(Status::False, reason::NOT_HELD, format!("{} does not have {text} yet", holder.node))
                }
            }
        }
        _ => {
            let silent = match agents.age_seconds(&holder.node, now.monotonic) {
                Some(_) => "has not reported it yet",
                None => "has never been heard of",
            };
            word(
                Status::Unknown,
                reason::PENDING,
                format!("{} is to hold it; its agent {silent}", holder.node),
            )
        }
    }
}

fn programmed(name: &str, vip: &Vip, addresses: &[(String, IpNet)], facts: &Facts, held: bool) -> Word {
    let holder = vip.holder.as_ref().filter(|_| held);
    let Some((holder, (status, _))) = holder.and_then(|h| Some((h, reported(facts, &h.node, name)?))) else {
        return word(Status::Unknown, reason::NOT_PROGRAMMED, "waits for a node that holds the addresses");
    };
    let node = &holder.node;
    for type_ in [node_conditions::KERNEL_READY, node_conditions::PACKET_FILTER_READY] {
        if let Some(c) = conditions::get(&status.conditions, type_).filter(|c| c.status == "False") {
            return word(
                Status::False,
                reason::NOT_PROGRAMMED,
                format!("{type_} of NodeNetState {node} is False: {}", c.message),
            );
        }
    }
    if vip.bound.is_empty() {
        return word(
            Status::True,
            reason::PROGRAMMED,
            format!("{node} has the addresses; no Service answers on them"),
        );
    }
    if let Some(c) = conditions::get(&status.conditions, node_conditions::VIRTUAL_SERVERS_READY) {
        let others = [reason::KUBE_PROXY_ACTIVE, reason::KUBE_PROXY_AWAITED, reason::KUBE_PROXY_LEFTOVERS];
        if c.status == "False" && others.contains(&c.reason.as_str()) {
            let words = format!("{} of NodeNetState {node} is False: {}", c.type_, c.message);
            return word(Status::False, reason::NOT_PROGRAMMED, words);
        }
        if c.reason == reason::SERVICE_PROXY_OFF {
            return word(
                Status::True,
                reason::SERVICE_PROXY_OFF,
                format!("{node} has the addresses; {}", c.message),
            );
        }
    }
    let failed = status.failures.iter().find(|f| {
        addresses.iter().any(|(_, net)| {
            let address = net.addr().to_string();
            f.object.split([' ', '[', ']']).any(|w| w == address || w.starts_with(&format!("{address}:")))
        })
    });
    if let Some(f) = failed {
        return word(
            Status::False,
            reason::NOT_PROGRAMMED,
            format!("{node} could not {} {}: {}", f.operation, f.object, f.message),
        );
    }
    if status.slice_revision.unwrap_or(0) < vip.bound_revision {
        return word(
            Status::False,
            reason::NOT_PROGRAMMED,
            format!("{node} has not reported the virtual servers of publication {} yet", vip.bound_revision),
        );
    }
    let services = vip.bound.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    word(
        Status::True,
        reason::PROGRAMMED,
        format!("{node} has the addresses and the virtual servers of {services}"),
    )
}

fn ready_word(vip: &Vip, addresses: &[(String, IpNet)], facts: &Facts, held: &Word) -> Word {
    let interface = vip.in_force.as_ref().and_then(|f| f.interface.as_ref());
    if let (Some(interface), Some(holder)) = (interface, &vip.holder) {
        let status = facts.states.get(&holder.node).and_then(|s| s.status.as_ref());
        let found = status.iter().flat_map(|s| &s.interfaces).find(|i| i.name == *interface);
        if let Some(found) = found
            && let Some((_, net)) = addresses.iter().find(|(_, n)| !has_subnet(&found.addresses, n.addr()))
        {
            return word(
                Status::True,
                reason::ADDRESS_NOT_ON_LINK,
                format!(
                    "{} answers on {}, but interface {interface} has no subnet that holds it: other hosts reach it only by \
                     a route that someone gave them",
                    holder.node,
                    net.addr()
                ),
            );
        }
    }
    word(Status::True, reason::READY, held.message.clone())
}
