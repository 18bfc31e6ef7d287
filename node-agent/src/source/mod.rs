//! Where the desired state comes from: the API server ([`api_servers`], [`watch`]) and, where it is out of reach, the
//! copy on disk ([`store`]).
//!
//! All of it arrives at the lanes as [`Update`]s, in the same form from both.

pub mod api_servers;
pub mod store;
pub mod watch;

use nodenet_crds::{NodeNetSlice, NodeNetState};

/// Who said what the node must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The API server.
    Api,
    /// The copy on disk.
    Disk,
}

/// One change of the desired state.
#[derive(Clone, Debug)]
pub enum Update {
    /// The node's own NodeNetState is this now.
    State(Box<NodeNetState>, Origin),
    /// The node has no NodeNetState. Nothing is removed for it: absent is not empty.
    StateGone,
    /// A slice is this now.
    Slice(Box<NodeNetSlice>),
    /// A slice is gone. Said only by the API server itself: a deletion, or a complete list without it.
    SliceGone(String),
    /// The complete list of slices and the node's own state were read from the API server: what nobody wants may go.
    Complete,
    /// No API server is in reach, and the copy on disk was handed over, complete or not: it is put into force, and
    /// nothing is removed for its sake.
    Cold,
}
