//! What the kernel answers.

use std::fmt;

use super::{
    CreateOptions, Entry, SetName, TypeName, command, command_attribute as attribute, create, data_attribute,
    entry,
    request::{after_preamble, command_of, family_number, message_type, parse_family, write_preamble},
};
use crate::{
    DecodeError, Family,
    attribute::{Writer, attributes, emitable, required},
};

const OBJECT: &str = "ipset reply";

/// One data message from ipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To `Protocol`: the versions that the kernel speaks.
    Protocol {
        /// The newest.
        highest: u8,
        /// The oldest.
        lowest: u8,
    },
    /// To `Type`.
    Type(Revisions),
    /// To `Header`.
    Header(SetIdentity),
    /// To `List`: a set, or a part of one.
    List(Listing<'a>),
}

/// The revisions that the kernel has of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revisions {
    /// The oldest.
    pub lowest: u8,
    /// The newest.
    pub highest: u8,
}

/// What a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SetIdentity {
    /// Its name.
    pub set: SetName,
    /// Its type, also one that this codec does not know.
    pub type_name: TypeName,
    /// Its type's revision.
    pub revision: u8,
    /// Its addresses' family, when it has one.
    pub family: Option<Family>,
}

/// A set in a listing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Listing<'a> {
    /// Its name.
    pub set: SetName,
    /// Type and options. `None` in listings of names, and in all but the first message of a large set.
    pub header: Option<ListingHeader>,
    entries: &'a [u8],
}

/// Type, options and counts of a listed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListingHeader {
    /// Its type, also one that this codec does not know.
    pub type_name: TypeName,
    /// Its type's revision.
    pub revision: u8,
    /// Its addresses' family, when it has one.
    pub family: Option<Family>,
    /// Its options.
    pub options: CreateOptions,
    /// Rules and sets that refer to it.
    pub references: u32,
    /// Bytes of memory it takes.
    pub memory: u32,
    /// Number of its entries (Linux 4.9).
    pub elements: Option<u32>,
}

impl<'a> Listing<'a> {
    /// A listing whose entries were encoded by [`encode_entries`](Self::encode_entries), for tests and
    /// fakes.
    pub const fn new(set: SetName, header: Option<ListingHeader>, entries: &'a [u8]) -> Self {
        Self { set, header, entries }
    }

    /// The entries in this message, decoded one at a time. Ends after the first error that is not of a
    /// single entry; entries of types that this codec does not know are errors.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, DecodeError>> + Clone + use<'a> {
        entry::entries(self.entries)
    }

    /// Encodes entries for [`new`](Self::new), which takes no more than 512.
    pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
        let write = |writer: &mut Writer<'_>| {
            for entry in entries {
                writer.nested(attribute::DATA, |writer| entry.write(writer));
            }
        };
        let mut measured = Writer::measuring();
        write(&mut measured);
        let mut bytes = vec![0; measured.position()];
        write(&mut Writer::on(&mut bytes));
        bytes
    }
}

impl fmt::Debug for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries().collect();
        f.debug_struct("Listing")
            .field("set", &self.set)
            .field("header", &self.header)
            .field("entries", &entries)
            .finish()
    }
}

impl<'a> Reply<'a> {
    /// Decodes the payload of a message of this type.
    ///
    /// # Errors
    /// When the command is unknown, or the attributes are malformed or too few for it. The entries of a
    /// listing are decoded only when they are asked for.
    pub fn parse(message_type: u16, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let command = command_of(OBJECT, message_type)?;
        let fields = Fields::parse(payload)?;
        Ok(match command {
            command::PROTOCOL => {
                let highest = required(OBJECT, fields.protocol, "IPSET_ATTR_PROTOCOL")?;
                Self::Protocol { highest, lowest: fields.minimum.unwrap_or(highest) }
            }
            command::TYPE => {
                let highest = required(OBJECT, fields.revision, "IPSET_ATTR_REVISION")?;
                Self::Type(Revisions { lowest: fields.minimum.unwrap_or(highest), highest })
            }
            command::HEADER => Self::Header(SetIdentity {
                set: required(OBJECT, fields.set, "IPSET_ATTR_SETNAME")?,
                type_name: required(OBJECT, fields.type_name, "IPSET_ATTR_TYPENAME")?,
                revision: required(OBJECT, fields.revision, "IPSET_ATTR_REVISION")?,
                family: fields.family,
            }),
            command::LIST => Self::List(Listing {
                set: required(OBJECT, fields.set, "IPSET_ATTR_SETNAME")?,
                header: fields.header()?,
                entries: fields.entries.unwrap_or_default(),
            }),
            other => return Err(DecodeError::Command { object: OBJECT, command: other }),
        })
    }

