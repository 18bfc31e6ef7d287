//! Telling a segment where an address lives, and asking whether somebody else has it.

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use netlink_packet_core::Emitable;
use nodenet_wire::{
    arp,
    ethernet::{EtherType, MacAddress},
    nd,
};

use super::{
    frames::FrameSocket,
    link::{self, Interface},
    namespace::Namespace,
    sysctl::Settings,
    transport::{Connection, Protocol},
};
use crate::{kernel::KernelError, state::AddressKey};

/// Sends announcements and probes.
pub struct Announcer {
    namespace: Namespace,
    route: Connection,
    settings: Settings,
    arp: FrameSocket,
    /// Opened when first needed.
    ipv6: Option<FrameSocket>,
}

impl Announcer {
    /// Opens what is needed in a namespace.
    ///
    /// # Errors
    /// When a socket cannot be opened; packet sockets ask for `CAP_NET_RAW`.
    pub fn open(namespace: &Namespace) -> Result<Self, KernelError> {
        Ok(Self {
            route: Connection::open(Protocol::Route, namespace)?,
            settings: Settings::new(PathBuf::from("/proc/sys"), namespace.clone()),
            arp: open(namespace, EtherType::ARP)?,
            ipv6: None,
            namespace: namespace.clone(),
        })
    }

    /// Says once that an address is here: a gratuitous ARP request (RFC 5227, 2.3) or an unsolicited neighbour
    /// advertisement (RFC 4861, 7.2.6).
    ///
    /// # Errors
    /// When there is no such interface, it is not Ethernet, or the frame could not be sent.
    pub fn announce(&mut self, key: &AddressKey) -> Result<(), KernelError> {
        let (interface, mac) = self.sender("announce", key)?;
        let (socket, frame) = match key.address {
            IpAddr::V4(address) => (&self.arp, bytes(&arp::Packet::announcement(mac, address).broadcast())),
            IpAddr::V6(address) => {
                let packet = nd::Packet::announcement(mac, address, self.forwards(&interface.name));
                let Some(frame) = packet.multicast(mac) else { return Ok(()) };
                (self.ipv6()?, bytes(&frame))
            }
        };
        socket.send(interface.index, &frame).map_err(|source| failed("announce", key, source))
    }

    /// Who else answers for an address on the segment of an interface, within some time. The question claims nothing
    /// (RFC 5227, 2.1.1; RFC 4862, 5.4.2).
    ///
    /// # Errors
    /// When there is no such interface, it is not Ethernet, or the frame could not be sent.
    pub fn probe(&mut self, key: &AddressKey, wait: Duration) -> Result<Option<MacAddress>, KernelError> {
        let (interface, mac) = self.sender("probe", key)?;
        // A socket of its own: what it hears after this is of no use.
        let (mut socket, frame) = match key.address {
            IpAddr::V4(address) => {
                (open(&self.namespace, EtherType::ARP)?, bytes(&arp::Packet::probe(mac, address).broadcast()))
            }
            IpAddr::V6(address) => {
                let Some(frame) = nd::Packet::probe(address, None).multicast(mac) else { return Ok(None) };
                (open(&self.namespace, EtherType::IPV6)?, bytes(&frame))
            }
        };
        let problem = |source| failed("probe", key, source);
        socket.send(interface.index, &frame).map_err(problem)?;
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some((index, frame)) = socket.receive(left).map_err(problem)? else { return Ok(None) };
            if index == interface.index
                && let Some((address, owner)) = claim(key.address, frame)
                && address == key.address
                && owner != mac
            {
                return Ok(Some(owner));
            }
        }
    }

    /// The interface of an address and its link-layer address.
    fn sender(
        &mut self,
        operation: &'static str,
        key: &AddressKey,
    ) -> Result<(Interface, MacAddress), KernelError> {
        let refused = |errno, message: String| KernelError::Refused {
            operation,
            object: words(key),
            errno,
            message: Some(message),
        };
        let name = &key.interface;
        let interface = link::find(&mut self.route, name)
            .map_err(|error| error.about("read", format!("interface {name}")))?
            .ok_or_else(|| refused(libc::ENODEV, format!("there is no interface {name}")))?;
        match <[u8; 6]>::try_from(interface.hardware_address.as_slice()) {
            Ok(mac) => Ok((interface, MacAddress(mac))),
            Err(_) => Err(refused(libc::EOPNOTSUPP, format!("interface {name} is not Ethernet"))),
        }
    }

    fn ipv6(&mut self) -> Result<&FrameSocket, KernelError> {
        match &mut self.ipv6 {
            Some(socket) => Ok(socket),
            closed => Ok(closed.insert(open(&self.namespace, EtherType::IPV6)?)),
        }
    }

    /// Whether an interface forwards IPv6: whoever uses it as a router forgets it when it says that it is none.
    fn forwards(&self, interface: &str) -> bool {
        let name = format!("net.ipv6.conf.{}.forwarding", interface.replace('.', "/"));
        let setting = self.settings.read(&[name.clone()].into());
        setting.is_ok_and(|setting| setting.get(&name).is_some_and(|value| value != "0"))
    }
}

/// The address that a frame says is its sender's, and the sender's link-layer address.
pub(super) fn claim(family: IpAddr, frame: &[u8]) -> Option<(IpAddr, MacAddress)> {
    match family {
        IpAddr::V4(_) => {
            let (address, mac) = arp::Frame::parse(frame).ok()?.packet.claim()?;
            Some((IpAddr::V4(address), mac))
        }
        IpAddr::V6(_) => {
            let frame = nd::Frame::parse(frame).ok()?;
            let (address, mac) = frame.packet.claim()?;
            Some((IpAddr::V6(address), mac.unwrap_or(frame.source)))
        }
    }
}

pub(super) fn open(namespace: &Namespace, ether_type: EtherType) -> Result<FrameSocket, KernelError> {
    namespace.run(|| FrameSocket::open(ether_type))?.map_err(|source| KernelError::Io {
        operation: "open",
        object: "packet socket".to_owned(),
        source,
    })
}

fn bytes(frame: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; frame.buffer_len()];
    frame.emit(&mut bytes);
    bytes
}

fn words(key: &AddressKey) -> String {
    format!("address {} on interface {}", key.address, key.interface)
}

fn failed(operation: &'static str, key: &AddressKey, source: io::Error) -> KernelError {
    KernelError::Io { operation, object: words(key), source }
}
