//! What goes to the API server: the Lease, the status, Events; and the look at the operator's Lease.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use kube::Api;
use nodenet_client::ApiServers;
use nodenet_crds::{NodeNetState, VirtualIPState};
use tokio::sync::{mpsc, oneshot, watch};

use super::Config;
use super::desired::Seen;
use crate::agent::clock::jitter;
use crate::agent::service_lane;
use crate::report::events::Events;
use crate::report::facts::{AddressFacts, Notice, ServiceFacts, SourceFacts};
use crate::report::health::{ADDRESSES_LIMIT, Health, Pulse};
use crate::report::lease::{NodeLease, Pace};
use crate::report::metrics::{Metrics, WriteLabel};
use crate::report::operator::OperatorWatch;
use crate::report::publisher::{self, Pending};
use crate::source::store;
use crate::source::watch::Progress;

/// Time for a status to reach the API server before connections are given up.
const RELEASE_TOLD: Duration = Duration::from_millis(500);
/// Between two tries to publish a notice while no API server takes it.
const NOTICE_AGAIN: Duration = Duration::from_secs(2);
/// Notices that wait to be published; more of them say nothing new.
const NOTICES: usize = 64;

/// Between two turns of the look at the sources.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the operator's Lease while a takeover of what kube-proxy left depends on it.
const TAKEOVER_LOOK: Duration = Duration::from_secs(5);

/// How the Lease is renewed while this is known of the addresses.
fn pace(facts: &AddressFacts) -> Pace {
    match (facts.outliving, facts.candidate) {
        (true, _) => Pace::Restart,
        (false, true) => Pace::Candidate,
        (false, false) => Pace::Idle,
    }
}

/// What the renewal of the Lease depends on.
pub(super) struct Leasing {
    pub(super) lease: Arc<NodeLease>,
    pub(super) servers: ApiServers,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) contact: Arc<Pulse>,
}

