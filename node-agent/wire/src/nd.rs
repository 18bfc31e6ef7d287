//! Neighbor Discovery for IPv6 (RFC 4861): announcing an address and asking whether it is taken
//! (RFC 4862 section 5.4).
//!
//! [`Message`] is ICMPv6 alone, as raw ICMPv6 sockets take it; [`Packet`] has the IPv6 header before it, and
//! [`Frame`] the Ethernet header too. Decoding checks what RFC 4861 sections 7.1.1 and 7.1.2 demand of a
//! receiver.

use std::net::Ipv6Addr;

use crate::{
    DecodeError, IpProtocol,
    attribute::{Writer, emitable},
    ethernet::{EtherType, EthernetHeader, MacAddress},
    ip,
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// RFC 3971 section 5.3.2; RFC 7527 puts it into probes.
const NONCE: u8 = 14;

/// The hop limit that proves a packet comes from the link itself.
const HOP_LIMIT: u8 = 255;
/// Type, code, checksum, flags and target.
const FIXED_LENGTH: usize = 24;
/// With both options that a solicitation can carry.
const LONGEST: usize = FIXED_LENGTH + 16;
const IPV6_HEADER_LENGTH: usize = 40;

const OBJECT: &str = "neighbor discovery message";
const IPV6: &str = "IPv6 header";

/// All nodes on the link, `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The group that the holder of an address listens to (RFC 4291 section 2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a as u16, u16::from_be_bytes([b, c]))
}

/// Neighbor Solicitation: who has the target?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Solicitation {
    /// The address asked for.
    pub target: Ipv6Addr,
    /// The asker's link-layer address; absent in a probe.
    pub source_link_layer: Option<MacAddress>,
    /// By which the sender of a probe knows its own when it comes back (RFC 7527).
    pub nonce: Option<[u8; 6]>,
}

/// Neighbor Advertisement: the sender has the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Advertisement {
    /// The address announced.
    pub target: Ipv6Addr,
    /// The sender forwards packets. Neighbours that see it fall drop the sender from their routers, so it
    /// has to agree with what the kernel says: its `forwarding` of the interface.
    pub router: bool,
    /// It answers a solicitation.
    pub solicited: bool,
    /// It replaces the link-layer address that neighbours have in their caches.
    pub overrides: bool,
    /// The sender's link-layer address.
    pub target_link_layer: Option<MacAddress>,
}

/// A Neighbor Discovery message of the two kinds that are about addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Type 135.
    Solicitation(Solicitation),
    /// Type 136.
    Advertisement(Advertisement),
}

impl Message {
    /// The message as ICMPv6 with its checksum, and the number of bytes of it.
    fn encode(&self, source: Ipv6Addr, destination: Ipv6Addr) -> ([u8; LONGEST], usize) {
        let mut bytes = [0; LONGEST];
        let mut writer = Writer::on(&mut bytes);
        let (kind, flags, target) = match self {
            Self::Solicitation(message) => (SOLICITATION, 0, message.target),
            Self::Advertisement(message) => {
                let flags =
                    [(message.router, ROUTER), (message.solicited, SOLICITED), (message.overrides, OVERRIDE)]
                        .into_iter()
                        .filter_map(|(is_set, flag)| is_set.then_some(flag))
                        .sum();
                (ADVERTISEMENT, flags, message.target)
            }
        };
        writer.bytes(&[kind, 0, 0, 0, flags, 0, 0, 0]);
        writer.bytes(&target.octets());
        let (link_layer, nonce) = match self {
            Self::Solicitation(message) => {
                (message.source_link_layer.map(|mac| (SOURCE_LINK_LAYER, mac)), message.nonce)
            }
            Self::Advertisement(message) => {
                (message.target_link_layer.map(|mac| (TARGET_LINK_LAYER, mac)), None)
            }
        };
        if let Some((option, mac)) = link_layer {
            writer.bytes(&[option, 1]);
            writer.bytes(&mac.0);
        }
        if let Some(nonce) = nonce {
            writer.bytes(&[NONCE, 1]);
            writer.bytes(&nonce);
        }
        let length = writer.position();
        let sum = checksum(source, destination, bytes.get(..length).unwrap_or_default());
        if let Some(place) = bytes.get_mut(2..4) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        (bytes, length)
    }

