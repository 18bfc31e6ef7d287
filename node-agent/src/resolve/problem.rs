//! What of the input makes no sense. Each concerns one object; the others are unaffected.

use ipnet::IpNet;

/// One thing that cannot be as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct Problem {
    /// The object, for example `Service default/web`.
    pub object: String,
    /// What is wrong with it.
    pub reason: Reason,
}

impl Problem {
    pub(super) fn new(object: String, reason: Reason) -> Self {
        Self { object, reason }
    }
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// Not an address, or one that no Service can have (loopback, link-local, multicast).
    #[error("{value:?} is no usable address")]
    Address {
        /// As written.
        value: String,
    },
    /// Something that only a newer agent knows.
    #[error("{what} is of a sort that this agent does not know and is left out; upgrade the agent")]
    Newer {
        /// Which part of the object.
        what: &'static str,
    },
    /// Not a port.
    #[error("{value} is no port (1 to 65535)")]
    Port {
        /// As written.
        value: i32,
    },
    /// Number of a part that cannot be.
    #[error("part {part} of {parts} cannot be")]
    Part {
        /// As written.
        part: i32,
        /// As written.
        parts: i32,
    },
    /// Not a scheduler of IPVS; the default one is used.
    #[error("scheduler {name:?} is unknown; the default one is used")]
    Scheduler {
        /// As written.
        name: String,
    },
    /// A port's number is too great for the bits of packet marks that this agent may use.
    #[error(
        "insideNumber {number} does not fit the marks of this agent (at most {greatest}): the node and its pods reach \
         only the node's own endpoints by this port's node port and external addresses; give insideMark more bits"
    )]
    InsideNumber {
        /// The number.
        number: u16,
        /// The greatest that fits.
        greatest: u16,
    },
    /// Another Service answers there already.
    #[error("{what} belongs to Service {owner}")]
    Claimed {
        /// The virtual server.
        what: String,
        /// `namespace/name` of its owner.
        owner: String,
    },
    /// Not a range, or too wide a one to be made local.
    #[error("{value:?} is no usable range of service addresses")]
    Range {
        /// As written.
        value: String,
    },
    /// A range that holds something that the node must reach by its network.
    #[error(
        "range {range} {} it overlaps {obstacle}{} give the cluster's own service range (serviceCIDRs), or move the other one",
        if *stands { "stays local although" } else { "is not made local:" },
        if *stands { ", which is out of this node's reach now;" } else { ", which would be out of this node's reach;" }
    )]
    RangeOverlaps {
        /// The range.
        range: IpNet,
        /// What it overlaps, in words.
        obstacle: String,
        /// The range was local before the other came: it stays.
        stands: bool,
    },
    /// A module that the agent does not load.
    #[error("not among the modules that this agent loads")]
    Module,
    /// A setting, or a value of it, that the agent does not write.
    #[error("{value:?} is not among its values that this agent writes")]
    Sysctl {
        /// Value as written.
        value: String,
    },
}
