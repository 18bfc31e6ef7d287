//! What is asked of the kernel.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable,
};

use super::{
    CreateOptions, Entry, EntryBatch, PROTOCOL, SUBSYSTEM, SetName, SetType, TypeName, command,
    command_attribute as attribute,
};
use crate::{
    DecodeError, Family,
    attribute::{Writer, attributes, emitable, required},
    message::Flags,
};

const OBJECT: &str = "ipset request";

/// `struct nfgenmsg`: family, version 0, resource 0.
pub(super) const NFGENMSG_LENGTH: usize = 4;

/// `IPSET_FLAG_LIST_*`.
const LIST_SETNAME: u32 = 1 << 1;
const LIST_HEADER: u32 = 1 << 2;

/// How much of the sets a listing tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListScope {
    /// Names only.
    Names,
    /// Type, options and counts.
    Headers,
    /// Entries too.
    Entries,
}

/// A command to ipset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Asks for the kernel's protocol versions.
    Protocol,
    /// Creates an empty set.
    Create {
        /// Its name.
        set: SetName,
        /// Its type.
        set_type: SetType,
        /// The type's revision, see [`SetType::revision`].
        revision: u8,
        /// Its addresses' family; `None` for `bitmap:port`.
        family: Option<Family>,
        /// Its options.
        options: CreateOptions,
        /// A set of this name and definition may exist.
        exist: bool,
    },
    /// Destroys a set that nothing refers to.
    Destroy {
        /// Its name.
        set: SetName,
    },
    /// Removes all entries.
    Flush {
        /// The set.
        set: SetName,
    },
    /// Renames a set that nothing refers to.
    Rename {
        /// Its name.
        set: SetName,
        /// Its new name, not in use.
        to: SetName,
    },
    /// Swaps the contents of two sets of one type and family; rules see it at once.
    Swap {
        /// The one.
        set: SetName,
        /// The other.
        with: SetName,
    },
    /// Lists one set or all (a dump).
    List {
        /// Which; `None` is all.
        set: Option<SetName>,
        /// How much.
        scope: ListScope,
    },
    /// Adds an entry.
    Add {
        /// The set.
        set: SetName,
        /// The entry.
        entry: Entry,
        /// It may be there already; its extensions are replaced then.
        exist: bool,
    },
    /// Adds many entries.
    AddBatch {
        /// The set.
        set: SetName,
        /// The entries.
        entries: EntryBatch,
        /// They may be there already; their extensions are replaced then.
        exist: bool,
    },
    /// Removes an entry.
    Delete {
        /// The set.
        set: SetName,
        /// The entry; extensions do not matter.
        entry: Entry,
        /// It may be gone already.
        exist: bool,
    },
    /// Removes many entries.
    DeleteBatch {
        /// The set.
        set: SetName,
        /// The entries; extensions do not matter.
        entries: EntryBatch,
        /// They may be gone already.
        exist: bool,
    },
    /// Whether an entry is in a set.
    Test {
        /// The set.
        set: SetName,
        /// The entry.
        entry: Entry,
    },
    /// Asks for type, family and revision of a set.
    Header {
        /// The set.
        set: SetName,
    },
    /// Asks for the revisions of a type; loads its module.
    Type {
        /// The type.
        set_type: SetType,
        /// The family; `None` for `bitmap:port`.
        family: Option<Family>,
    },
}

impl Request {
    /// The netlink message type.
    pub const fn message_type(&self) -> u16 {
        message_type(self.command())
    }

