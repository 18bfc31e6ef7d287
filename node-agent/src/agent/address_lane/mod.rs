//! The address lane: addresses of virtual IPs, and the setting that must be in force before one of them goes.
//!
//! It renews the lifetime of held addresses for as long as it lives, announces addresses that it takes, hears of other
//! owners, and is the node's eye on interfaces and addresses: what it sees goes to the service lane too.

mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nodenet_crds::conditions::reason;
use nodenet_crds::timing::{FENCE_LIFETIME, FENCE_LIFETIME_RESTART, FENCE_RENEW};
use nodenet_crds::{Announce, AssignedState, NodeNetState, VirtualIPState};
use tokio::sync::{mpsc, watch};

use super::clock::jitter;
use super::failures::Failures;
use super::holding::{self, Assigned, Holding};
use super::machine::Machine;
use super::schedule::Schedule;
use super::service_lane;
use super::wire::{ProbeAnswer, Wire};
use crate::diff::{Look as Covered, Prune};
use crate::kernel::KernelEvent;
use crate::kernel::netlink::owner::AnotherOwner;
use crate::report::facts::{AddressFacts, Notice};
use crate::report::health::{Health, Pulse};
use crate::report::metrics::{Lane, LaneLabel, Metrics};
use crate::resolve::{Origin, Resolver, VirtualIp};
use crate::state::{AddressKey, NodeState, Operation, SERVICE_INTERFACE, Scope, Transaction, Which};

/// What the address lane hears.
pub enum Message {
    /// The node must have this now.
    State(Box<NodeNetState>, Origin),
    /// Something changed in the kernel, by whatever hand.
    Kernel(KernelEvent),
    /// Another host answers for one of our addresses.
    Heard(AnotherOwner),
    /// A probe ended.
    Probed(AddressKey, ProbeAnswer),
    /// End. `true`: the Lease was renewed for longer, so addresses may live longer too.
    Stop(bool, Sender<()>),
}

/// Times of the lane.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two renewals of held addresses.
    pub renew: Duration,
    /// Lifetime that a renewal gives.
    pub lifetime: Duration,
    /// Lifetime given at a clean stop.
    pub restart_lifetime: Duration,
    /// Between two looks without an event, ±20 %.
    pub verify: Duration,
    /// First wait after a failure; doubles up to [`Self::verify`].
    pub retry: Duration,
    /// How long the last answer of the API server counts.
    pub contact: Duration,
    /// Of doubts about what is held.
    pub holding: holding::Times,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            renew: FENCE_RENEW,
            lifetime: FENCE_LIFETIME,
            restart_lifetime: FENCE_LIFETIME_RESTART,
            verify: Duration::from_secs(30),
            retry: Duration::from_millis(100),
            contact: Duration::from_secs(6),
            holding: holding::Times::default(),
        }
    }
}

/// Ends of the lane towards the rest of the agent.
pub struct Ends {
    /// What it hears.
    pub inbox: Receiver<Message>,
    /// Its own inbox, for answers of probes.
    pub own: Sender<Message>,
    /// What it sees.
    pub services: Sender<service_lane::Message>,
    /// What it knows.
    pub facts: watch::Sender<AddressFacts>,
    /// What happened.
    pub notices: mpsc::UnboundedSender<Notice>,
    /// Signs of life.
    pub health: Arc<Health>,
    /// Answers of the API server.
    pub contact: Arc<Pulse>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
}

/// The lane. [`AddressLane::run`] on a thread of its own.
pub struct AddressLane {
    machine: Machine,
    resolver: Resolver,
    wire: Box<dyn Wire>,
    ends: Ends,
    times: Times,

    state: Option<(Box<NodeNetState>, Origin)>,
    holding: Holding,
    schedule: Schedule,
    failures: Failures,
    observed: NodeState,
    /// Addresses that were in the kernel by our hand at the end of the last synchronisation.
    held: BTreeSet<AddressKey>,
    roles: BTreeMap<AddressKey, Option<nodenet_crds::KernelAddressRole>>,
    states: BTreeMap<String, VirtualIPState>,
    /// Other owners that were heard while the API server confirms this node.
    rivals: BTreeMap<AddressKey, (String, Instant)>,
    contact_since: Option<Instant>,
    seen: bool,
    dirty: bool,
    /// The desired state changed since the last synchronisation.
    wish: bool,
    converged: bool,
    renew_at: Instant,
    renewed: Option<Instant>,
    verify_at: Instant,
    retry_at: Option<Instant>,
    retries: u32,
    healthy: bool,
    notes: Vec<String>,
    last_defence: Option<Instant>,
    alone_probe_at: Instant,
}

