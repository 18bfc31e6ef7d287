//! ARP and Neighbor Discovery against frames from a link.

#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod capture;

use capture::named;
use netlink_packet_core::Emitable;
use nodenet_wire::{
    DecodeError, arp,
    ethernet::MacAddress,
    nd::{self, Advertisement, Message, Solicitation},
};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const ONE: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const TWO: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20);

fn emit(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0xaa; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

fn frame(name: &str) -> Vec<u8> {
    named(&capture::neighbors(), name).sent[0].clone()
}

#[track_caller]
fn check_arp(name: &str, expected: arp::Packet) {
    let bytes = frame(name);
    assert_eq!(arp::Frame::parse(&bytes), Ok(expected.broadcast()));
    assert_eq!(emit(&expected.broadcast()), bytes);
}

#[test]
fn arp_is_that_of_arping() {
    // arping writes the broadcast address where RFC 5227 wants zeros and where nobody looks.
    let with_target = |packet| arp::Packet { target_mac: MacAddress::BROADCAST, ..packet };
    check_arp("gratuitous-request", with_target(arp::Packet::announcement(ONE, V4)));
    check_arp("gratuitous-reply", arp::Packet::announcement_reply(ONE, V4));
    check_arp("arp-probe", with_target(arp::Packet::probe(ONE, Ipv4Addr::new(192, 0, 2, 99))));
}

#[test]
fn an_ordinary_request_claims_the_senders_address_alone_and_is_no_probe() {
    let sender = Ipv4Addr::new(192, 0, 2, 11);
    let arp = arp::Frame::parse(&emit(&arp::Packet::request(ONE, sender, V4).broadcast())).unwrap().packet;
    assert_eq!((arp.claim(), arp.is_probe(), arp.target), (Some((sender, ONE)), false, V4));
    let frame = nd::Packet::request(ONE, OTHER_V6, V6).multicast(ONE).unwrap();
    let nd = nd::Frame::parse(&emit(&frame)).unwrap().packet;
    assert_eq!((nd.claim(), nd.is_probe()), (Some((OTHER_V6, Some(ONE))), false));
    assert!(arp::Packet::probe(ONE, V4).is_probe() && nd::Packet::probe(V6, None).is_probe());
}

#[test]
fn a_padded_frame_is_read_and_a_short_one_is_not() {
    let mut bytes = frame("gratuitous-reply");
    bytes.resize(60, 0);
    assert_eq!(arp::Frame::parse(&bytes).unwrap().packet, arp::Packet::announcement_reply(ONE, V4));
    for length in 0..42 {
        assert!(matches!(arp::Frame::parse(&bytes[..length]), Err(DecodeError::Truncated { .. })));
    }
    bytes[15] = 6; // IEEE 802 rather than Ethernet
    assert!(matches!(arp::Frame::parse(&bytes), Err(DecodeError::Value { .. })));
}

#[test]
fn everything_but_a_probe_claims_an_address() {
    assert_eq!(arp::Packet::announcement(ONE, V4).claim(), Some((V4, ONE)));
    assert_eq!(arp::Packet::announcement_reply(ONE, V4).claim(), Some((V4, ONE)));
    assert_eq!(arp::Packet::probe(ONE, V4).claim(), None);
    assert!(arp::Packet::probe(ONE, V4).is_probe());
    assert!(!arp::Packet::announcement(ONE, V4).is_probe());

    assert_eq!(nd::Packet::announcement(ONE, V6, false).claim(), Some((V6, Some(ONE))));
    assert_eq!(nd::Packet::probe(V6, None).claim(), None);
    assert!(nd::Packet::probe(V6, None).is_probe());
    let solicitation = nd::Frame::parse(&frame("solicitation")).unwrap().packet;
    assert_eq!(solicitation.claim(), Some((V6, Some(ONE))));
    assert!(!solicitation.is_probe());
}

#[track_caller]
fn check_nd(name: &str, expected: nd::Frame) {
    let bytes = frame(name);
    assert_eq!(nd::Frame::parse(&bytes), Ok(expected));
    assert_eq!(emit(&expected), bytes);
    assert_eq!(expected.packet.icmpv6(), bytes[54..]);
}

#[test]
fn neighbor_discovery_is_that_of_the_kernel() {
    let nonce = [0x06, 0x94, 0x34, 0x72, 0x3e, 0x93];
    check_nd("dad-probe", nd::Packet::probe(V6, Some(nonce)).multicast(ONE).unwrap());
    check_nd("unsolicited-advertisement", nd::Packet::announcement(ONE, V6, false).multicast(ONE).unwrap());
    let solicitation = nd::Packet {
        source: V6,
        destination: nd::solicited_node(OTHER_V6),
        message: Message::Solicitation(Solicitation {
            target: OTHER_V6,
            source_link_layer: Some(ONE),
            nonce: None,
        }),
    };
    check_nd("solicitation", solicitation.multicast(ONE).unwrap());
    let answer = nd::Packet {
        source: OTHER_V6,
        destination: V6,
        message: Message::Advertisement(Advertisement {
            target: OTHER_V6,
            router: false,
            solicited: true,
            overrides: true,
            target_link_layer: Some(TWO),
        }),
    };
    assert_eq!(answer.multicast(TWO), None);
    check_nd("solicited-advertisement", nd::Frame { destination: ONE, source: TWO, packet: answer });
}

#[test]
fn other_messages_of_the_link_are_not_taken_for_these() {
    for name in ["router-solicitation", "multicast-listener-report", "gratuitous-reply"] {
        assert!(matches!(
            nd::Frame::parse(&frame(name)),
            Err(DecodeError::Value { .. } | DecodeError::Truncated { .. })
        ));
    }
    assert!(matches!(arp::Frame::parse(&frame("dad-probe")), Err(DecodeError::Value { .. })));
}

/// A frame with some bytes changed, its checksum made right again.
fn changed(name: &str, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = frame(name);
    for (place, byte) in changes {
        bytes[*place] = *byte;
    }
    bytes[56..58].fill(0);
    let mut sum = u32::from(bytes[19]) + 58;
    sum += bytes[22..].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[56..58].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    bytes
}

#[test]
fn what_rfc_4861_discards_is_an_error() {
    assert!(nd::Frame::parse(&changed("unsolicited-advertisement", &[])).is_ok());
    for (name, changes) in [
        // Hop limit 254: forwarded, so not from this link.
        ("unsolicited-advertisement", &[(21, 254)][..]),
        ("unsolicited-advertisement", &[(55, 1)]),
        // Solicited, but to all nodes.
        ("unsolicited-advertisement", &[(58, 0x60)]),
        // A group as target.
        ("unsolicited-advertisement", &[(62, 0xff)]),
        // An option of no length, and one that is longer than the packet.
        ("unsolicited-advertisement", &[(79, 0)]),
        ("unsolicited-advertisement", &[(79, 2)]),
        // A probe that is not sent to the target's group, or tells a link-layer address.
        ("dad-probe", &[(53, 0x11)]),
        ("dad-probe", &[(78, 1)]),
    ] {
        assert!(nd::Frame::parse(&changed(name, changes)).is_err(), "{name} {changes:?}");
    }
    let mut wrong = frame("unsolicited-advertisement");
    wrong[56] ^= 1;
    assert!(matches!(nd::Frame::parse(&wrong), Err(DecodeError::Checksum { .. })));
}

#[test]
fn a_cut_or_flipped_frame_is_never_read_as_it_was() {
    for capture in capture::neighbors() {
        let bytes = &capture.sent[0];
        let (arp, nd) = (arp::Frame::parse(bytes), nd::Frame::parse(bytes));
        for place in 0..bytes.len() {
            assert!(arp::Frame::parse(&bytes[..place]).is_err());
            assert!(nd::Frame::parse(&bytes[..place]).is_err());
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << bit;
                assert!(arp.is_err() || arp::Frame::parse(&flipped) != arp);
                // Traffic class and flow label are of no interest.
                let ignored = (14..18).contains(&place);
                assert!(nd.is_err() || ignored || nd::Frame::parse(&flipped) != nd);
            }
        }
    }
}