    /// Decodes ICMPv6 that came from `source` to `destination`. That the hop limit was 255 is for the
    /// caller to see.
    ///
    /// # Errors
    /// When it is another ICMPv6 message, or RFC 4861 tells to discard it.
    pub fn parse(source: Ipv6Addr, destination: Ipv6Addr, bytes: &[u8]) -> Result<Self, DecodeError> {
        let truncated =
            || DecodeError::Truncated { object: OBJECT, needed: FIXED_LENGTH, actual: bytes.len() };
        let (fixed, mut rest) = bytes.split_first_chunk::<FIXED_LENGTH>().ok_or_else(truncated)?;
        let [kind, code, sum0, sum1, flags, _, _, _, target @ ..] = *fixed;
        let value = |field, value| DecodeError::Value { object: OBJECT, field, value };
        if kind != SOLICITATION && kind != ADVERTISEMENT {
            return Err(value("type", u64::from(kind)));
        }
        if checksum(source, destination, bytes) != 0 {
            return Err(DecodeError::Checksum { object: OBJECT, found: u16::from_be_bytes([sum0, sum1]) });
        }
        if code != 0 {
            return Err(value("code", u64::from(code)));
        }
        let target = Ipv6Addr::from(target);
        if target.is_multicast() {
            return Err(DecodeError::Shape { object: "target of a neighbor discovery message" });
        }
        let (mut source_link_layer, mut target_link_layer, mut nonce) = (None, None, None);
        while let Some((option, content)) = take_option(&mut rest)? {
            // Link-layer addresses of another size are of other media than Ethernet.
            let Ok(content) = <[u8; 6]>::try_from(content) else { continue };
            match option {
                SOURCE_LINK_LAYER => source_link_layer = Some(MacAddress(content)),
                TARGET_LINK_LAYER => target_link_layer = Some(MacAddress(content)),
                NONCE => nonce = Some(content),
                _ => {}
            }
        }
        if kind == ADVERTISEMENT {
            let solicited = flags & SOLICITED != 0;
            if solicited && destination.is_multicast() {
                return Err(value("solicited flag to a group", 1));
            }
            return Ok(Self::Advertisement(Advertisement {
                target,
                router: flags & ROUTER != 0,
                solicited,
                overrides: flags & OVERRIDE != 0,
                target_link_layer,
            }));
        }
        if source.is_unspecified() && (destination != solicited_node(target) || source_link_layer.is_some()) {
            return Err(DecodeError::Shape { object: "probe for an IPv6 address" });
        }
        Ok(Self::Solicitation(Solicitation { target, source_link_layer, nonce }))
    }
}

/// Takes the first option off `rest`: its kind and its content.
fn take_option<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, DecodeError> {
    const OBJECT: &str = "neighbor discovery option";
    let (kind, size) = match **rest {
        [] => return Ok(None),
        [kind, length, ..] => (kind, usize::from(length) * 8),
        [_] => return Err(DecodeError::Truncated { object: OBJECT, needed: 2, actual: 1 }),
    };
    match rest.split_at_checked(size) {
        Some(([_, _, content @ ..], after)) => {
            *rest = after;
            Ok(Some((kind, content)))
        }
        // Too long, or of length 0, which would never end.
        _ => Err(DecodeError::Length { object: OBJECT, length: size, available: rest.len() }),
    }
}

/// The ICMPv6 checksum with its pseudo-header (RFC 8200 section 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    let next_header = [0, 0, 0, IpProtocol::ICMPV6.0];
    ip::checksum(&[&source.octets(), &destination.octets(), &length, &next_header, message])
}

/// A message in an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// From whom; unspecified in a probe.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// The message.
    pub message: Message,
}

impl Packet {
    /// Announces an address to all nodes: an unsolicited advertisement that overrides what they have in
    /// their caches (RFC 4861 section 7.2.6). `router` as in [`Advertisement::router`].
    pub const fn announcement(mac: MacAddress, address: Ipv6Addr, router: bool) -> Self {
        Self {
            source: address,
            destination: ALL_NODES,
            message: Message::Advertisement(Advertisement {
                target: address,
                router,
                solicited: false,
                overrides: true,
                target_link_layer: Some(mac),
            }),
        }
    }

    /// Asks whether someone has the address without claiming it, as duplicate address detection does
    /// (RFC 4862 section 5.4.2).
    pub const fn probe(address: Ipv6Addr, nonce: Option<[u8; 6]>) -> Self {
        Self {
            source: Ipv6Addr::UNSPECIFIED,
            destination: solicited_node(address),
            message: Message::Solicitation(Solicitation { target: address, source_link_layer: None, nonce }),
        }
    }