    const fn command(&self) -> u8 {
        match self {
            Self::Protocol => command::PROTOCOL,
            Self::Create { .. } => command::CREATE,
            Self::Destroy { .. } => command::DESTROY,
            Self::Flush { .. } => command::FLUSH,
            Self::Rename { .. } => command::RENAME,
            Self::Swap { .. } => command::SWAP,
            Self::List { .. } => command::LIST,
            Self::Add { .. } | Self::AddBatch { .. } => command::ADD,
            Self::Delete { .. } | Self::DeleteBatch { .. } => command::DEL,
            Self::Test { .. } => command::TEST,
            Self::Header { .. } => command::HEADER,
            Self::Type { .. } => command::TYPE,
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        // The kernel takes the set's family from the attributes; ipset itself always writes AF_INET here.
        write_preamble(writer, Family::V4.number(), PROTOCOL);
        match self {
            Self::Protocol => {}
            Self::Create { set, set_type, revision, family, options, .. } => {
                writer.attribute(attribute::SETNAME, set.with_zero());
                write_type(writer, *set_type);
                writer.attribute(attribute::REVISION, &[*revision]);
                writer.attribute(attribute::FAMILY, &[family_number(*family)]);
                writer.nested(attribute::DATA, |writer| options.write(writer));
            }
            Self::Destroy { set } | Self::Flush { set } | Self::Header { set } => {
                writer.attribute(attribute::SETNAME, set.with_zero());
            }
            Self::Rename { set, to: second } | Self::Swap { set, with: second } => {
                writer.attribute(attribute::SETNAME, set.with_zero());
                writer.attribute(attribute::SETNAME2, second.with_zero());
            }
            Self::List { set, scope } => {
                if let Some(set) = set {
                    writer.attribute(attribute::SETNAME, set.with_zero());
                }
                let flags = match scope {
                    ListScope::Names => LIST_SETNAME,
                    ListScope::Headers => LIST_HEADER,
                    ListScope::Entries => return,
                };
                writer.network_order(attribute::FLAGS, &flags.to_be_bytes());
            }
            Self::Add { set, entry, .. } | Self::Delete { set, entry, .. } | Self::Test { set, entry } => {
                writer.attribute(attribute::SETNAME, set.with_zero());
                writer.nested(attribute::DATA, |writer| entry.write(writer));
            }
            Self::AddBatch { set, entries, .. } | Self::DeleteBatch { set, entries, .. } => {
                writer.attribute(attribute::SETNAME, set.with_zero());
                entries.write(writer);
            }
            Self::Type { set_type, family } => {
                write_type(writer, *set_type);
                writer.attribute(attribute::FAMILY, &[family_number(*family)]);
            }
        }
    }

    /// Decodes the payload of a message with this type and these flags.
    ///
    /// # Errors
    /// When the command is unknown, or the attributes are malformed or too few for it.
    pub fn parse(message_type: u16, flags: u16, payload: &[u8]) -> Result<Self, DecodeError> {
        let command = command_of(OBJECT, message_type)?;
        let fields = Fields::parse(payload)?;
        let exist = flags & NLM_F_EXCL == 0;
        Ok(match command {
            command::PROTOCOL => Self::Protocol,
            command::CREATE => Self::Create {
                set: fields.set()?,
                set_type: fields.set_type()?,
                revision: required(OBJECT, fields.revision, "IPSET_ATTR_REVISION")?,
                family: fields.family,
                options: CreateOptions::parse(required(OBJECT, fields.data, "IPSET_ATTR_DATA")?)?,
                exist,
            },
            command::DESTROY => Self::Destroy { set: fields.set()? },
            command::FLUSH => Self::Flush { set: fields.set()? },
            command::RENAME => Self::Rename { set: fields.set()?, to: fields.second_name()? },
            command::SWAP => Self::Swap { set: fields.set()?, with: fields.second_name()? },
            command::LIST => Self::List {
                set: fields.set,
                scope: match fields.flags {
                    flags if flags & LIST_SETNAME != 0 => ListScope::Names,
                    flags if flags & LIST_HEADER != 0 => ListScope::Headers,
                    _ => ListScope::Entries,
                },
            },
            command::ADD => match fields.batch {
                Some(batch) => {
                    Self::AddBatch { set: fields.set()?, entries: EntryBatch::parse(batch)?, exist }
                }
                None => Self::Add { set: fields.set()?, entry: fields.entry()?, exist },
            },
            command::DEL => match fields.batch {
                Some(batch) => {
                    Self::DeleteBatch { set: fields.set()?, entries: EntryBatch::parse(batch)?, exist }
                }
                None => Self::Delete { set: fields.set()?, entry: fields.entry()?, exist },
            },
            command::TEST => Self::Test { set: fields.set()?, entry: fields.entry()? },
            command::HEADER => Self::Header { set: fields.set()? },
            command::TYPE => Self::Type { set_type: fields.set_type()?, family: fields.family },
            other => return Err(DecodeError::Command { object: OBJECT, command: other }),
        })
    }
}

emitable!(Request);

impl Flags for Request {
    fn flags(&self) -> u16 {
        const ASK: u16 = NLM_F_REQUEST | NLM_F_ACK;
        match self {
            // Their answer is data; an acknowledgement after it would only be more to read.
            Self::Protocol | Self::Header { .. } | Self::Type { .. } => NLM_F_REQUEST,
            Self::List { .. } => NLM_F_REQUEST | NLM_F_DUMP,
            Self::Destroy { .. }
            | Self::Flush { .. }
            | Self::Rename { .. }
            | Self::Swap { .. }
            | Self::Test { .. } => ASK,
            Self::Create { exist, .. } => ASK | NLM_F_CREATE | exclusive(*exist),
            Self::Add { exist, .. }
            | Self::AddBatch { exist, .. }
            | Self::Delete { exist, .. }
            | Self::DeleteBatch { exist, .. } => ASK | exclusive(*exist),
        }
    }
}

const fn exclusive(exist: bool) -> u16 {
    if exist { 0 } else { NLM_F_EXCL }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.message_type()
    }

