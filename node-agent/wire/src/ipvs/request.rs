//! What is asked of the kernel.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use super::{
    Destination, DestinationKey, FAMILY_NAME, Service, ServiceKey, VERSION, command, command_attribute,
    destination, service,
};
use crate::{
    DecodeError,
    attribute::{Writer, attributes, emitable, required},
    message::Flags,
};

const OBJECT: &str = "IPVS request";

/// A command to IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Adds a service.
    NewService(Service),
    /// Edits a service: scheduler, flags, timeout, netmask, engine. Its destinations and connections stay.
    SetService(Service),
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// Reads one service.
    GetService(ServiceKey),
    /// Reads all services of both families (a dump).
    GetServices,
    /// Adds a destination.
    NewDestination(ServiceKey, Destination),
    /// Edits a destination: forwarding method, weight, thresholds, tunnel. Its connections stay.
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Reads the destinations of a service (a dump).
    GetDestinations(ServiceKey),
    /// Deletes everything, whoever made it.
    Flush,
    /// Sets timeouts.
    SetConfig(Timeouts),
    /// Reads timeouts.
    GetConfig,
    /// Reads the version and the connection table's size.
    GetInfo,
}

/// Connection timeouts in seconds. Absent is not sent; the kernel ignores 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Option<u32>,
    /// TCP connections after a FIN.
    pub tcp_fin: Option<u32>,
    /// UDP.
    pub udp: Option<u32>,
}

impl Timeouts {
    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        for (kind, value) in [
            (command_attribute::TIMEOUT_TCP, self.tcp),
            (command_attribute::TIMEOUT_TCP_FIN, self.tcp_fin),
            (command_attribute::TIMEOUT_UDP, self.udp),
        ] {
            if let Some(value) = value {
                writer.attribute(kind, &value.to_ne_bytes());
            }
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut timeouts = Self::default();
        for attribute in attributes("IPVS timeouts", bytes) {
            let attribute = attribute?;
            match attribute.kind {
                command_attribute::TIMEOUT_TCP => timeouts.tcp = Some(attribute.u32()?),
                command_attribute::TIMEOUT_TCP_FIN => timeouts.tcp_fin = Some(attribute.u32()?),
                command_attribute::TIMEOUT_UDP => timeouts.udp = Some(attribute.u32()?),
                _ => {}
            }
        }
        Ok(timeouts)
    }
}

impl Request {
    /// The request as a generic netlink message to the family's number, ready for
    /// [`message::append`](crate::message::append).
    pub fn message(self, family_id: u16) -> GenlMessage<Self> {
        let mut message = GenlMessage::from_payload(self);
        message.set_resolved_family_id(family_id);
        message
    }

    /// Decodes the attributes after the generic netlink header.
    ///
    /// # Errors
    /// When the command is unknown, or the attributes are malformed or too few for it.
    pub fn parse(command: u8, attributes: &[u8]) -> Result<Self, DecodeError> {
        let Parts { service, destination } = Parts::parse(attributes)?;
        let service_part = || required(OBJECT, service, "IPVS_CMD_ATTR_SERVICE");
        let destination_part = || required(OBJECT, destination, "IPVS_CMD_ATTR_DEST");
        Ok(match command {
            command::NEW_SERVICE => Self::NewService(Service::parse(service_part()?)?),
            command::SET_SERVICE => Self::SetService(Service::parse(service_part()?)?),
            command::DEL_SERVICE => Self::DeleteService(service::parse_key(service_part()?)?),
            command::GET_SERVICE => match service {
                Some(service) => Self::GetService(service::parse_key(service)?),
                None => Self::GetServices,
            },
            command::NEW_DEST => Self::NewDestination(
                service::parse_key(service_part()?)?,
                Destination::parse(destination_part()?)?,
            ),
            command::SET_DEST => Self::SetDestination(
                service::parse_key(service_part()?)?,
                Destination::parse(destination_part()?)?,
            ),
            command::DEL_DEST => Self::DeleteDestination(
                service::parse_key(service_part()?)?,
                destination::parse_key(destination_part()?)?,
            ),
            command::GET_DEST => Self::GetDestinations(service::parse_key(service_part()?)?),
            command::FLUSH => Self::Flush,
            command::SET_CONFIG => Self::SetConfig(Timeouts::parse(attributes)?),
            command::GET_CONFIG => Self::GetConfig,
            command::GET_INFO => Self::GetInfo,
            other => return Err(DecodeError::Command { object: OBJECT, command: other }),
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        use command_attribute::{DEST, SERVICE};
        match self {
            Self::NewService(service) | Self::SetService(service) => {
                writer.nested(SERVICE, |writer| service.write(writer));
            }
            Self::DeleteService(key) | Self::GetService(key) | Self::GetDestinations(key) => {
                writer.nested(SERVICE, |writer| key.write(writer));
            }
            Self::NewDestination(key, destination) | Self::SetDestination(key, destination) => {
                writer.nested(SERVICE, |writer| key.write(writer));
                writer.nested(DEST, |writer| destination.write(writer));
            }
            Self::DeleteDestination(key, destination) => {
                writer.nested(SERVICE, |writer| key.write(writer));
                writer.nested(DEST, |writer| destination::write_key(destination, writer));
            }
            Self::SetConfig(timeouts) => timeouts.write(writer),
            Self::GetServices | Self::Flush | Self::GetConfig | Self::GetInfo => {}
        }
    }
}

emitable!(Request);

impl Flags for Request {
    /// A dump ends with NLMSG_DONE, everything else is acknowledged.
    fn flags(&self) -> u16 {
        match self {
            Self::GetServices | Self::GetDestinations(_) => NLM_F_REQUEST | NLM_F_DUMP,
            _ => NLM_F_REQUEST | NLM_F_ACK,
        }
    }
}

impl Flags for GenlMessage<Request> {
    fn flags(&self) -> u16 {
        self.payload.flags()
    }
}

impl GenlFamily for Request {
    fn family_name() -> &'static str {
        FAMILY_NAME
    }

    fn command(&self) -> u8 {
        match self {
            Self::NewService(_) => command::NEW_SERVICE,
            Self::SetService(_) => command::SET_SERVICE,
            Self::DeleteService(_) => command::DEL_SERVICE,
            Self::GetService(_) | Self::GetServices => command::GET_SERVICE,
            Self::NewDestination(..) => command::NEW_DEST,
            Self::SetDestination(..) => command::SET_DEST,
            Self::DeleteDestination(..) => command::DEL_DEST,
            Self::GetDestinations(_) => command::GET_DEST,
            Self::Flush => command::FLUSH,
            Self::SetConfig(_) => command::SET_CONFIG,
            Self::GetConfig => command::GET_CONFIG,
            Self::GetInfo => command::GET_INFO,
        }
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Request {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, netlink_packet_core::DecodeError> {
        Ok(Self::parse(header.cmd, bytes)?)
    }
}

/// The first level of a message: its service and its destination, not yet read.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) service: Option<&'a [u8]>,
    pub(super) destination: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut parts = Self::default();
        for attribute in attributes("IPVS message", bytes) {
            let attribute = attribute?;
            match attribute.kind {
                command_attribute::SERVICE => parts.service = Some(attribute.value),
                command_attribute::DEST => parts.destination = Some(attribute.value),
                _ => {}
            }
        }
        Ok(parts)
    }
}
