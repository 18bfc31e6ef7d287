//! The synchronous index: every event goes in, every write comes out.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{Change, Key, Kind, Now, Output, Settings};

/// All that is known of the cluster, and what follows from it.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
}

impl Index {
    /// An index that knows nothing: every kind is incomplete.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Begins to lead: what is published now is taken over as the plan so far (holders, places in slices, revisions).
    /// Before, [`Index::plan`] yields nothing: a follower keeps its index warm by [`Index::apply`] alone. Returns
    /// everything there is to plan.
    pub fn lead(&mut self, _now: &Now) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    /// Takes one event in and returns what must be planned again because of it. Costs what the one object costs.
    pub fn apply(&mut self, _change: Change, _now: &Now) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    /// Plans the keys and all that follows from them, and returns what must be written, each write once. A key whose
    /// input is not complete yields nothing and comes back from the [`Change::Synced`] that completes it.
    pub fn plan(&mut self, _keys: &BTreeSet<Key>, _now: &Now) -> Vec<Output> {
        Vec::new()
    }

    /// The monotonic time at which something must be planned although nothing happens (a fence runs out, a delay
    /// ends): [`Index::take_due`] has its key from then on.
    pub fn due(&self) -> Option<Duration> {
        None
    }

    /// The keys whose time has come. Each is returned once.
    pub fn take_due(&mut self, _now: &Now) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    /// The kinds whose list is not complete: outputs that need them are withheld.
    pub fn incomplete(&self) -> BTreeSet<Kind> {
        BTreeSet::new()
    }
}
