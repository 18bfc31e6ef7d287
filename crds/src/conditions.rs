//! Condition types and reasons, and the one way to set them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Summary of all other conditions of an object.
pub const READY: &str = "Ready";

/// Conditions of a VirtualIP.
pub mod virtual_ip {
    /// The spec is valid and claims nothing that belongs to another.
    pub const ACCEPTED: &str = "Accepted";
    /// The holder's agent has put the addresses and the virtual servers into the kernel.
    pub const PROGRAMMED: &str = "Programmed";
    /// Exactly one node holds the addresses.
    pub const HELD: &str = "Held";
}

/// Conditions of a NodeNetState.
pub mod node {
    /// Modules and settings are there.
    pub const KERNEL_READY: &str = "KernelReady";
    /// Addresses and local routes are there.
    pub const ADDRESSES_READY: &str = "AddressesReady";
    /// Virtual and real servers are there.
    pub const VIRTUAL_SERVERS_READY: &str = "VirtualServersReady";
    /// Sets and rules are there.
    pub const PACKET_FILTER_READY: &str = "PacketFilterReady";
    /// What others ask this node by HTTP is answered: ports of health checks, and the proxy's own health.
    pub const HEALTH_CHECKS_READY: &str = "HealthChecksReady";
    /// All of the above, in the order of the summary: the first that is not True gives Ready its reason, and is what Ready
    /// is, but for the last: a node serves whether or not load balancers can ask it.
    pub const ALL: &[&str] =
        &[KERNEL_READY, ADDRESSES_READY, PACKET_FILTER_READY, VIRTUAL_SERVERS_READY, HEALTH_CHECKS_READY];
}

/// Reasons of conditions: CamelCase, stable, documented in `docs/conditions.md`.
pub mod reason {
    /// Everything is as wanted.
    pub const READY: &str = "Ready";
    /// Nothing is known yet.
    pub const PENDING: &str = "Pending";
    /// The spec was accepted.
    pub const ACCEPTED: &str = "Accepted";
    /// A field of the spec is invalid; the message names it and what must change.
    pub const INVALID: &str = "Invalid";
    /// An address belongs to an older VirtualIP.
    pub const ADDRESS_CONFLICT: &str = "AddressConflict";
    /// An address is a node's own, or lies in the service or pod ranges.
    pub const ADDRESS_IN_USE: &str = "AddressInUse";
    /// The node selector matches no node.
    pub const NO_MATCHING_NODES: &str = "NoMatchingNodes";
    /// No node has a subnet that holds the address, or the named interface.
    pub const NO_CANDIDATE: &str = "NoCandidate";
    /// A Service that the VirtualIP names does not exist.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// Something is in the kernel as wanted.
    pub const PROGRAMMED: &str = "Programmed";
    /// The holder's agent has not reported yet.
    pub const NOT_PROGRAMMED: &str = "NotProgrammed";
    /// One node holds the addresses.
    pub const HELD: &str = "Held";
    /// No node holds the addresses.
    pub const NOT_HELD: &str = "NotHeld";
    /// More than one node holds an address.
    pub const DUPLICATE_OWNER: &str = "DuplicateOwner";
    /// A holder was lost; the operator waits until its addresses have surely run out.
    pub const WAITING_FOR_FENCE: &str = "WaitingForFence";
    /// All agents' Leases stopped at once: the API was away, so nothing moves.
    pub const AGENTS_SILENT: &str = "AgentsSilent";
    /// The operator has not renewed its Lease for a while: plans are stale.
    pub const OPERATOR_SILENT: &str = "OperatorSilent";
    /// The API server cannot be reached: the last good state stays in force.
    pub const API_SERVER_UNREACHABLE: &str = "ApiServerUnreachable";
    /// A part of a Service's plan is missing, or a slice cannot be read; what was known last stays.
    pub const SLICE_INCOMPLETE: &str = "SliceIncomplete";
    /// A kernel module is missing; the message names the command that loads it.
    pub const MODULE_MISSING: &str = "ModuleMissing";
    /// A kernel setting is not as wanted and could not be changed.
    pub const SYSCTL_REFUSED: &str = "SysctlRefused";
    /// The kernel refused something; the message carries its words.
    pub const KERNEL_REFUSED: &str = "KernelRefused";
    /// An address is in no subnet of the link: other hosts have no route to it.
    pub const ADDRESS_NOT_ON_LINK: &str = "AddressNotOnLink";
    /// The interface does not exist or is down.
    pub const INTERFACE_MISSING: &str = "InterfaceMissing";
    /// Another host answers for an address.
    pub const ADDRESS_TAKEN: &str = "AddressTaken";
    /// Another program listens on a port that load balancers ask on.
    pub const PORT_IN_USE: &str = "PortInUse";
    /// A port that load balancers ask on cannot be listened on; the message carries the kernel's words.
    pub const LISTEN_REFUSED: &str = "ListenRefused";
    /// The agent does not hear of changes in the kernel, or of other owners of addresses, and tries again.
    pub const LISTENER_FAILING: &str = "ListenerFailing";
    /// kube-proxy runs on the node: Services are left to it.
    pub const KUBE_PROXY_ACTIVE: &str = "KubeProxyActive";
    /// Services are not served by nodenet, because its settings say so.
    pub const SERVICE_PROXY_OFF: &str = "ServiceProxyOff";
    /// kube-proxy served here before the node was started again and has not started yet.
    pub const KUBE_PROXY_AWAITED: &str = "KubeProxyAwaited";
    /// kube-proxy is stopped, and what it made is still there.
    pub const KUBE_PROXY_LEFTOVERS: &str = "KubeProxyLeftovers";
    /// What kube-proxy left was taken over, and the rest of it removed.
    pub const KUBE_PROXY_TAKEN_OVER: &str = "KubeProxyTakenOver";
    /// Another hand changed what is ours; it was put back.
    pub const DRIFT_REPAIRED: &str = "DriftRepaired";
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known.
    Unknown,
}

impl Status {
    /// The API's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Longest message that the API accepts in a condition (bytes, `metav1.Condition`).
pub const MESSAGE_MAX: usize = 32768;
/// Longest message that is written: a person reads it.
const MESSAGE_KEPT: usize = 1024;

/// Sets the condition `type_`; `lastTransitionTime` changes only with the status. Returns whether anything changed.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: Status,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) -> bool {
    let mut message: String = message.into();
    if message.len() > MESSAGE_KEPT {
        let mut end = MESSAGE_KEPT;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(c) => {
            let same_status = c.status == status.as_str();
            if same_status
                && c.reason == reason
                && c.message == message
                && c.observed_generation == generation
            {
                return false;
            }
            if !same_status {
                c.status = status.as_str().to_owned();
                c.last_transition_time = now;
            }
            c.reason = reason.to_owned();
            c.message = message;
            c.observed_generation = generation;
            true
        }
        None => {
            conditions.push(Condition {
                type_: type_.to_owned(),
                status: status.as_str().to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: generation,
                last_transition_time: now,
            });
            true
        }
    }
}

/// The condition `type_`, if it was ever set.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition `type_` is True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|c| c.status == "True")
}