impl AddressLane {
    /// A lane that knows nothing yet.
    pub fn new(machine: Machine, resolver: Resolver, wire: Box<dyn Wire>, ends: Ends, times: Times) -> Self {
        let now = Instant::now();
        Self {
            machine,
            resolver,
            wire,
            ends,
            times,
            state: None,
            holding: Holding::new(times.holding),
            schedule: Schedule::default(),
            failures: Failures::default(),
            observed: NodeState::default(),
            held: BTreeSet::new(),
            roles: BTreeMap::new(),
            states: BTreeMap::new(),
            rivals: BTreeMap::new(),
            contact_since: None,
            seen: false,
            dirty: true,
            wish: true,
            converged: false,
            renew_at: now,
            renewed: None,
            verify_at: now,
            retry_at: None,
            retries: 0,
            healthy: true,
            notes: Vec::new(),
            last_defence: None,
            alone_probe_at: now,
        }
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        self.step();
        loop {
            let wait = self.next().saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            let mut message = match self.ends.inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(next) = message.take() {
                if let Message::Stop(longer, done) = next {
                    self.stop(longer);
                    // The other end may have stopped waiting.
                    let _ = done.send(());
                    return;
                }
                self.take(next);
                message = self.ends.inbox.try_recv().ok();
            }
            self.step();
        }
    }

    fn next(&self) -> Instant {
        let mut next = self.verify_at.min(self.renew_at);
        for at in [self.retry_at, self.schedule.next(), self.holding.next(self.contact_since)] {
            next = at.map_or(next, |at| next.min(at));
        }
        next
    }

