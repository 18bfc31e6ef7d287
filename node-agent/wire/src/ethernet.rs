//! Ethernet II frames (RFC 894, RFC 2464), untagged and without the frame check sequence.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use crate::{
    DecodeError,
    attribute::{Writer, emitable},
};

const OBJECT: &str = "Ethernet header";

/// A 48-bit link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is not six pairs of hexadecimal digits with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a link-layer address")]
pub struct MacAddressError {
    /// The text.
    pub text: String,
}

impl MacAddress {
    /// Everyone on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// Unknown, as packets have it.
    pub const ZERO: Self = Self([0; 6]);

    /// The group that packets to an IPv6 multicast address are sent to (RFC 2464 section 7).
    pub const fn of_multicast(address: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = address.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let error = || MacAddressError { text: text.to_owned() };
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or_else(error)?;
            if !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        if pairs.next().is_some() {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EthernetHeader {
    /// To whom.
    pub destination: MacAddress,
    /// From whom.
    pub source: MacAddress,
    /// What follows.
    pub ether_type: EtherType,
}

impl EthernetHeader {
    /// Its size in bytes.
    pub const LENGTH: usize = 14;

    /// Reads the header and gives what follows it. That may be longer than the packet in it: short frames
    /// are padded.
    ///
    /// # Errors
    /// When there are fewer bytes than a header has.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        match frame.split_first_chunk::<{ Self::LENGTH }>() {
            Some(([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], packet)) => {
                let header = Self {
                    destination: MacAddress([*d0, *d1, *d2, *d3, *d4, *d5]),
                    source: MacAddress([*s0, *s1, *s2, *s3, *s4, *s5]),
                    ether_type: EtherType(u16::from_be_bytes([*t0, *t1])),
                };
                Ok((header, packet))
            }
            None => Err(DecodeError::Truncated { object: OBJECT, needed: Self::LENGTH, actual: frame.len() }),
        }
    }

    /// What follows a header of this type, or the error that it has another.
    pub(crate) fn expect(frame: &[u8], ether_type: EtherType) -> Result<(Self, &[u8]), DecodeError> {
        let (header, packet) = Self::parse(frame)?;
        if header.ether_type == ether_type {
            Ok((header, packet))
        } else {
            let value = u64::from(header.ether_type.0);
            Err(DecodeError::Value { object: OBJECT, field: "type", value })
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(&self.destination.0);
        writer.bytes(&self.source.0);
        writer.bytes(&self.ether_type.0.to_be_bytes());
    }
}

emitable!(EthernetHeader);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_and_read_alike() {
        let address = MacAddress([0x02, 0, 0x5e, 0xab, 0, 0xff]);
        assert_eq!(address.to_string(), "02:00:5e:ab:00:ff");
        assert_eq!("02:00:5e:AB:00:ff".parse(), Ok(address));
        for text in ["", "02:00:5e:ab:00", "02:00:5e:ab:00:ff:00", "2:0:5e:ab:0:ff", "+2:00:5e:ab:00:ff"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_multicast_group_has_an_address_of_its_own() {
        let group = MacAddress::of_multicast("ff02::1:ff12:3456".parse().unwrap());
        assert_eq!(group.to_string(), "33:33:ff:12:34:56");
    }
}
