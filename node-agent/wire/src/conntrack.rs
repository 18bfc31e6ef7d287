//! Tracked connections over nfnetlink (subsystem 1; `include/uapi/linux/netfilter/nfnetlink_conntrack.h`):
//! listing and deleting them, as far as protocols with ports go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSerializable};

use crate::{
    DecodeError, Family, IpProtocol,
    attribute::{Attribute, Writer, attributes, emitable},
    message::Flags,
};

/// `NFNL_SUBSYS_CTNETLINK`: the upper byte of every message type.
pub const SUBSYSTEM: u8 = 1;

const OBJECT: &str = "tracked connection";
/// `struct nfgenmsg`.
const NFGENMSG_LENGTH: usize = 4;

/// `IPCTNL_MSG_CT_*`.
const GET: u8 = 1;
const DELETE: u8 = 2;

/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_FILTER_ORIG_FLAGS` and its bit for the protocol (`CTA_FILTER_F_CTA_PROTO_NUM`).
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
/// `CTA_TUPLE_*`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// `CTA_IP_*`.
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
/// `CTA_PROTO_*`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: IpProtocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Packets of the side that began, as they came.
    pub original: Tuple,
    /// Packets of the other side, as they come before translation: its source is the server that was chosen.
    pub reply: Tuple,
    /// The kernel's number for it.
    pub id: Option<u32>,
    /// Zone; 0 is the usual one.
    pub zone: u16,
}

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Lists connections (a dump). Kernels before 5.8 do not look at the protocol: filter the answers too.
    List {
        /// Of this family.
        family: Family,
        /// Of this protocol.
        protocol: IpProtocol,
    },
    /// Forgets a connection; ENOENT when it is gone already.
    Delete(Connection),
}

impl Connection {
    /// Decodes the payload of a message, `struct nfgenmsg` included. `None` for a protocol without ports.
    ///
    /// # Errors
    /// When the attributes are malformed, or a direction is absent.
    pub fn parse_payload(payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        let bytes = payload.get(NFGENMSG_LENGTH..).ok_or(DecodeError::Truncated {
            object: OBJECT,
            needed: NFGENMSG_LENGTH,
            actual: payload.len(),
        })?;
        let (mut original, mut reply, mut id, mut zone) = (None, None, None, 0);
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                TUPLE_ORIG => original = Some(Tuple::parse(attribute)?),
                TUPLE_REPLY => reply = Some(Tuple::parse(attribute)?),
                ID => id = Some(attribute.u32_be()?),
                ZONE => zone = attribute.u16_be()?,
                _ => {}
            }
        }
        let missing = |attribute| DecodeError::Missing { object: OBJECT, attribute };
        let original = original.ok_or(missing("CTA_TUPLE_ORIG"))?;
        let reply = reply.ok_or(missing("CTA_TUPLE_REPLY"))?;
        Ok(original.zip(reply).map(|(original, reply)| Self { original, reply, id, zone }))
    }
}

impl Tuple {
    fn parse(attribute: Attribute<'_>) -> Result<Option<Self>, DecodeError> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
        for part in attributes(OBJECT, attribute.value) {
            let part = part?;
            for field in
                attributes(OBJECT, part.value).take(if part.kind <= TUPLE_PROTO { usize::MAX } else { 0 })
            {
                let field = field?;
                match (part.kind, field.kind) {
                    (TUPLE_IP, V4_SRC) => source = Some(IpAddr::V4(Ipv4Addr::from(field.u32_be()?))),
                    (TUPLE_IP, V4_DST) => destination = Some(IpAddr::V4(Ipv4Addr::from(field.u32_be()?))),
                    (TUPLE_IP, V6_SRC) => source = Some(IpAddr::V6(Ipv6Addr::from(field.array()?))),
                    (TUPLE_IP, V6_DST) => destination = Some(IpAddr::V6(Ipv6Addr::from(field.array()?))),
                    (TUPLE_PROTO, PROTO_NUM) => protocol = Some(IpProtocol(field.u8()?)),
                    (TUPLE_PROTO, PROTO_SRC_PORT) => source_port = Some(field.u16_be()?),
                    (TUPLE_PROTO, PROTO_DST_PORT) => destination_port = Some(field.u16_be()?),
                    _ => {}
                }
            }
        }
        let missing = |attribute| DecodeError::Missing { object: OBJECT, attribute };
        let source = source.ok_or(missing("CTA_IP_*_SRC"))?;
        let destination = destination.ok_or(missing("CTA_IP_*_DST"))?;
        let protocol = protocol.ok_or(missing("CTA_PROTO_NUM"))?;
        Ok(source_port.zip(destination_port).map(|(source_port, destination_port)| Self {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        }))
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.nested(TUPLE_IP, |writer| {
            write_address(writer, self.source, V4_SRC, V6_SRC);
            write_address(writer, self.destination, V4_DST, V6_DST);
        });
        writer.nested(TUPLE_PROTO, |writer| {
            writer.attribute(PROTO_NUM, &[self.protocol.0]);
            writer.attribute(PROTO_SRC_PORT, &self.source_port.to_be_bytes());
            writer.attribute(PROTO_DST_PORT, &self.destination_port.to_be_bytes());
        });
    }
}

fn write_address(writer: &mut Writer<'_>, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => writer.attribute(v4, &address.octets()),
        IpAddr::V6(address) => writer.attribute(v6, &address.octets()),
    }
}

impl Request {
    fn write(&self, writer: &mut Writer<'_>) {
        let family = match self {
            Self::List { family, .. } => *family,
            Self::Delete(connection) => Family::of(connection.original.source),
        };
        writer.bytes(&[family.number(), 0, 0, 0]);
        match self {
            Self::List { protocol, .. } => {
                writer.nested(TUPLE_ORIG, |writer| {
                    writer.nested(TUPLE_PROTO, |writer| writer.attribute(PROTO_NUM, &[protocol.0]));
                });
                writer.nested(FILTER, |writer| {
                    writer.attribute(FILTER_ORIG_FLAGS, &FILTER_PROTOCOL.to_ne_bytes());
                });
            }
            Self::Delete(connection) => {
                writer.nested(TUPLE_ORIG, |writer| connection.original.write(writer));
                if let Some(id) = connection.id {
                    writer.attribute(ID, &id.to_be_bytes());
                }
                if connection.zone != 0 {
                    writer.attribute(ZONE, &connection.zone.to_be_bytes());
                }
            }
        }
    }
}

emitable!(Request);

impl Flags for Request {
    fn flags(&self) -> u16 {
        match self {
            Self::List { .. } => NLM_F_REQUEST | NLM_F_DUMP,
            Self::Delete(_) => NLM_F_REQUEST | NLM_F_ACK,
        }
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        let command = match self {
            Self::List { .. } => GET,
            Self::Delete(_) => DELETE,
        };
        u16::from_be_bytes([SUBSYSTEM, command])
    }

    fn buffer_len(&self) -> usize {
        netlink_packet_core::Emitable::buffer_len(self)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        netlink_packet_core::Emitable::emit(self, buffer);
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    use super::*;

    fn connection() -> Connection {
        let client = "10.0.0.9".parse().unwrap();
        let (service, backend) = ("10.96.0.10".parse().unwrap(), "10.1.0.3".parse().unwrap());
        let protocol = IpProtocol::UDP;
        Connection {
            original: Tuple {
                source: client,
                destination: service,
                protocol,
                source_port: 40000,
                destination_port: 53,
            },
            reply: Tuple {
                source: backend,
                destination: client,
                protocol,
                source_port: 5353,
                destination_port: 40000,
            },
            id: Some(7),
            zone: 0,
        }
    }

    fn encode(connection: &Connection) -> Vec<u8> {
        let mut measured = Writer::measuring();
        let write = |writer: &mut Writer<'_>| {
            writer.bytes(&[2, 0, 0, 0]);
            writer.nested(TUPLE_ORIG, |writer| connection.original.write(writer));
            writer.nested(TUPLE_REPLY, |writer| connection.reply.write(writer));
            writer.attribute(ID, &connection.id.unwrap_or_default().to_be_bytes());
        };
        write(&mut measured);
        let mut bytes = vec![0; measured.position()];
        write(&mut Writer::on(&mut bytes));
        bytes
    }

    #[test]
    fn a_connection_is_read_as_it_was_written() {
        assert_eq!(Connection::parse_payload(&encode(&connection())), Ok(Some(connection())));
    }

    #[test]
    fn a_deletion_names_the_connection_by_its_original_direction_and_number() {
        let request = Request::Delete(connection());
        let mut bytes = vec![0; Emitable::buffer_len(&request)];
        request.emit(&mut bytes);
        let kinds: Vec<_> =
            attributes(OBJECT, &bytes[NFGENMSG_LENGTH..]).map(|it| it.unwrap().kind).collect();
        assert_eq!(kinds, [TUPLE_ORIG, ID]);
        assert_eq!(request.message_type(), 0x0102);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Connection::parse_payload(&bytes);
        }

        #[test]
        fn a_damaged_connection_is_read_or_refused(at in 0_usize..120, value: u8) {
            let mut bytes = encode(&connection());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = Connection::parse_payload(&bytes);
        }
    }
}
