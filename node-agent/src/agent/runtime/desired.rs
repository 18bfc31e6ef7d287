//! The way of the desired state to the lanes: from the watch as it comes, from the copy on disk when nothing comes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nodenet_crds::{NodeNetState, NodeNetStateStatus};
use tokio::sync::watch;

use super::Config;
use crate::agent::{address_lane, service_lane};
use crate::source::store::Store;
use crate::source::{Origin, Update};

/// What the sink of the watch and the cold start share.
#[derive(Default)]
pub(super) struct Arrived {
    state: bool,
    slices: BTreeSet<String>,
    any: Option<Instant>,
}

/// What the API server has of the node's own object.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Nothing,
    Gone,
    Status { uid: Option<String>, status: Option<Box<NodeNetStateStatus>> },
}

pub(super) fn sink(
    to_addresses: Sender<address_lane::Message>,
    to_services: Sender<service_lane::Message>,
    arrived: Arc<Mutex<Arrived>>,
    complete: Arc<AtomicBool>,
    seen: watch::Sender<Seen>,
) -> impl FnMut(Update) {
    let mut spec = None;
    move |update| {
        {
            let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            // The start of a list says nothing: each attempt begins with it.
            if matches!(update, Update::State(..) | Update::Slice(_)) {
                arrived.any = Some(Instant::now());
            }
            match &update {
                Update::State(..) => arrived.state = true,
                Update::Slice(slice) if !complete.load(Ordering::Acquire) => {
                    arrived.slices.extend(slice.metadata.name.clone());
                }
                Update::Listed(_) => {
                    complete.store(true, Ordering::Release);
                    arrived.slices.clear();
                }
                _ => {}
            }
        }
        match &update {
            Update::State(state, origin) => {
                let status = state.status.clone().map(Box::new);
                seen.send_replace(Seen::Status { uid: state.metadata.uid.clone(), status });
                // The own writes of the status come back here too: they change nothing.
                let now = (state.metadata.uid.clone(), state.metadata.generation, state.spec.clone());
                if spec.as_ref() == Some(&now) {
                    return;
                }
                spec = Some(now);
                // The lanes go only when the agent stops; so for all that follow.
                let _ = to_addresses.send(address_lane::Message::State(state.clone(), *origin));
            }
            Update::StateGone => {
                spec = None;
                seen.send_replace(Seen::Gone);
                let _ = to_addresses.send(address_lane::Message::StateGone);
            }
            _ => {}
        }
        let _ = to_services.send(service_lane::Message::Update(update, Instant::now()));
    }
}

/// Puts the copy on disk into force when the API server does not give the whole state in time, or has no readable object
/// of this node. What it gave already is newer than the copy.
pub(super) async fn cold_start(
    config: Config,
    store: Store,
    stored: Option<NodeNetState>,
    arrived: Arc<Mutex<Arrived>>,
    complete: Arc<AtomicBool>,
    to_services: Sender<service_lane::Message>,
) {
    loop {
        tokio::time::sleep(config.grace).await;
        let complete = complete.load(Ordering::Acquire);
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        if complete && arrived.state {
            return;
        }
        // A long list that is still arriving is better than the copy; without any state there is nothing to put into
        // force.
        let arriving = arrived.any.is_some_and(|last| last.elapsed() < config.grace);
        if (complete || !arriving) && (arrived.state || stored.is_some()) {
            break;
        }
    }
    let send = |update| drop(to_services.send(service_lane::Message::Update(update, Instant::now())));
    let (state, slices) = {
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        (arrived.state, arrived.slices.clone())
    };
    if let Some(stored) = stored.filter(|_| !state) {
        send(Update::State(Box::new(stored), Origin::Disk));
    }
    let mut count = 0;
    let missing = if complete.load(Ordering::Acquire) { BTreeSet::new() } else { store.slice_names() };
    for name in missing.difference(&slices) {
        match store.slice(name) {
            Ok(Some(slice)) => {
                count += 1;
                send(Update::Slice(Box::new(slice)));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    tracing::warn!(
        "no API server gave the whole state within {} s: what is known ({count} slices from the copy on disk) is put \
         into force, nothing is removed",
        config.grace.as_secs()
    );
    send(Update::Cold);
}
