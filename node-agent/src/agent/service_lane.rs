//! The service lane: modules and settings, sets, rules, local routes, virtual servers.
//!
//! A change of one endpoint costs a message for each affected virtual server and set entry and a look at those; a look
//! at everything is taken at the start and at the verify period, because IPVS, sets and rules announce no changes.

mod takeover;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nodenet_crds::Progress;
use nodenet_crds::conditions::{Status, reason};
use tokio::sync::{mpsc, watch};

use super::clock::jitter;
use super::failures::Failures;
use super::kube_proxy::Neighbour;
use super::machine::{Machine, Synced};
use super::scope::Area;
use super::words::words;
use crate::diff::Look as Covered;
use crate::health_server::Hearing;
use crate::report::facts::{Notice, ServiceFacts, Verdict};
use crate::report::health::Health;
use crate::report::metrics::{Lane, LaneLabel, Metrics, ServersLabel};
use crate::report::operator::Publication;
use crate::resolve::{HealthChecks, Reason, Resolver};
use crate::source::Update;
use crate::state::{NodeState, Operation, Scope, Which};

/// The journal is tidied after this many looks at everything.
const TIDY: u32 = 10;

/// What the service lane hears.
pub enum Message {
    /// The desired state changed; when it arrived.
    Update(Update, Instant),
    /// The node's interfaces and addresses are these now.
    Observed(Arc<NodeState>),
    /// Something changed in the kernel, perhaps by this agent itself: look at it.
    Disturbed(Scope),
    /// Which of those who may ask this node are heard.
    Hearing(Hearing),
    /// What the operator says of the plans that it has published.
    Publication(Publication),
    /// End.
    Stop(Sender<()>),
}

/// Times of the lane.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two looks at everything, ±20 %.
    pub verify: Duration,
    /// Least time between two commits of changes: those that come between are taken together. Another hand's changes and
    /// looks at everything do not wait.
    pub least: Duration,
    /// First wait after a failure; doubles up to [`Self::retry_max`].
    pub retry: Duration,
    /// Longest wait after a failure.
    pub retry_max: Duration,
    /// A virtual server of kube-proxy's that no Service wants stays for so long: one may be on its way here.
    pub unwanted: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            verify: Duration::from_secs(30),
            least: Duration::ZERO,
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(30),
            unwanted: Duration::from_secs(30),
        }
    }
}

/// The lane. [`ServiceLane::run`] on a thread of its own.
pub struct ServiceLane {
    machine: Machine,
    resolver: Resolver,
    neighbour: Neighbour,
    inbox: Receiver<Message>,
    facts: watch::Sender<ServiceFacts>,
    health_checks: watch::Sender<HealthChecks>,
    notices: mpsc::UnboundedSender<Notice>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    times: Times,

    hearing: Hearing,
    generation: Option<i64>,
    /// The latest that is in the kernel.
    generation_done: Option<i64>,
    spec_seen: bool,
    addresses_seen: bool,
    /// The first complete state was read, from wherever: from now on changes go to the kernel.
    ready: bool,
    pending: Scope,
    /// What another hand may have changed.
    disturbed: Scope,
    /// When the oldest of the pending changes arrived.
    arrived: Vec<Instant>,
    failures: Failures,
    verify_at: Instant,
    /// Changes wait until then.
    not_before: Instant,
    retry_at: Option<Instant>,
    retries: u32,
    /// The last look at everything left nothing to do, nor did one at a part since: what another look finds is another
    /// hand's doing.
    converged: bool,
    slice_revision: Option<i64>,
    first_done: bool,
    verified: u32,
    /// Something is to be said although nothing was to be done.
    unpublished: bool,
    /// When to look at kube-proxy again, where the looks at everything are too rare.
    neighbour_at: Option<Instant>,
    publication: Publication,
    takeover: takeover::Progress,
}

