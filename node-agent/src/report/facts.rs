//! What the lanes and the watch know, in the form that the status is made of.

use std::collections::BTreeMap;

use nodenet_crds::conditions::{Status, reason};
use nodenet_crds::{Failure, InterfaceOnNode, Progress, VirtualIPOnNode};

/// What is to be said about one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: Status,
    /// One of [`reason`].
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Verdict {
    /// It holds.
    pub fn ready(message: impl Into<String>) -> Self {
        Self { status: Status::True, reason: reason::READY, message: message.into() }
    }

    /// It does not hold.
    pub fn not(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: Status::False, reason, message: message.into() }
    }

    /// Nothing is known yet.
    pub fn pending(message: impl Into<String>) -> Self {
        Self { status: Status::Unknown, reason: reason::PENDING, message: message.into() }
    }

    /// The worse of both; of two equal ones both messages.
    pub fn and(self, other: Self) -> Self {
        let rank = |v: &Self| match v.status {
            Status::False => 2,
            Status::Unknown => 1,
            Status::True => 0,
        };
        match rank(&self).cmp(&rank(&other)) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => {
                let message = match (self.message.is_empty(), other.message.is_empty()) {
                    (_, true) => self.message,
                    (true, false) => other.message,
                    (false, false) => format!("{}; {}", self.message, other.message),
                };
                Self { message, ..self }
            }
        }
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Self::pending("the agent has not looked yet")
    }
}

/// What the address lane knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddressFacts {
    /// Generation of the NodeNetState that these facts speak of.
    pub generation: Option<i64>,
    /// Settings that addresses need.
    pub kernel: Verdict,
    /// Addresses of virtual IPs.
    pub addresses: Verdict,
    /// Virtual IPs on this node.
    pub virtual_ips: Vec<VirtualIPOnNode>,
    /// Interfaces with the node's own subnets.
    pub interfaces: Vec<InterfaceOnNode>,
    /// Next hops of the node's default routes, in order.
    pub gateways: Vec<std::net::IpAddr>,
    /// What could not be done.
    pub failures: Vec<Failure>,
    /// Whether a virtual IP is assigned: the Lease is renewed at the quick pace then.
    pub candidate: bool,
    /// Whether an address of an earlier agent lives longer than a renewal gives: the Lease must cover it.
    pub outliving: bool,
}

/// What the service lane knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceFacts {
    /// Generation of the NodeNetState that these facts speak of.
    pub generation: Option<i64>,
    /// Highest publication number of the slices in the kernel.
    pub slice_revision: Option<i64>,
    /// Modules and settings.
    pub kernel: Verdict,
    /// Our interface and the local routes.
    pub addresses: Verdict,
    /// Sets and rules.
    pub packet_filter: Verdict,
    /// Virtual and real servers.
    pub virtual_servers: Verdict,
    /// What load balancers may ask.
    pub health_checks: Verdict,
    /// Virtual servers in numbers.
    pub servers: Progress,
    /// What could not be done.
    pub failures: Vec<Failure>,
    /// What kube-proxy left is being taken over, or waits to be.
    pub takeover: bool,
}

/// What is known about where the desired state comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceFacts {
    /// Objects that cannot be decoded, with why.
    pub undecodable: BTreeMap<String, String>,
    /// Why the copy on disk could not be written.
    pub store: Option<String>,
    /// Words about an operator that has not renewed its Lease; `None` while it does.
    pub operator_silent: Option<String>,
}

/// Something that happened and deserves an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether somebody should look.
    pub warning: bool,
    /// CamelCase, stable.
    pub reason: &'static str,
    /// What the agent did.
    pub action: &'static str,
    /// In words.
    pub note: String,
    /// Virtual IP that it is about, if it is about one.
    pub virtual_ip: Option<String>,
}
