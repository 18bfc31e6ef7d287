//! What the probes ask: does the loop turn, is the input there, is it fresh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nodenet_planner::Kind;
use tokio::time::Instant;

use crate::election::Leadership;

/// A loop that has not turned for this long hangs.
const LOOP_STALE: Duration = Duration::from_secs(20);
/// An API server that has not answered for this long makes what is published stale.
const API_STALE: Duration = Duration::from_secs(60);

/// Kinds without which nothing of the Services can be published.
const SERVICE_KINDS: [Kind; 5] =
    [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::NodeNetSlice, Kind::NodeNetState];

/// Shared between the loop, the watches and the probes.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    turned: Instant,
    incomplete: BTreeSet<Kind>,
    unreadable: BTreeMap<Kind, (Instant, String)>,
    started: Instant,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Just started: nothing is complete.
    pub fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State {
            turned: now,
            incomplete: Kind::ALL.into(),
            unreadable: BTreeMap::new(),
            started: now,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop has turned; these kinds are incomplete.
    pub fn turned(&self, incomplete: BTreeSet<Kind>) {
        let mut state = self.state();
        state.turned = Instant::now();
        state.incomplete = incomplete;
    }

    /// `kind` cannot be read. Returns whether that is news: the details of one trouble change with every attempt, so
    /// only what stands before the first colon is compared.
    pub fn unreadable(&self, kind: Kind, why: &str) -> bool {
        let head = |text: &str| text.split(": ").next().map(str::to_owned);
        let mut state = self.state();
        let known = state.unreadable.get(&kind);
        let news = known.is_none_or(|(_, before)| head(before) != head(why));
        let since = known.map_or_else(Instant::now, |(since, _)| *since);
        state.unreadable.insert(kind, (since, why.to_owned()));
        news
    }

    /// `kind` is read. Returns whether that is news.
    pub fn readable(&self, kind: Kind) -> bool {
        self.state().unreadable.remove(&kind).is_some()
    }

    /// Whether the process must be started anew.
    ///
    /// # Errors
    /// Why, in words.
    pub fn live(&self) -> Result<(), String> {
        let silent = self.state().turned.elapsed();
        if silent > LOOP_STALE {
            return Err(format!("the loop has not turned for {} s", silent.as_secs()));
        }
        Ok(())
    }

    /// Whether this replica could lead: it knows all that Services need.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn ready(&self) -> Result<(), String> {
        self.live()?;
        let state = self.state();
        let missing: Vec<_> = SERVICE_KINDS.iter().filter(|k| state.incomplete.contains(k)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let words: Vec<_> = missing
            .iter()
            .map(|kind| match state.unreadable.get(kind) {
                Some((_, why)) => format!("{kind}: {why}"),
                None => format!("{kind}: not listed yet"),
            })
            .collect();
        Err(words.join("\n"))
    }

    /// Whether what is published is fresh.
    ///
    /// # Errors
    /// What is stale, in words.
    pub fn fresh(&self, leadership: &Leadership) -> Result<(), String> {
        self.live()?;
        let state = self.state();
        let mut words: Vec<_> = state
            .unreadable
            .iter()
            .filter(|(_, (since, _))| since.elapsed() > API_STALE)
            .map(|(kind, (since, why))| {
                format!("{kind}: unreadable for {} s: {why}", since.elapsed().as_secs())
            })
            .collect();
        let heard = leadership.heard().unwrap_or(state.started).elapsed();
        if heard > API_STALE {
            words.push(format!("the API server has not answered for {} s", heard.as_secs()));
        }
        if words.is_empty() { Ok(()) } else { Err(words.join("\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::{Election, KubeLease, Timing};

    #[tokio::test(start_paused = true)]
    async fn stale_input_is_not_healthy_but_alive_and_a_missing_kind_of_virtual_ips_leaves_it_ready() {
        let client =
            kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let (_election, leadership) =
            Election::new(KubeLease::new(client, "a", "b"), "me".into(), Timing::default());
        let health = Health::new();
        assert!(health.ready().unwrap_err().contains("Service: not listed yet"));
        health.turned([Kind::VirtualIP].into());
        health.unreadable(Kind::VirtualIP, "no such kind");
        assert_eq!(health.ready(), Ok(()));
        assert_eq!(health.fresh(&leadership), Ok(()));
        tokio::time::advance(Duration::from_secs(61)).await;
        health.turned([Kind::VirtualIP].into());
        assert_eq!(health.live(), Ok(()));
        assert!(
            health.fresh(&leadership).unwrap_err().contains("VirtualIP: unreadable for 61 s: no such kind")
        );
        tokio::time::advance(Duration::from_secs(21)).await;
        assert!(health.live().unwrap_err().contains("21 s"));
    }
}
