//! What must change in the kernel: the smallest ordered transaction from what is observed to what is desired.
//!
//! Pure: no clock, no I/O. Only what the scope names is compared; only what is ours is removed, and nothing before its
//! input is complete ([`Prune`]). Some changes take more than one round, because the next step is only safe once the
//! last was seen in the kernel; observing and comparing again until the transaction is empty is the one way to apply.

mod addresses;
mod draining;
mod ownership;
mod sets;
mod virtual_servers;

use std::time::Duration;

use ipnet::IpNet;

pub use addresses::renewal;
pub use draining::Draining;
pub use ownership::{Journal, Look};

use crate::filter::InsideMarks;
use crate::state::{
    AddressKey, Family, KubeProxy, NodeState, Operation, Protocol, SERVICE_INTERFACE, Scope, Transaction,
    VirtualServer, VirtualServerKey,
};

/// What may be removed: absent from an incomplete input is not absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// Addresses: the node's own state was read from the API server.
    pub addresses: bool,
    /// Real servers of virtual servers that are wanted: all slices that can be read were read too.
    pub real_servers: bool,
    /// Everything else: there is no slice that cannot be read.
    pub services: bool,
}

impl Prune {
    /// Everything may be removed.
    pub const ALL: Self = Self { addresses: true, real_servers: true, services: true };
}

/// What a comparison needs beside the two states.
#[derive(Debug)]
pub struct Context<'a> {
    /// What is ours without the kernel saying so.
    pub journal: &'a Journal,
    /// What may be removed.
    pub prune: Prune,
    /// Who else has virtual servers here.
    pub others: &'a Others,
    /// Real servers that take no new connections and go when their connections have gone.
    pub draining: &'a mut Draining,
    /// Time on any clock that only goes forward.
    pub now: Duration,
    /// How long a real server may keep old connections.
    pub drain_timeout: Duration,
    /// Which marks say whether connections have an end.
    pub inside: InsideMarks,
}

/// Others whose virtual servers are not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Ranges in which no virtual server is ours but those that the journal names.
    pub excluded: Vec<IpNet>,
    /// kube-proxy, where what it serves is its own: it runs, or nobody asked to take it over.
    pub kube_proxy: Option<KubeProxy>,
}

/// There is nobody else.
pub static NOBODY: Others = Others { excluded: Vec::new(), kube_proxy: None };

impl Others {
    /// Whether only the journal says whose a virtual server is.
    pub fn excludes(&self, key: &VirtualServerKey) -> bool {
        matches!(key, VirtualServerKey::Address(_, address, _)
            if self.excluded.iter().any(|range| range.contains(address)))
    }

    /// Whether a virtual server is kube-proxy's.
    fn have(&self, key: &VirtualServerKey, server: &VirtualServer) -> bool {
        self.kube_proxy.as_ref().is_some_and(|kube_proxy| kube_proxy.serves(key, server))
    }
}

impl Context<'_> {
    /// Whether a virtual server is ours.
    fn owns(&self, key: &VirtualServerKey) -> bool {
        self.journal.virtual_servers.contains(key)
            || (self.journal.in_ranges(key) && !self.others.excludes(key))
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What to do. Empty: the kernel is as wanted.
    pub transaction: Transaction,
    /// What is (or becomes) ours and is not in the journal: to be written there before the commit.
    pub claims: Journal,
    /// What stands in the way and is not touched.
    pub notes: Vec<Note>,
    /// What must be looked at as well before the rest can be decided: merge it into the scope of the next round.
    pub widen: Scope,
}

