//! What the kernel says when it refuses: NLMSG_ERROR and NLMSG_DONE with their extended
//! acknowledgement (`enum nlmsgerr_attrs`, Linux 4.12).
//!
//! The text comes only to sockets with `NETLINK_EXT_ACK` set. With `NETLINK_CAP_ACK` an error carries the
//! request's header alone instead of the whole request, which keeps failing batches small.

use std::{fmt, io};

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NetlinkHeader};

use crate::{
    DecodeError,
    attribute::attributes,
    message::{HEADER_LENGTH, parse_header},
};

const MSG: u16 = 1;
const OFFS: u16 = 2;
const MISS_TYPE: u16 = 5;
const MISS_NEST: u16 = 6;

const OBJECT: &str = "netlink error";
const CODE_LENGTH: usize = 4;

/// A request that the kernel refused, in the kernel's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// The error's number, positive: `ENOENT` is 2. Above 4096 are those of ipset
    /// (see [`ipset::ErrorCode`](crate::ipset::ErrorCode)).
    pub errno: i32,
    /// What the kernel has to say about it (`NLMSGERR_ATTR_MSG`).
    pub message: Option<String>,
    /// Where in the request, its header included, the offending attribute begins (`NLMSGERR_ATTR_OFFS`).
    pub offset: Option<u32>,
    /// The number of an attribute that the kernel missed (`NLMSGERR_ATTR_MISS_TYPE`).
    pub missing_attribute: Option<u32>,
    /// Where in the request the nest begins that lacks it (`NLMSGERR_ATTR_MISS_NEST`).
    pub missing_nest: Option<u32>,
    /// The refused request's header; a dump that ended with an error does not repeat it.
    pub request: Option<NetlinkHeader>,
    /// The line of an ipset batch that failed, counted from 1 (see [`ipset`](crate::ipset)).
    pub line: Option<u32>,
}