impl Leasing {
    /// Renews the Lease until `quitting`, but does not end amid a renewal. Whether the last one was answered: one that
    /// was not may still be on its way.
    pub(super) async fn keep(
        self,
        mut addresses: watch::Receiver<AddressFacts>,
        mut quitting: oneshot::Receiver<()>,
    ) -> bool {
        let mut failing = false;
        let mut answered = true;
        loop {
            let now = pace(&addresses.borrow());
            let alive = self.health.addresses.ever() && self.health.addresses.age() <= ADDRESSES_LIMIT;
            let mut wait = jitter(now.period(), 0.05);
            // The period counts from the request, not from its answer.
            let asked = tokio::time::Instant::now();
            if alive {
                let result = self.lease.renew(now).await;
                answered = result.as_ref().map_or_else(|error| error.answered(), |()| true);
                match &result {
                    Ok(()) => {
                        self.contact.beat();
                        self.metrics.lease_renewals.get_or_create(&WriteLabel { result: "ok" }).inc();
                        if std::mem::take(&mut failing) {
                            tracing::info!("the API server {} answers again", self.servers.in_use());
                        }
                    }
                    Err(error) => {
                        self.metrics.lease_renewals.get_or_create(&WriteLabel { result: "error" }).inc();
                        // A refusal is no contact: the operator sees no Lease and moves the addresses away. A server
                        // that does not answer is given up by the client itself.
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!("{error}");
                        }
                        wait = wait.min(Duration::from_secs(1));
                    }
                }
                self.metrics.api_server_reachable.set(i64::from(result.is_ok()));
            } else {
                // Looked at again soon: the lane may only be busy.
                wait = wait.min(Duration::from_millis(200));
            }
            let until = asked + wait;
            // A node that becomes a candidate says so at once.
            loop {
                tokio::select! {
                    _ = &mut quitting => return answered,
                    () = tokio::time::sleep_until(until) => break,
                    changed = addresses.changed() => {
                        if changed.is_err() {
                            return answered;
                        }
                        if pace(&addresses.borrow()) != now {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// Ends the streams from the API server when a virtual IP leaves the node: a connection that was made from its address
/// is dead then, and nothing says so. Where it was not, the watches go on at the same place.
pub(super) async fn leave_dead_connections(
    servers: ApiServers,
    mut addresses: watch::Receiver<AddressFacts>,
) {
    let held = |facts: &AddressFacts| -> BTreeSet<String> {
        let active = facts.virtual_ips.iter().filter(|vip| vip.state == VirtualIPState::Active);
        active.map(|vip| vip.name.clone()).collect()
    };
    let mut before = held(&addresses.borrow_and_update());
    while addresses.changed().await.is_ok() {
        let now = held(&addresses.borrow_and_update());
        if !before.is_subset(&now) {
            // The status that says so is on its way, most likely by a connection that lives.
            tokio::time::sleep(RELEASE_TOLD).await;
            servers.give_up();
        }
        before = now;
    }
}

/// What the look at the sources of the desired state is told, and whom it tells.
pub(super) struct Sources {
    pub(super) progress: mpsc::UnboundedReceiver<Progress>,
    pub(super) problems: store::Problems,
    pub(super) services: watch::Receiver<ServiceFacts>,
    pub(super) to_services: Sender<service_lane::Message>,
    pub(super) facts: watch::Sender<SourceFacts>,
}

pub(super) async fn watch_source(
    config: Config,
    servers: ApiServers,
    metrics: Arc<Metrics>,
    mut sources: Sources,
) {
    let mut operator = OperatorWatch::new(&config.operator_namespace, config.operator_limit, Instant::now());
    let client = servers.client();
    let mut now = SourceFacts::default();
    let mut looked: Option<tokio::time::Instant> = None;
    let mut pause = Duration::ZERO;
    let mut tick = tokio::time::interval(TICK.min(config.operator_look));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = sources.progress.recv() => match news {
                Some(news) => now.undecodable = news.undecodable,
                None => return,
            },
            _ = tick.tick() => {}
        }
        let longest = if sources.services.borrow().takeover { TAKEOVER_LOOK } else { config.operator_look };
        if looked.is_none_or(|at| at.elapsed() >= pause.min(longest)) {
            let reading = operator.look(&client);
            match tokio::time::timeout(crate::report::lease::TIMEOUT, reading).await {
                Ok(Ok(())) => now.operator_silent = operator.silent(Instant::now()),
                // Who does not reach the API server cannot say anything about the operator.
                Ok(Err(error)) => tracing::debug!("read the operator's Lease: {error}"),
                Err(_) => tracing::debug!("read the operator's Lease: no answer"),
            }
            let publication = operator.publication(Instant::now());
            // The lane goes only when the agent stops.
            let _ = sources.to_services.send(service_lane::Message::Publication(publication));
            looked = Some(tokio::time::Instant::now());
            pause = jitter(config.operator_look, 0.2);
        }
        now.store = sources.problems.now();
        metrics.store_failing.set(i64::from(now.store.is_some()));
        sources.facts.send_if_modified(|old| {
            let news = *old != now;
            old.clone_from(&now);
            news
        });
    }
}

/// Publishes Events while the node's object exists. While it does not, or no API server is in reach, the latest wait.
pub(super) async fn publish_events(
    mut events: Events,
    mut seen: watch::Receiver<Seen>,
    mut notices: mpsc::UnboundedReceiver<Notice>,
) {
    let mut waiting: VecDeque<Notice> = VecDeque::new();
    loop {
        let known = match &*seen.borrow_and_update() {
            Seen::Status { uid, .. } => {
                events.set_uid(uid.clone());
                true
            }
            Seen::Nothing | Seen::Gone => false,
        };
        let mut again = false;
        if known && let Some(notice) = waiting.front() {
            if events.publish(notice).await {
                waiting.pop_front();
                continue;
            }
            again = true;
        }
        tokio::select! {
            () = tokio::time::sleep(NOTICE_AGAIN), if again => {}
            changed = seen.changed() => if changed.is_err() { return },
            notice = notices.recv() => match notice {
                Some(notice) => {
                    waiting.push_back(notice);
                    if waiting.len() > NOTICES {
                        waiting.pop_front();
                    }
                }
                None => return,
            },
        }
    }
}

pub(super) struct Publishing {
    pub(super) node: String,
    /// UID of the NodeNetState that was seen last.
    pub(super) uid: Option<String>,
    pub(super) pending: Pending,
    pub(super) api: Api<NodeNetState>,
    pub(super) metrics: Arc<Metrics>,
}

impl Publishing {
    pub(super) async fn run(
        mut self,
        mut addresses: watch::Receiver<AddressFacts>,
        mut services: watch::Receiver<ServiceFacts>,
        mut source: watch::Receiver<SourceFacts>,
        mut seen: watch::Receiver<Seen>,
    ) {
        loop {
            let due = self.pending.due(tokio::time::Instant::now());
            let write = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = seen.changed() => {
                    if changed.is_err() { return }
                    match seen.borrow_and_update().clone() {
                        Seen::Nothing => {}
                        Seen::Gone => self.pending.gone(),
                        Seen::Status { uid, status } => {
                            self.uid = uid;
                            self.pending.seen(status.map(|s| *s));
                        }
                    }
                }
                changed = addresses.changed() => if changed.is_err() { return },
                changed = services.changed() => if changed.is_err() { return },
                changed = source.changed() => if changed.is_err() { return },
                () = write => self.write().await,
            }
            let facts = (addresses.borrow_and_update().clone(), services.borrow_and_update().clone());
            let of_source = source.borrow_and_update().clone();
            self.pending.facts(&facts.0, &facts.1, &of_source);
        }
    }

    async fn write(&mut self) {
        let Some(status) = self.pending.take() else { return };
        let result = publisher::write(&self.api, &self.node, self.uid.as_deref(), &status).await;
        let now = tokio::time::Instant::now();
        match result {
            Ok(()) => {
                self.metrics.status_writes.get_or_create(&WriteLabel { result: "ok" }).inc();
                self.pending.done(status, now);
            }
            Err(error) => {
                self.metrics.status_writes.get_or_create(&WriteLabel { result: "error" }).inc();
                tracing::debug!("{error}");
                self.pending.failed(now);
            }
        }
    }
}
