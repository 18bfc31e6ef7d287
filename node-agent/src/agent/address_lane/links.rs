//! The lane on the links: what it says there, what it asks, and what it hears from other hosts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodenet_crds::conditions::reason;

use super::{AddressLane, Message};
use crate::agent::wire::ProbeAnswer;
use crate::kernel::KernelError;
use crate::kernel::netlink::probe::Question;
use crate::report::metrics::ListenerLabel;
use crate::resolve::Origin;
use crate::state::{AddressKey, Operation, Transaction};

/// How long another owner is remembered after it was heard.
const RIVAL: Duration = Duration::from_secs(30);
/// Least time between two defences.
const DEFENCE: Duration = Duration::from_secs(1);

impl AddressLane {
    /// Another host answers for one of our addresses.
    pub(super) fn heard(&mut self, key: AddressKey, mac: &str, now: Instant) {
        if !self.held.contains(&key) {
            return;
        }
        let contact = self.in_contact();
        if let Some(name) = self.holding.heard(&key, mac, contact) {
            let note = format!(
                "another host ({mac}) answers for {} on {} while no API server is in reach: the virtual IP is given up here",
                key.address, key.interface
            );
            self.notice(true, reason::ADDRESS_TAKEN, "Yield", note, Some(name.clone()));
            self.give_up(&name);
        } else if contact {
            // The first of them is named, for as long as there are any: their number says nothing more.
            self.dirty |= !self.rivals.contains_key(&key);
            self.rivals.entry(key.clone()).or_insert_with(|| (mac.to_owned(), now)).1 = now;
            // The operator says that it is ours: the others on the link shall know, but not in a war of frames.
            if self.last_defence.is_none_or(|last| now >= last + DEFENCE) {
                self.last_defence = Some(now);
                self.announce(&key);
            }
        }
    }

    /// Another host will take one of our addresses when nobody answers.
    pub(super) fn asked(&mut self, key: &AddressKey, mac: &str, now: Instant) {
        if !self.held.contains(key) {
            return;
        }
        let contact = self.in_contact();
        if let Some(name) = self.holding.asked(key, mac, contact, now) {
            let note = format!(
                "another host ({mac}) asks for {} on {} in order to take it while no API server is in reach: the virtual \
                 IP is given up here, and taken again if it is not taken there",
                key.address, key.interface
            );
            self.notice(true, reason::ADDRESS_TAKEN, "Yield", note, Some(name.clone()));
            self.give_up(&name);
        }
    }

    /// Removes the addresses of a virtual IP at once.
    pub(super) fn give_up(&mut self, name: &str) {
        let keys: BTreeSet<AddressKey> =
            self.assigned().into_iter().filter(|a| a.name == name).flat_map(|a| a.keys).collect();
        let journal = self.machine.journal();
        let ours = |(key, address): (&AddressKey, &crate::state::Address)| {
            let ours = address.ours || journal.addresses.contains(key);
            (ours && keys.contains(key)).then(|| Operation::DeleteAddress(key.clone(), address.prefix_length))
        };
        let operations: Vec<Operation> = self.observed.addresses.iter().filter_map(ours).collect();
        if !operations.is_empty() {
            self.machine.commit(&Transaction::new(operations));
        }
        self.wish = true;
        self.dirty = true;
    }

    /// Asks the links what there is to ask.
    pub(super) fn ask(&mut self, now: Instant) {
        let rivals = self.rivals.len();
        self.rivals.retain(|_, (_, heard)| now < *heard + RIVAL);
        self.dirty |= self.rivals.len() < rivals;
        let mut keys: BTreeSet<AddressKey> =
            self.holding.probes(self.contact_since, now).into_iter().collect();
        let confirmed = self.state.as_ref().is_some_and(|(_, origin)| *origin == Origin::Api);
        let question = match self.contact_since {
            // The operator gave it to this node: whoever holds on to it for want of an API server shall hear that.
            Some(_) if confirmed => Question::WillTake,
            _ => Question::WhoHas,
        };
        if self.contact_since.is_none() && now >= self.alone_probe_at && self.state.is_some() {
            // Nobody tells this node any more that another one has taken over: it asks.
            self.alone_probe_at = now + self.times.holding.settled;
            keys.extend(self.held.iter().cloned());
        }
        if keys.is_empty() {
            return;
        }
        let own = self.ends.own.clone();
        // The lane may have stopped before the answer.
        let answers = Arc::new(move |key, found| drop(own.send(Message::Probed(key, found))));
        self.wire.probe(keys.into_iter().collect(), question, self.times.holding.probe, answers);
    }

    /// A question was answered, or was not.
    pub(super) fn probed(&mut self, key: &AddressKey, answer: ProbeAnswer, now: Instant) {
        let owner = answer.unwrap_or_else(|error| {
            // Who cannot ask must not stay silent for ever.
            tracing::warn!("{error}");
            None
        });
        if let Some(mac) = &owner {
            self.heard(key.clone(), mac, now);
        }
        self.holding.answer(key, owner, now);
        self.wish = true;
        self.dirty = true;
    }

    /// A listener fails, or works again.
    pub(super) fn set_deaf(&mut self, listener: &'static str, lost: Option<KernelError>) {
        let label = ListenerLabel { listener };
        self.ends.metrics.listeners_failing.get_or_create(&label).set(i64::from(lost.is_some()));
        match lost {
            Some(error) => self.deaf.insert(listener, error.to_string()),
            None => self.deaf.remove(listener),
        };
        self.dirty = true;
    }

    /// Follows which interfaces work.
    pub(super) fn follow_links(&mut self, now: Instant) {
        let links = self.observed.links.iter();
        let down =
            links.filter(|(_, link)| !link.up || !link.carrier).map(|(name, _)| name.clone()).collect();
        for name in self.holding.links(&down, now) {
            self.give_up(&name);
        }
    }

    pub(super) fn announce(&mut self, key: &AddressKey) {
        match self.wire.announce(key) {
            Ok(()) => {
                self.ends.metrics.announcements.inc();
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
}
