//! A netlink socket that asks in batches and reads dumps that can be trusted.
//!
//! The kernel carries the requests of one datagram out one after the other before `send` returns. Of these only the
//! last asks for an acknowledgement: the others answer when they fail, so success costs no answer, every failure is
//! known by its sequence number, and the last answer says that all were seen. A datagram carries no more requests
//! than answers fit the receive buffer, so that none can get lost.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkHeader, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{getsockopt, setsockopt, sockopt},
    time::TimeVal,
};
use nodenet_wire::{
    DecodeError, extack,
    message::{Kind, Messages, append},
};

use super::namespace::Namespace;
use crate::kernel::KernelError;

/// Most bytes of a datagram to the kernel.
const DATAGRAM: usize = 256 * 1024;
/// Size of the buffers asked for; the kernel doubles it for its bookkeeping.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// What an answer is counted as in the receive buffer: a small packet of the kernel is charged about 800 bytes, one
/// with a long error text more.
const ANSWER: usize = 2048;
/// The kernel fills datagrams of a dump up to 32 KiB when the reader has room for that.
const RECEIVE: usize = 64 * 1024;
/// How often a dump is read before giving up because the table changed meanwhile.
const DUMP_ATTEMPTS: u32 = 5;
/// The kernel answers within `send`; an answer that is not there after this time never comes.
const PATIENCE: i64 = 10;

/// Netlink protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Interfaces, addresses, routes.
    Route,
    /// IPVS.
    Generic,
    /// ipset, conntrack.
    Netfilter,
}

impl Protocol {
    const fn number(self) -> isize {
        match self {
            Self::Route => netlink_sys::protocols::NETLINK_ROUTE,
            Self::Generic => netlink_sys::protocols::NETLINK_GENERIC,
            Self::Netfilter => netlink_sys::protocols::NETLINK_NETFILTER,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Route => "netlink socket (route)",
            Self::Generic => "netlink socket (generic)",
            Self::Netfilter => "netlink socket (netfilter)",
        }
    }
}

/// Why a request got no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// The socket failed.
    #[error("{call}: {source}")]
    Socket {
        /// System call.
        call: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// An answer could not be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The kernel refused the request.
    #[error(transparent)]
    Refused(extack::KernelError),
    /// The table changed during each of several readings.
    #[error("changed during each of {DUMP_ATTEMPTS} readings")]
    Interrupted,
    /// Answers were lost.
    #[error("answers were lost")]
    Overrun,
}

impl TransportError {
    /// As an error about an object.
    pub(super) fn about(self, operation: &'static str, object: impl Into<String>) -> KernelError {
        let object = object.into();
        match self {
            Self::Socket { source, .. } => KernelError::Io { operation, object, source },
            Self::Decode(source) => KernelError::Decode { operation, object, source: Box::new(source) },
            Self::Refused(error) => refused(operation, object, error),
            Self::Interrupted => KernelError::Refused {
                operation,
                object,
                errno: libc::EINTR,
                message: Some(format!("changed during each of {DUMP_ATTEMPTS} readings")),
            },
            Self::Overrun => KernelError::Refused {
                operation,
                object,
                errno: libc::ENOBUFS,
                message: Some("answers of the kernel were lost, the outcome is not known".to_owned()),
            },
        }
    }

    /// The same once more, for another object that it concerns.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(error.clone()),
            Self::Decode(error) => Self::Decode(error.clone()),
            Self::Socket { call, source } => {
                let number = source.raw_os_error();
                let source = number.map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
                Self::Socket { call, source }
            }
            Self::Interrupted => Self::Interrupted,
            Self::Overrun => Self::Overrun,
        }
    }

    /// The kernel's error number, where it gave one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// A refusal as an error about an object.
pub(super) fn refused(
    operation: &'static str,
    object: impl Into<String>,
    error: extack::KernelError,
) -> KernelError {
    KernelError::Refused { operation, object: object.into(), errno: error.errno, message: error.message }
}

/// What is done with an entry of a dump.
type EachEntry<'e> = dyn FnMut(&NetlinkHeader, &[u8]) -> Result<(), DecodeError> + 'e;

/// What was spent, for the cost that design and tests speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Messages to the kernel: requests, dumps, files written.
    pub messages: u64,
    /// System calls on sockets.
    pub system_calls: u64,
    /// Programs run.
    pub programs: u64,
}

/// A socket of one netlink protocol.
pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
    outgoing: Vec<u8>,
    /// Where each message of `outgoing` begins.
    starts: Vec<usize>,
    incoming: Vec<u8>,
    /// Most messages of a datagram.
    window: usize,
    cost: Cost,
}

impl Connection {
    /// Opens a socket in a namespace.
    pub(super) fn open(protocol: Protocol, namespace: &Namespace) -> Result<Self, KernelError> {
        let (socket, window) =
            namespace.run(|| prepare(protocol))?.map_err(|error| error.about("open", protocol.name()))?;
        Ok(Self {
            socket,
            sequence: 0,
            outgoing: Vec::new(),
            starts: Vec::new(),
            incoming: vec![0; RECEIVE],
            window,
            cost: Cost::default(),
        })
    }

