//! Watches the kernel's IPVS table for the benches, at little cost: the guest has one processor, and the
//! program under test needs it.

use super::{During, ToolError};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_GENERIC};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// `linux/netlink.h`, `linux/genetlink.h`.
mod netlink {
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const REQUEST: u16 = 1;
    pub const DUMP: u16 = 0x300;
    pub const NESTED: u16 = 0x8000;
    pub const CONTROLLER: u16 = 0x10;
    pub const GET_FAMILY: u8 = 3;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
}

/// `linux/ip_vs.h`.
mod ip_vs {
    pub const GET_DEST: u8 = 8;
    pub const SERVICE: u16 = 1;
    pub const DEST: u16 = 2;
    pub const SERVICE_FAMILY: u16 = 1;
    pub const SERVICE_PROTOCOL: u16 = 2;
    pub const SERVICE_ADDRESS: u16 = 3;
    pub const SERVICE_PORT: u16 = 4;
    pub const DEST_ADDRESS: u16 = 1;
    pub const DEST_PORT: u16 = 2;
    pub const DEST_WEIGHT: u16 = 4;
}

/// Prints `ready`, waits until the table has that many virtual and real servers, and prints `seen` (or
/// `timeout`), both counts, and the time between the last two looks in milliseconds: how exact that is. A look
/// at 2,000 virtual servers with 10 real servers each costs 30 to 50 ms here, so that looks keep a distance
/// which leaves the program under test five sixths of the processor.
///
/// # Errors
/// When the table cannot be read.
pub fn wait_for_counts(servers: usize, destinations: usize, timeout: Duration) -> Result<bool, ToolError> {
    let table = "/proc/net/ip_vs";
    let begin = Instant::now();
    let mut last = begin;
    say("ready");
    loop {
        let look = Instant::now();
        let text = fs::read_to_string(table).during("read", table)?;
        let lines =
            |starts: &[&str]| text.lines().filter(|line| starts.iter().any(|s| line.starts_with(s))).count();
        // The first three lines are the heading, one of which starts with an arrow.
        let seen = (lines(&["TCP", "UDP"]), lines(&["  ->"]).saturating_sub(1));
        let done = seen.0 >= servers && seen.1 >= destinations;
        if done || begin.elapsed() > timeout {
            let word = if done { "seen" } else { "timeout" };
            say(&format!("{word} {} {} {}", seen.0, seen.1, last.elapsed().as_millis()));
            return Ok(done);
        }
        last = look;
        std::thread::sleep((look.elapsed() * 5).max(Duration::from_millis(10)));
    }
}

/// Prints `ready`, waits until the TCP virtual server has (or has no more) a real server with a weight
/// above 0, and prints `seen` and how often it has asked. It asks every 2 ms, for that virtual server alone.
///
/// # Errors
/// When netlink fails.
pub fn wait_for_destination(
    server: SocketAddr,
    destination: SocketAddr,
    present: bool,
    timeout: Duration,
) -> Result<bool, ToolError> {
    let mut ipvs = Ipvs::open().during("open", "netlink")?;
    let begin = Instant::now();
    let mut asked = 0;
    say("ready");
    loop {
        asked += 1;
        let found = ipvs.has(server, destination).during("ask for", server)?;
        if found == present {
            say(&format!("seen {asked}"));
            return Ok(true);
        }
        if begin.elapsed() > timeout {
            say(&format!("timeout {asked}"));
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn say(text: &str) {
    // Whoever reads this may be gone; then nobody needs it.
    let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
}

struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        let mut ipvs = Self { socket, family: 0 };
        let name = attribute(netlink::FAMILY_NAME, b"IPVS\0");
        ipvs.ask(netlink::CONTROLLER, netlink::REQUEST, netlink::GET_FAMILY, &name)?;
        let answer = ipvs.receive()?.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
        let id = find(&answer, netlink::FAMILY_ID)
            .and_then(|id| id.try_into().ok())
            .ok_or(io::ErrorKind::NotFound)?;
        ipvs.family = u16::from_ne_bytes(id);
        Ok(ipvs)
    }

    /// Whether the virtual server exists and has that real server in use.
    fn has(&mut self, server: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        const TCP: u16 = 6;
        let family = if server.is_ipv4() { AF_INET } else { AF_INET6 };
        let inner = [
            attribute(ip_vs::SERVICE_FAMILY, &family.to_ne_bytes()),
            attribute(ip_vs::SERVICE_PROTOCOL, &TCP.to_ne_bytes()),
            attribute(ip_vs::SERVICE_ADDRESS, &address(server.ip())),
            attribute(ip_vs::SERVICE_PORT, &server.port().to_be_bytes()),
        ]
        .concat();
        let request = attribute(ip_vs::SERVICE | netlink::NESTED, &inner);
        self.ask(self.family, netlink::REQUEST | netlink::DUMP, ip_vs::GET_DEST, &request)?;
        let mut found = false;
        loop {
            let messages = match self.receive() {
                // There is no such virtual server (yet).
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(false),
                messages => messages?,
            };
            if messages.is_empty() {
                return Ok(found);
            }
            for message in &messages {
                let Some(dest) = find(message, ip_vs::DEST) else { continue };
                let same = find(dest, ip_vs::DEST_ADDRESS) == Some(&address(destination.ip()))
                    && find(dest, ip_vs::DEST_PORT) == Some(&destination.port().to_be_bytes());
                found |= same && find(dest, ip_vs::DEST_WEIGHT) != Some(&[0; 4]);
            }
        }
    }

    fn ask(&self, kind: u16, flags: u16, command: u8, attributes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(20 + attributes.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        self.socket.send(&message, 0).map(drop)
    }

    /// The attributes of each message of one datagram; none at the end of a dump.
    fn receive(&self) -> io::Result<Vec<Vec<u8>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while let (Some(length), Some(kind)) = (read_u32(rest, 0), read_u16(rest, 4)) {
            let length = length as usize;
            if length < 16 || rest.len() < length {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match kind {
                netlink::DONE | netlink::ERROR => {
                    let errno = read_u32(rest, 16).unwrap_or(0).cast_signed();
                    if errno != 0 {
                        return Err(io::Error::from_raw_os_error(-errno));
                    }
                }
                _ => messages.push(rest.get(20..length).unwrap_or_default().to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let (Some(length), Some(kind)) = (read_u16(attributes, 0), read_u16(attributes, 2)) {
        let length = usize::from(length);
        if kind & !netlink::NESTED == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// IPVS addresses are always 16 bytes.
fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