impl ServiceLane {
    /// A lane that knows nothing yet.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        machine: Machine,
        resolver: Resolver,
        neighbour: Neighbour,
        inbox: Receiver<Message>,
        facts: watch::Sender<ServiceFacts>,
        health_checks: watch::Sender<HealthChecks>,
        notices: mpsc::UnboundedSender<Notice>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        times: Times,
    ) -> Self {
        Self {
            machine,
            resolver,
            neighbour,
            inbox,
            facts,
            health_checks,
            notices,
            health,
            metrics,
            times,
            hearing: Hearing::default(),
            generation: None,
            generation_done: None,
            spec_seen: false,
            addresses_seen: false,
            ready: false,
            pending: Scope::default(),
            disturbed: Scope::default(),
            arrived: Vec::new(),
            failures: Failures::default(),
            verify_at: Instant::now(),
            not_before: Instant::now(),
            retry_at: None,
            retries: 0,
            converged: false,
            slice_revision: None,
            first_done: false,
            verified: 0,
            unpublished: false,
            neighbour_at: None,
            publication: Publication::default(),
            takeover: takeover::Progress::default(),
        }
    }

    /// Works until it is told to stop. What is in the kernel stays there.
    pub fn run(mut self) {
        loop {
            self.health.services.beat();
            let wait = self.next().saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            let mut message = match self.inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Everything that is waiting is taken together: ten changes of one slice cost one.
            while let Some(next) = message.take() {
                if let Message::Stop(done) = next {
                    // The other end may have stopped waiting.
                    let _ = done.send(());
                    return;
                }
                self.take(next);
                message = self.inbox.try_recv().ok();
            }
            if self.active() {
                self.step();
                self.answer_load_balancers();
            }
        }
    }

    fn next(&self) -> Instant {
        if !self.active() {
            return Instant::now() + Duration::from_secs(1);
        }
        let mut next = self.verify_at;
        if let Some(retry) = self.retry_at {
            next = next.min(retry);
        }
        if let Some((_, due)) = self.machine.draining() {
            next = next.min(due.max(self.not_before));
        }
        if !self.pending.is_empty() {
            next = next.min(self.not_before);
        }
        if let Some(at) = self.neighbour_at {
            next = next.min(at);
        }
        next
    }

    fn take(&mut self, message: Message) {
        let scope = match message {
            Message::Update(update, arrived) => {
                if matches!(update, Update::Slice(_) | Update::SliceGone(_)) {
                    self.arrived.push(arrived);
                    self.health.backlog.grow();
                }
                let before = self.resolver.prune();
                let mut scope = self.update(update);
                if self.resolver.prune() != before {
                    // More may be removed than before, wherever it is.
                    scope.merge(Scope::all(self.resolver.desired()));
                }
                scope
            }
            Message::Observed(state) => {
                self.addresses_seen = true;
                self.resolver.put_observed(&state)
            }
            Message::Disturbed(scope) => return self.disturbed.merge(scope),
            Message::Hearing(hearing) => {
                self.unpublished |= self.hearing != hearing;
                self.hearing = hearing;
                return;
            }
            Message::Publication(publication) => {
                self.publication = publication;
                return;
            }
            Message::Stop(_) => return,
        };
        let (_, scope) = scope.lanes();
        self.pending.merge(scope);
    }

    fn update(&mut self, update: Update) -> Scope {
        match update {
            Update::State(state, origin) => {
                self.spec_seen = true;
                self.generation = state.metadata.generation;
                self.unpublished = true;
                self.health.set_leaving(state.spec.being_deleted);
                self.resolver.put_spec(&state.spec, origin)
            }
            // Absent is not empty: the last state stays in force.
            Update::StateGone => {
                self.resolver.state_gone();
                Scope::default()
            }
            Update::Slice(slice) => {
                let name = slice.metadata.name.clone().unwrap_or_default();
                // It may have been one that could not be read.
                self.unpublished |= self.resolver.unreadable_slices().next().is_some();
                self.resolver.put_slice(&name, &slice.spec)
            }
            Update::SliceUnreadable(name) => {
                self.resolver.slice_unreadable(&name);
                self.unpublished = true;
                Scope::default()
            }
            Update::SliceGone(name) => {
                self.unpublished = true;
                self.resolver.remove_slice(&name)
            }
            Update::ListStarted => {
                self.resolver.list_started();
                Scope::default()
            }
            Update::Listed(names) => {
                self.ready = true;
                self.resolver.list_completed(&names)
            }
            Update::Cold => {
                self.ready = true;
                Scope::default()
            }
        }
    }

    fn active(&self) -> bool {
        self.ready && self.spec_seen && self.addresses_seen
    }

    /// What load balancers ask is answered by what is in the kernel: after it was put there.
    fn answer_load_balancers(&mut self) {
        let elsewhere = self.neighbour.answers_elsewhere();
        let fresh = if self.pending.is_empty() { self.resolver.take_health_checks() } else { None };
        self.health_checks.send_if_modified(|now| {
            let news = fresh.is_some() || now.elsewhere != elsewhere;
            if let Some(fresh) = fresh {
                *now = fresh;
            }
            now.elsewhere = elsewhere;
            news
        });
    }

    fn step(&mut self) {
        let now = Instant::now();
        if !self.first_done {
            self.first_done = true;
            self.look_at_kube_proxy();
            self.pending = Scope::default();
            self.disturbed = Scope::default();
            self.synchronise(self.everything(), false);
            // What happened before the first look was never seen in the kernel by anyone.
            self.verify_at = Instant::now() + jitter(self.times.verify, 0.2);
            self.health.services.set_synced();
            super::memory::trim();
            return self.publish();
        }
        if self.neighbour_at.is_some_and(|at| at <= now) {
            self.look_at_kube_proxy();
            self.take_over();
        }
        if let Some((scope, due)) = self.machine.draining()
            && due.max(self.not_before) <= now
        {
            self.pending.merge(scope);
        }
        if !self.disturbed.is_empty() {
            // What is pending in it is the agent's own wish, not another hand's doing.
            let scope = std::mem::take(&mut self.disturbed);
            let drift = self.converged && self.pending.is_empty();
            self.synchronise(scope, drift);
            self.publish();
        }
        let retry = self.retry_at.is_some_and(|at| at <= now);
        if !self.pending.is_empty() && self.not_before <= now {
            let scope = std::mem::take(&mut self.pending);
            self.not_before = Instant::now() + self.times.least;
            self.synchronise(scope, false);
            self.publish();
        } else if retry || self.verify_at <= now {
            let prune = self.resolver.prune();
            if self.verify_at <= now {
                self.resolver.confirm_slices();
                self.look_at_kube_proxy();
            }
            // What may go only from now on is no other hand's doing.
            let confirmed = self.resolver.prune() != prune;
            let all = self.everything();
            let drift = self.converged && !retry && !confirmed && self.pending.is_empty();
            self.pending = Scope::default();
            self.synchronise(all, drift);
            self.take_over();
            self.verified += 1;
            if self.verified.is_multiple_of(TIDY) {
                self.tidy();
            }
            super::memory::trim();
            self.verify_at = Instant::now() + jitter(self.times.verify, 0.2);
            self.publish();
        } else if self.unpublished && self.pending.is_empty() {
            self.publish();
        }
    }

    /// Makes `scope` so. `drift`: what is to be done was done before, and another hand undid it.
    fn synchronise(&mut self, scope: Scope, drift: bool) {
        let health = self.health.clone();
        let alive = move || health.services.beat();
        // Otherwise the latest changes are still to come.
        let latest = self.pending.is_empty();
        let arrived = if latest { std::mem::take(&mut self.arrived) } else { Vec::new() };
        let everything = self.is_everything(&scope);
        let scope = self.neighbour.allowed(scope, self.resolver.desired(), self.machine.journal());
        if scope.is_empty() {
            self.generation_done = self.generation;
            self.retry_at = None;
            if latest {
                // Nothing of it is for this agent.
                self.health.backlog.clear();
            }
            return;
        }
        let revision = self.resolver.slice_revision();
        let prune = self.prune();
        let synced = self.machine.sync(self.resolver.desired(), scope, drift, prune, &alive);
        for at in arrived {
            self.metrics.programming.observe(at.elapsed().as_secs_f64());
        }
        if latest && !self.neighbour.stands_back() {
            self.slice_revision = revision;
        }
        self.converged = synced.converged() && (everything || self.converged);
        if latest && synced.in_force() {
            self.health.backlog.clear();
        }
        if drift {
            self.drift(&synced);
        }
        let retry = synced.retry();
        self.give_away();
        self.failures.journal(synced.journal);
        self.failures.replace(&synced.scope, synced.failed, synced.unreadable, &synced.left);
        self.failures.in_the_way(&synced.scope, &synced.notes);
        if retry {
            let wait = self.times.retry.saturating_mul(1 << self.retries.min(16)).min(self.times.retry_max);
            self.retry_at = Some(Instant::now() + jitter(wait, 0.2));
            self.retries += 1;
        } else if self.failures.retry() {
            self.retry_at.get_or_insert(Instant::now() + self.times.retry_max);
        } else {
            self.retry_at = None;
            self.retries = 0;
        }
    }

    /// All that is the lane's.
    fn everything(&self) -> Scope {
        Scope::all(self.resolver.desired()).lanes().1
    }

    /// Whether it is no less than that.
    fn is_everything(&self, scope: &Scope) -> bool {
        let whole = scope.links && scope.routes && scope.rules;
        whole && scope.sets == Which::All && scope.virtual_servers == Which::All && {
            let all = self.everything();
            scope.modules.is_superset(&all.modules) && scope.sysctls.is_superset(&all.sysctls)
        }
    }

    fn drift(&mut self, synced: &Synced) {
        let repaired: Vec<&Operation> = synced.done.iter().filter(|o| restores(o)).collect();
        if repaired.is_empty() {
            return;
        }
        self.metrics.drift.get_or_create(&LaneLabel { lane: Lane::Service }).inc_by(repaired.len() as u64);
        let note = repaired_note(&repaired);
        tracing::info!("{note}");
        let notice = Notice {
            warning: true,
            reason: reason::DRIFT_REPAIRED,
            action: "RepairServices",
            note,
            virtual_ip: None,
        };
        // The reporter goes only when the agent stops.
        let _ = self.notices.send(notice);
    }

    /// Forgets what the journal knows and the kernel no longer has.
    fn tidy(&mut self) {
        if self.converged
            && let Err(error) = self.machine.tidy(self.resolver.desired(), Covered::Services)
        {
            tracing::warn!("{error}");
        }
    }

    fn publish(&mut self) {
        if self.pending.is_empty() {
            self.unpublished = false;
            self.generation_done = self.generation;
        }
        let desired = self.resolver.desired().virtual_servers.len();
        let (failed, outstanding) = self.failures.servers();
        let servers = Progress {
            desired: count(desired),
            programmed: count(desired.saturating_sub(outstanding)),
            failed: count(failed),
        };
        for (state, value) in
            [("desired", servers.desired), ("programmed", servers.programmed), ("failed", servers.failed)]
        {
            self.metrics.servers.get_or_create(&ServersLabel { state }).set(value.into());
        }
        let incomplete: BTreeSet<String> =
            self.resolver.incomplete().iter().map(ToString::to_string).collect();
        let mut virtual_servers = self
            .failures
            .verdict(Area::VirtualServers, format!("{desired} virtual servers are in the kernel"));
        if !incomplete.is_empty() {
            let names: Vec<&str> = incomplete.iter().map(String::as_str).take(8).collect();
            let words = format!(
                "the plans of {} Services are not complete, their last complete plans stay: {}",
                incomplete.len(),
                names.join(", ")
            );
            virtual_servers = virtual_servers.and(Verdict::not(reason::SLICE_INCOMPLETE, words));
        }
        virtual_servers = virtual_servers.and(unreadable(self.resolver.unreadable_slices()));
        let problems = self.resolver.problems();
        let mut addresses = self.failures.verdict(Area::Addresses, "local routes are as wanted");
        let overlaps: Vec<String> = problems
            .iter()
            .filter(|problem| matches!(problem.reason, Reason::RangeOverlaps { .. }))
            .map(ToString::to_string)
            .collect();
        if !overlaps.is_empty() {
            addresses = addresses.and(Verdict::not(reason::ADDRESS_CONFLICT, overlaps.join("; ")));
        }
        let mut failures = self.failures.list();
        failures.extend(super::failures::problems(&problems));
        failures.extend(self.hearing.failures.iter().cloned());
        let mut kernel = self.failures.verdict(Area::Kernel, "modules and settings are as wanted");
        let mut packet_filter = self.failures.verdict(Area::PacketFilter, "sets and rules are as wanted");
        let mut servers = servers;
        if let Some((rules, of_servers)) = self.neighbour.verdicts() {
            (packet_filter, virtual_servers) = (rules, of_servers);
            servers.programmed = 0;
            if !self.neighbour.works_beside() {
                let words = "nothing of Services is asked for beside kube-proxy";
                (kernel, addresses) = (Verdict::ready(words), Verdict::ready(words));
            }
        } else if let Some(off) = self.off().filter(|_| virtual_servers.status == Status::True) {
            virtual_servers = off;
            let words = "nothing of Services is asked for";
            if packet_filter.status == Status::True {
                packet_filter = Verdict::ready(words);
            }
            if addresses.status == Status::True {
                addresses = Verdict::ready(words);
            }
        } else if let Some(remark) =
            self.neighbour.remark().filter(|_| virtual_servers.status == Status::True)
        {
            virtual_servers = remark;
        }
        let facts = ServiceFacts {
            generation: self.generation_done,
            slice_revision: self.slice_revision,
            kernel,
            addresses,
            packet_filter,
            virtual_servers,
            health_checks: self.hearing.verdict.clone(),
            servers,
            failures,
            takeover: self.left().is_some(),
        };
        self.facts.send_if_modified(|now| {
            let news = *now != facts;
            *now = facts;
            news
        });
    }
}