    fn buffer_len(&self) -> usize {
        netlink_packet_core::Emitable::buffer_len(self)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        netlink_packet_core::Emitable::emit(self, buffer);
    }
}

impl NetlinkDeserializable for Request {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Self::parse(header.message_type, header.flags, payload)
    }
}

pub(super) const fn message_type(command: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, command])
}

/// The command in a message type, when that is of this subsystem.
pub(super) fn command_of(object: &'static str, message_type: u16) -> Result<u8, DecodeError> {
    match message_type.to_be_bytes() {
        [SUBSYSTEM, command] => Ok(command),
        [other, _] => Err(DecodeError::Value { object, field: "subsystem", value: u64::from(other) }),
    }
}

pub(super) fn write_preamble(writer: &mut Writer<'_>, family: u8, protocol: u8) {
    writer.bytes(&[family, 0, 0, 0]);
    writer.attribute(attribute::PROTOCOL, &[protocol]);
}

/// What follows `struct nfgenmsg`.
pub(super) fn after_preamble<'a>(object: &'static str, payload: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    payload.get(NFGENMSG_LENGTH..).ok_or(DecodeError::Truncated {
        object,
        needed: NFGENMSG_LENGTH,
        actual: payload.len(),
    })
}

pub(super) fn family_number(family: Option<Family>) -> u8 {
    family.map_or(0, Family::number)
}

pub(super) fn parse_family(object: &'static str, number: u8) -> Result<Option<Family>, DecodeError> {
    if number == 0 { Ok(None) } else { Family::from_number(object, u16::from(number)).map(Some) }
}

fn write_type(writer: &mut Writer<'_>, set_type: SetType) {
    if let Some(name) = TypeName::from_bytes(set_type.as_str().as_bytes()) {
        writer.attribute(attribute::TYPENAME, name.with_zero());
    }
}

/// The first level of a request.
#[derive(Default)]
struct Fields<'a> {
    set: Option<SetName>,
    /// Type of the set, or its second name: they share a number.
    second: Option<TypeName>,
    revision: Option<u8>,
    family: Option<Family>,
    flags: u32,
    data: Option<&'a [u8]>,
    batch: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        for attribute in attributes(OBJECT, after_preamble(OBJECT, payload)?) {
            let attribute = attribute?;
            match attribute.kind {
                attribute::SETNAME => fields.set = Some(attribute.name()?),
                attribute::TYPENAME => fields.second = Some(attribute.name()?),
                attribute::REVISION => fields.revision = Some(attribute.u8()?),
                attribute::FAMILY => fields.family = parse_family(OBJECT, attribute.u8()?)?,
                attribute::FLAGS => fields.flags = attribute.u32_be()?,
                attribute::DATA => fields.data = Some(attribute.value),
                attribute::ADT => fields.batch = Some(attribute.value),
                _ => {}
            }
        }
        Ok(fields)
    }

    fn set(&self) -> Result<SetName, DecodeError> {
        required(OBJECT, self.set, "IPSET_ATTR_SETNAME")
    }

    fn second_name(&self) -> Result<SetName, DecodeError> {
        required(OBJECT, self.second, "IPSET_ATTR_SETNAME2")
    }

    fn set_type(&self) -> Result<SetType, DecodeError> {
        let name = required(OBJECT, self.second, "IPSET_ATTR_TYPENAME")?;
        SetType::from_name(&name)
            .ok_or_else(|| DecodeError::Unknown { object: "ipset type", name: name.to_string() })
    }

    fn entry(&self) -> Result<Entry, DecodeError> {
        Entry::parse(required(OBJECT, self.data, "IPSET_ATTR_DATA")?)
    }
}

/// The line that the kernel wrote into the copy of a failed batch: `body` is what an error repeats of the
/// request after its header.
pub(crate) fn failed_line(request: &NetlinkHeader, body: &[u8]) -> Option<u32> {
    let command = command_of(OBJECT, request.message_type).ok()?;
    if !matches!(command, command::ADD | command::DEL) {
        return None;
    }
    attributes(OBJECT, after_preamble(OBJECT, body).ok()?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind == attribute::LINENO)
        .and_then(|attribute| attribute.u32_be().ok())
        .filter(|line| *line != 0)
}
