//! The address lane: addresses of virtual IPs, and the setting that must be in force before one of them goes.
//!
//! It renews the lifetime of held addresses for as long as it lives, announces addresses that it takes, hears of other
//! owners, and is the node's eye on interfaces and addresses: what it sees goes to the service lane too.

mod facts;
mod fence;
mod links;
mod synchronise;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nodenet_crds::timing::{FENCE_LIFETIME, FENCE_LIFETIME_RESTART, FENCE_RENEW};
use nodenet_crds::{Announce, AssignedState, NodeNetState, VirtualIPState};
use tokio::sync::{mpsc, watch};

use super::failures::Failures;
use super::holding::{self, Assigned, Holding};
use super::machine::Machine;
use super::schedule::Schedule;
use super::service_lane;
use super::wire::{ProbeAnswer, Wire};
use crate::kernel::KernelEvent;
use crate::kernel::netlink::listener::Hearing;
use crate::kernel::netlink::owner::{AnotherOwner, Says};
use crate::report::facts::{AddressFacts, Notice};
use crate::report::health::{Health, Pulse};
use crate::report::metrics::Metrics;
use crate::resolve::{Origin, Resolver, VirtualIp};
use crate::state::{AddressKey, NodeState, SERVICE_INTERFACE, Scope};

/// What the address lane hears.
pub enum Message {
    /// The node must have this now.
    State(Box<NodeNetState>, Origin),
    /// The node has no NodeNetState any more. What it holds it keeps: absent is not empty.
    StateGone,
    /// Something changed in the kernel, by whatever hand.
    Kernel(KernelEvent),
    /// Another host answers for one of our addresses, or is about to take it.
    Heard(AnotherOwner),
    /// A listener fails, or works again.
    Hearing(Hearing),
    /// A probe ended.
    Probed(AddressKey, ProbeAnswer),
    /// End. The time until which the Lease, renewed for longer, lets addresses live; `None` where it was not.
    Stop(Option<Instant>, Sender<()>),
}

/// Times of the lane.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two renewals of held addresses.
    pub renew: Duration,
    /// Lifetime that a renewal gives.
    pub lifetime: Duration,
    /// Lifetime given at a clean stop, from when the Lease was renewed for longer.
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
    /// The state was deleted; the last one stays in force.
    gone: bool,
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
    /// The last look failed.
    blind: bool,
    /// Listeners that hear nothing, with why.
    deaf: BTreeMap<&'static str, String>,
    dirty: bool,
    /// The default routes must be read again.
    routed_anew: bool,
    /// The desired state changed since the last synchronisation.
    wish: bool,
    converged: bool,
    renew_at: Instant,
    renewed: Option<Instant>,
    /// What was seen was renewed at least once: nothing of ours lives longer than the Lease says.
    breathing: bool,
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
            gone: false,
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
            blind: false,
            deaf: BTreeMap::new(),
            dirty: true,
            routed_anew: true,
            wish: true,
            converged: false,
            renew_at: now,
            renewed: None,
            breathing: false,
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
                if let Message::Stop(until, done) = next {
                    self.stop(until);
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
                self.set_gone(false);
                let assigned = self.assigned();
                let observed = &self.observed;
                // Not what the journal has besides: another node may have had it since.
                let present = |key: &AddressKey| observed.addresses.contains_key(key);
                self.holding.assign(assigned, origin, generation, present, now);
                self.follow_links(now);
                // What an earlier agent left with a longer life must not live longer than the Lease says now.
                self.renew_at = now;
                self.wish = true;
                self.dirty = true;
            }
            Message::StateGone => {
                self.resolver.state_gone();
                self.set_gone(true);
                self.dirty = true;
            }
            // Routes are the service lane's, and so is our interface.
            Message::Kernel(KernelEvent::Route) => self.disturb(Scope { routes: true, ..Scope::default() }),
            Message::Kernel(KernelEvent::Link(name)) if name == SERVICE_INTERFACE => {
                self.disturb(Scope { links: true, routes: true, ..Scope::default() });
            }
            Message::Kernel(KernelEvent::Link(_) | KernelEvent::Address(_)) => self.dirty = true,
            Message::Kernel(KernelEvent::Gateway) => {
                self.dirty = true;
                self.routed_anew = true;
            }
            Message::Kernel(KernelEvent::Overrun) => {
                self.dirty = true;
                self.routed_anew = true;
                self.disturb(Scope { links: true, routes: true, ..Scope::default() });
            }
            Message::Heard(other) => {
                let key = AddressKey { interface: other.interface, address: other.address };
                match other.says {
                    Says::Has => self.heard(key, &other.mac.to_string(), now),
                    Says::WillTake => self.asked(&key, &other.mac.to_string(), now),
                }
            }
            Message::Hearing(Hearing { listener, lost }) => self.set_deaf(listener, lost),
            Message::Probed(key, answer) => self.probed(&key, answer, now),
            Message::Stop(..) => {}
        }
    }

    fn disturb(&self, scope: Scope) {
        // The service lane goes only when the agent stops.
        let _ = self.ends.services.send(service_lane::Message::Disturbed(scope));
    }

    fn set_gone(&mut self, gone: bool) {
        if gone && !self.gone {
            tracing::warn!("the NodeNetState is gone: the last one stays in force, nothing is removed");
        }
        self.gone = gone;
        self.ends.metrics.state_gone.set(i64::from(gone));
    }

    fn in_contact(&self) -> bool {
        self.ends.contact.ever() && self.ends.contact.age() <= self.times.contact
    }

    fn step(&mut self) {
        let now = Instant::now();
        self.contact_since = if self.in_contact() { self.contact_since.or(Some(now)) } else { None };
        self.lapse(now);
        self.ask(now);
        let retry = self.retry_at.is_some_and(|at| at <= now);
        if self.dirty || retry || self.verify_at <= now {
            self.synchronise();
        }
        let now = Instant::now();
        if self.renew_at <= now {
            self.renew(self.times.lifetime);
            self.renew_at = now + self.times.renew;
            self.breathing |= self.seen;
        }
        for key in self.schedule.due(now) {
            self.announce(&key);
        }
        if self.healthy && self.breathing {
            self.ends.health.addresses.beat();
        }
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
