//! Watches: one task for each kind, all into one channel.
//!
//! An object that cannot be decoded is a message like any other and stops nothing. A watch that breaks is taken up
//! again where it was; where that is too long ago, the kind is listed anew, and only the end of the new list says what
//! is gone. A kind that cannot be read at all (no such CRD, no right to) is retried for ever at a bounded pace and
//! disturbs no other.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use nodenet_crds::{LABEL_SERVICE_NAME, NodeNetSlice, NodeNetState, VirtualIP};
use nodenet_planner::{Change, Kind, Object, ObjectRef};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::health::Health;
use crate::metrics::Metrics;

/// Server-side end of a watch, seconds. A connection that died silently is noticed a little later than this.
const WATCH_SECONDS: u32 = 45;
/// Objects of a page when a kind is listed.
const PAGE: u32 = 500;
/// First pause after a watch failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest pause where no API server answers: when one is back, nobody should wait.
const PAUSE_AWAY: Duration = Duration::from_secs(2);
/// Longest pause where it answers and refuses.
const PAUSE_REFUSED: Duration = Duration::from_secs(10);
/// Longest wait for a page of a list.
const LISTING: Duration = Duration::from_secs(20);
/// A watch that says nothing for this long after a failure has recovered: a failing one says so sooner.
const RECOVERED: Duration = Duration::from_secs(4);

/// A change and when it arrived here.
#[derive(Debug)]
pub struct Seen {
    /// What happened.
    pub change: Change,
    /// When it arrived.
    pub at: Instant,
}

/// What the watches need.
#[derive(Clone)]
pub struct Source {
    /// Reads.
    pub client: Client,
    /// Namespace of the agents' Leases.
    pub node_namespace: String,
    /// Counts.
    pub metrics: Metrics,
    /// Told which kinds cannot be read.
    pub health: Health,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("node_namespace", &self.node_namespace).finish_non_exhaustive()
    }
}

/// Running watches; they end when it is dropped.
#[derive(Debug)]
pub struct Watches {
    receiver: mpsc::Receiver<Seen>,
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Takes up to `most` changes into `batch`; waits for the first. Returns how many: 0 only if all watches ended.
    pub async fn take(&mut self, batch: &mut Vec<Seen>, most: usize) -> usize {
        self.receiver.recv_many(batch, most).await
    }
}

impl Source {
    /// Starts all watches on the current runtime.
    pub fn start(&self) -> Watches {
        let (sender, receiver) = mpsc::channel(1024);
        let client = || self.client.clone();
        let watch = |kind| Watch {
            kind,
            sender: sender.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(Kind::Node).run::<Node>(Api::all(client())));
        tasks.spawn(watch(Kind::Service).run::<Service>(Api::all(client())));
        tasks.spawn(watch(Kind::EndpointSlice).run::<EndpointSlice>(Api::all(client())));
        tasks.spawn(watch(Kind::Lease).run::<Lease>(Api::namespaced(client(), &self.node_namespace)));
        tasks.spawn(watch(Kind::VirtualIP).run::<VirtualIP>(Api::all(client())));
        tasks.spawn(watch(Kind::NodeNetState).run::<NodeNetState>(Api::all(client())));
        tasks.spawn(watch(Kind::NodeNetSlice).run::<NodeNetSlice>(Api::all(client())));
        Watches { receiver, _tasks: tasks }
    }
}

impl Source {
    /// The NodeNetStates as they are now, as a list that a watch would show. It is asked for until it comes.
    pub async fn states(self) -> Vec<Change> {
        let api: Api<DeserializeGuard<NodeNetState>> = Api::all(self.client.clone());
        loop {
            let error = match timeout(LISTING, list(Kind::NodeNetState, &api)).await {
                Ok(Ok(changes)) => return changes,
                Ok(Err(error)) => crate::publish::explain(&error),
                Err(_) => Broken::Silent.to_string(),
            };
            warn!("cannot read the NodeNetStates, so none is written: {error}");
            sleep(PAUSE_AWAY).await;
        }
    }
}

