//! What is encoded decodes to the same, and no bytes whatever make a decoder panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod invariants;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::Emitable;
use netlink_packet_generic::GenlFamily;
use nodenet_wire::{
    Family, IpProtocol, Name,
    extack::KernelError,
    ipset, ipvs,
    message::{self, Flags, Kind, Messages},
};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn protocol() -> impl Strategy<Value = IpProtocol> {
    any::<u8>().prop_map(IpProtocol)
}

fn name<const N: usize>() -> impl Strategy<Value = Name<N>> {
    "[a-zA-Z0-9:,_.-]{1,15}".prop_map(|name| Name::new(&name).unwrap())
}

fn service_key() -> impl Strategy<Value = ipvs::ServiceKey> {
    prop_oneof![
        (protocol(), address(), any::<u16>())
            .prop_map(|(protocol, address, port)| { ipvs::ServiceKey::Address { protocol, address, port } }),
        (family(), any::<u32>()).prop_map(|(family, mark)| ipvs::ServiceKey::FirewallMark { family, mark }),
    ]
}

fn statistics() -> impl Strategy<Value = ipvs::Statistics> {
    any::<[u64; 10]>().prop_map(|[a, b, c, d, e, f, g, h, i, j]| ipvs::Statistics {
        connections: a,
        packets_in: b,
        packets_out: c,
        bytes_in: d,
        bytes_out: e,
        connection_rate: f,
        packet_rate_in: g,
        packet_rate_out: h,
        byte_rate_in: i,
        byte_rate_out: j,
    })
}

fn service() -> impl Strategy<Value = ipvs::Service> {
    (
        service_key(),
        proptest::option::of(name()),
        any::<(u32, u32)>(),
        any::<u32>(),
        any::<u32>(),
        proptest::option::of(name()),
        proptest::option::of(statistics()),
    )
        .prop_map(|(key, scheduler, (bits, mask), timeout, netmask, engine, statistics)| ipvs::Service {
            key,
            scheduler,
            flags: ipvs::ServiceFlags { bits, mask },
            timeout,
            netmask: match key.family() {
                Family::V4 => ipvs::Netmask::V4(Ipv4Addr::from(netmask)),
                Family::V6 => ipvs::Netmask::V6(netmask),
            },
            engine,
            statistics,
        })
}

fn destination_key() -> impl Strategy<Value = ipvs::DestinationKey> {
    (address(), any::<u16>()).prop_map(|(address, port)| ipvs::DestinationKey { address, port })
}

fn destination() -> impl Strategy<Value = ipvs::Destination> {
    let method = prop_oneof![
        Just(ipvs::ForwardingMethod::MASQUERADE),
        Just(ipvs::ForwardingMethod::LOCAL_NODE),
        Just(ipvs::ForwardingMethod::TUNNEL),
        Just(ipvs::ForwardingMethod::DIRECT_ROUTE),
        Just(ipvs::ForwardingMethod::BYPASS),
    ];
    let tunnel = any::<(u8, u16, u16)>().prop_map(|(kind, port, flags)| ipvs::Tunnel {
        kind: ipvs::TunnelKind(kind),
        port,
        flags: ipvs::TunnelFlags(flags),
    });
    let connections = any::<(u32, u32, u32)>()
        .prop_map(|(active, inactive, persistent)| ipvs::ConnectionCounts { active, inactive, persistent });
    (
        destination_key(),
        method,
        any::<[u32; 4]>(),
        proptest::option::of(tunnel),
        proptest::option::of(connections),
        proptest::option::of(statistics()),
    )
        .prop_map(|(key, forwarding, numbers, tunnel, connections, statistics)| {
            let [flags, weight, upper_threshold, lower_threshold] = numbers;
            ipvs::Destination {
                connection_flags: flags & !7,
                upper_threshold,
                lower_threshold,
                tunnel,
                connections,
                statistics,
                ..ipvs::Destination::new(key, forwarding, weight)
            }
        })
}

fn timeouts() -> impl Strategy<Value = ipvs::Timeouts> {
    any::<(Option<u32>, Option<u32>, Option<u32>)>().prop_map(|(tcp, tcp_fin, udp)| ipvs::Timeouts {
        tcp,
        tcp_fin,
        udp,
    })
}

