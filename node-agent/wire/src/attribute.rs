//! Netlink attributes: reading without copying, and one writer that also measures.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_HEADER_SIZE, NlasIterator};

use crate::{DecodeError, Family, name::Name};

/// One attribute of a received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'a> {
    object: &'static str,
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

/// The attributes in `bytes`. Ends after the first error.
pub(crate) fn attributes<'a>(
    object: &'static str,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<Attribute<'a>, DecodeError>> + Clone {
    let mut left = bytes.len();
    NlasIterator::new(bytes).map(move |attribute| {
        let attribute = attribute.map_err(|_| {
            let rest = bytes.get(bytes.len() - left..).unwrap_or_default();
            match rest.first_chunk() {
                Some(length) if left >= NLA_HEADER_SIZE => DecodeError::Length {
                    object,
                    length: usize::from(u16::from_ne_bytes(*length)),
                    available: left,
                },
                _ => DecodeError::Truncated { object, needed: NLA_HEADER_SIZE, actual: left },
            }
        })?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        left = left.saturating_sub(length.next_multiple_of(4));
        // The buffer reaches to the end of the message; its length field was checked by the iterator.
        let value = attribute.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default();
        Ok(Attribute { object, kind, value })
    })
}

impl<'a> Attribute<'a> {
    pub(crate) fn array<const N: usize>(self) -> Result<[u8; N], DecodeError> {
        self.value.try_into().map_err(|_| self.wrong_size(N))
    }

    fn wrong_size(self, expected: usize) -> DecodeError {
        DecodeError::AttributeSize {
            object: self.object,
            attribute: self.kind,
            expected,
            actual: self.value.len(),
        }
    }

    pub(crate) fn u8(self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn u16_be(self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u32_be(self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The first `N` bytes; kernel structures may grow at their end.
    pub(crate) fn at_least<const N: usize>(self) -> Result<[u8; N], DecodeError> {
        self.value.first_chunk::<N>().copied().ok_or_else(|| self.wrong_size(N))
    }

    pub(crate) fn name<const N: usize>(self) -> Result<Name<N>, DecodeError> {
        Name::from_bytes(self.value).ok_or_else(|| self.wrong_size(N))
    }

    pub(crate) fn text(self) -> String {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(self.value.get(..end).unwrap_or_default()).into_owned()
    }

    /// `union nf_inet_addr` of 16 bytes: an IPv4 address is its first four.
    pub(crate) fn inet_address(self, family: Family) -> Result<IpAddr, DecodeError> {
        match family {
            Family::V4 => self.at_least::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
            Family::V6 => self.at_least::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        }
    }
}

/// The value of an attribute that the object cannot do without.
pub(crate) fn required<T>(
    object: &'static str,
    value: Option<T>,
    attribute: &'static str,
) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Missing { object, attribute })
}

/// Writes a message into a slice, or only measures it: the layout of every message is described once and
/// serves both methods of `Emitable`.
pub(crate) struct Writer<'a> {
    buffer: Option<&'a mut [u8]>,
    position: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn measuring() -> Self {
        Self { buffer: None, position: 0 }
    }

    pub(crate) fn on(buffer: &'a mut [u8]) -> Self {
        Self { buffer: Some(buffer), position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    fn write_at(&mut self, position: usize, bytes: &[u8]) {
        if let Some(place) =
            self.buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(position..position + bytes.len()))
        {
            place.copy_from_slice(bytes);
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.write_at(self.position, bytes);
        self.position += bytes.len();
    }

    /// An attribute with its padding.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.position;
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.close(start);
    }

    /// An attribute in network byte order that says so, as ipset demands.
    pub(crate) fn network_order(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind | NLA_F_NET_BYTEORDER, value);
    }

    /// An attribute that holds attributes.
    pub(crate) fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.position;
        self.bytes(&[0; 2]);
        self.bytes(&(kind | NLA_F_NESTED).to_ne_bytes());
        content(self);
        self.close(start);
    }

    /// Writes the length of the attribute that began at `start`, then pads it to four bytes.
    fn close(&mut self, start: usize) {
        let length = self.position - start;
        // Every object of this crate is bounded below 64 KiB.
        self.write_at(start, &u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        let padding = length.next_multiple_of(4) - length;
        self.bytes([0; 3].get(..padding).unwrap_or_default());
    }
}

/// Implements `Emitable` by the type's `write(&self, &mut Writer)`.
macro_rules! emitable {
    ($type:ty) => {
        impl netlink_packet_core::Emitable for $type {
            fn buffer_len(&self) -> usize {
                let mut writer = $crate::attribute::Writer::measuring();
                self.write(&mut writer);
                writer.position()
            }

            fn emit(&self, buffer: &mut [u8]) {
                self.write(&mut $crate::attribute::Writer::on(buffer));
            }
        }
    };
}
pub(crate) use emitable;

/// An address as `union nf_inet_addr`.
pub(crate) fn inet_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            if let Some(first) = bytes.first_chunk_mut() {
                *first = address.octets();
            }
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}
