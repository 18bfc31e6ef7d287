//! Addresses of interfaces.

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkHeader, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
    },
};
use nodenet_crds::KernelAddressRole as Role;
use nodenet_wire::DecodeError;

use super::{
    link::Interface,
    transport::{Batch, Connection, TransportError},
};
use crate::state::{Address, AddressKey, PROTOCOL};

/// `INFINITY_LIFE_TIME`.
const FOREVER: u32 = u32::MAX;

/// An address of an event or a dump, its interface still a number.
pub(super) fn parse(payload: &[u8]) -> Result<Option<(u32, IpAddr, Address)>, DecodeError> {
    let message = AddressMessage::parse(payload)
        .map_err(|_| DecodeError::Missing { object: "interface address", attribute: "readable IFA_*" })?;
    Ok(read(&message))
}

/// `None` for what is not IPv4 or IPv6.
fn read(message: &AddressMessage) -> Option<(u32, IpAddr, Address)> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut peer, mut local, mut lifetime, mut ours) = (None, None, FOREVER, false);
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point address this is the other end.
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Local(address) => local = Some(*address),
            // The header has room for the first eight only.
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::CacheInfo(info) => lifetime = info.ifa_valid,
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    let role = match address {
        IpAddr::V4(_) if flags.contains(AddressFlags::Secondary) => Role::Secondary,
        IpAddr::V4(_) => Role::Primary,
        IpAddr::V6(_) if flags.contains(AddressFlags::Deprecated) => Role::Deprecated,
        IpAddr::V6(_) => Role::Preferred,
    };
    let failed = flags.contains(AddressFlags::Dadfailed)
        || (flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic));
    Some((
        message.header.index,
        address,
        Address {
            prefix_length: message.header.prefix_len,
            role: Some(role),
            lifetime: (lifetime != FOREVER && !flags.contains(AddressFlags::Permanent)).then_some(lifetime),
            ours,
            unusable: address.is_ipv6() && failed,
        },
    ))
}

/// All addresses of the interfaces given.
pub(super) fn list(
    route: &mut Connection,
    interfaces: &BTreeMap<u32, Interface>,
) -> Result<BTreeMap<AddressKey, Address>, TransportError> {
    route.dump(
        &RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        |addresses: &mut BTreeMap<AddressKey, Address>, _: &NetlinkHeader, payload| {
            let Some((index, address, found)) = parse(payload)? else { return Ok(()) };
            // An interface that came since the links were read is in the next reading.
            let Some(interface) = interfaces.get(&index) else { return Ok(()) };
            let key = AddressKey { interface: interface.name.clone(), address };
            // The same address with two masks: ours is the one to know.
            if found.ours || !addresses.get(&key).is_some_and(|known| known.ours) {
                addresses.insert(key, found);
            }
            Ok(())
        },
    )
}

/// Adds an address; one that is there is refused.
///
/// IPv4: whether it becomes primary or secondary is the kernel's choice by subnet and mask. IPv6: it skips duplicate
/// address detection, makes no route to its prefix and, unless its role is Preferred, is no source of new traffic.
pub(super) fn add(batch: &mut Batch<'_>, index: u32, key: &AddressKey, address: &Address) {
    let message = message(index, key.address, address);
    batch.push(NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewAddress(message));
}

/// Gives an address that is there another lifetime; it stays in place meanwhile.
pub(super) fn set(batch: &mut Batch<'_>, index: u32, key: &AddressKey, address: &Address) {
    let message = message(index, key.address, address);
    batch.push(NLM_F_REPLACE, &RouteNetlinkMessage::NewAddress(message));
}

/// Removes an address.
pub(super) fn delete(batch: &mut Batch<'_>, index: u32, key: &AddressKey, prefix_length: u8) {
    let mut message = bare(index, key.address);
    message.header.prefix_len = prefix_length;
    batch.push(0, &RouteNetlinkMessage::DelAddress(message));
}

fn message(index: u32, address: IpAddr, wanted: &Address) -> AddressMessage {
    let mut message = bare(index, address);
    message.header.prefix_len = wanted.prefix_length;
    let valid = wanted.lifetime.unwrap_or(FOREVER);
    let mut lifetimes = CacheInfo::default();
    lifetimes.ifa_valid = valid;
    lifetimes.ifa_preferred = valid;
    if address.is_ipv6() {
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(flags));
        if wanted.role != Some(Role::Preferred) {
            lifetimes.ifa_preferred = 0;
        }
    }
    message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    message
}

fn bare(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}