fn ipvs_request() -> impl Strategy<Value = ipvs::Request> {
    use ipvs::Request;
    prop_oneof![
        service().prop_map(Request::NewService),
        service().prop_map(Request::SetService),
        service_key().prop_map(Request::DeleteService),
        service_key().prop_map(Request::GetService),
        Just(Request::GetServices),
        (service_key(), destination()).prop_map(|(key, server)| Request::NewDestination(key, server)),
        (service_key(), destination()).prop_map(|(key, server)| Request::SetDestination(key, server)),
        (service_key(), destination_key()).prop_map(|(key, server)| Request::DeleteDestination(key, server)),
        service_key().prop_map(Request::GetDestinations),
        Just(Request::Flush),
        timeouts().prop_map(Request::SetConfig),
        Just(Request::GetConfig),
        Just(Request::GetInfo),
    ]
}

fn ipvs_reply() -> impl Strategy<Value = ipvs::Reply> {
    prop_oneof![
        service().prop_map(ipvs::Reply::Service),
        destination().prop_map(ipvs::Reply::Destination),
        timeouts().prop_map(ipvs::Reply::Config),
        any::<(u32, u32)>().prop_map(|(version, connection_table_size)| ipvs::Reply::Info(ipvs::Info {
            version,
            connection_table_size
        })),
    ]
}

fn element() -> impl Strategy<Value = ipset::Element> {
    use ipset::Element;
    let (ip, prefix, port) = (address(), any::<u8>(), any::<u16>());
    (ip, address(), prefix, protocol(), port).prop_flat_map(|(ip, second, prefix, protocol, port)| {
        prop_oneof![
            Just(Element::Ip(ip)),
            Just(Element::IpPort(ip, protocol, port)),
            Just(Element::IpPortIp(ip, protocol, port, second)),
            Just(Element::IpPortNet(ip, protocol, port, second, prefix)),
            Just(Element::Net(ip, prefix)),
            Just(Element::NetPort(ip, prefix, protocol, port)),
            Just(Element::Port(port)),
        ]
    })
}

fn entry() -> impl Strategy<Value = ipset::Entry> {
    let mark = any::<(u32, u32)>().prop_map(|(value, mask)| ipset::SkbMark { value, mask });
    (element(), any::<bool>(), proptest::option::of(mark), any::<Option<u32>>())
        .prop_map(|(element, nomatch, mark, timeout)| ipset::Entry { element, nomatch, mark, timeout })
}

fn options() -> impl Strategy<Value = ipset::CreateOptions> {
    let ports = any::<(u16, u16)>().prop_map(|(first, last)| ipset::PortRange { first, last });
    (any::<[Option<u32>; 3]>(), proptest::option::of(ports), any::<[bool; 4]>()).prop_map(
        |([hash_size, max_elements, timeout], ports, [marks, counters, comments, force_add])| {
            ipset::CreateOptions {
                hash_size,
                max_elements,
                ports,
                timeout,
                marks,
                counters,
                comments,
                force_add,
            }
        },
    )
}

fn batch() -> impl Strategy<Value = ipset::EntryBatch> {
    proptest::collection::vec(entry(), 1..20)
        .prop_map(|entries| ipset::EntryBatch::split(&entries).next().unwrap())
}

