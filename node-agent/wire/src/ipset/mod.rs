//! IP sets over nfnetlink (subsystem 6, protocols 6 and 7; `include/uapi/linux/netfilter/ipset/ip_set.h`).
//!
//! A [`Request`] goes to the kernel, a [`Reply`] comes back. Both encode and decode; the message type is
//! in the request, so [`message::append`](crate::message::append) needs nothing else.
//!
//! What the kernel does not say in its header:
//! - **Many entries in one message**: [`Request::AddBatch`] and [`Request::DeleteBatch`] number their
//!   entries 1, 2, 3…. The kernel stops at the first that fails, the ones before it stay done, and there is
//!   one answer: the acknowledgement, or an error whose [`line`](crate::extack::KernelError::line) is the
//!   entry's number. With `exist` entries that are there already (or gone already) are no error.
//! - **Revisions**: a set is created at a revision of its type; ask with [`Request::Type`] and take
//!   [`SetType::revision`].
//! - **Dumps**: [`Request::List`] answers with one message a set, or several when the entries do not fit
//!   in one; only the first of these carries the header. A set that is listed cannot be destroyed. What is added or
//!   removed meanwhile may be in the listing or not, and nothing says so.
//! - [`Request::Test`] is acknowledged when the entry is in the set and fails with
//!   [`ErrorCode::Exist`] when it is not.
//! - A destroyed, flushed or listed set that is not there is ENOENT; creating one that is there with
//!   another definition is EEXIST, with the same one EEXIST too unless `exist`.

mod create;
mod entry;
mod error;
mod reply;
mod request;
mod set_type;

pub(crate) use self::request::failed_line;
pub use self::{
    create::{CreateOptions, PortRange},
    entry::{Element, Entry, EntryBatch, EntryBatchFull, SkbMark},
    error::ErrorCode,
    reply::{Listing, ListingHeader, Reply, Revisions, SetIdentity},
    request::{ListScope, Request},
    set_type::{SetType, TypeName},
};

use crate::name::Name;

/// Name of a set: at most 31 bytes (`IPSET_MAXNAMELEN`).
pub type SetName = Name<32>;

/// `NFNL_SUBSYS_IPSET`: the upper byte of every message type.
pub const SUBSYSTEM: u8 = 6;

/// The protocol these requests speak (`IPSET_PROTOCOL_MIN`). Linux takes 6 and 7; 7 differs only in
/// commands that are not used here.
pub const PROTOCOL: u8 = 6;

/// `IPSET_CMD_*`.
mod command {
    pub(super) const PROTOCOL: u8 = 1;
    pub(super) const CREATE: u8 = 2;
    pub(super) const DESTROY: u8 = 3;
    pub(super) const FLUSH: u8 = 4;
    pub(super) const RENAME: u8 = 5;
    pub(super) const SWAP: u8 = 6;
    pub(super) const LIST: u8 = 7;
    pub(super) const ADD: u8 = 9;
    pub(super) const DEL: u8 = 10;
    pub(super) const TEST: u8 = 11;
    pub(super) const HEADER: u8 = 12;
    pub(super) const TYPE: u8 = 13;
}

/// `IPSET_ATTR_*` at the level of the command.
mod command_attribute {
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SETNAME: u16 = 2;
    pub(super) const TYPENAME: u16 = 3;
    pub(super) const SETNAME2: u16 = 3;
    pub(super) const REVISION: u16 = 4;
    pub(super) const FAMILY: u16 = 5;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const ADT: u16 = 8;
    pub(super) const LINENO: u16 = 9;
    pub(super) const PROTOCOL_MIN: u16 = 10;
    pub(super) const REVISION_MIN: u16 = 10;
}

/// `IPSET_ATTR_*` inside the data of a set or an entry.
mod data_attribute {
    pub(super) const IP: u16 = 1;
    pub(super) const CIDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const PORT_TO: u16 = 5;
    pub(super) const TIMEOUT: u16 = 6;
    pub(super) const PROTO: u16 = 7;
    pub(super) const CADT_FLAGS: u16 = 8;
    pub(super) const LINENO: u16 = 9;
    pub(super) const HASHSIZE: u16 = 18;
    pub(super) const MAXELEM: u16 = 19;
    pub(super) const ELEMENTS: u16 = 24;
    pub(super) const REFERENCES: u16 = 25;
    pub(super) const MEMSIZE: u16 = 26;
    pub(super) const IP2: u16 = 20;
    pub(super) const CIDR2: u16 = 21;
    pub(super) const SKBMARK: u16 = 27;
}

/// `IPSET_FLAG_*` of entries and of sets (`enum ipset_cadt_flags`).
mod data_flag {
    pub(super) const NOMATCH: u32 = 1 << 2;
    pub(super) const WITH_COUNTERS: u32 = 1 << 3;
    pub(super) const WITH_COMMENT: u32 = 1 << 4;
    pub(super) const WITH_FORCEADD: u32 = 1 << 5;
    pub(super) const WITH_SKBINFO: u32 = 1 << 6;
}