    /// What was spent since it was opened.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// Begins a batch of requests.
    pub(super) fn batch(&mut self) -> Batch<'_> {
        self.outgoing.clear();
        self.starts.clear();
        self.renew_sequence();
        Batch { connection: self, taken: 0, failures: Vec::new() }
    }

    /// Asks for one thing: at most one answer, given to `read`. Waits for it or for the refusal.
    pub(super) fn get<T>(
        &mut self,
        request: &impl NetlinkSerializable,
        read: impl FnOnce(&NetlinkHeader, &[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, TransportError> {
        let outcome = self.get_once(request, read);
        if matches!(outcome, Err(TransportError::Overrun)) {
            self.drain();
        }
        outcome
    }

    fn get_once<T>(
        &mut self,
        request: &impl NetlinkSerializable,
        read: impl FnOnce(&NetlinkHeader, &[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, TransportError> {
        let sequence = self.next_sequence();
        self.outgoing.clear();
        append(&mut self.outgoing, NLM_F_REQUEST, sequence, request);
        self.cost.messages += 1;
        self.send()?;
        loop {
            let length = self.receive(0)?;
            for message in Messages::new(self.incoming.get(..length).unwrap_or_default()) {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.kind()? {
                    Kind::Data(payload) => return Ok(read(&message.header, payload)?),
                    Kind::Error(error) => return Err(TransportError::Refused(error)),
                    Kind::Overrun => return Err(TransportError::Overrun),
                    Kind::Acknowledgement | Kind::Done(_) | Kind::Noop => {}
                }
            }
        }
    }

    /// Reads a whole table. Each entry goes to `each`; when the table changed meanwhile, what was collected is thrown
    /// away and reading starts again.
    pub(super) fn dump<T: Default>(
        &mut self,
        request: &impl NetlinkSerializable,
        mut each: impl FnMut(&mut T, &NetlinkHeader, &[u8]) -> Result<(), DecodeError>,
    ) -> Result<T, TransportError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut collected = T::default();
            match self.dump_once(request, &mut |header, payload| each(&mut collected, header, payload)) {
                Ok(true) => return Ok(collected),
                Ok(false) => {}
                Err(error) => {
                    // A dump that is not read to its end keeps the next one from beginning.
                    self.drain();
                    return Err(error);
                }
            }
        }
        Err(TransportError::Interrupted)
    }

    /// Whether the reading is consistent.
    fn dump_once(
        &mut self,
        request: &impl NetlinkSerializable,
        each: &mut EachEntry<'_>,
    ) -> Result<bool, TransportError> {
        let sequence = self.next_sequence();
        self.outgoing.clear();
        append(&mut self.outgoing, NLM_F_REQUEST | NLM_F_DUMP, sequence, request);
        self.cost.messages += 1;
        self.send()?;
        let mut consistent = true;
        // An unreadable entry does not end the reading: what follows it would be taken for the next answer.
        let mut unreadable = None;
        loop {
            let length = self.receive(0)?;
            for message in Messages::new(self.incoming.get(..length).unwrap_or_default()) {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                consistent &= !message.is_interrupted();
                match message.kind()? {
                    Kind::Data(payload) => {
                        if unreadable.is_none() {
                            unreadable = each(&message.header, payload).err();
                        }
                        if message.header.flags & NLM_F_MULTIPART == 0 {
                            return unreadable.map_or(Ok(consistent), |error| Err(error.into()));
                        }
                    }
                    Kind::Error(error) | Kind::Done(Some(error)) => {
                        return Err(TransportError::Refused(error));
                    }
                    Kind::Done(None) => {
                        return unreadable.map_or(Ok(consistent), |error| Err(error.into()));
                    }
                    Kind::Overrun => return Err(TransportError::Overrun),
                    Kind::Acknowledgement | Kind::Noop => {}
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        // 0 is the kernel's own, for events.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    /// Keeps the numbers of a datagram in one row.
    fn renew_sequence(&mut self) {
        if self.sequence > u32::MAX / 2 {
            self.sequence = 0;
        }
    }

    fn send(&mut self) -> Result<(), TransportError> {
        self.cost.system_calls += 1;
        match self.socket.send(&self.outgoing, 0) {
            Ok(_) => Ok(()),
            Err(source) => Err(TransportError::Socket { call: "send", source }),
        }
    }

    fn receive(&mut self, flags: libc::c_int) -> Result<usize, TransportError> {
        loop {
            self.cost.system_calls += 1;
            // With MSG_TRUNC the length is that of the datagram, not that of the part that fit.
            match self.socket.recv(&mut self.incoming.as_mut_slice(), flags | libc::MSG_TRUNC) {
                Ok(length) if length > self.incoming.len() => {
                    self.incoming.resize(length.next_power_of_two(), 0);
                    return Err(TransportError::Overrun);
                }
                Ok(length) => return Ok(length),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(TransportError::Overrun);
                }
                Err(source) => return Err(TransportError::Socket { call: "recv", source }),
            }
        }
    }

    /// Throws away what is queued: after lost answers nothing in the queue is of use, and the kernel adds none before
    /// the queue was empty.
    fn drain(&mut self) {
        while matches!(self.receive(libc::MSG_DONTWAIT), Ok(_) | Err(TransportError::Overrun)) {}
    }
}

fn prepare(protocol: Protocol) -> Result<(Socket, usize), TransportError> {
    fn call<T, E: Into<io::Error>>(call: &'static str, outcome: Result<T, E>) -> Result<T, TransportError> {
        outcome.map_err(|error| TransportError::Socket { call, source: error.into() })
    }
    let mut socket = call("socket", Socket::new(protocol.number()))?;
    call("bind", socket.bind_auto())?;
    call("connect", socket.connect(&SocketAddr::new(0, 0)))?;
    call("setsockopt NETLINK_EXT_ACK", socket.set_ext_ack(true))?;
    call("setsockopt NETLINK_CAP_ACK", socket.set_cap_ack(true))?;
    // Since Linux 4.20; without it the kernel does not filter dumps by the request, which the readers do themselves.
    let _ = socket.set_netlink_get_strict_chk(true);
    // Above the system's limit only with CAP_NET_ADMIN.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        call("setsockopt SO_RCVBUF", setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER))?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        call("setsockopt SO_SNDBUF", setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER))?;
    }
    call("setsockopt SO_RCVTIMEO", setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0)))?;
    let room = call("getsockopt SO_RCVBUF", getsockopt(&socket, sockopt::RcvBuf))?;
    Ok((socket, (room / ANSWER).max(1)))
}

/// Requests on their way to the kernel, many in a datagram. Requests carry `NLM_F_*` flags of their own; the
/// acknowledgement is not the caller's business.
pub(super) struct Batch<'c> {
    connection: &'c mut Connection,
    /// Requests before the present datagram.
    taken: usize,
    failures: Vec<(usize, TransportError)>,
}

impl Batch<'_> {
    /// Adds a request; sends the datagram when it is full.
    pub(super) fn push(&mut self, flags: u16, request: &impl NetlinkSerializable) {
        let connection = &mut *self.connection;
        connection.starts.push(connection.outgoing.len());
        let sequence = connection.next_sequence();
        append(&mut connection.outgoing, (flags | NLM_F_REQUEST) & !NLM_F_ACK, sequence, request);
        connection.cost.messages += 1;
        if connection.outgoing.len() >= DATAGRAM || connection.starts.len() >= connection.window {
            self.flush();
        }
    }

    /// Sends the rest. Which requests failed, counted from 0 in the order of `push`, each at most once and in order.
    pub(super) fn finish(mut self) -> Vec<(usize, TransportError)> {
        self.flush();
        self.failures
    }

    fn flush(&mut self) {
        let count = self.connection.starts.len();
        if count == 0 {
            return;
        }
        let first = self.taken;
        if let Err(error) = self.exchange() {
            // Which of them the kernel carried out is not known: all are looked at again.
            self.failures.retain(|(index, _)| *index < first);
            self.failures.extend((first..first + count).map(|index| (index, error.again())));
            self.connection.drain();
        }
        self.taken += count;
        self.connection.outgoing.clear();
        self.connection.starts.clear();
        self.connection.renew_sequence();
    }

    fn exchange(&mut self) -> Result<(), TransportError> {
        /// Where `nlmsg_flags` stands in the header.
        const FLAGS: usize = 6;
        let connection = &mut *self.connection;
        let count = connection.starts.len();
        let last = connection.sequence;
        if let Some(flags) = connection
            .starts
            .last()
            .and_then(|start| connection.outgoing.get_mut(start + FLAGS..start + FLAGS + 2))
            .and_then(|bytes| bytes.as_mut_array::<2>())
        {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
        connection.send()?;
        loop {
            let length = connection.receive(0)?;
            for message in Messages::new(connection.incoming.get(..length).unwrap_or_default()) {
                let message = message?;
                // How far from the end of the datagram; wraps for answers to anything else.
                let distance = last.wrapping_sub(message.header.sequence_number) as usize;
                if distance >= count {
                    continue;
                }
                match message.kind()? {
                    Kind::Acknowledgement if distance == 0 => return Ok(()),
                    Kind::Error(error) => {
                        let index = self.taken + count - 1 - distance;
                        self.failures.push((index, TransportError::Refused(error)));
                        if distance == 0 {
                            return Ok(());
                        }
                    }
                    Kind::Overrun => return Err(TransportError::Overrun),
                    _ => {}
                }
            }
        }
    }
}
