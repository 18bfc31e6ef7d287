//! The planner: what the cluster says (Nodes, Services, EndpointSlices, VirtualIPs, Leases) and what is published
//! already (NodeNetStates, NodeNetSlices) in, what is to be written out.
//!
//! It is pure and synchronous: no client, no runtime, no clock. Time comes in as [`Now`], every event as a
//! [`Change`], every write leaves as an [`Output`]. The same [`Index`] serves the operator (fed by watches) and
//! [`render`] (fed by files).
//!
//! ```text
//! Change ─► Index::apply ─► keys ─► (queue, debounce) ─► Index::plan ─► Outputs ─► API server
//!    ▲                        ▲                                                        │
//!    │                        └──── Index::take_due (deadlines: Index::due)            │
//!    └──────────────── Change::Wrote / Change::WriteFailed, and the watches ◄──────────┘
//! ```
//!
//! What holds, and where it is kept:
//! * nothing is written before the input that it needs is complete ([`Index::plan`]);
//! * the slices always hold a complete plan of each Service that had one (`slices`);
//! * an address moves to another node only when the old holder has surely let go (`placement`).

mod accept;
mod agents;
mod bindings;
mod change;
mod complaints;
mod external;
mod index;
mod inside;
mod layout;
mod node;
mod output;
mod parts;
mod placement;
mod render;
mod selector;
mod service;
mod settings;
mod slices;
mod vip;
mod vip_status;

pub use change::{Change, Kind, Object, ObjectRef};
pub use index::Index;
pub use output::{Event, EventType, Key, Output, Precondition};
pub use render::{Rendered, render};
pub use settings::{NodePortAddresses, Settings, SettingsError};

use std::time::Duration;

/// The time at which something is observed or planned.
#[derive(Clone, Debug, PartialEq)]
pub struct Now {
    /// Time since an arbitrary start, never set back: ages and deadlines are counted in it.
    pub monotonic: Duration,
    /// Time of day, for what people read (`since`, `lastTransitionTime`).
    pub wall: k8s_openapi::jiff::Timestamp,
}
