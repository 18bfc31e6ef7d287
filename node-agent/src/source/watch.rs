//! Watches the node's own NodeNetState and all NodeNetSlices.
//!
//! One object that cannot be decoded never stops the watch: its last good content stays, and its name is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use nodenet_client::ApiServers;
use nodenet_crds::{NodeNetSlice, NodeNetState};
use tokio::sync::mpsc::UnboundedSender;

use super::store::{Store, StoreWriter};
use super::{Origin, Update};

/// Seconds after which a watch is asked for anew: one that died without a word (behind a load balancer, say) is noticed then.
const WATCH: u32 = 45;
/// Slices in one page of the first list: what is in memory at once, in the API's form.
const PAGE: u32 = 16;

/// What the watch knows about its own progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The complete list of slices was read at least once.
    pub complete: bool,
    /// Objects that cannot be decoded, with why. Their last good content stays in force.
    pub undecodable: BTreeMap<String, String>,
    /// Why the last request of a watch failed, until one succeeds.
    pub error: Option<String>,
}

/// Follows both kinds for as long as it is polled.
pub struct Watch<F> {
    node: String,
    /// Slices that somebody holds: from the copy on disk or from the API server.
    known: BTreeSet<String>,
    listed: BTreeSet<String>,
    state_seen: bool,
    /// Slices whose content was handed over.
    held: BTreeSet<String>,
    progress: Progress,
    store: Store,
    writer: StoreWriter,
    sink: F,
    notices: UnboundedSender<Progress>,
}

enum Item {
    State(Box<watcher::Result<watcher::Event<DeserializeGuard<NodeNetState>>>>),
    Slice(Box<watcher::Result<watcher::Event<DeserializeGuard<NodeNetSlice>>>>),
}

impl<F: FnMut(Update)> Watch<F> {
    /// A watch for `node`. Updates go to `sink`, and what is good to `writer` too; `notices` hears of each change of the
    /// progress. Slices of the copy on disk that a complete list does not name are gone.
    pub fn new(
        node: &str,
        store: Store,
        writer: StoreWriter,
        notices: UnboundedSender<Progress>,
        sink: F,
    ) -> Self {
        Self {
            node: node.to_owned(),
            known: store.slice_names(),
            listed: BTreeSet::new(),
            state_seen: false,
            held: BTreeSet::new(),
            progress: Progress::default(),
            store,
            writer,
            sink,
            notices,
        }
    }

    /// Watches until it is dropped.
    pub async fn run(mut self, servers: &ApiServers) {
        let states = Api::<DeserializeGuard<NodeNetState>>::all(servers.client());
        let own = watcher::Config::default().timeout(WATCH).fields(&format!("metadata.name={}", self.node));
        let slices = Api::<DeserializeGuard<NodeNetSlice>>::all(servers.client());
        let all = watcher::Config::default().timeout(WATCH).page_size(PAGE);
        let states = watcher(states, own)
            .backoff(Backoff::default())
            .map(|event| Item::State(Box::new(event)))
            .boxed();
        let slices = watcher(slices, all)
            .backoff(Backoff::default())
            .map(|event| Item::Slice(Box::new(event)))
            .boxed();
        self.follow(futures::stream::select(states, slices)).await;
    }

