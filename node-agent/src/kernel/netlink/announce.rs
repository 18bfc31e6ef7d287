//! Telling a segment where an address lives, and reading what others say of addresses.

use std::{io, net::IpAddr, path::PathBuf};

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
    owner::Says,
    sysctl::Settings,
    transport::{Connection, Protocol},
};
use crate::{kernel::KernelError, state::AddressKey};

/// Sends announcements.
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
        let (interface, mac) = self.sender(key)?;
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

    /// The interface of an address and its link-layer address.
    fn sender(&mut self, key: &AddressKey) -> Result<(Interface, MacAddress), KernelError> {
        let name = &key.interface;
        let interface = link::find(&mut self.route, name)
            .map_err(|error| error.about("read", format!("interface {name}")))?;
        let mac = mac_of("announce", key, interface.as_ref())?;
        interface.map(|interface| (interface, mac)).ok_or_else(|| no_interface("announce", key))
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

/// What a frame says of an address, and the link-layer address of who says it.
pub(super) fn statement(family: IpAddr, frame: &[u8]) -> Option<(Says, IpAddr, MacAddress)> {
    match family {
        IpAddr::V4(_) => {
            let packet = arp::Frame::parse(frame).ok()?.packet;
            if let Some((address, mac)) = packet.claim() {
                return Some((Says::Has, address.into(), mac));
            }
            packet.is_probe().then_some((Says::WillTake, packet.target.into(), packet.sender_mac))
        }
        IpAddr::V6(_) => {
            let frame = nd::Frame::parse(frame).ok()?;
            if let Some((address, mac)) = frame.packet.claim() {
                return Some((Says::Has, address.into(), mac.unwrap_or(frame.source)));
            }
            match frame.packet.message {
                nd::Message::Solicitation(asked) if frame.packet.is_probe() => {
                    Some((Says::WillTake, asked.target.into(), frame.source))
                }
                _ => None,
            }
        }
    }
}

/// The link-layer address of an address's interface.
pub(super) fn mac_of(
    operation: &'static str,
    key: &AddressKey,
    interface: Option<&Interface>,
) -> Result<MacAddress, KernelError> {
    let interface = interface.ok_or_else(|| no_interface(operation, key))?;
    let mac = <[u8; 6]>::try_from(interface.hardware_address.as_slice());
    mac.map(MacAddress).map_err(|_| {
        refused(operation, key, libc::EOPNOTSUPP, format!("interface {} is not Ethernet", key.interface))
    })
}

pub(super) fn no_interface(operation: &'static str, key: &AddressKey) -> KernelError {
    refused(operation, key, libc::ENODEV, format!("there is no interface {}", key.interface))
}

fn refused(operation: &'static str, key: &AddressKey, errno: i32, message: String) -> KernelError {
    KernelError::Refused { operation, object: words(key), errno, message: Some(message) }
}

pub(super) fn open(namespace: &Namespace, ether_type: EtherType) -> Result<FrameSocket, KernelError> {
    namespace.run(|| FrameSocket::open(ether_type))?.map_err(|source| KernelError::Io {
        operation: "open",
        object: "packet socket".to_owned(),
        source,
    })
}

pub(super) fn bytes(frame: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; frame.buffer_len()];
    frame.emit(&mut bytes);
    bytes
}

fn words(key: &AddressKey) -> String {
    format!("address {} on interface {}", key.address, key.interface)
}

pub(super) fn failed(operation: &'static str, key: &AddressKey, source: io::Error) -> KernelError {
    KernelError::Io { operation, object: words(key), source }
}
