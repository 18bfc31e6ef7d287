//! The loop: changes in, keys through the queue, plans out. It is the only owner of the planner's index and never
//! waits for a write.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use nodenet_planner::{Change, Index, Key, Kind, Now, Object, ObjectRef, Output, Settings};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::election::{Leadership, Published, Role};
use crate::health::Health;
use crate::lanes::{Lanes, Write};
use crate::metrics::Metrics;
use crate::publish::{Class, Error, Publisher, target};
use crate::queue::{Backoff, PAUSE, Queue};
use crate::watch::{Seen, Source};

/// Changes taken from the channel at once.
const BATCH: usize = 512;
/// The loop turns at least this often, so that the probes see that it does.
const TURN: Duration = Duration::from_secs(5);
/// First and longest pause after another hand was faster: its write is on the way to here, and a failover may wait.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// At the end, time for writes that are under way.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// Events that are kept for an API server that is away.
const UNSENT: usize = 64;
/// For so long it stands that all was published: between two moments without a write under way.
const PUBLISHED: Duration = Duration::from_secs(30);
/// Keys that a line of the log names.
const NAMED: usize = 3;

/// A write that has ended.
type Ended = (Write, Result<Option<Object>, Error>);

/// The loop's state.
#[derive(Debug)]
pub struct Control {
    index: Index,
    keys: Queue<Key>,
    lanes: Lanes,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    failed: Backoff<ObjectRef>,
    /// The last failure that was logged of each object: the same is not said twice.
    complaints: HashMap<ObjectRef, String>,
    undecodable: Undecodable,
    /// Events that no API server took, and when they are sent again.
    unsent: Vec<Write>,
    unsent_due: Instant,
    /// The term of leadership, on standby none.
    term: Option<u64>,
    /// The NodeNetStates as they are after the term began. What is known of them until then may lack the last writes of
    /// another leader.
    reading: FuturesUnordered<BoxFuture<'static, Vec<Change>>>,
    /// NodeNetStates that another hand changed, until they are read again.
    changed: HashSet<ObjectRef>,
    looks: FuturesUnordered<BoxFuture<'static, (ObjectRef, Option<Object>)>>,
    /// Number of the last plan.
    plan: u64,
    /// Since when all is known that Services follow from.
    informed: Option<Instant>,
    published: watch::Sender<Option<Published>>,
    started: Instant,
    publisher: Publisher,
    leadership: Leadership,
    metrics: Metrics,
    health: Health,
}

impl Control {
    /// A loop that knows nothing and leads nothing.
    pub fn new(
        settings: Settings,
        window: Duration,
        publisher: Publisher,
        leadership: Leadership,
        metrics: Metrics,
        health: Health,
    ) -> Self {
        Self {
            index: Index::new(settings),
            keys: Queue::new(window),
            lanes: Lanes::default(),
            under_way: FuturesUnordered::new(),
            failed: Backoff::default(),
            complaints: HashMap::new(),
            undecodable: Undecodable::default(),
            unsent: Vec::new(),
            unsent_due: Instant::now(),
            term: None,
            reading: FuturesUnordered::new(),
            changed: HashSet::new(),
            looks: FuturesUnordered::new(),
            plan: 0,
            informed: None,
            published: watch::channel(None).0,
            started: Instant::now(),
            publisher,
            leadership,
            metrics,
            health,
        }
    }

    /// Says there when all is published.
    pub fn announcing(self, published: watch::Sender<Option<Published>>) -> Self {
        Self { published, ..self }
    }

    /// Runs until `stop` resolves, then waits a little for writes that are under way.
    pub async fn run(mut self, source: Source, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut watches = source.start();
        let mut batch = Vec::with_capacity(BATCH);
        // The election may have been won before the loop began.
        let mut role = Some(self.leadership.role());
        loop {
            if let Some(role) = role.take() {
                let term = match role {
                    Role::Leader { term } => Some(term),
                    Role::Standby { .. } => None,
                };
                if self.term.is_some() && self.term != term {
                    // What this replica had planned is not what is published by now: the next term begins with what
                    // another leader left, read anew.
                    self.stand_by();
                    watches = source.start();
                }
                if term.is_some() && self.term != term {
                    self.term = term;
                    self.lead(&source);
                }
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                () = &mut stop => break,
                changed = self.leadership.changed() => role = Some(changed),
                Some(ended) = self.under_way.next() => self.ended(ended),
                Some((object, found)) = self.looks.next() => {
                    if let Some(found) = found {
                        self.change(Seen { change: Change::Upsert(found), at: Instant::now() });
                    }
                    self.write_failed(object);
                }
                Some(states) = self.reading.next() => {
                    for change in states {
                        self.change(Seen { change, at: Instant::now() });
                    }
                }
                taken = watches.take(&mut batch, BATCH) => {
                    if taken == 0 {
                        break;
                    }
                    for seen in batch.drain(..) {
                        self.change(seen);
                    }
                }
                () = sleep_until(wake) => {}
            }
            self.turn();
        }
        self.lanes.clear();
        let left = self.under_way.len();
        if left > 0
            && timeout(LAST_WRITES, async { while self.under_way.next().await.is_some() {} }).await.is_err()
        {
            warn!("{left} writes were under way and may not have been done");
        }
    }

