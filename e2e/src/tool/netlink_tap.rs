//! Counts what programs of a network namespace ask of the kernel over netlink, whoever they are: the same
//! yardstick for all that are measured. Needs a device of type `nlmon` that is up in the namespace.

use super::{During, ToolError};
use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `linux/if_ether.h`: packets of all protocols and devices.
const ETH_P_ALL: u16 = 3;
/// `linux/netlink.h`: the header's length, and the flag of a message that goes to the kernel.
const HEADER: usize = 16;
const FLAG_REQUEST: u8 = 1;
/// Holds what comes between two looks, also while a dump of everything is taken.
const BUFFER: usize = 128 << 20;

/// What was seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    /// Messages to the kernel.
    messages: usize,
    /// Those of them that are more than a question.
    changes: usize,
}

/// Prints `ready`, then `messages changes sends` whenever these have grown, until it is killed. A send may
/// carry many messages; changes are the messages that do more than ask.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn count() -> Result<(), ToolError> {
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).during("open", "packet socket")?;
    setsockopt(&socket, RcvBufForce, &BUFFER).during("enlarge", "the packet socket's buffer")?;
    socket.attach_filter(&requests_only()).during("filter", "the packet socket")?;
    socket.set_nonblocking(true).during("configure", "the packet socket")?;
    let (mut total, mut sends) = (Count::default(), 0);
    let mut buffer = vec![0; 1 << 18];
    say("ready");
    loop {
        let before = sends;
        loop {
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let protocol = from.map_or(0, |from| u16::from_be(from.protocol()));
                    let seen = look(protocol, &buffer[..length]);
                    total.messages += seen.messages;
                    total.changes += seen.changes;
                    sends += 1;
                }
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).during("read from", "the packet socket"),
            }
        }
        if sends > before {
            say(&format!("{} {} {sends}", total.messages, total.changes));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The requests that a send carries.
fn look(protocol: u16, mut send: &[u8]) -> Count {
    let mut count = Count::default();
    while let Some(&[a, b, c, d, e, f, flags]) = send.first_chunk() {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        if flags & FLAG_REQUEST != 0 {
            count.messages += 1;
            let command = send.get(HEADER).copied().unwrap_or(0);
            count.changes += usize::from(!asks(protocol, u16::from_ne_bytes([e, f]), command));
        }
        send = send.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    count
}

/// Whether a message only asks: `linux/netlink.h` (protocols), `rtnetlink.h` (every fourth type is a GET),
/// `netfilter/nfnetlink_conntrack.h`, `netfilter/ipset/ip_set.h` (PROTOCOL, LIST, SAVE, TEST, HEADER, TYPE,
/// GET_BYNAME, GET_BYINDEX), `ip_vs.h` (GET_SERVICE, GET_DEST, GET_DAEMON, GET_CONFIG, GET_INFO).
fn asks(protocol: u16, kind: u16, command: u8) -> bool {
    const ROUTE: u16 = 0;
    const NETFILTER: u16 = 12;
    const GENERIC: u16 = 16;
    const CONTROLLER: u16 = 0x10;
    const CONNTRACK: u8 = 1;
    const IPSET: u8 = 6;
    let [message, subsystem] = kind.to_le_bytes();
    match (protocol, subsystem) {
        (ROUTE, _) => kind % 4 == 2,
        (NETFILTER, CONNTRACK) => matches!(message, 1 | 3),
        (NETFILTER, IPSET) => matches!(message, 1 | 7 | 8 | 11..=15),
        (GENERIC, _) => kind == CONTROLLER || matches!(command, 4 | 8 | 11 | 13 | 15),
        _ => false,
    }
}

/// Classic BPF: takes a packet whose first netlink header has the flag. Answers have not.
fn requests_only() -> [SockFilter; 4] {
    const LOAD_BYTE_AT: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE_AT, 0, 0, 6),
        SockFilter::new(JUMP_IF_SET, 0, 1, FLAG_REQUEST.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn say(text: &str) {
    // Whoever reads this may be gone; then nobody needs it.
    let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, kind: u16, flags: u16, command: u8) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.push(command);
        bytes.resize((length as usize).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn each_request_of_a_send_counts_and_answers_do_not() {
        const IPVS: u16 = 0x1a;
        let (ask, add, answer) = (message(20, IPVS, 5, 4), message(22, IPVS, 1, 5), message(20, IPVS, 2, 4));
        let send = [ask, add, answer].concat();
        assert_eq!(look(16, &send), Count { messages: 2, changes: 1 });
        assert_eq!(look(16, &[]), Count::default());
    }

    #[test]
    fn questions_are_told_from_changes_by_protocol() {
        const ADD: u16 = 0x609;
        const TEST: u16 = 0x60b;
        const NEW_ADDRESS: u16 = 20;
        const GET_ADDRESS: u16 = 22;
        assert_eq!([asks(12, ADD, 0), asks(12, TEST, 0)], [false, true]);
        assert_eq!([asks(0, NEW_ADDRESS, 0), asks(0, GET_ADDRESS, 0)], [false, true]);
    }
}