    /// An ordinary solicitation (RFC 4861 section 4.3): asks for the link-layer address of `target` on behalf of
    /// `sender`, and lets it be.
    pub const fn request(mac: MacAddress, sender: Ipv6Addr, target: Ipv6Addr) -> Self {
        Self {
            source: sender,
            destination: solicited_node(target),
            message: Message::Solicitation(Solicitation {
                target,
                source_link_layer: Some(mac),
                nonce: None,
            }),
        }
    }

    /// Whether the sender asks if the target is free, and will take it when nobody answers.
    pub const fn is_probe(&self) -> bool {
        matches!(self.message, Message::Solicitation(_)) && self.source.is_unspecified()
    }

    /// The address that the sender says is its own, with the link-layer address where it tells one: the
    /// target of an advertisement, the source of a solicitation. From another link-layer address than
    /// one's own it is a conflict.
    pub const fn claim(&self) -> Option<(Ipv6Addr, Option<MacAddress>)> {
        match self.message {
            Message::Advertisement(message) => Some((message.target, message.target_link_layer)),
            Message::Solicitation(message) if !self.source.is_unspecified() => {
                Some((self.source, message.source_link_layer))
            }
            Message::Solicitation(_) => None,
        }
    }

    /// The packet in a frame to the group that it is destined to. `None` for a packet to a single host.
    pub const fn multicast(self, source: MacAddress) -> Option<Frame> {
        if self.destination.is_multicast() {
            Some(Frame { destination: MacAddress::of_multicast(self.destination), source, packet: self })
        } else {
            None
        }
    }

    /// Decodes a packet; bytes after its payload are ignored.
    ///
    /// # Errors
    /// When it is not such a message directly in IPv6 with a hop limit of 255, or RFC 4861 tells to discard
    /// it.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let truncated =
            || DecodeError::Truncated { object: IPV6, needed: IPV6_HEADER_LENGTH, actual: bytes.len() };
        let (fixed, rest) = bytes.split_first_chunk::<8>().ok_or_else(truncated)?;
        let [version, _, _, _, length0, length1, next_header, hop_limit] = *fixed;
        let (source, rest) = rest.split_first_chunk::<16>().ok_or_else(truncated)?;
        let (destination, rest) = rest.split_first_chunk::<16>().ok_or_else(truncated)?;
        for (field, found, expected) in [
            ("version", version >> 4, 6),
            ("next header", next_header, IpProtocol::ICMPV6.0),
            ("hop limit", hop_limit, HOP_LIMIT),
        ] {
            if found != expected {
                return Err(DecodeError::Value { object: IPV6, field, value: u64::from(found) });
            }
        }
        let length = usize::from(u16::from_be_bytes([length0, length1]));
        let payload =
            rest.get(..length).ok_or(DecodeError::Length { object: IPV6, length, available: rest.len() })?;
        let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
        Ok(Self { source, destination, message: Message::parse(source, destination, payload)? })
    }

    /// The ICMPv6 part, for sockets that write the IPv6 header themselves (and want a hop limit of 255).
    pub fn icmpv6(&self) -> Vec<u8> {
        let (bytes, length) = self.message.encode(self.source, self.destination);
        bytes.get(..length).unwrap_or_default().to_vec()
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let (bytes, length) = self.message.encode(self.source, self.destination);
        writer.bytes(&[0x60, 0, 0, 0]);
        writer.bytes(&u16::try_from(length).unwrap_or_default().to_be_bytes());
        writer.bytes(&[IpProtocol::ICMPV6.0, HOP_LIMIT]);
        writer.bytes(&self.source.octets());
        writer.bytes(&self.destination.octets());
        writer.bytes(bytes.get(..length).unwrap_or_default());
    }
}

emitable!(Packet);

/// A packet with its Ethernet header.
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
    /// When it is no IPv6, or [`Packet::parse`] fails.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (EthernetHeader { destination, source, .. }, packet) =
            EthernetHeader::expect(bytes, EtherType::IPV6)?;
        Ok(Self { destination, source, packet: Packet::parse(packet)? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let Self { destination, source, packet } = *self;
        EthernetHeader { destination, source, ether_type: EtherType::IPV6 }.write(writer);
        packet.write(writer);
    }
}

emitable!(Frame);