    fn now(&self) -> Now {
        Now { monotonic: self.started.elapsed(), wall: Timestamp::now() }
    }

    /// When the loop must turn although nothing happens.
    fn wake(&self) -> Instant {
        let mut wake = Instant::now() + TURN;
        if self.term.is_some() {
            let due = self.index.due().map(|due| self.started + due);
            let unsent = (!self.unsent.is_empty()).then_some(self.unsent_due);
            for time in [self.keys.next_due(), self.failed.next_due(), due, unsent].into_iter().flatten() {
                wake = wake.min(time);
            }
        }
        wake
    }

    fn lead(&mut self, source: &Source) {
        self.metrics.leader(true);
        let at = Instant::now();
        let now = self.now();
        self.index.apply(Change::Lost(Kind::NodeNetState), &now);
        self.reading.push(source.clone().states().boxed());
        for key in self.index.lead(&now) {
            self.keys.add_now(key, at);
        }
    }

    fn stand_by(&mut self) {
        self.term = None;
        self.reading.clear();
        self.changed.clear();
        self.looks.clear();
        self.metrics.leader(false);
        self.informed = None;
        self.published.send_replace(None);
        self.index = Index::new(self.index.settings().clone());
        self.keys.clear();
        self.lanes = Lanes::default();
        self.under_way.clear();
        self.failed.clear();
        self.complaints.clear();
        self.undecodable = Undecodable::default();
    }

    fn change(&mut self, Seen { change, at }: Seen) {
        let kinds = self.undecodable.note(&change);
        if let Some(kind) = kinds {
            self.metrics.undecodable(kind, self.undecodable.count(kind));
        }
        if !self.reading.is_empty() && matches!(change, Change::Synced(Kind::NodeNetState)) {
            // The list that is being read is newer.
            return;
        }
        let now = self.now();
        let keys = self.index.apply(change, &now);
        if self.term.is_some() {
            for key in keys {
                self.keys.add(key, at);
            }
        }
    }

    /// What a failed write was for is planned again.
    fn write_failed(&mut self, object: ObjectRef) {
        let at = Instant::now();
        let now = self.now();
        for key in self.index.apply(Change::WriteFailed(object), &now) {
            self.keys.add_now(key, at);
        }
    }

    fn turn(&mut self) {
        let at = Instant::now();
        if self.term.is_some() && self.leadership.may_write() {
            let now = self.now();
            while let Some(object) = self.failed.pop(at) {
                if self.changed.remove(&object) {
                    // Its agent writes its status: what the watch has shown may be old again.
                    let publisher = self.publisher.clone();
                    self.looks.push(Box::pin(async move {
                        let found = publisher.state(&object.name).await;
                        (object, found)
                    }));
                } else {
                    self.write_failed(object);
                }
            }
            if self.index.due().is_some_and(|due| due <= now.monotonic) {
                for key in self.index.take_due(&now) {
                    self.keys.add_now(key, at);
                }
            }
            if self.unsent_due <= at {
                self.unsent.drain(..).for_each(|event| self.lanes.push(event));
            }
            self.plan(at);
            self.send();
        }
        self.announce(at);
        self.metrics.queue_depth(self.keys.len() + self.lanes.waiting() + self.lanes.under_way());
        self.health.turned(self.index.incomplete());
    }

    /// Says whether all is published that follows from Services.
    fn announce(&mut self, at: Instant) {
        let Some(term) = self.term.filter(|_| self.index.is_informed() && self.reading.is_empty()) else {
            self.informed = None;
            self.published.send_replace(None);
            return;
        };
        let informed = *self.informed.get_or_insert(at);
        // What the last list brought was planned by then.
        let planned = at >= informed + self.keys.longest();
        let written = self.lanes.waiting() == 0
            && self.lanes.under_way() == 0
            && !self.failed.any(|object| object.kind == Kind::NodeNetSlice);
        if planned && written {
            let published = Published { term, revision: self.index.slice_revision(), until: at + PUBLISHED };
            self.published.send_replace(Some(published));
        }
    }

