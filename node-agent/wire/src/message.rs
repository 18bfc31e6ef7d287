//! Many netlink messages in one buffer: composing a batch, taking a datagram apart.

use netlink_packet_core::{
    Emitable, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkHeader,
    NetlinkSerializable,
};

use crate::{DecodeError, extack::KernelError};

/// Size of `struct nlmsghdr`.
pub const HEADER_LENGTH: usize = 16;

/// Most messages to put into one send, so that even if all are answered the answers fit the receive buffer.
///
/// The kernel works off the whole send before it returns, and an answer occupies 768 bytes of the receive
/// buffer however short it is: the usual 212,992 bytes (`net.core.rmem_default`) overflow at the 280th,
/// with ENOBUFS on the next receive and everything after it lost. Clearing `NLM_F_ACK` of all messages but the
/// last saves most answers, since errors are sent in any case.
pub const MOST_PER_SEND: usize = 256;

const OBJECT: &str = "netlink message";

/// A request that knows its header's flags.
pub trait Flags {
    /// `NLM_F_*`: always a request, and acknowledged or a dump.
    fn flags(&self) -> u16;
}

/// Appends one complete message, header and padding included, to a batch.
///
/// The message type comes from the payload, so requests of every family fit: those of this crate with
/// `request.flags()`, those of `netlink-packet-route` with flags of the caller's. `sequence` is what tells
/// the answers apart: the kernel copies it into each.
pub fn append(batch: &mut Vec<u8>, flags: u16, sequence: u32, payload: &impl NetlinkSerializable) {
    let start = batch.len();
    let length = HEADER_LENGTH + payload.buffer_len();
    batch.resize(start + length.next_multiple_of(4), 0);
    let mut header = NetlinkHeader::default();
    // Every request of this crate is bounded far below 4 GiB.
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = payload.message_type();
    header.flags = flags;
    header.sequence_number = sequence;
    if let Some(message) = batch.get_mut(start..start + length) {
        let (head, body) = message.split_at_mut(HEADER_LENGTH);
        header.emit(head);
        payload.serialize(body);
    }
}

/// One message of a received datagram, not yet decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: NetlinkHeader,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// What a message is to the one who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Data of the family that was asked; the payload.
    Data(&'a [u8]),
    /// The request was carried out.
    Acknowledgement,
    /// The request failed.
    Error(KernelError),
    /// The dump is complete, or ended with an error.
    Done(Option<KernelError>),
    /// The receive buffer overflowed and messages were lost (`NLMSG_OVERRUN`).
    Overrun,
    /// Nothing (`NLMSG_NOOP` and reserved control types).
    Noop,
}

impl<'a> Message<'a> {
    /// Whether the kernel's table changed during the dump that this message is of: what was read may lack
    /// entries, read it again (`NLM_F_DUMP_INTR`; any message of the dump may carry it).
    pub fn is_interrupted(&self) -> bool {
        is_interrupted(&self.header)
    }

    /// Sorts control messages from data.
    ///
    /// # Errors
    /// When a control message is malformed.
    pub fn kind(&self) -> Result<Kind<'a>, DecodeError> {
        /// Types below this one are control messages (`NLMSG_MIN_TYPE`).
        const FIRST_FAMILY_TYPE: u16 = 0x10;
        Ok(match self.header.message_type {
            NLMSG_NOOP => Kind::Noop,
            NLMSG_OVERRUN => Kind::Overrun,
            NLMSG_ERROR => match KernelError::of_error(self.header.flags, self.payload)? {
                None => Kind::Acknowledgement,
                Some(error) => Kind::Error(error),
            },
            NLMSG_DONE => Kind::Done(KernelError::of_done(self.header.flags, self.payload)?),
            other if other < FIRST_FAMILY_TYPE => Kind::Noop,
            _ => Kind::Data(self.payload),
        })
    }
}

/// Whether a header says that the dump it belongs to is inconsistent (`NLM_F_DUMP_INTR`).
pub fn is_interrupted(header: &NetlinkHeader) -> bool {
    header.flags & NLM_F_DUMP_INTR != 0
}

/// The messages of a received datagram. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Takes a datagram as `recv` left it.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }

    fn take(&mut self) -> Result<Message<'a>, DecodeError> {
        let rest = std::mem::take(&mut self.rest);
        let header = parse_header(rest)?;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let payload = rest.get(HEADER_LENGTH..length).ok_or(DecodeError::Length {
            object: OBJECT,
            length,
            available: rest.len(),
        })?;
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Ok(Message { header, payload })
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.take())
    }
}

/// Reads `struct nlmsghdr` without looking at what follows.
pub(crate) fn parse_header(bytes: &[u8]) -> Result<NetlinkHeader, DecodeError> {
    let Some([l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3]) =
        bytes.first_chunk::<HEADER_LENGTH>().copied()
    else {
        return Err(DecodeError::Truncated { object: OBJECT, needed: HEADER_LENGTH, actual: bytes.len() });
    };
    let mut header = NetlinkHeader::default();
    header.length = u32::from_ne_bytes([l0, l1, l2, l3]);
    header.message_type = u16::from_ne_bytes([t0, t1]);
    header.flags = u16::from_ne_bytes([f0, f1]);
    header.sequence_number = u32::from_ne_bytes([s0, s1, s2, s3]);
    header.port_number = u32::from_ne_bytes([p0, p1, p2, p3]);
    Ok(header)
}
