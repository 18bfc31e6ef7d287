//! Local routes: the kernel takes every address of a range as its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NetlinkHeader, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
        RouteVia,
    },
};
use nodenet_wire::DecodeError;

use super::{
    link::Interface,
    transport::{Batch, Connection, TransportError},
};
use crate::state::{LocalRoute, PROTOCOL};

/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u8 = 255;

/// Our local routes over the interfaces given.
pub(super) fn list(
    route: &mut Connection,
    interfaces: &BTreeMap<u32, Interface>,
) -> Result<BTreeSet<LocalRoute>, TransportError> {
    let mut routes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header = header(family);
        request.header.scope = RouteScope::Universe;
        let found = route.dump(
            &RouteNetlinkMessage::GetRoute(request),
            |routes: &mut Vec<(IpNet, u32)>, _: &NetlinkHeader, payload| {
                routes.extend(parse(payload)?.filter(|route| route.ours).and_then(|route| route.local));
                Ok(())
            },
        );
        let found = match found {
            Ok(found) => found,
            // A family that the kernel does not have, or whose table has not been made yet.
            Err(error)
                if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        routes.extend(found.into_iter().filter_map(|(range, index)| {
            interfaces.get(&index).map(|it| LocalRoute { range, interface: it.name.clone() })
        }));
    }
    Ok(routes)
}

/// Next hops of the default routes of all tables, but for link-local ones: what is one on another link means nothing there.
pub(super) fn gateways(route: &mut Connection) -> Result<BTreeSet<IpAddr>, TransportError> {
    let mut gateways = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let found = route.dump(
            &RouteNetlinkMessage::GetRoute(request),
            |hops: &mut Vec<IpAddr>, _: &NetlinkHeader, payload| {
                if parse(payload)?.is_some_and(|route| route.default) {
                    let unreadable = DecodeError::Missing { object: "route", attribute: "readable RTA_*" };
                    let message = RouteMessage::parse(payload).map_err(|_| unreadable)?;
                    next_hops(&message.attributes, hops);
                }
                Ok(())
            },
        );
        match found {
            Ok(found) => gateways.extend(found.into_iter().filter(|hop| !is_link_local(hop))),
            Err(error)
                if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gateways)
}

/// Numbers of the interfaces over which a router's advertisement leads everywhere else.
pub(super) fn advertised_defaults(route: &mut Connection) -> Result<BTreeSet<u32>, TransportError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet6;
    route.dump(
        &RouteNetlinkMessage::GetRoute(request),
        |interfaces: &mut BTreeSet<u32>, _: &NetlinkHeader, payload| {
            let unreadable = DecodeError::Missing { object: "route", attribute: "readable RTA_*" };
            let header = RouteHeader::parse(payload).map_err(|_| unreadable.clone())?;
            if header.destination_prefix_length == 0 && header.protocol == RouteProtocol::Ra {
                let message = RouteMessage::parse(payload).map_err(|_| unreadable)?;
                interfaces.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                }));
            }
            Ok(())
        },
    )
}

fn next_hops(attributes: &[RouteAttribute], hops: &mut Vec<IpAddr>) {
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => hops.push((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => hops.push((*address).into()),
            RouteAttribute::Via(RouteVia::Inet(address)) => hops.push((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => hops.push((*address).into()),
            RouteAttribute::MultiPath(all) => all.iter().for_each(|hop| next_hops(&hop.attributes, hops)),
            _ => {}
        }
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unspecified(),
    }
}

/// What of a route matters here.
pub(super) struct Found {
    /// It carries our protocol.
    pub(super) ours: bool,
    /// The kernel made it for an address.
    pub(super) kernels: bool,
    /// It is of the table of local routes.
    pub(super) table_local: bool,
    /// It is a way to all that no other route leads to.
    pub(super) default: bool,
    /// Range and interface of a local route.
    local: Option<(IpNet, u32)>,
}

/// A route of an event or a dump; `None` for what is not IPv4 or IPv6.
pub(super) fn parse(payload: &[u8]) -> Result<Option<Found>, DecodeError> {
    let unreadable = DecodeError::Missing { object: "route", attribute: "readable RTA_*" };
    let header = RouteHeader::parse(payload).map_err(|_| unreadable.clone())?;
    let mut found = Found {
        ours: header.protocol == RouteProtocol::Other(PROTOCOL),
        kernels: header.protocol == RouteProtocol::Kernel,
        table_local: header.table == TABLE_LOCAL,
        default: header.destination_prefix_length == 0
            && header.table != TABLE_LOCAL
            && header.kind == RouteType::Unicast,
        local: None,
    };
    if !found.ours || !found.table_local || header.kind != RouteType::Local {
        // The rest may have attributes of any sort, and there may be very many of them.
        return Ok(Some(found));
    }
    let message = RouteMessage::parse(payload).map_err(|_| unreadable)?;
    let (mut destination, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    if let (Some(destination), Some(interface)) = (destination, interface)
        && let Ok(range) = IpNet::new(destination, header.destination_prefix_length)
    {
        found.local = Some((range.trunc(), interface));
    }
    Ok(Some(found))
}

/// Adds a local route. It is appended: the kernel's own route of an address that is bound stays in force.
pub(super) fn add(batch: &mut Batch<'_>, index: u32, route: &LocalRoute) {
    batch.push(NLM_F_CREATE | NLM_F_APPEND, &RouteNetlinkMessage::NewRoute(message(index, route)));
}

/// Removes a local route. Interface and protocol are named, otherwise the kernel's own route of a bound address goes.
pub(super) fn delete(batch: &mut Batch<'_>, index: u32, route: &LocalRoute) {
    batch.push(0, &RouteNetlinkMessage::DelRoute(message(index, route)));
}

fn message(index: u32, route: &LocalRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = match route.range.network() {
        IpAddr::V4(address) => {
            message.header = header(AddressFamily::Inet);
            RouteAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header = header(AddressFamily::Inet6);
            RouteAddress::Inet6(address)
        }
    };
    message.header.destination_prefix_length = route.range.prefix_len();
    message.attributes.push(RouteAttribute::Destination(destination));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn header(family: AddressFamily) -> RouteHeader {
    RouteHeader {
        address_family: family,
        table: TABLE_LOCAL,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    }
}