    fn plan(&mut self, at: Instant) {
        let mut keys = BTreeSet::new();
        let mut since: Option<Instant> = None;
        while let Some((key, first)) = self.keys.pop(at) {
            if matches!(key, Key::Service { .. }) {
                since = Some(since.map_or(first, |s| s.min(first)));
            }
            keys.insert(key);
        }
        if keys.is_empty() {
            return;
        }
        let begun = Instant::now();
        self.plan += 1;
        let outputs = self.index.plan(&keys, &self.now());
        self.metrics.planned(begun.elapsed());
        let objects: Vec<_> = outputs.iter().filter_map(target).map(|o| o.to_string()).collect();
        if !objects.is_empty() {
            let keys = named(keys.len(), "key", keys.iter().map(words));
            info!("{keys} changed: writing {}", named(objects.len(), "object", objects.iter().cloned()));
        }
        for output in outputs {
            if let Output::Event(event) = &output {
                info!("{}: {}: {}", event.regarding, event.reason, event.note);
            }
            // What failed just now is planned again when its pause ends, with all that changed until then.
            if target(&output).is_some_and(|object| self.failed.waits(&object)) {
                continue;
            }
            let since = since.filter(|_| matches!(output, Output::PutSlice { .. }));
            self.lanes.push(Write { output, plan: self.plan, since });
        }
    }

    fn send(&mut self) {
        while self.leadership.may_write()
            && let Some(write) = self.lanes.pop()
        {
            let publisher = self.publisher.clone();
            self.under_way.push(Box::pin(async move {
                let result = publisher.write(&write.output).await;
                (write, result)
            }));
        }
    }

    fn ended(&mut self, (write, result): Ended) {
        self.lanes.done(&write.output);
        let object = target(&write.output);
        match result {
            Ok(answer) => {
                if let Some(since) = write.since {
                    self.metrics.change_written(since.elapsed());
                }
                if let Some(object) = object {
                    debug!("wrote {object}");
                    self.failed.succeeded(&object);
                    if self.complaints.remove(&object).is_some() {
                        info!("{object} could be written again");
                    }
                }
                if let Some(answer) = answer {
                    self.change(Seen { change: Change::Wrote(answer), at: Instant::now() });
                }
            }
            Err(error) => {
                let Some(object) = object else {
                    if error.class() == Class::Retry && self.unsent.len() < UNSENT {
                        self.unsent_due = Instant::now() + TURN;
                        self.unsent.push(write);
                    } else {
                        warn!("event lost: {error}");
                    }
                    return;
                };
                let conflict = error.class() == Class::Conflict;
                let pauses = if conflict { LOOK_AGAIN } else { PAUSE };
                let pause = self.failed.failed(&object, pauses, Instant::now());
                if conflict {
                    if object.kind == Kind::NodeNetState {
                        self.changed.insert(object.clone());
                    }
                    debug!("{object} was changed by another hand; looking again in {pause:?}");
                    return;
                }
                let text = error.to_string();
                if self.complaints.get(&object) != Some(&text) {
                    warn!("{text}; trying again, first in {pause:?}");
                    self.complaints.insert(object, text);
                }
            }
        }
    }
}

/// Objects that cannot be decoded now.
#[derive(Debug, Default)]
struct Undecodable {
    objects: HashMap<ObjectRef, String>,
    /// Those of a kind that is being listed, which the list has not shown yet.
    unconfirmed: HashMap<ObjectRef, String>,
}

impl Undecodable {
    /// Notes a change; returns the kind whose number may have changed.
    fn note(&mut self, change: &Change) -> Option<Kind> {
        match change {
            Change::Undecodable { object, error, .. } => {
                let before = self.objects.remove(object).or_else(|| self.unconfirmed.remove(object));
                if before.as_ref() != Some(error) {
                    warn!("{object} cannot be decoded and is left as it was: {error}");
                }
                self.objects.insert(object.clone(), error.clone());
                Some(object.kind)
            }
            Change::Upsert(object) if !(self.objects.is_empty() && self.unconfirmed.is_empty()) => {
                self.forget(&object.object_ref())
            }
            Change::Delete(object) => self.forget(object),
            Change::Listing(kind) => {
                let old: Vec<_> = self.objects.keys().filter(|o| o.kind == *kind).cloned().collect();
                for object in old {
                    if let Some(error) = self.objects.remove(&object) {
                        self.unconfirmed.insert(object, error);
                    }
                }
                None
            }
            Change::Synced(kind) => {
                self.unconfirmed.retain(|object, _| object.kind != *kind);
                Some(*kind)
            }
            _ => None,
        }
    }

    fn forget(&mut self, object: &ObjectRef) -> Option<Kind> {
        let removed = self.objects.remove(object).or_else(|| self.unconfirmed.remove(object));
        removed.map(|_| object.kind)
    }

    fn count(&self, kind: Kind) -> usize {
        self.objects.keys().filter(|o| o.kind == kind).count()
    }
}

fn words(key: &Key) -> String {
    match key {
        Key::VirtualIP(name) => format!("VirtualIP {name}"),
        Key::Service { namespace, name } => format!("Service {namespace}/{name}"),
        Key::Slice(name) => format!("NodeNetSlice {name}"),
        Key::Node(name) => format!("Node {name}"),
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The names where they are few, their number otherwise.
fn named(number: usize, what: &str, names: impl Iterator<Item = String>) -> String {
    if number <= NAMED { names.collect::<Vec<_>>().join(", ") } else { counted(number, what) }
}

#[cfg(test)]
mod tests;
