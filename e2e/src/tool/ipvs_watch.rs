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

/// Prints `ready`, waits until `count` TCP virtual servers at consecutive addresses have that many real servers
/// each, and prints `seen` (or `timeout`), for how many milliseconds that has been so at the most, and how often
/// it has asked.
///
/// It asks for one virtual server every 5 ms, the last address first, so that it leaves the processor to the
/// program under test: a look at 2,000 virtual servers with 10 real servers each costs 30 to 50 ms. When that
/// one is complete it looks at the whole table once, and asks for the next that is not complete if there is one.
///
/// # Errors
/// When the table cannot be read.
pub fn wait_for_range(
    first: SocketAddr,
    count: u32,
    destinations: usize,
    timeout: Duration,
) -> Result<bool, ToolError> {
    let mut ipvs = Ipvs::open().during("open", "netlink")?;
    let begin = Instant::now();
    let mut waited = true;
    let mut left = count;
    let mut asked = ASKED_AT_FIRST;
    say("ready");
    while let Some(number) = left.checked_sub(1) {
        let server = SocketAddr::new(later(first.ip(), number), first.port());
        let look = Instant::now();
        asked += 1;
        if ipvs.destinations(server).during("ask for", server)?.len() >= destinations {
            left = number;
            if std::mem::take(&mut waited) && real_servers()? >= destinations * count as usize {
                say(&format!("seen {} {asked}", look.elapsed().as_millis()));
                return Ok(true);
            }
            continue;
        }
        if begin.elapsed() > timeout {
            say(&format!("timeout 0 {asked}"));
            return Ok(false);
        }
        waited = true;
        std::thread::sleep(Duration::from_millis(5));
    }
    // The last was completed while all others were walked through.
    say(&format!("seen 0 {asked}"));
    Ok(true)
}

/// How many real servers the table has.
fn real_servers() -> Result<usize, ToolError> {
    let table = "/proc/net/ip_vs";
    let text = fs::read_to_string(table).during("read", table)?;
    // One line of the heading starts with an arrow too.
    Ok(text.lines().filter(|line| line.starts_with("  ->")).count().saturating_sub(1))
}

/// The address that comes so many places after.
fn later(ip: IpAddr, places: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).wrapping_add(places).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).wrapping_add(places.into()).into()),
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
    let mut asked = ASKED_AT_FIRST;
    say("ready");
    loop {
        asked += 1;
        let wanted = (address(destination.ip()).to_vec(), destination.port().to_be_bytes().to_vec());
        let found = ipvs.destinations(server).during("ask for", server)?;
        if found.contains(&wanted) == present {
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

/// The family's number is asked for when the socket is opened.
const ASKED_AT_FIRST: usize = 1;

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

    /// The real servers in use (with a weight above 0) of a virtual server; none when there is no such.
    fn destinations(&mut self, server: SocketAddr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
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
        let mut found = Vec::new();
        loop {
            let messages = match self.receive() {
                // There is no such virtual server (yet).
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(found),
                messages => messages?,
            };
            if messages.is_empty() {
                return Ok(found);
            }
            for message in &messages {
                let Some(dest) = find(message, ip_vs::DEST) else { continue };
                let part = |kind| find(dest, kind).unwrap_or_default().to_vec();
                if part(ip_vs::DEST_WEIGHT) != [0; 4] {
                    found.push((part(ip_vs::DEST_ADDRESS), part(ip_vs::DEST_PORT)));
                }
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