/// Something that is not ours stands where something of ours should.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// The address is there, by another hand: it serves, but it is neither renewed nor removed.
    ForeignAddress(AddressKey),
    /// Outside of the service ranges there is a virtual server of another hand, with real servers or a scheduler of its
    /// own: neither it nor its real servers are touched.
    ForeignVirtualServer(VirtualServerKey),
    /// An interface of our name is of another kind.
    ForeignLink {
        /// Its kind.
        kind: String,
    },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ForeignAddress(key) => write!(
                f,
                "address {} on {} was set by another hand: it is left alone and does not move",
                key.address, key.interface
            ),
            Self::ForeignVirtualServer(key) => write!(
                f,
                "a virtual server of another hand is there (ipvsadm: {0}): it is left alone and the Service is not \
                 served there; remove it with `ipvsadm -D {0}` or change the port",
                ipvsadm(key)
            ),
            Self::ForeignLink { kind } => {
                write!(f, "interface {SERVICE_INTERFACE} exists but is of kind \"{kind}\" instead of dummy")
            }
        }
    }
}

/// A virtual server as ipvsadm takes it.
fn ipvsadm(key: &VirtualServerKey) -> String {
    match key {
        VirtualServerKey::Address(protocol, address, port) => {
            let option = match protocol {
                Protocol::TCP => "-t",
                Protocol::UDP => "-u",
                Protocol::SCTP => "--sctp-service",
            };
            format!("{option} {}", std::net::SocketAddr::new(*address, *port))
        }
        VirtualServerKey::FirewallMark(Family::V4, mark) => format!("-f {mark}"),
        VirtualServerKey::FirewallMark(Family::V6, mark) => format!("-f {mark} -6"),
    }
}

/// Kind of [`SERVICE_INTERFACE`].
pub(crate) const SERVICE_INTERFACE_KIND: &str = "dummy";

/// Compares the part of both states that `scope` names.
pub fn diff(desired: &NodeState, observed: &NodeState, scope: &Scope, context: &mut Context<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut operations = Vec::new();
    for module in &scope.modules {
        if desired.modules.get(module) == Some(&true) && observed.modules.get(module) != Some(&true) {
            operations.push(Operation::LoadModule(module.clone()));
        }
    }
    for name in &scope.sysctls {
        if let Some(value) = desired.sysctls.get(name)
            && observed.sysctls.get(name) != Some(value)
        {
            operations.push(Operation::SetSysctl(name.clone(), value.clone()));
        }
    }
    if scope.links {
        links(desired, observed, context.prune, &mut operations, &mut outcome);
    }
    if scope.routes {
        for route in desired.routes.difference(&observed.routes) {
            operations.push(Operation::AddRoute(route.clone()));
        }
        if context.prune.services {
            for route in observed.routes.difference(&desired.routes) {
                operations.push(Operation::DeleteRoute(route.clone()));
            }
        }
        let ranges = desired.routes.iter().filter(|route| route.is_range()).map(|route| route.range);
        outcome.claims.ranges = ranges.filter(|range| !context.journal.ranges.contains(range)).collect();
    }
    sets::compare(desired, observed, scope, context.prune, &mut operations, &mut outcome);
    virtual_servers::compare(desired, observed, scope, context, &mut operations, &mut outcome);
    if scope.addresses {
        addresses::compare(desired, observed, context, &mut operations, &mut outcome);
    }
    outcome.transaction = Transaction::new(operations);
    outcome
}

fn links(
    desired: &NodeState,
    observed: &NodeState,
    prune: Prune,
    operations: &mut Vec<Operation>,
    outcome: &mut Outcome,
) {
    let there = observed.links.get(SERVICE_INTERFACE);
    let wanted = desired.links.contains_key(SERVICE_INTERFACE);
    match there {
        Some(link) if link.kind != SERVICE_INTERFACE_KIND && wanted => {
            outcome.notes.push(Note::ForeignLink { kind: link.kind.clone() });
        }
        Some(link) if wanted && !link.up => operations.push(Operation::AddLink(SERVICE_INTERFACE.into())),
        None if wanted => operations.push(Operation::AddLink(SERVICE_INTERFACE.into())),
        Some(link) if link.kind == SERVICE_INTERFACE_KIND && !wanted && prune.services => {
            operations.push(Operation::DeleteLink(SERVICE_INTERFACE.into()));
        }
        _ => {}
    }
}
