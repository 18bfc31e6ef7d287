//! Entries of sets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{command_attribute, data_attribute as attribute, data_flag};
use crate::{
    DecodeError, IpProtocol,
    attribute::{Attribute, Writer, attributes},
};

const OBJECT: &str = "ipset entry";

/// `IPSET_ATTR_IPADDR_*`.
const IPADDR_IPV4: u16 = 1;
const IPADDR_IPV6: u16 = 2;

/// What an entry matches: one shape for each [`SetType`](super::SetType). Within a set all addresses are of
/// the set's family.
///
/// A prefix of 0 is refused by the kernel ([`InvalidCidr`](super::ErrorCode::InvalidCidr)): "everything" is
/// the two halves `0.0.0.0/1` and `128.0.0.0/1`. Bits after the prefix are cleared by the kernel, so clear
/// them before comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// `hash:ip`
    Ip(IpAddr),
    /// `hash:ip,port`
    IpPort(IpAddr, IpProtocol, u16),
    /// `hash:ip,port,ip`
    IpPortIp(IpAddr, IpProtocol, u16, IpAddr),
    /// `hash:ip,port,net`: the last two are the network and its prefix length.
    IpPortNet(IpAddr, IpProtocol, u16, IpAddr, u8),
    /// `hash:net`: network and prefix length.
    Net(IpAddr, u8),
    /// `hash:net,port`: network and prefix length, protocol, port.
    NetPort(IpAddr, u8, IpProtocol, u16),
    /// `bitmap:port`
    Port(u16),
}

impl fmt::Display for Element {
    /// As `ipset` writes it: `10.0.0.1,tcp:80,10.1.0.0/16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lower = |protocol: &IpProtocol| protocol.to_string().to_ascii_lowercase();
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", lower(protocol)),
            Self::IpPortIp(ip, protocol, port, second) => {
                write!(f, "{ip},{}:{port},{second}", lower(protocol))
            }
            Self::IpPortNet(ip, protocol, port, net, prefix) => {
                write!(f, "{ip},{}:{port},{net}/{prefix}", lower(protocol))
            }
            Self::Net(net, prefix) => write!(f, "{net}/{prefix}"),
            Self::NetPort(net, prefix, protocol, port) => {
                write!(f, "{net}/{prefix},{}:{port}", lower(protocol))
            }
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

/// A firewall mark that `-j SET --map-set … --map-mark` gives to packets: `(mark & !mask) ^ value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkbMark {
    /// The bits to set.
    pub value: u32,
    /// The bits that are replaced.
    pub mask: u32,
}

/// An entry with its extensions. Those that a set was not created for are refused by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// What it matches.
    pub element: Element,
    /// An exception from a larger network (types with a net).
    pub nomatch: bool,
    /// Mark for packets that match (`skbinfo`). The kernel lists no mark of value 0.
    pub mark: Option<SkbMark>,
    /// Seconds until it expires, 0 is never; in listings the seconds left.
    pub timeout: Option<u32>,
}

impl From<Element> for Entry {
    fn from(element: Element) -> Self {
        Self { element, nomatch: false, mark: None, timeout: None }
    }
}

impl Entry {
    /// Writes the attributes in the order of their numbers, as ipset itself does.
    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        let (ip, prefix, protocol, port, second, second_prefix) = match self.element {
            Element::Ip(ip) => (Some(ip), None, None, None, None, None),
            Element::Net(net, prefix) => (Some(net), Some(prefix), None, None, None, None),
            Element::Port(port) => (None, None, None, Some(port), None, None),
            Element::IpPort(ip, protocol, port) => (Some(ip), None, Some(protocol), Some(port), None, None),
            Element::NetPort(net, prefix, protocol, port) => {
                (Some(net), Some(prefix), Some(protocol), Some(port), None, None)
            }
            Element::IpPortIp(ip, protocol, port, second) => {
                (Some(ip), None, Some(protocol), Some(port), Some(second), None)
            }
            Element::IpPortNet(ip, protocol, port, net, prefix) => {
                (Some(ip), None, Some(protocol), Some(port), Some(net), Some(prefix))
            }
        };
        if let Some(ip) = ip {
            write_address(writer, attribute::IP, ip);
        }
        if let Some(prefix) = prefix {
            writer.attribute(attribute::CIDR, &[prefix]);
        }
        if let Some(port) = port {
            writer.network_order(attribute::PORT, &port.to_be_bytes());
        }
        if let Some(timeout) = self.timeout {
            writer.network_order(attribute::TIMEOUT, &timeout.to_be_bytes());
        }
        if let Some(protocol) = protocol {
            writer.attribute(attribute::PROTO, &[protocol.0]);
        }
        if self.nomatch {
            writer.network_order(attribute::CADT_FLAGS, &data_flag::NOMATCH.to_be_bytes());
        }
        if let Some(second) = second {
            write_address(writer, attribute::IP2, second);
        }
        if let Some(prefix) = second_prefix {
            writer.attribute(attribute::CIDR2, &[prefix]);
        }
        if let Some(mark) = self.mark {
            let both = (u64::from(mark.value) << 32) | u64::from(mark.mask);
            writer.network_order(attribute::SKBMARK, &both.to_be_bytes());
        }
    }

    /// Reads one entry. Its shape follows from the attributes that are there: listings repeat neither the
    /// set's type nor its family in every message.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut ip, mut ip2, mut cidr, mut cidr2) = (None, None, None, None);
        let (mut port, mut protocol, mut mark, mut timeout) = (None, None, None, None);
        let mut nomatch = false;
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                attribute::IP => ip = Some(parse_address(attribute)?),
                attribute::IP2 => ip2 = Some(parse_address(attribute)?),
                attribute::CIDR => cidr = Some(attribute.u8()?),
                attribute::CIDR2 => cidr2 = Some(attribute.u8()?),
                attribute::PORT => port = Some(attribute.u16_be()?),
                attribute::PROTO => protocol = Some(IpProtocol(attribute.u8()?)),
                attribute::TIMEOUT => timeout = Some(attribute.u32_be()?),
                attribute::CADT_FLAGS => nomatch = attribute.u32_be()? & data_flag::NOMATCH != 0,
                attribute::SKBMARK => mark = Some(parse_mark(attribute)?),
                _ => {}
            }
        }
        let element = match (ip, cidr, port, protocol, ip2, cidr2) {
            (Some(ip), None, None, None, None, None) => Element::Ip(ip),
            (Some(net), Some(prefix), None, None, None, None) => Element::Net(net, prefix),
            (Some(ip), None, Some(port), Some(protocol), None, None) => Element::IpPort(ip, protocol, port),
            (Some(net), Some(prefix), Some(port), Some(protocol), None, None) => {
                Element::NetPort(net, prefix, protocol, port)
            }
            (Some(ip), None, Some(port), Some(protocol), Some(second), None) => {
                Element::IpPortIp(ip, protocol, port, second)
            }
            (Some(ip), None, Some(port), Some(protocol), Some(net), Some(prefix)) => {
                Element::IpPortNet(ip, protocol, port, net, prefix)
            }
            (None, None, Some(port), _, None, None) => Element::Port(port),
            _ => return Err(DecodeError::Shape { object: OBJECT }),
        };
        Ok(Self { element, nomatch, mark, timeout })
    }
}

