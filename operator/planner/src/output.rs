//! What is to be written.

use nodenet_crds::{NodeNetSliceSpec, NodeNetStateSpec, VirtualIPStatus};

use crate::ObjectRef;

/// What is planned as one. Keys come from [`crate::Index::apply`] and [`crate::Index::take_due`] and go to
/// [`crate::Index::plan`]; equal keys may be merged in between.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The placement, conditions and status of a VirtualIP.
    VirtualIP(String),
    /// The plan of a Service.
    Service {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The content of a NodeNetSlice.
    Slice(String),
    /// The NodeNetState of a Node.
    Node(String),
}

impl Key {
    /// Key of a Service.
    pub fn service(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self::Service { namespace: namespace.into(), name: name.into() }
    }
}

/// What the API server must still hold when a write arrives; otherwise the write must fail (and be reported as
/// [`crate::Change::WriteFailed`]), because another writer was there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    /// UID of the object.
    pub uid: Option<String>,
    /// Version of the object.
    pub resource_version: Option<String>,
}

/// One write. Those of one [`crate::Index::plan`] stand in the order in which they should be sent; nothing breaks when
/// one fails or they overtake each other, because what depends on a write is only planned once the write was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Create or replace a NodeNetSlice, with the finalizer [`nodenet_crds::SLICE_FINALIZER`]. The answer goes back as
    /// [`crate::Change::Wrote`] or [`crate::Change::WriteFailed`].
    PutSlice {
        /// Name.
        name: String,
        /// Whole content.
        spec: NodeNetSliceSpec,
        /// The version that is replaced; `None`: the object is to be created and must not exist.
        replaces: Option<Precondition>,
    },
    /// Delete a NodeNetSlice whose content nobody needs. It stays, terminating, until [`Output::ReleaseSlice`].
    DeleteSlice {
        /// Name.
        name: String,
        /// The version that is deleted.
        expect: Precondition,
    },
    /// Remove [`nodenet_crds::SLICE_FINALIZER`] from a terminating NodeNetSlice: its content is published elsewhere.
    ReleaseSlice {
        /// Name.
        name: String,
        /// The version that is released.
        expect: Precondition,
    },
    /// Create or replace the spec of a NodeNetState, owned by its Node. The answer goes back as
    /// [`crate::Change::Wrote`] or [`crate::Change::WriteFailed`].
    PutState {
        /// Name of the Node.
        node: String,
        /// UID of the Node, for the owner reference.
        node_uid: Option<String>,
        /// Whole spec.
        spec: NodeNetStateSpec,
        /// The version that is replaced; `None`: the object is to be created and must not exist. Agents write the
        /// status of the same object, which only costs another look: a leader that does not know what is published
        /// must not give an address to a node.
        replaces: Option<Precondition>,
    },
    /// Delete the NodeNetState of a Node that does not exist any more.
    DeleteState {
        /// Name.
        node: String,
        /// The object that is deleted.
        expect: Precondition,
    },
    /// Replace the status of a VirtualIP. A failure goes back as [`crate::Change::WriteFailed`].
    VirtualIPStatus {
        /// Name.
        name: String,
        /// UID that the status speaks of.
        uid: Option<String>,
        /// Whole status.
        status: VirtualIPStatus,
    },
    /// Tell people about a change of state.
    Event(Event),
}

/// Whether an event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// As expected.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    /// The API's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An event about an object (`events.k8s.io/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub regarding: ObjectRef,
    /// UID of that object.
    pub uid: Option<String>,
    /// Good or bad news.
    pub type_: EventType,
    /// CamelCase word, at most 128 characters.
    pub reason: &'static str,
    /// What was done, CamelCase.
    pub action: &'static str,
    /// One sentence for people, at most 1024 characters.
    pub note: String,
    /// It was so when this process began to lead, so another one may have told it: where there is an Event that says the
    /// same of the same object, that is enough.
    pub again: bool,
}