fn ipset_request() -> impl Strategy<Value = ipset::Request> {
    use ipset::Request;
    let set_type = || proptest::sample::select(ipset::SetType::ALL.to_vec());
    let scope = proptest::sample::select(vec![
        ipset::ListScope::Names,
        ipset::ListScope::Headers,
        ipset::ListScope::Entries,
    ]);
    prop_oneof![
        Just(Request::Protocol),
        (name(), set_type(), any::<u8>(), proptest::option::of(family()), options(), any::<bool>()).prop_map(
            |(set, set_type, revision, family, options, exist)| Request::Create {
                set,
                set_type,
                revision,
                family,
                options,
                exist
            }
        ),
        name().prop_map(|set| Request::Destroy { set }),
        name().prop_map(|set| Request::Flush { set }),
        (name(), name()).prop_map(|(set, to)| Request::Rename { set, to }),
        (name(), name()).prop_map(|(set, with)| Request::Swap { set, with }),
        (proptest::option::of(name()), scope).prop_map(|(set, scope)| Request::List { set, scope }),
        (name(), entry(), any::<bool>()).prop_map(|(set, entry, exist)| Request::Add { set, entry, exist }),
        (name(), batch(), any::<bool>()).prop_map(|(set, entries, exist)| Request::AddBatch {
            set,
            entries,
            exist
        }),
        (name(), entry(), any::<bool>()).prop_map(|(set, entry, exist)| Request::Delete {
            set,
            entry,
            exist
        }),
        (name(), batch(), any::<bool>()).prop_map(|(set, entries, exist)| Request::DeleteBatch {
            set,
            entries,
            exist
        }),
        (name(), entry()).prop_map(|(set, entry)| Request::Test { set, entry }),
        name().prop_map(|set| Request::Header { set }),
        (set_type(), proptest::option::of(family()))
            .prop_map(|(set_type, family)| Request::Type { set_type, family }),
    ]
}

fn emit(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0xaa; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

/// The bytes as a payload of each family.
fn decode(bytes: &[u8], command: u8, flags: u16) {
    invariants::ipvs(bytes);
    invariants::ipset(u16::from_be_bytes([ipset::SUBSYSTEM, command]), flags, bytes);
    invariants::conntrack(bytes);
    invariants::netlink(bytes);
    let _ = ipvs::Request::parse(command, bytes);
    let _ = ipvs::Reply::parse(command, bytes);
    let _ = KernelError::of_error(flags, bytes);
    let _ = KernelError::of_done(flags, bytes);
}

proptest! {
    #[test]
    fn an_ipvs_request_decodes_to_itself(request in ipvs_request()) {
        prop_assert_eq!(ipvs::Request::parse(request.command(), &emit(&request)), Ok(request));
    }

    #[test]
    fn an_ipvs_reply_decodes_to_itself(reply in ipvs_reply()) {
        prop_assert_eq!(ipvs::Reply::parse(reply.command(), &emit(&reply)), Ok(reply));
        prop_assert_eq!(ipvs::Reply::parse_payload(&emit(&reply.message(0x1c))), Ok(reply));
    }

    #[test]
    fn an_ipset_request_decodes_to_itself(request in ipset_request()) {
        let decoded = ipset::Request::parse(request.message_type(), request.flags(), &emit(&request));
        prop_assert_eq!(decoded, Ok(request));
    }

    #[test]
    fn a_batch_comes_apart_into_its_messages(requests in proptest::collection::vec(ipvs_request(), 0..20)) {
        let mut batch = Vec::new();
        for (sequence, request) in (1..).zip(&requests) {
            message::append(&mut batch, request.flags(), sequence, &request.message(0x1c));
        }
        let mut decoded = Vec::new();
        for (sequence, message) in (1..).zip(Messages::new(&batch)) {
            let message = message.unwrap();
            prop_assert_eq!(message.header.sequence_number, sequence);
            prop_assert_eq!(message.header.message_type, 0x1c);
            let Ok(Kind::Data(payload)) = message.kind() else { panic!("no data") };
            decoded.push(ipvs::Request::parse(payload[0], &payload[4..]).unwrap());
        }
        prop_assert_eq!(decoded, requests);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        command in 0_u8..20,
        flags: u16,
    ) {
        decode(&bytes, command, flags);
    }

    #[test]
    fn no_damage_makes_a_decoder_panic(
        request in ipvs_request(),
        set_request in ipset_request(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
        flags: u16,
    ) {
        for (mut bytes, command) in [
            (emit(&request), request.command()),
            (emit(&set_request), set_request.message_type().to_be_bytes()[1]),
        ] {
            for (place, byte) in &damage {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = *byte;
                }
            }
            decode(&bytes, command, flags);
            bytes.truncate(cut.index(bytes.len() + 1));
            decode(&bytes, command, flags);
        }
    }
}
