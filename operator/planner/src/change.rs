//! What happens outside, as the index is told of it.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nodenet_crds::{NodeNetSlice, NodeNetState, VirtualIP};

/// A kind of object that the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// VirtualIP.
    VirtualIP,
    /// NodeNetState.
    NodeNetState,
    /// NodeNetSlice.
    NodeNetSlice,
    /// `coordination.k8s.io/v1` Lease, of the namespace of the agents' Leases only. It carries its Node's name.
    Lease,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::VirtualIP,
        Self::NodeNetState,
        Self::NodeNetSlice,
        Self::Lease,
    ];

    /// The kind's name in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::VirtualIP => "VirtualIP",
            Self::NodeNetState => "NodeNetState",
            Self::NodeNetSlice => "NodeNetSlice",
            Self::Lease => "Lease",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// A cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, namespace: String::new(), name: name.into() }
    }

    /// An object in a namespace.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An object as the API server or a file has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// See [`Kind::Node`].
    Node(Box<Node>),
    /// See [`Kind::Service`].
    Service(Box<Service>),
    /// See [`Kind::EndpointSlice`].
    EndpointSlice(Box<EndpointSlice>),
    /// See [`Kind::VirtualIP`].
    VirtualIP(Box<VirtualIP>),
    /// See [`Kind::NodeNetState`].
    NodeNetState(Box<NodeNetState>),
    /// See [`Kind::NodeNetSlice`].
    NodeNetSlice(Box<NodeNetSlice>),
    /// See [`Kind::Lease`].
    Lease(Box<Lease>),
}

macro_rules! from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        }
    )*};
}
from!(Node, Service, EndpointSlice, VirtualIP, NodeNetState, NodeNetSlice, Lease);

impl Object {
    /// The object's metadata.
    pub fn metadata(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        match self {
            Self::Node(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::VirtualIP(o) => &o.metadata,
            Self::NodeNetState(o) => &o.metadata,
            Self::NodeNetSlice(o) => &o.metadata,
            Self::Lease(o) => &o.metadata,
        }
    }

    /// The object's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::VirtualIP(_) => Kind::VirtualIP,
            Self::NodeNetState(_) => Kind::NodeNetState,
            Self::NodeNetSlice(_) => Kind::NodeNetSlice,
            Self::Lease(_) => Kind::Lease,
        }
    }

    /// The object's name, with kind and namespace.
    pub fn object_ref(&self) -> ObjectRef {
        let meta = self.metadata();
        ObjectRef {
            kind: self.kind(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A watch shows this version of an object (listed, added or modified).
    Upsert(Object),
    /// A watch shows that an object is gone.
    Delete(ObjectRef),
    /// A watch shows an object that cannot be decoded. Its last good version stays in force; where there is none, what
    /// is published for it stays. For an EndpointSlice, `service` is the value of its label
    /// [`nodenet_crds::LABEL_SERVICE_NAME`], where that could be read.
    Undecodable {
        /// The object.
        object: ObjectRef,
        /// Service of an EndpointSlice.
        service: Option<String>,
        /// Why it cannot be decoded.
        error: String,
    },
    /// A watch begins to list anew. The kind is incomplete until [`Change::Synced`]; what is known of it stays.
    Listing(Kind),
    /// A watch was lost (an error, the API server is away). As [`Change::Listing`]: the kind is incomplete until a new
    /// list has ended. Ages of Leases are not counted meanwhile.
    Lost(Kind),
    /// The list of a kind has ended: what was not shown since [`Change::Listing`] is gone.
    Synced(Kind),
    /// The API server has accepted an [`crate::Output::PutSlice`] or [`crate::Output::PutState`]; this is its answer.
    Wrote(Object),
    /// A write to this object failed (conflict, refused, API server away): the keys that come back plan it again. Call it
    /// after a back-off: the planner keeps none.
    WriteFailed(ObjectRef),
}