/// All objects of a kind, not older than the request.
async fn list<K>(kind: Kind, api: &Api<DeserializeGuard<K>>) -> Result<Vec<Change>, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug,
    Object: From<K>,
{
    let mut changes = vec![Change::Listing(kind)];
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        changes.extend(page.items.into_iter().map(|guard| shown(kind, guard)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    changes.push(Change::Synced(kind));
    Ok(changes)
}

struct Watch {
    kind: Kind,
    sender: mpsc::Sender<Seen>,
    metrics: Metrics,
    health: Health,
}

/// Why a watch must begin anew.
#[derive(Debug)]
enum Broken {
    /// The watch says so.
    Watch(watcher::Error),
    /// A list does not come.
    Silent,
}

/// The receiver is gone: the operator ends.
struct Ended;

impl Watch {
    async fn run<K>(self, api: Api<DeserializeGuard<K>>)
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
        K::DynamicType: Default + Eq + std::hash::Hash + Clone,
        Object: From<K>,
    {
        let mut pause = PAUSE;
        while let Ok(error) = self.until_it_breaks(&api, &mut pause).await {
            self.metrics.watch_restarted(self.kind);
            // That the server's history is too short is ordinary: the list follows.
            if !matches!(&error, Broken::Watch(watcher::Error::WatchError(status)) if status.code == 410) {
                let text = error.to_string();
                if self.health.unreadable(self.kind, &text) {
                    warn!("{} cannot be read: {text}", self.kind);
                }
            }
            if self.send(Change::Lost(self.kind)).await.is_err() {
                return;
            }
            let longest = if error.answered() { PAUSE_REFUSED } else { PAUSE_AWAY };
            sleep(pause.min(longest)).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Lists and watches until an error; an ordinary end of a connection is none. Every error is followed by a new
    /// list: only that tells what was missed.
    async fn until_it_breaks<K>(
        &self,
        api: &Api<DeserializeGuard<K>>,
        pause: &mut Duration,
    ) -> Result<Broken, Ended>
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
        K::DynamicType: Default + Eq + std::hash::Hash + Clone,
        Object: From<K>,
    {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let mut stream = pin!(watcher(api.clone(), config));
        // Once the list is complete: when this counts as recovered from an earlier failure.
        let mut recovery: Option<Instant> = None;
        let mut listed = false;
        loop {
            let event = match recovery {
                Some(at) => match timeout_at(at, stream.next()).await {
                    Ok(event) if Instant::now() < at => event,
                    other => {
                        recovery = None;
                        *pause = PAUSE;
                        if self.health.readable(self.kind) {
                            info!("{} can be read again", self.kind);
                        }
                        let Ok(event) = other else { continue };
                        event
                    }
                },
                None => match timeout(LISTING, stream.next()).await {
                    Ok(event) => event,
                    Err(_) if !listed => return Ok(Broken::Silent),
                    Err(_) => continue,
                },
            };
            match event {
                None => return Err(Ended),
                Some(Err(error)) => return Ok(Broken::Watch(error)),
                Some(Ok(event)) => {
                    if matches!(event, Event::InitDone) {
                        listed = true;
                        recovery = Some(Instant::now() + RECOVERED);
                    }
                    self.send(self.change(event)).await?;
                }
            }
        }
    }

    fn change<K>(&self, event: Event<DeserializeGuard<K>>) -> Change
    where
        K: Resource,
        K::DynamicType: Default,
        Object: From<K>,
    {
        match event {
            Event::Init => Change::Listing(self.kind),
            Event::InitDone => Change::Synced(self.kind),
            Event::Delete(guard) => Change::Delete(name(self.kind, guard.meta())),
            Event::InitApply(guard) | Event::Apply(guard) => shown(self.kind, guard),
        }
    }

    async fn send(&self, change: Change) -> Result<(), Ended> {
        self.sender.send(Seen { change, at: Instant::now() }).await.map_err(|_| Ended)
    }
}

fn shown<K>(kind: Kind, guard: DeserializeGuard<K>) -> Change
where
    K: Resource,
    Object: From<K>,
{
    match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Change::Upsert(object.into())
        }
        Err(invalid) => Change::Undecodable {
            object: name(kind, &invalid.metadata),
            service: (kind == Kind::EndpointSlice)
                .then(|| invalid.metadata.labels.as_ref()?.get(LABEL_SERVICE_NAME).cloned())
                .flatten(),
            error: invalid.error,
        },
    }
}

fn name(kind: Kind, metadata: &ObjectMeta) -> ObjectRef {
    ObjectRef {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

impl Broken {
    /// The client's error, where one is behind it.
    fn client(&self) -> Option<&kube::Error> {
        match self {
            Self::Watch(
                watcher::Error::InitialListFailed(e)
                | watcher::Error::WatchStartFailed(e)
                | watcher::Error::WatchFailed(e),
            ) => Some(e),
            _ => None,
        }
    }

    /// Whether the API server answered.
    fn answered(&self) -> bool {
        !matches!(self, Self::Silent) && !self.client().is_some_and(nodenet_client::unanswered)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.client(), self) {
            (Some(error), _) => f.write_str(&crate::publish::explain(error)),
            (None, Self::Watch(watcher::Error::WatchError(status))) => {
                write!(f, "{} ({})", status.message, status.code)
            }
            (None, Self::Watch(error)) => error.fmt(f),
            (None, Self::Silent) => write!(f, "no answer from the API server: no list within {LISTING:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