    async fn follow(&mut self, mut items: impl Stream<Item = Item> + Unpin) {
        while let Some(item) = items.next().await {
            let before = self.progress.clone();
            self.item(item);
            if before != self.progress {
                // The receiver goes only when the agent stops.
                let _ = self.notices.send(self.progress.clone());
            }
        }
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::State(event) => match *event {
                Ok(event) => {
                    self.progress.error = None;
                    self.state(event);
                }
                Err(error) => self.failed("nodenetstates", &error),
            },
            Item::Slice(event) => match *event {
                Ok(event) => {
                    self.progress.error = None;
                    self.slice(event);
                }
                Err(error) => self.failed("nodenetslices", &error),
            },
        }
    }

    fn failed(&mut self, what: &str, error: &watcher::Error) {
        let mut words = format!("watch {what}: {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let more = error.to_string();
            if !words.ends_with(&more) {
                words = format!("{words}: {more}");
            }
            cause = error.source();
        }
        if self.progress.error.as_ref() != Some(&words) {
            tracing::warn!("{words}");
        }
        self.progress.error = Some(words);
    }

    fn state(&mut self, event: watcher::Event<DeserializeGuard<NodeNetState>>) {
        match event {
            watcher::Event::Init => self.state_seen = false,
            watcher::Event::Apply(guard) | watcher::Event::InitApply(guard) => {
                let name = format!("NodeNetState {}", self.node);
                match guard.0 {
                    Ok(mut state) if state.metadata.name.as_ref() == Some(&self.node) => {
                        self.state_seen = true;
                        self.progress.undecodable.remove(&name);
                        state.metadata.managed_fields = None;
                        self.writer.put_state(&state);
                        (self.sink)(Update::State(Box::new(state), Origin::Api));
                    }
                    // The field selector keeps others out; a server that ignores it does no harm.
                    Ok(_) => {}
                    Err(error) => {
                        self.state_seen = true;
                        self.undecodable(name, error.error);
                    }
                }
            }
            watcher::Event::InitDone => {
                if !self.state_seen {
                    (self.sink)(Update::StateGone);
                }
            }
            watcher::Event::Delete(_) => {
                self.state_seen = false;
                (self.sink)(Update::StateGone);
            }
        }
    }

    fn slice(&mut self, event: watcher::Event<DeserializeGuard<NodeNetSlice>>) {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                (self.sink)(Update::ListStarted);
            }
            watcher::Event::InitApply(guard) => {
                if let Some(name) = self.apply(guard) {
                    self.listed.insert(name);
                }
            }
            watcher::Event::Apply(guard) => {
                self.apply(guard);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<String> = self.known.difference(&listed).cloned().collect();
                for name in gone {
                    self.gone(&name);
                }
                self.known = listed;
                self.progress.complete = true;
                (self.sink)(Update::Listed(self.known.clone()));
            }
            watcher::Event::Delete(guard) => {
                let name = match &guard.0 {
                    Ok(slice) => slice.metadata.name.clone(),
                    Err(error) => error.metadata.name.clone(),
                };
                if let Some(name) = name {
                    self.known.remove(&name);
                    self.gone(&name);
                }
            }
        }
    }

    fn apply(&mut self, guard: DeserializeGuard<NodeNetSlice>) -> Option<String> {
        match guard.0 {
            Ok(mut slice) => {
                let name = slice.metadata.name.clone()?;
                self.progress.undecodable.remove(&format!("NodeNetSlice {name}"));
                self.known.insert(name.clone());
                self.held.insert(name.clone());
                slice.metadata.managed_fields = None;
                self.writer.put_slice(&slice);
                (self.sink)(Update::Slice(Box::new(slice)));
                Some(name)
            }
            Err(error) => {
                // Known from now on: it stands in the list, so what it held before is not gone.
                let name = error.metadata.name?;
                self.known.insert(name.clone());
                if !self.held.contains(&name)
                    && let Ok(Some(slice)) = self.store.slice(&name)
                {
                    self.held.insert(name.clone());
                    (self.sink)(Update::Slice(Box::new(slice)));
                }
                (self.sink)(Update::SliceUnreadable(name.clone()));
                self.undecodable(format!("NodeNetSlice {name}"), error.error);
                Some(name)
            }
        }
    }

    fn undecodable(&mut self, object: String, error: String) {
        tracing::warn!("{object} cannot be decoded, its last good content, if there is any, stays: {error}");
        self.progress.undecodable.insert(object, error);
    }

    fn gone(&mut self, name: &str) {
        self.progress.undecodable.remove(&format!("NodeNetSlice {name}"));
        self.held.remove(name);
        self.writer.remove_slice(name);
        (self.sink)(Update::SliceGone(name.to_owned()));
    }
}

/// Waits between attempts of a watch: 0.2 s doubling to 5 s, with jitter, so that a thousand agents do not come back to
/// a server at once.
#[derive(Default)]
struct Backoff {
    attempt: u32,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = Duration::from_millis(200 << self.attempt.min(5)).min(Duration::from_secs(5));
        self.attempt += 1;
        Some(crate::agent::clock::jitter(base, 0.5))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.attempt = 0;
    }
}
