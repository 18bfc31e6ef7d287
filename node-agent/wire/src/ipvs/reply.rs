//! What the kernel answers.

use netlink_packet_core::ParseableParametrized;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use super::{
    Destination, FAMILY_NAME, Service, Timeouts, VERSION, command, command_attribute, request::Parts,
};
use crate::{
    DecodeError,
    attribute::{Writer, attributes, emitable, required},
};

const VERSION_ATTRIBUTE: u16 = 1;
const CONN_TAB_SIZE: u16 = 2;

const OBJECT: &str = "IPVS reply";
const HEADER: usize = 4;

/// One data message from IPVS; a dump is many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// To `GetService` and `GetServices`.
    Service(Service),
    /// To `GetDestinations`; of which service, the request's sequence number says.
    Destination(Destination),
    /// To `GetConfig`.
    Config(Timeouts),
    /// To `GetInfo`.
    Info(Info),
}

/// Version and size of IPVS (`IPVS_INFO_ATTR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Three numbers in one: `0x010201` is 1.2.1.
    pub version: u32,
    /// Entries of the connection hash table.
    pub connection_table_size: u32,
}

impl Reply {
    /// Decodes the payload of a netlink message, generic netlink header included.
    ///
    /// # Errors
    /// When the command is unknown, or the attributes are malformed or too few for it.
    pub fn parse_payload(payload: &[u8]) -> Result<Self, DecodeError> {
        match payload.split_first_chunk::<HEADER>() {
            Some(([command, ..], attributes)) => Self::parse(*command, attributes),
            None => Err(DecodeError::Truncated { object: OBJECT, needed: HEADER, actual: payload.len() }),
        }
    }

    /// Decodes the attributes after the generic netlink header.
    ///
    /// # Errors
    /// When the command is unknown, or the attributes are malformed or too few for it.
    pub fn parse(command: u8, attributes: &[u8]) -> Result<Self, DecodeError> {
        match command {
            command::NEW_SERVICE => {
                let service = required(OBJECT, Parts::parse(attributes)?.service, "IPVS_CMD_ATTR_SERVICE")?;
                Service::parse(service).map(Self::Service)
            }
            command::NEW_DEST => {
                let destination =
                    required(OBJECT, Parts::parse(attributes)?.destination, "IPVS_CMD_ATTR_DEST")?;
                Destination::parse(destination).map(Self::Destination)
            }
            command::SET_CONFIG => Timeouts::parse(attributes).map(Self::Config),
            command::SET_INFO => Info::parse(attributes).map(Self::Info),
            other => Err(DecodeError::Command { object: OBJECT, command: other }),
        }
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Service(service) => {
                writer.nested(command_attribute::SERVICE, |writer| service.write(writer));
            }
            Self::Destination(destination) => {
                writer.nested(command_attribute::DEST, |writer| destination.write(writer));
            }
            Self::Config(timeouts) => timeouts.write(writer),
            Self::Info(info) => info.write(writer),
        }
    }

    /// The reply as a generic netlink message, for tests and fakes.
    pub fn message(self, family_id: u16) -> GenlMessage<Self> {
        let mut message = GenlMessage::from_payload(self);
        message.set_resolved_family_id(family_id);
        message
    }
}

emitable!(Reply);

impl Info {
    fn write(&self, writer: &mut Writer<'_>) {
        writer.attribute(VERSION_ATTRIBUTE, &self.version.to_ne_bytes());
        writer.attribute(CONN_TAB_SIZE, &self.connection_table_size.to_ne_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        const OBJECT: &str = "IPVS info";
        let (mut version, mut size) = (None, None);
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                VERSION_ATTRIBUTE => version = Some(attribute.u32()?),
                CONN_TAB_SIZE => size = Some(attribute.u32()?),
                _ => {}
            }
        }
        Ok(Self {
            version: required(OBJECT, version, "IPVS_INFO_ATTR_VERSION")?,
            connection_table_size: required(OBJECT, size, "IPVS_INFO_ATTR_CONN_TAB_SIZE")?,
        })
    }
}

impl GenlFamily for Reply {
    fn family_name() -> &'static str {
        FAMILY_NAME
    }

    fn command(&self) -> u8 {
        match self {
            Self::Service(_) => command::NEW_SERVICE,
            Self::Destination(_) => command::NEW_DEST,
            Self::Config(_) => command::SET_CONFIG,
            Self::Info(_) => command::SET_INFO,
        }
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Reply {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, netlink_packet_core::DecodeError> {
        Ok(Self::parse(header.cmd, bytes)?)
    }
}
