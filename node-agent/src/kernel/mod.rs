//! The kernel as the agent sees it: observe a scope, commit a transaction, hear of changes.
//!
//! Calls block; each lane of the agent runs on a thread of its own with a `Kernel` of its own, so that a failover is
//! never queued behind ten thousand virtual servers.

pub mod fake;
pub mod netlink;

use crate::state::{KubeProxy, NodeState, Operation, Scope, Transaction};

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try again with backoff: busy, out of buffers, interrupted dump.
    Retry,
    /// The kernel is not as thought (exists, missing): observe again and compare again.
    Conflict,
    /// The object cannot be as wanted; trying again does not help until it changes.
    Invalid,
    /// The kernel lacks what is needed, or access to it: nothing of this sort will work.
    Fatal,
}

/// Why the kernel did not do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel answered with an error number, and in its extended ack with words.
    #[error("{operation} {object}: {}{}", std::io::Error::from_raw_os_error(*.errno), .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// What was tried, for example `add`.
        operation: &'static str,
        /// The object, for example `virtual server TCP 10.0.0.1:443`.
        object: String,
        /// Error number, positive.
        errno: i32,
        /// The kernel's own words, where it gave any.
        message: Option<String>,
    },
    /// A socket or a file could not be used.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A message of the kernel could not be read.
    #[error("{operation} {object}: unreadable answer: {source}")]
    Decode {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program (`iptables-restore`) failed.
    #[error("{operation} {object}: {program} ended with {status}: {stderr}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The program.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said, shortened.
        stderr: String,
    },
    /// A program did not end in time; it was killed.
    #[error("{operation} {object}: {program} did not end within {} s and was killed", .limit.as_secs_f32())]
    Late {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The program.
        program: String,
        /// How long it was waited for.
        limit: std::time::Duration,
    },
    /// The kernel does not have the feature at all.
    #[error("{operation} {object}: the kernel has no {feature}; load it with `modprobe {module}`")]
    Missing {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// For example `IPVS`.
        feature: &'static str,
        /// Module that brings it.
        module: &'static str,
    },
}

impl KernelError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { errno, .. } => match *errno {
                libc::EEXIST | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENODEV => {
                    Class::Conflict
                }
                libc::ENOBUFS | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM => Class::Retry,
                libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOSYS => {
                    Class::Fatal
                }
                _ => Class::Invalid,
            },
            Self::Io { .. } | Self::Decode { .. } => Class::Retry,
            Self::Program { .. } | Self::Late { .. } => Class::Retry,
            Self::Missing { .. } => Class::Fatal,
        }
    }
}

/// What became of a transaction.
#[derive(Debug, Default)]
pub struct Committed {
    /// Operations the kernel took.
    pub done: usize,
    /// Operations it refused, with why. The others went on.
    pub failed: Vec<(Operation, KernelError)>,
    /// Messages (or files, or programs) that were sent: the cost.
    pub messages: usize,
}

/// The kernel of one network namespace.
pub trait Kernel: Send {
    /// Reads the part of the state that `scope` names.
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError>;

    /// Carries a transaction out, in its order. One refused operation does not stop the others, except that what needs
    /// it is not tried (the real servers of a virtual server that could not be made).
    fn commit(&mut self, transaction: &Transaction) -> Committed;

    /// Reads what there is of kube-proxy; nothing where it never is. Chains and whether packets are led to them only with
    /// `rules`: reading those runs programs.
    fn kube_proxy(&mut self, rules: bool) -> Result<KubeProxy, KernelError> {
        let _ = rules;
        Ok(KubeProxy::default())
    }

    /// Whether a kube-proxy that runs shows itself, and how.
    fn kube_proxy_runs(&mut self) -> Result<Option<RunningSign>, KernelError> {
        Ok(None)
    }
}

/// What shows that kube-proxy runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunningSign {
    /// It says its mode where it serves its metrics.
    Mode {
        /// Where it listens.
        at: std::net::SocketAddr,
        /// `ipvs`, `iptables` or another.
        mode: String,
    },
    /// Its health check answers.
    Health {
        /// Where it listens.
        at: std::net::SocketAddr,
    },
    /// Another process listens on a port of kube-proxy's and does not answer.
    Mute {
        /// Where it listens.
        at: std::net::SocketAddr,
    },
}

impl std::fmt::Display for RunningSign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mode { at, mode } => write!(f, "it says at {at} that it is in {mode} mode"),
            Self::Health { at } => write!(f, "its health check at {at} answers"),
            Self::Mute { at } => {
                write!(f, "another process listens at {at}, a port of kube-proxy's, and does not answer")
            }
        }
    }
}

/// Something changed in the kernel, by whatever hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// An interface came, went or changed its carrier.
    Link(String),
    /// An address came, went or changed.
    Address(crate::state::AddressKey),
    /// A route changed.
    Route,
    /// A default route came, went or changed.
    Gateway,
    /// Events were lost: look at everything.
    Overrun,
}
