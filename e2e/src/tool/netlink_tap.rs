//! Counts what programs of a network namespace ask of the kernel over netlink, whoever they are: the same
//! yardstick for all that are measured. Needs a device of type `nlmon` that is up in the namespace.

use super::{During, ToolError};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

/// `linux/if_ether.h`: packets of all protocols and devices.
const ETH_P_ALL: u16 = 3;
/// `linux/netlink.h`: the header's length, and the flag of a message that goes to the kernel.
const HEADER: usize = 16;
const FLAG_REQUEST: u8 = 1;
/// Holds what comes between two looks, also while a dump of everything is taken.
const BUFFER: usize = 128 << 20;

/// Prints `ready`, then `messages sends` whenever these have grown, until it is killed. A send may carry
/// many messages.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn count() -> Result<(), ToolError> {
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let mut socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).during("open", "packet socket")?;
    setsockopt(&socket, RcvBufForce, &BUFFER).during("enlarge", "the packet socket's buffer")?;
    socket.attach_filter(&requests_only()).during("filter", "the packet socket")?;
    socket.set_nonblocking(true).during("configure", "the packet socket")?;
    let (mut messages, mut sends) = (0, 0);
    let mut buffer = vec![0; 1 << 18];
    say("ready");
    loop {
        let before = sends;
        loop {
            match socket.read(&mut buffer) {
                Ok(length) => {
                    messages += requests(&buffer[..length]);
                    sends += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).during("read from", "the packet socket"),
            }
        }
        if sends > before {
            say(&format!("{messages} {sends}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How many requests a send carries.
fn requests(mut send: &[u8]) -> usize {
    let mut count = 0;
    while let (Some(length), Some(flags)) = (send.get(..4), send.get(6)) {
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize;
        count += usize::from(flags & FLAG_REQUEST);
        send = send.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    count
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

    fn message(length: u32, flags: u16) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(16u16.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize((length as usize).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn each_request_of_a_send_counts_and_answers_do_not() {
        let send = [message(18, 5), message(20, 1), message(16, 2)].concat();
        assert_eq!(requests(&send), 2);
        assert_eq!(requests(&[]), 0);
        assert_eq!(requests(&message(16, 1)[..10]), 1, "a cut message ends the walk");
    }
}