fn mac() -> impl Strategy<Value = MacAddress> {
    any::<[u8; 6]>().prop_map(MacAddress)
}

fn unicast() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(|bits| Ipv6Addr::from((bits >> 4) | (2 << 124)))
}

fn packet() -> impl Strategy<Value = nd::Packet> {
    let advertisement = (unicast(), unicast(), any::<[bool; 3]>(), proptest::option::of(mac())).prop_map(
        |(source, target, [router, solicited, overrides], target_link_layer)| nd::Packet {
            source,
            destination: if solicited { OTHER_V6 } else { nd::ALL_NODES },
            message: Message::Advertisement(Advertisement {
                target,
                router,
                solicited,
                overrides,
                target_link_layer,
            }),
        },
    );
    let solicitation = (unicast(), unicast(), proptest::option::of(mac()), any::<Option<[u8; 6]>>())
        .prop_map(|(source, target, source_link_layer, nonce)| nd::Packet {
            source,
            destination: nd::solicited_node(target),
            message: Message::Solicitation(Solicitation { target, source_link_layer, nonce }),
        });
    let probe =
        (unicast(), any::<Option<[u8; 6]>>()).prop_map(|(target, nonce)| nd::Packet::probe(target, nonce));
    prop_oneof![advertisement, solicitation, probe]
}

proptest! {
    #[test]
    fn a_neighbor_discovery_frame_decodes_to_itself(packet in packet(), source in mac(), destination in mac()) {
        let frame = nd::Frame { destination, source, packet };
        prop_assert_eq!(nd::Frame::parse(&emit(&frame)), Ok(frame));
    }

    #[test]
    fn an_arp_frame_decodes_to_itself(macs: [[u8; 6]; 4], sender: u32, target: u32, operation: u16) {
        let [destination, source, sender_mac, target_mac] = macs.map(MacAddress);
        let packet = arp::Packet {
            operation: arp::Operation(operation),
            sender_mac,
            sender: sender.into(),
            target_mac,
            target: target.into(),
        };
        let frame = arp::Frame { destination, source, packet };
        prop_assert_eq!(arp::Frame::parse(&emit(&frame)), Ok(frame));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = arp::Frame::parse(&bytes);
        let _ = nd::Frame::parse(&bytes);
        let _ = nd::Message::parse(V6, nd::ALL_NODES, &bytes);
    }
}