    /// The netlink message type.
    pub const fn message_type(&self) -> u16 {
        message_type(match self {
            Self::Protocol { .. } => command::PROTOCOL,
            Self::Type(_) => command::TYPE,
            Self::Header(_) => command::HEADER,
            Self::List(_) => command::LIST,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let protocol = match self {
            Self::Protocol { highest, .. } => *highest,
            _ => super::PROTOCOL,
        };
        write_preamble(writer, Family::V4.number(), protocol);
        match self {
            Self::Protocol { lowest, .. } => writer.attribute(attribute::PROTOCOL_MIN, &[*lowest]),
            Self::Type(revisions) => {
                writer.attribute(attribute::REVISION, &[revisions.highest]);
                writer.attribute(attribute::REVISION_MIN, &[revisions.lowest]);
            }
            Self::Header(identity) => {
                writer.attribute(attribute::SETNAME, identity.set.with_zero());
                write_kind(writer, &identity.type_name, identity.family, identity.revision);
            }
            Self::List(listing) => {
                writer.attribute(attribute::SETNAME, listing.set.with_zero());
                if let Some(header) = &listing.header {
                    write_kind(writer, &header.type_name, header.family, header.revision);
                    writer.nested(attribute::DATA, |writer| header.write_data(writer));
                }
                if !listing.entries.is_empty() {
                    writer.nested(attribute::ADT, |writer| writer.bytes(listing.entries));
                }
            }
        }
    }
}

emitable!(Reply<'_>);

fn write_kind(writer: &mut Writer<'_>, type_name: &TypeName, family: Option<Family>, revision: u8) {
    writer.attribute(attribute::TYPENAME, type_name.with_zero());
    writer.attribute(attribute::FAMILY, &[family_number(family)]);
    writer.attribute(attribute::REVISION, &[revision]);
}

impl ListingHeader {
    fn write_data(&self, writer: &mut Writer<'_>) {
        self.options.write(writer);
        writer.network_order(data_attribute::REFERENCES, &self.references.to_be_bytes());
        writer.network_order(data_attribute::MEMSIZE, &self.memory.to_be_bytes());
        if let Some(elements) = self.elements {
            writer.network_order(data_attribute::ELEMENTS, &elements.to_be_bytes());
        }
    }
}

/// The first level of a reply.
#[derive(Default)]
struct Fields<'a> {
    protocol: Option<u8>,
    set: Option<SetName>,
    type_name: Option<TypeName>,
    revision: Option<u8>,
    /// Lowest protocol or revision: they share a number.
    minimum: Option<u8>,
    family: Option<Family>,
    data: Option<&'a [u8]>,
    entries: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        for attribute in attributes(OBJECT, after_preamble(OBJECT, payload)?) {
            let attribute = attribute?;
            match attribute.kind {
                attribute::PROTOCOL => fields.protocol = Some(attribute.u8()?),
                attribute::SETNAME => fields.set = Some(attribute.name()?),
                attribute::TYPENAME => fields.type_name = Some(attribute.name()?),
                attribute::REVISION => fields.revision = Some(attribute.u8()?),
                attribute::REVISION_MIN => fields.minimum = Some(attribute.u8()?),
                attribute::FAMILY => fields.family = parse_family(OBJECT, attribute.u8()?)?,
                attribute::DATA => fields.data = Some(attribute.value),
                attribute::ADT => fields.entries = Some(attribute.value),
                _ => {}
            }
        }
        Ok(fields)
    }

    /// The header of a listing, when this is its set's first message.
    fn header(&self) -> Result<Option<ListingHeader>, DecodeError> {
        let (Some(type_name), Some(data)) = (self.type_name, self.data) else { return Ok(None) };
        let (mut references, mut memory, mut elements) = (0, 0, None);
        for attribute in attributes(create::OBJECT, data) {
            let attribute = attribute?;
            match attribute.kind {
                data_attribute::REFERENCES => references = attribute.u32_be()?,
                data_attribute::MEMSIZE => memory = attribute.u32_be()?,
                data_attribute::ELEMENTS => elements = Some(attribute.u32_be()?),
                _ => {}
            }
        }
        Ok(Some(ListingHeader {
            type_name,
            revision: required(OBJECT, self.revision, "IPSET_ATTR_REVISION")?,
            family: self.family,
            options: CreateOptions::parse(data)?,
            references,
            memory,
            elements,
        }))
    }
}
