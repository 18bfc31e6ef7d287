//! What the lane states about the node: virtual IPs, interfaces, conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nodenet_crds::conditions::{Status, reason};
use nodenet_crds::{AddressOnNode, InterfaceOnNode, VirtualIPOnNode, VirtualIPState};

use super::AddressLane;
use crate::agent::scope::Area;
use crate::report::facts::{AddressFacts, Verdict};
use crate::resolve::VirtualIp;
use crate::state::{AddressKey, Operation, SERVICE_INTERFACE, kube_proxy};

impl AddressLane {
    /// One virtual IP as it is now. `Active` for as long as one of its addresses is held, wanted or not: that is what
    /// the operator waits for before it gives the virtual IP to another node.
    fn on_node(&self, vip: &VirtualIp) -> (VirtualIPOnNode, Option<(&'static str, String)>) {
        let keys: Vec<&AddressKey> = vip.addresses.iter().filter_map(|a| a.key.as_ref()).collect();
        let present = |key: &AddressKey| self.observed.addresses.contains_key(key);
        let refused = |key: &AddressKey| {
            let of = |operation: &Operation| match operation {
                Operation::AddAddress(k, _)
                | Operation::SetAddress(k, _)
                | Operation::DeleteAddress(k, _) => k == key,
                _ => false,
            };
            self.failures.find(of).map(|f| format!("{} {}: {}", f.operation, f.object, f.message))
        };
        let words: Vec<String> = keys.iter().filter_map(|key| refused(key)).collect();
        let held = keys.iter().any(|key| self.is_held(key));
        let withheld = self.holding.withheld();
        let wanted = vip.state == VirtualIPState::Active;
        let (state, problem) = if wanted && !keys.is_empty() && keys.iter().all(|key| present(key)) {
            let rival = keys.iter().find_map(|key| self.rivals.get(*key).map(|(mac, _)| (key, mac)));
            let problem = rival.map(|(key, mac)| {
                let words =
                    format!("another host ({mac}) answers for {} on {} too", key.address, key.interface);
                (reason::ADDRESS_TAKEN, words)
            });
            (VirtualIPState::Active, problem)
        } else if held && words.is_empty() && keys.iter().all(|key| present(key) || withheld.contains(*key)) {
            // It was given more addresses, which are asked for, or are not to be had.
            (VirtualIPState::Active, self.holding.words(&vip.name))
        } else if wanted || held {
            let missing: Vec<String> =
                keys.iter().filter(|key| !present(key)).map(|key| key.address.to_string()).collect();
            let words = match (words.is_empty(), wanted) {
                (false, _) => words.join("; "),
                (true, true) => format!("not in the kernel yet: {}", missing.join(", ")),
                (true, false) => "its addresses are still in the kernel".to_owned(),
            };
            let state = if held { VirtualIPState::Active } else { VirtualIPState::Fault };
            (state, Some((reason::KERNEL_REFUSED, words)))
        } else if let Some((why, words)) = self.holding.words(&vip.name) {
            (VirtualIPState::Fault, Some((why, words)))
        } else if let Some(fault) = vip.fault() {
            (VirtualIPState::Fault, Some((reason::INTERFACE_MISSING, fault)))
        } else if self.blind && self.states.get(&vip.name).is_some_and(|old| *old != VirtualIPState::Backup) {
            let words =
                "the kernel's addresses cannot be read: whether it is still there is not known".to_owned();
            (VirtualIPState::Fault, Some((reason::KERNEL_REFUSED, words)))
        } else {
            (VirtualIPState::Backup, None)
        };
        let message = problem.as_ref().map(|(_, words)| words.clone()).or_else(|| {
            let far: Vec<&str> =
                vip.addresses.iter().filter(|a| a.not_on_link).map(|a| a.text.as_str()).collect();
            (state == VirtualIPState::Active && !far.is_empty()).then(|| not_on_link(&far))
        });
        let address = |a: &crate::resolve::VirtualAddress| {
            let key = a.key.as_ref()?;
            let role = self.observed.addresses.get(key).and_then(|there| there.role);
            Some(AddressOnNode { address: a.text.clone(), interface: key.interface.clone(), role })
        };
        let addresses = vip.addresses.iter().filter_map(address).collect();
        (VirtualIPOnNode { name: vip.name.clone(), state, message, addresses }, problem)
    }

    fn interfaces(&self) -> Vec<InterfaceOnNode> {
        let mut all: BTreeMap<&str, InterfaceOnNode> = BTreeMap::new();
        for (key, address) in &self.observed.addresses {
            let of_services = [SERVICE_INTERFACE, kube_proxy::INTERFACE].contains(&key.interface.as_str());
            if self.is_held(key) || of_services || !global(key.address) {
                continue;
            }
            let link = self.observed.links.get(&key.interface);
            let interface = all.entry(&key.interface).or_insert_with(|| InterfaceOnNode {
                name: key.interface.clone(),
                up: link.is_some_and(|link| link.up && link.carrier),
                addresses: Vec::new(),
            });
            if interface.addresses.len() < 16 {
                interface.addresses.push(format!("{}/{}", key.address, address.prefix_length));
            }
        }
        all.into_values().take(64).collect()
    }

    /// States what is held, if that is news, and gives notice of each virtual IP that changed its state.
    pub(super) fn publish(&mut self) {
        let active: BTreeSet<String> =
            self.assigned().into_iter().filter(|a| a.active).map(|a| a.name).collect();
        let mut virtual_ips = Vec::new();
        let mut verdict = self.failures.verdict(Area::Addresses, "");
        let mut far = Vec::new();
        let mut states = BTreeMap::new();
        for vip in self.resolver.virtual_ips() {
            let (on_node, problem) = self.on_node(vip);
            if let Some((why, words)) = problem
                && (active.contains(&vip.name) || on_node.state == VirtualIPState::Active)
            {
                verdict = verdict.and(Verdict::not(why, format!("virtual IP {}: {words}", vip.name)));
            }
            if on_node.state == VirtualIPState::Active {
                far.extend(vip.addresses.iter().filter(|a| a.not_on_link).map(|a| a.text.as_str()));
            }
            states.insert(vip.name.clone(), (on_node.state, on_node.message.clone()));
            virtual_ips.push(on_node);
        }
        for note in &self.notes {
            verdict = verdict.and(Verdict { message: note.clone(), ..Verdict::ready("") });
        }
        if verdict.status == Status::True {
            if !self.deaf.is_empty() {
                verdict =
                    Verdict { reason: reason::LISTENER_FAILING, message: not_heard(&self.deaf), ..verdict };
            } else if !far.is_empty() {
                verdict = Verdict {
                    status: Status::True,
                    reason: reason::ADDRESS_NOT_ON_LINK,
                    message: not_on_link(&far),
                };
            } else if verdict.message.is_empty() {
                verdict.message = "addresses are as wanted".to_owned();
            }
        }
        if self.state.is_none() {
            verdict = Verdict::pending("the NodeNetState was not read yet");
        } else if self.gone {
            let words = "the NodeNetState was deleted: the last one stays in force, nothing is removed";
            verdict = verdict.and(Verdict::pending(words));
        }
        for (name, (state, message)) in &states {
            let old = self.states.get(name);
            if old.is_some_and(|old| old != state) || (old.is_none() && *state == VirtualIPState::Active) {
                let words = message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
                let (warning, why, note) = match state {
                    VirtualIPState::Active => {
                        (false, "VirtualIPActive", format!("virtual IP {name} is held here{words}"))
                    }
                    VirtualIPState::Backup => {
                        (false, "VirtualIPBackup", format!("virtual IP {name} is not held here{words}"))
                    }
                    VirtualIPState::Fault => {
                        (true, "VirtualIPFault", format!("virtual IP {name} cannot be held here{words}"))
                    }
                };
                self.notice(warning, why, "Hold", note, Some(name.clone()));
            }
        }
        self.states = states.into_iter().map(|(name, (state, _))| (name, state)).collect();
        let facts = AddressFacts {
            generation: self.state.as_ref().and_then(|(state, _)| state.metadata.generation),
            kernel: self.failures.verdict(Area::Kernel, ""),
            addresses: verdict,
            candidate: !virtual_ips.is_empty(),
            outliving: self.outliving(),
            virtual_ips,
            interfaces: self.interfaces(),
            gateways: self.observed.gateways.iter().flatten().take(GATEWAYS_MAX).copied().collect(),
            failures: self.failures.list(),
        };
        self.ends.facts.send_if_modified(|now| {
            let news = *now != facts;
            *now = facts;
            news
        });
    }
}

/// Gateways that are reported (the schema's bound).
const GATEWAYS_MAX: usize = 16;

/// What a listener that hears nothing means.
fn not_heard(deaf: &BTreeMap<&'static str, String>) -> String {
    let each = |(listener, error): (&&str, &String)| format!("{listener}: {error}");
    let all: Vec<String> = deaf.iter().map(each).collect();
    format!(
        "changes by another hand, or other owners of addresses, are seen late or not at all until this works again: {}",
        all.join("; ")
    )
}

fn not_on_link(addresses: &[&str]) -> String {
    format!(
        "{} lies in no subnet of its link: it answers here, but other hosts of the link have no route to it",
        addresses.join(", ")
    )
}

/// Whether an address belongs into a status: others may have a use for it.
fn global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}
