//! One turn of the lane: look, compare, make it so, and follow what is held then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use nodenet_crds::conditions::reason;

use super::AddressLane;
use crate::agent::clock::jitter;
use crate::agent::service_lane;
use crate::diff::{Look as Covered, Prune};
use crate::report::metrics::{Lane, LaneLabel};
use crate::state::{AddressKey, NodeState, Operation, Scope};

impl AddressLane {
    /// Makes the kernel's addresses as wanted.
    pub(super) fn synchronise(&mut self) {
        let now = Instant::now();
        let drift = self.converged && !self.wish;
        let verify = self.verify_at <= now;
        self.dirty = false;
        self.wish = false;
        self.retry_at = None;
        if verify {
            self.verify_at = now + jitter(self.times.verify, 0.2);
        }
        let mut scope = Scope { addresses: true, ..Scope::default() };
        // A node may have very many routes: they are not read each time an interface comes or goes.
        let gateways = verify || std::mem::take(&mut self.routed_anew);
        let look = self.machine.look(&Scope { gateways, ..scope.clone() });
        self.blind = !look.unreadable.is_empty();
        let moved = !self.blind && self.see(&look.state, now);
        let before = self.resolver.desired().addresses.clone();
        self.resolver.set_withheld(self.holding.yielded(), self.holding.withheld());
        let drift = drift && !moved && before == self.resolver.desired().addresses;
        let (of_addresses, _) = Scope::all(self.resolver.desired()).lanes();
        scope.merge(of_addresses);
        let prune = Prune { services: false, ..self.resolver.prune() };
        let health = self.ends.health.clone();
        let healthy = self.healthy && self.breathing;
        let alive = move || {
            if healthy {
                health.addresses.beat();
            }
        };
        let synced = self.machine.sync(self.resolver.desired(), scope, true, prune, &alive);
        self.converged = synced.converged();
        let changed = !synced.done.is_empty();
        self.taken(&synced.done, drift);
        self.notes = synced.notes.iter().map(ToString::to_string).collect();
        let again = synced.retry();
        self.failures.journal(synced.journal);
        self.failures.replace(&synced.scope, synced.failed, synced.unreadable, &synced.left);
        if again {
            let wait = self.times.retry.saturating_mul(1 << self.retries.min(16)).min(self.times.verify);
            self.retry_at = Some(Instant::now() + jitter(wait, 0.2));
            self.retries += 1;
        } else {
            self.retries = 0;
        }
        if changed {
            let look = self.machine.look(&Scope { addresses: true, ..Scope::default() });
            self.blind = !look.unreadable.is_empty();
            if !self.blind && self.see(&look.state, Instant::now()) {
                self.dirty = true;
                self.wish = true;
            }
        }
        self.hold();
        if verify
            && self.converged
            && let Err(error) = self.machine.tidy(self.resolver.desired(), Covered::Addresses)
        {
            tracing::warn!("{error}");
        }
        if self.state.is_some() {
            self.ends.health.addresses.set_synced();
        }
        self.publish();
    }

    /// The kernel has these interfaces and addresses. Whether other addresses are desired because of that.
    fn see(&mut self, state: &NodeState, now: Instant) -> bool {
        let gateways = state.gateways.as_ref().or(self.observed.gateways.as_ref()).cloned();
        let state = &NodeState { gateways, ..state.clone() };
        let same = self.observed.links == state.links
            && self.observed.gateways == state.gateways
            && same_addresses(&self.observed, state);
        self.observed = state.clone();
        if same && self.seen {
            return false;
        }
        self.seen = true;
        let before = self.resolver.desired().addresses.clone();
        self.resolver.put_observed(state);
        let assigned = self.assigned();
        self.holding.resolved(assigned, now);
        self.follow_links(now);
        let seen = Arc::new(NodeState {
            links: state.links.clone(),
            addresses: state.addresses.clone(),
            gateways: state.gateways.clone(),
            ..NodeState::default()
        });
        // The service lane goes only when the agent stops.
        let _ = self.ends.services.send(service_lane::Message::Observed(seen));
        before != self.resolver.desired().addresses
    }

    /// These operations were done: announce what was taken, say what was put back.
    fn taken(&mut self, done: &[Operation], drift: bool) {
        let now = Instant::now();
        let mut repaired = Vec::new();
        for operation in done {
            if let Operation::AddAddress(key, _) = operation {
                let announce = self.announcement(key);
                self.schedule.taken(key.clone(), &announce, now);
            }
            if drift {
                repaired.push(operation);
            }
        }
        if !repaired.is_empty() {
            self.ends
                .metrics
                .drift
                .get_or_create(&LaneLabel { lane: Lane::Address })
                .inc_by(repaired.len() as u64);
            let note = service_lane::repaired_note(&repaired);
            let name = repaired.iter().find_map(|operation| match operation {
                Operation::AddAddress(key, _) | Operation::SetAddress(key, _) => self.owner(key),
                _ => None,
            });
            self.notice(true, reason::DRIFT_REPAIRED, "RepairAddresses", note, name);
        }
    }

    /// Follows what is held: whom to listen to, what to renew and refresh, whose role changed.
    fn hold(&mut self) {
        let now = Instant::now();
        let held: BTreeSet<AddressKey> =
            self.resolver.desired().addresses.keys().filter(|key| self.is_held(key)).cloned().collect();
        for key in &held {
            let announce = self.announcement(key);
            self.schedule.held(key, &announce, now);
        }
        self.schedule.retain(|key| held.contains(key));
        if held != self.held {
            self.wire.watch(held.clone());
        }
        self.ends.metrics.addresses_held.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        let roles: BTreeMap<_, _> = held
            .iter()
            .map(|key| (key.clone(), self.observed.addresses.get(key).and_then(|a| a.role)))
            .collect();
        for (key, role) in &roles {
            if let (Some(Some(old)), Some(new)) = (self.roles.get(key), role)
                && old != new
            {
                let note =
                    format!("address {} on {} is {new:?} now, it was {old:?}", key.address, key.interface);
                let name = self.owner(key);
                self.notice(false, "AddressRoleChanged", "Observe", note, name);
            }
        }
        self.roles = roles;
        self.held = held;
    }
}

fn same_addresses(a: &NodeState, b: &NodeState) -> bool {
    let key = |s: &NodeState| -> Vec<_> {
        s.addresses.iter().map(|(k, v)| (k.clone(), v.prefix_length, v.role, v.ours, v.unusable)).collect()
    };
    key(a) == key(b)
}
