//! IPVS by netlink, as little of it as the benches need: what they measure has a codec of its own, and a mistake in that
//! one must not hide here.

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_GENERIC};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// `linux/netlink.h`, `linux/genetlink.h`.
mod netlink {
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const REQUEST: u16 = 1;
    pub const ACKNOWLEDGE: u16 = 4;
    pub const DUMP: u16 = 0x300;
    pub const NESTED: u16 = 0x8000;
    pub const CONTROLLER: u16 = 0x10;
    pub const GET_FAMILY: u8 = 3;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
}

/// `linux/ip_vs.h`.
mod ip_vs {
    pub const NEW_SERVICE: u8 = 1;
    pub const NEW_DEST: u8 = 5;
    pub const GET_DEST: u8 = 8;
    pub const SERVICE: u16 = 1;
    pub const DEST: u16 = 2;
    pub const SERVICE_FAMILY: u16 = 1;
    pub const SERVICE_PROTOCOL: u16 = 2;
    pub const SERVICE_ADDRESS: u16 = 3;
    pub const SERVICE_PORT: u16 = 4;
    pub const SERVICE_SCHEDULER: u16 = 6;
    pub const SERVICE_FLAGS: u16 = 7;
    pub const SERVICE_TIMEOUT: u16 = 8;
    pub const SERVICE_NETMASK: u16 = 9;
    pub const DEST_ADDRESS: u16 = 1;
    pub const DEST_PORT: u16 = 2;
    pub const DEST_FORWARDING: u16 = 3;
    pub const DEST_WEIGHT: u16 = 4;
    pub const DEST_UPPER: u16 = 5;
    pub const DEST_LOWER: u16 = 6;
    pub const DEST_FAMILY: u16 = 11;
}

/// The kernel's table of virtual servers.
pub(super) struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    pub(super) fn open() -> io::Result<Self> {
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
    pub(super) fn destinations(&mut self, server: SocketAddr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let request = attribute(ip_vs::SERVICE | netlink::NESTED, &key(server));
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

    /// Adds TCP virtual servers with their real servers, `together` messages in one send, and nothing else: what the kernel
    /// itself needs for that.
    pub(super) fn add(
        &self,
        servers: impl Iterator<Item = (SocketAddr, Vec<SocketAddr>)>,
        together: usize,
    ) -> io::Result<usize> {
        let mut messages = servers.flat_map(|(server, destinations)| {
            let of = key(server);
            let service = [of.clone(), properties()].concat();
            let service = attribute(ip_vs::SERVICE | netlink::NESTED, &service);
            let destinations: Vec<_> = destinations
                .into_iter()
                .map(move |at| {
                    let of = attribute(ip_vs::SERVICE | netlink::NESTED, &of);
                    let destination = attribute(ip_vs::DEST | netlink::NESTED, &destination(at));
                    (ip_vs::NEW_DEST, [of, destination].concat())
                })
                .collect();
            std::iter::once((ip_vs::NEW_SERVICE, service)).chain(destinations)
        });
        let (mut count, mut next) = (0, messages.next());
        while next.is_some() {
            let mut datagram = Vec::new();
            for left in (0..together).rev() {
                let Some((command, attributes)) = next.take() else { break };
                next = messages.next();
                // The last answers for all: those before it answer only when they fail.
                let last = left == 0 || next.is_none();
                let flags = netlink::REQUEST | if last { netlink::ACKNOWLEDGE } else { 0 };
                datagram.extend(message(self.family, flags, command, &attributes)?);
                count += 1;
            }
            self.socket.send(&datagram, 0)?;
            self.receive()?;
        }
        Ok(count)
    }

    fn ask(&self, kind: u16, flags: u16, command: u8, attributes: &[u8]) -> io::Result<()> {
        self.socket.send(&message(kind, flags, command, attributes)?, 0).map(drop)
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

fn message(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(20 + attributes.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    Ok(message)
}

/// `AF_INET` or `AF_INET6`.
fn family(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 2 } else { 10 }
}

/// What names a TCP virtual server.
fn key(server: SocketAddr) -> Vec<u8> {
    const TCP: u16 = 6;
    [
        attribute(ip_vs::SERVICE_FAMILY, &family(server.ip()).to_ne_bytes()),
        attribute(ip_vs::SERVICE_PROTOCOL, &TCP.to_ne_bytes()),
        attribute(ip_vs::SERVICE_ADDRESS, &address(server.ip())),
        attribute(ip_vs::SERVICE_PORT, &server.port().to_be_bytes()),
    ]
    .concat()
}

/// Round robin, no persistence.
fn properties() -> Vec<u8> {
    [
        attribute(ip_vs::SERVICE_SCHEDULER, b"rr\0"),
        attribute(ip_vs::SERVICE_FLAGS, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        attribute(ip_vs::SERVICE_TIMEOUT, &[0; 4]),
        attribute(ip_vs::SERVICE_NETMASK, &[0xff; 4]),
    ]
    .concat()
}

/// A masqueraded real server of weight 1, without thresholds.
fn destination(at: SocketAddr) -> Vec<u8> {
    [
        attribute(ip_vs::DEST_ADDRESS, &address(at.ip())),
        attribute(ip_vs::DEST_PORT, &at.port().to_be_bytes()),
        attribute(ip_vs::DEST_FORWARDING, &[0; 4]),
        attribute(ip_vs::DEST_WEIGHT, &1u32.to_ne_bytes()),
        attribute(ip_vs::DEST_UPPER, &[0; 4]),
        attribute(ip_vs::DEST_LOWER, &[0; 4]),
        attribute(ip_vs::DEST_FAMILY, &family(at.ip()).to_ne_bytes()),
    ]
    .concat()
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
pub(super) fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

/// The address that comes so many places after.
pub(super) fn later(ip: IpAddr, places: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).wrapping_add(places).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).wrapping_add(places.into()).into()),
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