/// What is to be said about slices that cannot be read, each with whether an earlier content of it is in force.
fn unreadable<'a>(slices: impl Iterator<Item = (&'a str, bool)>) -> Verdict {
    let (known, unknown): (Vec<_>, Vec<_>) = slices.partition(|(_, known)| *known);
    let names = |slices: &[(&str, bool)]| -> String {
        let names: Vec<&str> = slices.iter().map(|(name, _)| *name).take(8).collect();
        match slices.len() - names.len() {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    };
    let mut verdict = Verdict::ready("");
    if !known.is_empty() {
        let words = format!("NodeNetSlice {} cannot be read: its last good content stays", names(&known));
        verdict = verdict.and(Verdict::not(reason::SLICE_INCOMPLETE, words));
    }
    if !unknown.is_empty() {
        let words = format!(
            "NodeNetSlice {} cannot be read and never could: its Services are not known, so virtual servers that no \
             other slice asks for are not removed",
            names(&unknown)
        );
        verdict = verdict.and(Verdict::not(reason::SLICE_INCOMPLETE, words));
    }
    verdict
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Whether an operation puts back what another hand took or changed, or takes what it added among ours.
fn restores(operation: &Operation) -> bool {
    !matches!(operation, Operation::ForgetConnections(..))
}

/// Words about what was put back.
pub(super) fn repaired_note(repaired: &[&Operation]) -> String {
    let first: Vec<String> = repaired
        .iter()
        .take(3)
        .map(|operation| {
            let (sign, object) = words(operation);
            format!("{} {object}", sign.symbol())
        })
        .collect();
    let more = match repaired.len().saturating_sub(3) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("another hand changed what is ours; it was put back: {}{more}", first.join(", "))
}
