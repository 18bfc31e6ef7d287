//! Interfaces.

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_CREATE, NetlinkHeader, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
};
use nodenet_wire::DecodeError;

use super::transport::{Connection, TransportError};
use crate::{kernel::KernelError, state::Link};

/// Kind of our interface.
const KIND: &str = "dummy";

/// An interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Link-layer address; empty where it has none.
    pub(super) hardware_address: Vec<u8>,
    pub(super) link: Link,
}

impl Interface {
    fn read(message: &LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            hardware_address: Vec::new(),
            link: Link {
                kind: String::new(),
                up: message.header.flags.contains(LinkFlags::Up),
                carrier: message.header.flags.contains(LinkFlags::LowerUp),
            },
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(address) => interface.hardware_address.clone_from(address),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            interface.link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        interface
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let message = LinkMessage::parse(payload)
            .map_err(|_| DecodeError::Missing { object: "interface", attribute: "readable IFLA_*" })?;
        Ok(Self::read(&message))
    }
}

/// All interfaces by index.
pub(super) fn list(route: &mut Connection) -> Result<BTreeMap<u32, Interface>, TransportError> {
    let mut message = LinkMessage::default();
    // Counters are most of the bytes.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    route.dump(
        &RouteNetlinkMessage::GetLink(message),
        |links: &mut BTreeMap<u32, Interface>, _: &NetlinkHeader, payload| {
            let interface = Interface::parse(payload)?;
            links.insert(interface.index, interface);
            Ok(())
        },
    )
}

/// One interface by name; `None` where there is none.
pub(super) fn find(route: &mut Connection, name: &str) -> Result<Option<Interface>, TransportError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match route.get(&RouteNetlinkMessage::GetLink(message), |_, payload| Interface::parse(payload)) {
        Ok(interface) => Ok(Some(interface)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an interface of ours, or sets the one that is there up. It is a dummy, which neither asks nor answers ARP.
pub(super) fn add(route: &mut Connection, name: &str) -> Result<(), KernelError> {
    let object = || format!("interface {name}");
    if let Some(present) = find(route, name).map_err(|error| error.about("read", object()))?
        && present.link.kind != KIND
    {
        let kind = if present.link.kind.is_empty() { "device" } else { &present.link.kind };
        return Err(KernelError::Refused {
            operation: "add",
            object: object(),
            errno: libc::EEXIST,
            message: Some(format!("a {kind} of this name is there already and is not ours")),
        });
    }
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
    match one(route, NLM_F_CREATE, &RouteNetlinkMessage::NewLink(message)) {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Err(KernelError::Missing {
            operation: "add",
            object: object(),
            feature: "dummy interfaces",
            module: KIND,
        }),
        Err(error) => Err(error.about("add", object())),
    }
}

/// Removes an interface of ours.
pub(super) fn delete(route: &mut Connection, name: &str) -> Result<(), KernelError> {
    let object = || format!("interface {name}");
    let present = find(route, name).map_err(|error| error.about("read", object()))?;
    let foreign = |errno, message: &str| KernelError::Refused {
        operation: "remove",
        object: object(),
        errno,
        message: Some(message.to_owned()),
    };
    let Some(present) = present else { return Err(foreign(libc::ENODEV, "it is not there")) };
    if present.link.kind != KIND {
        return Err(foreign(libc::EEXIST, "it is not a dummy interface, so it is not ours"));
    }
    let mut message = LinkMessage::default();
    message.header.index = present.index;
    one(route, 0, &RouteNetlinkMessage::DelLink(message)).map_err(|error| error.about("remove", object()))
}

fn one(connection: &mut Connection, flags: u16, request: &RouteNetlinkMessage) -> Result<(), TransportError> {
    let mut batch = connection.batch();
    batch.push(flags, request);
    match batch.finish().pop() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