fn write_address(writer: &mut Writer<'_>, kind: u16, address: IpAddr) {
    writer.nested(kind, |writer| match address {
        IpAddr::V4(address) => writer.network_order(IPADDR_IPV4, &address.octets()),
        IpAddr::V6(address) => writer.network_order(IPADDR_IPV6, &address.octets()),
    });
}

fn parse_address(attribute: Attribute<'_>) -> Result<IpAddr, DecodeError> {
    for address in attributes(OBJECT, attribute.value) {
        let address = address?;
        match address.kind {
            IPADDR_IPV4 => return Ok(IpAddr::V4(Ipv4Addr::from(address.u32_be()?))),
            IPADDR_IPV6 => return Ok(IpAddr::V6(Ipv6Addr::from(address.array()?))),
            _ => {}
        }
    }
    Err(DecodeError::Missing { object: OBJECT, attribute: "IPSET_ATTR_IPADDR" })
}

fn parse_mark(attribute: Attribute<'_>) -> Result<SkbMark, DecodeError> {
    let [v0, v1, v2, v3, m0, m1, m2, m3] = attribute.array()?;
    Ok(SkbMark { value: u32::from_be_bytes([v0, v1, v2, v3]), mask: u32::from_be_bytes([m0, m1, m2, m3]) })
}

/// Entries for one message, at least one and at most [`EntryBatch::MOST`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryBatch(Vec<Entry>);

/// A batch takes no further entry: send it and begin another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message takes at most {} ipset entries", EntryBatch::MOST)]
pub struct EntryBatchFull;

impl EntryBatch {
    /// An attribute's length field has 16 bits and the largest entry takes 120 bytes.
    pub const MOST: usize = 512;

    /// A batch of its first entry.
    pub fn new(first: Entry) -> Self {
        Self(vec![first])
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When the batch is full; it is unchanged then.
    pub fn push(&mut self, entry: Entry) -> Result<(), EntryBatchFull> {
        if self.0.len() >= Self::MOST {
            return Err(EntryBatchFull);
        }
        self.0.push(entry);
        Ok(())
    }

    /// Splits any number of entries into batches, in order.
    pub fn split(entries: &[Entry]) -> impl Iterator<Item = Self> + '_ {
        entries.chunks(Self::MOST).map(|chunk| Self(chunk.to_vec()))
    }

    /// The entries. The one at index `i` is line `i + 1` of an error.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The entry that an error's [`line`](crate::extack::KernelError::line) means.
    pub fn at_line(&self, line: u32) -> Option<&Entry> {
        self.0.get(usize::try_from(line.checked_sub(1)?).ok()?)
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        // Its presence asks for the line in errors: the kernel copies the failed entry's number over it, and
        // does not interpret the number, so the byte order is ours to choose. A 0 that comes back says that
        // no entry was reached.
        writer.network_order(command_attribute::LINENO, &0_u32.to_be_bytes());
        writer.nested(command_attribute::ADT, |writer| {
            for (line, entry) in (1_u32..).zip(&self.0) {
                writer.nested(command_attribute::DATA, |writer| {
                    entry.write(writer);
                    writer.network_order(attribute::LINENO, &line.to_be_bytes());
                });
            }
        });
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let entries: Vec<_> = entries(bytes).take(Self::MOST + 1).collect::<Result<_, _>>()?;
        if entries.is_empty() || entries.len() > Self::MOST {
            return Err(DecodeError::Shape { object: "ipset batch" });
        }
        Ok(Self(entries))
    }
}

/// The entries in an `IPSET_ATTR_ADT`, read one at a time.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = Result<Entry, DecodeError>> + Clone {
    attributes(OBJECT, bytes).filter_map(|attribute| match attribute {
        Ok(attribute) if attribute.kind == command_attribute::DATA => Some(Entry::parse(attribute.value)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}
