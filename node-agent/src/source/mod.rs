//! Where the desired state comes from: the API server ([`watch`]) and, where it is out of reach, the copy on disk
//! ([`store`]).
//!
//! All of it arrives at the lanes as [`Update`]s, in the same form from both.

pub mod store;
pub mod watch;

use std::collections::BTreeSet;

pub use crate::resolve::Origin;
use nodenet_crds::{NodeNetSlice, NodeNetState};

/// One change of the desired state.
#[derive(Clone, Debug)]
pub enum Update {
    /// The node's own NodeNetState is this now.
    State(Box<NodeNetState>, Origin),
    /// The node has no NodeNetState. Nothing is removed for it: absent is not empty.
    StateGone,
    /// A slice is this now.
    Slice(Box<NodeNetSlice>),
    /// A slice is there, by this name, and cannot be read. Its last good content, if there is any, was handed over.
    SliceUnreadable(String),
    /// A slice is gone. Said only by the API server itself: a deletion, or a complete list without it.
    SliceGone(String),
    /// A list of slices begins. Until it ends, a Service that no slice mentions may stand in one still to come.
    ListStarted,
    /// A list of slices was complete, with these names: what nobody wants may go, unless it may stand in one of them that
    /// cannot be read.
    Listed(BTreeSet<String>),
    /// The API server does not give everything, and the copy on disk was handed over: what is there is put into force,
    /// and nothing is removed for its sake.
    Cold,
}
