//! ARP for IPv4 over Ethernet (RFC 826): announcing an address and asking whether it is taken (RFC 5227).

use std::net::Ipv4Addr;

use crate::{
    DecodeError,
    attribute::{Writer, emitable},
    ethernet::{EtherType, EthernetHeader, MacAddress},
};

const OBJECT: &str = "ARP packet";

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const PREAMBLE: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What a packet is (`ar$op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(pub u16);

impl Operation {
    /// Who has the target address?
    pub const REQUEST: Self = Self(1);
    /// The sender has the sender address.
    pub const REPLY: Self = Self(2);
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Request or reply.
    pub operation: Operation,
    /// Sender's link-layer address.
    pub sender_mac: MacAddress,
    /// Sender's address; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// Target's link-layer address; nobody reads it in a request.
    pub target_mac: MacAddress,
    /// Target's address.
    pub target: Ipv4Addr,
}

impl Packet {
    /// Its size in bytes.
    pub const LENGTH: usize = 28;

    /// An announcement, or gratuitous ARP: a request for one's own address (RFC 5227 section 2.3). Whoever
    /// has the address in its cache updates it.
    pub const fn announcement(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::REQUEST,
            sender_mac: mac,
            sender: address,
            target_mac: MacAddress::ZERO,
            target: address,
        }
    }

    /// An announcement in the form of a reply, for hosts that ignore the other (RFC 5944 section 4.6 lets
    /// both; the target's link-layer address is then the announced one).
    pub const fn announcement_reply(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::REPLY,
            sender_mac: mac,
            sender: address,
            target_mac: mac,
            target: address,
        }
    }

    /// A probe: asks whether someone has the address without claiming it (RFC 5227 section 2.1.1).
    pub const fn probe(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::REQUEST,
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: MacAddress::ZERO,
            target: address,
        }
    }

    /// An ordinary request: asks for the link-layer address of `target` on behalf of `sender`, and lets it be.
    pub const fn request(mac: MacAddress, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { operation: Operation::REQUEST, sender_mac: mac, sender, target_mac: MacAddress::ZERO, target }
    }

    /// Whether the sender asks if the target address is free, and will take it when nobody answers.
    pub const fn is_probe(&self) -> bool {
        self.operation.0 == Operation::REQUEST.0 && self.sender.is_unspecified()
    }

    /// The address that the sender says is its own: in every packet but a probe. From another link-layer
    /// address than one's own it is a conflict (RFC 5227 section 2.4).
    pub const fn claim(&self) -> Option<(Ipv4Addr, MacAddress)> {
        if self.sender.is_unspecified() { None } else { Some((self.sender, self.sender_mac)) }
    }

    /// The packet in a frame to everyone on the link.
    pub const fn broadcast(self) -> Frame {
        Frame { destination: MacAddress::BROADCAST, source: self.sender_mac, packet: self }
    }

    /// Decodes a packet; bytes after it are ignored.
    ///
    /// # Errors
    /// When it is too short, or not IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let truncated =
            || DecodeError::Truncated { object: OBJECT, needed: Self::LENGTH, actual: bytes.len() };
        let packet: &[u8; Self::LENGTH] = bytes.first_chunk().ok_or_else(truncated)?;
        let (preamble, rest) = packet.split_first_chunk().ok_or_else(truncated)?;
        if *preamble != PREAMBLE {
            let [h0, h1, p0, p1, hardware_length, protocol_length] = *preamble;
            let value = u64::from_be_bytes([0, 0, h0, h1, p0, p1, hardware_length, protocol_length]);
            return Err(DecodeError::Value { object: OBJECT, field: "kind of addresses", value });
        }
        let (operation, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
        let (sender_mac, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
        let (sender, rest) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let (target_mac, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
        let target = rest.first_chunk::<4>().ok_or_else(truncated)?;
        Ok(Self {
            operation: Operation(u16::from_be_bytes(*operation)),
            sender_mac: MacAddress(*sender_mac),
            sender: Ipv4Addr::from(*sender),
            target_mac: MacAddress(*target_mac),
            target: Ipv4Addr::from(*target),
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(&PREAMBLE);
        writer.bytes(&self.operation.0.to_be_bytes());
        writer.bytes(&self.sender_mac.0);
        writer.bytes(&self.sender.octets());
        writer.bytes(&self.target_mac.0);
        writer.bytes(&self.target.octets());
    }
}

emitable!(Packet);

/// An ARP packet with its Ethernet header: 42 bytes, which the network card pads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    /// To whom.
    pub destination: MacAddress,
    /// From whom.
    pub source: MacAddress,
    /// The packet.
    pub packet: Packet,
}

impl Frame {
    /// Decodes a frame; padding is ignored.
    ///
    /// # Errors
    /// When it is too short, or no ARP for IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (EthernetHeader { destination, source, .. }, packet) =
            EthernetHeader::expect(bytes, EtherType::ARP)?;
        Ok(Self { destination, source, packet: Packet::parse(packet)? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let Self { destination, source, packet } = *self;
        EthernetHeader { destination, source, ether_type: EtherType::ARP }.write(writer);
        packet.write(writer);
    }
}

emitable!(Frame);
