//! What must hold for any bytes whatever: decoding does not panic, and what was decoded encodes to bytes that
//! decode to the same. The tests and the fuzz targets share it.

#![allow(dead_code)]

use netlink_packet_core::Emitable;
use netlink_packet_generic::GenlFamily;
use nodenet_wire::{
    arp, conntrack, ipset, ipvs,
    message::{Flags, Kind, Messages},
    nd,
};

/// A generic netlink payload.
pub fn ipvs(payload: &[u8]) {
    let _ = ipvs::Reply::parse_payload(payload).inspect(|reply| {
        assert_eq!(ipvs::Reply::parse(reply.command(), &encode(reply)), Ok(*reply));
    });
    if let (Some(command), Some(attributes)) = (payload.first(), payload.get(4..)) {
        let _ = ipvs::Request::parse(*command, attributes).inspect(|request| {
            assert_eq!(ipvs::Request::parse(request.command(), &encode(request)), Ok(*request));
        });
    }
}

/// The payload of a message of this type and these flags.
pub fn ipset(message_type: u16, flags: u16, payload: &[u8]) {
    let _ = ipset::Request::parse(message_type, flags, payload).inspect(|request| {
        let again = ipset::Request::parse(request.message_type(), request.flags(), &encode(request));
        assert_eq!(again.as_ref(), Ok(request));
    });
    let _ = ipset::Reply::parse(message_type, payload).inspect(|reply| {
        assert_eq!(ipset::Reply::parse(reply.message_type(), &encode(reply)), Ok(*reply));
        if let ipset::Reply::List(listing) = reply {
            listing.entries().flatten().for_each(|entry| {
                let bytes = ipset::Listing::encode_entries(&[entry]);
                let again: Vec<_> = ipset::Listing::new(listing.set, None, &bytes).entries().collect();
                assert_eq!(again, [Ok(entry)]);
                let _ = entry.element.to_string();
            });
        }
    });
}

/// A payload of connection tracking.
pub fn conntrack(payload: &[u8]) {
    let _ = conntrack::Connection::parse_payload(payload);
}

/// A datagram of any family, and its messages as if they were of each.
pub fn netlink(datagram: &[u8]) {
    for message in Messages::new(datagram).flatten() {
        let _ = message.kind().inspect(|kind| {
            if let Kind::Error(error) | Kind::Done(Some(error)) = kind {
                let _ = error.to_string();
            }
        });
        ipvs(message.payload);
        ipset(message.header.message_type, message.header.flags, message.payload);
        conntrack(message.payload);
    }
}

/// An Ethernet frame.
pub fn neighbors(bytes: &[u8]) {
    let _ = arp::Frame::parse(bytes).inspect(|frame| {
        assert_eq!(arp::Frame::parse(&encode(frame)), Ok(*frame));
        let _ = (frame.packet.claim(), frame.packet.is_probe());
    });
    let _ = nd::Frame::parse(bytes).inspect(|frame| {
        assert_eq!(nd::Frame::parse(&encode(frame)), Ok(*frame));
        let _ = (frame.packet.claim(), frame.packet.is_probe());
    });
}

fn encode(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0xaa; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}