    fn take(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::State(state, origin) => {
                let known = self.state.as_ref().is_some_and(|(_, o)| *o == Origin::Api);
                if origin == Origin::Disk && known {
                    return;
                }
                self.resolver.put_spec(&state.spec, origin);
                let generation = state.metadata.generation;
                self.state = Some((state, origin));
                let assigned = self.assigned();
                let observed = &self.observed;
                let present = |key: &AddressKey| observed.addresses.contains_key(key);
                self.holding.assign(assigned, origin, generation, present, now);
                self.wish = true;
                self.dirty = true;
            }
            // Routes are the service lane's, and so is our interface.
            Message::Kernel(KernelEvent::Route) => self.disturb(Scope { routes: true, ..Scope::default() }),
            Message::Kernel(KernelEvent::Link(name)) if name == SERVICE_INTERFACE => {
                self.disturb(Scope { links: true, routes: true, ..Scope::default() });
            }
            Message::Kernel(KernelEvent::Link(_) | KernelEvent::Address(_)) => self.dirty = true,
            Message::Kernel(KernelEvent::Overrun) => {
                self.dirty = true;
                self.disturb(Scope { links: true, routes: true, ..Scope::default() });
            }
            Message::Heard(other) => {
                let key = AddressKey { interface: other.interface, address: other.address };
                self.heard(key, &other.mac.to_string(), now);
            }
            Message::Probed(key, answer) => {
                let owner = answer.unwrap_or_else(|error| {
                    // Who cannot ask must not stay silent for ever.
                    tracing::warn!("{error}");
                    None
                });
                if let Some(mac) = &owner {
                    self.heard(key.clone(), mac, now);
                }
                self.holding.answer(&key, owner, now);
                self.wish = true;
                self.dirty = true;
            }
            Message::Stop(..) => {}
        }
    }

    fn disturb(&self, scope: Scope) {
        // The service lane goes only when the agent stops.
        let _ = self.ends.services.send(service_lane::Message::Disturbed(scope));
    }

    fn in_contact(&self) -> bool {
        self.ends.contact.ever() && self.ends.contact.age() <= self.times.contact
    }

    fn heard(&mut self, key: AddressKey, mac: &str, now: Instant) {
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
            self.rivals.insert(key.clone(), (mac.to_owned(), now));
            // The operator says that it is ours: the others on the link shall know, but not in a war of frames.
            if self.last_defence.is_none_or(|last| now >= last + Duration::from_secs(1)) {
                self.last_defence = Some(now);
                self.announce(&key);
            }
            self.dirty = true;
        }
    }

    /// Removes the addresses of a virtual IP at once.
    fn give_up(&mut self, name: &str) {
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

    fn step(&mut self) {
        let now = Instant::now();
        self.contact_since = if self.in_contact() { self.contact_since.or(Some(now)) } else { None };
        if self.renewed.take_if(|last| now.duration_since(*last) > self.times.lifetime).is_some() {
            // The kernel would make an address that ran out anew at its renewal.
            for name in self.holding.lapsed(now) {
                tracing::warn!(
                    "the addresses of virtual IP {name} were not renewed in time: they are taken again after a probe"
                );
                self.give_up(&name);
            }
        }
        self.rivals.retain(|_, (_, heard)| now < *heard + Duration::from_secs(30));
        let mut asked = self.holding.probes(self.contact_since, now);
        if self.contact_since.is_none() && now >= self.alone_probe_at && self.state.is_some() {
            // Nobody tells this node any more that another one has taken over: it asks.
            self.alone_probe_at = now + self.times.holding.settled;
            asked.extend(self.held.iter().cloned());
        }
        for key in asked {
            let own = self.ends.own.clone();
            let about = key.clone();
            // The lane may have stopped before the answer.
            let answer = Box::new(move |found| drop(own.send(Message::Probed(about, found))));
            self.wire.probe(&key, self.times.holding.probe, answer);
        }
        let retry = self.retry_at.is_some_and(|at| at <= now);
        if self.dirty || retry || self.verify_at <= now {
            self.synchronise();
        }
        let now = Instant::now();
        if self.renew_at <= now {
            self.renew(self.times.lifetime);
            self.renew_at = now + self.times.renew;
        }
        for key in self.schedule.due(now) {
            self.announce(&key);
        }
        if self.healthy {
            self.ends.health.addresses.beat();
        }
    }

    fn announce(&mut self, key: &AddressKey) {
        match self.wire.announce(key) {
            Ok(()) => {
                self.ends.metrics.announcements.inc();
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn renew(&mut self, lifetime: Duration) {
        let seconds = u32::try_from(lifetime.as_secs().max(1)).unwrap_or(u32::MAX);
        let (done, failed) = self.machine.renew(self.resolver.desired(), &self.observed, Some(seconds));
        let now = Instant::now();
        if done > 0 {
            self.ends.metrics.fence_renewals.inc();
            if let Some(last) = self.renewed {
                let gap = (now - last).as_secs_f64();
                if gap > self.ends.metrics.fence_gap_worst.get() {
                    self.ends.metrics.fence_gap_worst.set(gap);
                }
            }
        }
        self.renewed = (done > 0).then_some(now);
        // An address that cannot be renewed runs out: the Lease must not say otherwise.
        self.healthy = failed.is_empty();
        if !failed.is_empty() {
            self.dirty = true;
        }
    }

    fn stop(&mut self, longer: bool) {
        let lifetime = if longer { self.times.restart_lifetime } else { self.times.lifetime };
        self.renew(lifetime);
    }

    fn synchronise(&mut self) {
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
        let look = self.machine.look(&scope);
        let moved = look.unreadable.is_empty() && self.see(&look.state, now);
        let before = self.resolver.desired().addresses.clone();
        self.resolver.set_withheld(Which::Only(self.holding.yielded()));
        let drift = drift && !moved && before == self.resolver.desired().addresses;
        let (of_addresses, _) = Scope::all(self.resolver.desired()).lanes();
        scope.merge(of_addresses);
        let prune = Prune { services: false, ..self.resolver.prune() };
        let health = self.ends.health.clone();
        let healthy = self.healthy;
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
            if look.unreadable.is_empty() && self.see(&look.state, Instant::now()) {
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
        let same = self.observed.links == state.links && same_addresses(&self.observed, state);
        self.observed = state.clone();
        if same && self.seen {
            return false;
        }
        self.seen = true;
        let before = self.resolver.desired().addresses.clone();
        self.resolver.put_observed(state);
        let assigned = self.assigned();
        self.holding.resolved(assigned);
        let down = state
            .links
            .iter()
            .filter(|(_, link)| !link.up || !link.carrier)
            .map(|(name, _)| name.clone())
            .collect();
        for name in self.holding.links(&down, now) {
            self.give_up(&name);
        }
        let seen = Arc::new(NodeState {
            links: state.links.clone(),
            addresses: state.addresses.clone(),
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

    /// The virtual IPs of the node's state with their addresses, each on its interface.
    fn assigned(&self) -> Vec<Assigned> {
        let Some((state, _)) = &self.state else { return Vec::new() };
        let active = |name: &str| {
            let mut all = state.spec.virtual_ips.iter();
            all.any(|vip| vip.name == name && vip.state == AssignedState::Active)
        };
        let of = |vip: &VirtualIp| Assigned {
            name: vip.name.clone(),
            active: active(&vip.name),
            keys: vip.addresses.iter().filter_map(|a| a.key.clone()).collect(),
        };
        self.resolver.virtual_ips().iter().map(of).collect()
    }

    fn virtual_ip(&self, key: &AddressKey) -> Option<&VirtualIp> {
        let mut all = self.resolver.virtual_ips().iter();
        all.find(|vip| vip.addresses.iter().any(|a| a.key.as_ref() == Some(key)))
    }

    fn owner(&self, key: &AddressKey) -> Option<String> {
        self.virtual_ip(key).map(|vip| vip.name.clone())
    }

    fn announcement(&self, key: &AddressKey) -> Announce {
        self.virtual_ip(key).map(|vip| vip.announce.clone()).unwrap_or_default()
    }

    /// What is in the kernel by our hand.
    fn is_held(&self, key: &AddressKey) -> bool {
        let there = self.observed.addresses.get(key);
        there.is_some_and(|a| a.ours || self.machine.journal().addresses.contains(key))
    }

    fn notice(
        &self,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: String,
        virtual_ip: Option<String>,
    ) {
        tracing::info!("{reason}: {note}");
        // The reporter goes only when the agent stops.
        let _ = self.ends.notices.send(Notice { warning, reason, action, note, virtual_ip });
    }
}

fn same_addresses(a: &NodeState, b: &NodeState) -> bool {
    let key = |s: &NodeState| -> Vec<_> {
        s.addresses.iter().map(|(k, v)| (k.clone(), v.prefix_length, v.role, v.ours, v.unusable)).collect()
    };
    key(a) == key(b)
}
