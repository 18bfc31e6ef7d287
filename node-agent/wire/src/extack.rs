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

impl KernelError {
    /// Reads the payload of an NLMSG_ERROR whose header has these flags. `None` is an acknowledgement.
    ///
    /// # Errors
    /// When it is too short, or its attributes are malformed.
    pub fn of_error(flags: u16, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        let (errno, rest) = code(payload)?;
        if errno == 0 {
            return Ok(None);
        }
        let request = parse_header(rest)?;
        let body = rest.get(HEADER_LENGTH..).unwrap_or_default();
        let mut error = Self::new(errno);
        error.request = Some(request);
        let (body, tail) = if flags & NLM_F_CAPPED == 0 {
            // The whole request is repeated before the attributes.
            let length = usize::try_from(request.length).unwrap_or(usize::MAX).saturating_sub(HEADER_LENGTH);
            let whole = body.get(..length).ok_or(DecodeError::Length {
                object: OBJECT,
                length,
                available: body.len(),
            })?;
            (whole, body.get(length.next_multiple_of(4)..).unwrap_or_default())
        } else {
            (&[][..], body)
        };
        error.line = crate::ipset::failed_line(&request, body);
        if flags & NLM_F_ACK_TLVS != 0 {
            error.read_attributes(tail)?;
        }
        Ok(Some(error))
    }

    /// Reads the payload of an NLMSG_DONE whose header has these flags. `None` is a dump that came to its
    /// end; otherwise what was read before is incomplete.
    ///
    /// # Errors
    /// When it is too short, or its attributes are malformed.
    pub fn of_done(flags: u16, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        // Some families end a dump without a code.
        if payload.is_empty() {
            return Ok(None);
        }
        let (errno, rest) = code(payload)?;
        if errno == 0 {
            return Ok(None);
        }
        let mut error = Self::new(errno);
        if flags & NLM_F_ACK_TLVS != 0 {
            error.read_attributes(rest)?;
        }
        Ok(Some(error))
    }

    /// An error that is only a number.
    pub const fn new(errno: i32) -> Self {
        Self {
            errno,
            message: None,
            offset: None,
            missing_attribute: None,
            missing_nest: None,
            request: None,
            line: None,
        }
    }

    fn read_attributes(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                MSG => self.message = Some(attribute.text()),
                OFFS => self.offset = Some(attribute.u32()?),
                MISS_TYPE => self.missing_attribute = Some(attribute.u32()?),
                MISS_NEST => self.missing_nest = Some(attribute.u32()?),
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for KernelError {
    /// `File exists (os error 17): IPv4: Address already assigned`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::ipset::ErrorCode::from_errno(self.errno, None) {
            Some(code) => write!(f, "{code} (ipset error {})", self.errno)?,
            None => write!(f, "{}", io::Error::from_raw_os_error(self.errno))?,
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        Ok(())
    }
}

impl std::error::Error for KernelError {}

/// The error's number, made positive, and what follows it.
fn code(payload: &[u8]) -> Result<(i32, &[u8]), DecodeError> {
    match payload.split_first_chunk::<CODE_LENGTH>() {
        Some((code, rest)) => Ok((i32::from_ne_bytes(*code).saturating_neg(), rest)),
        None => Err(DecodeError::Truncated { object: OBJECT, needed: CODE_LENGTH, actual: payload.len() }),
    }
}
