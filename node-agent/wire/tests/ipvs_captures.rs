//! The IPVS codec against what `ipvsadm` and the kernel said to each other.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod capture;

use capture::{Capture, named, only};
use netlink_packet_core::Emitable;
use netlink_packet_generic::GenlFamily;
use nodenet_wire::{
    Family, IpProtocol,
    ipvs::{
        ConnectionCounts, Destination, DestinationKey, ForwardingMethod, Info, Netmask, Reply, Request,
        Service, ServiceFlags, ServiceKey, Statistics, Timeouts, Tunnel, TunnelFlags, TunnelKind,
    },
    message::{Flags, Kind, Message},
};

fn tcp(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: IpProtocol::TCP, address: address.parse().unwrap(), port }
}

fn udp(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: IpProtocol::UDP, address: address.parse().unwrap(), port }
}

fn mark(family: Family, mark: u32) -> ServiceKey {
    ServiceKey::FirewallMark { family, mark }
}

fn service(key: ServiceKey, scheduler: &str) -> Service {
    Service::new(key, scheduler.parse().unwrap())
}

fn server(address: &str, port: u16) -> DestinationKey {
    DestinationKey { address: address.parse().unwrap(), port }
}

/// `ipvsadm` always sends an encapsulation.
fn destination(key: DestinationKey, forwarding: ForwardingMethod, weight: u32) -> Destination {
    Destination { tunnel: Some(Tunnel::default()), ..Destination::new(key, forwarding, weight) }
}

fn decode(message: Message<'_>) -> Request {
    Request::parse(message.payload[0], &message.payload[4..]).unwrap()
}

const GENERIC_HEADER: usize = 4;

/// Where a service is only named, ipvsadm sends the options of one that has none after the name; the kernel
/// does not read them.
fn without_options(sent: &mut Vec<u8>) {
    const LENGTH: usize = 36;
    if sent[6] & 0x7f != 1 {
        return; // no service at all
    }
    let end = GENERIC_HEADER + usize::from(sent[4]);
    assert_eq!(sent[end - LENGTH..end - 4 * 7], [5, 0, 6, 0, 0, 0, 0, 0], "an empty scheduler");
    sent.drain(end - LENGTH..end);
    sent[4] -= u8::try_from(LENGTH).unwrap();
}

/// The request decodes to the expected one, which encodes to the bytes that were sent.
#[track_caller]
fn check(captures: &[Capture], name: &str, expected: Request) {
    let message = named(captures, name).request();
    assert_eq!(decode(message), expected, "{name}");
    let generic = expected.message(message.header.message_type);
    let mut bytes = vec![0xaa; generic.buffer_len()];
    generic.emit(&mut bytes);
    let mut sent = message.payload.to_vec();
    if !matches!(expected, Request::NewService(_) | Request::SetService(_)) && sent.len() > GENERIC_HEADER {
        without_options(&mut sent);
    }
    assert_eq!(bytes, sent, "{name}");
    assert_eq!(expected.flags(), message.header.flags, "{name}");
}

#[test]
fn services_are_added_as_ipvsadm_does() {
    let captures = capture::ipvs();
    let sctp =
        ServiceKey::Address { protocol: IpProtocol::SCTP, address: "10.96.0.9".parse().unwrap(), port: 7777 };
    let new = Request::NewService;
    check(&captures, "new-tcp4", new(service(tcp("10.96.0.1", 443), "rr")));
    check(&captures, "new-udp6", new(service(udp("fd00:96::a", 53), "wrr")));
    check(&captures, "new-sctp", new(service(sctp, "wlc")));
    check(&captures, "new-fwm4", new(service(mark(Family::V4, 17), "lc")));
    check(&captures, "new-fwm6", new(service(mark(Family::V6, 17), "lc")));
    check(
        &captures,
        "new-persistent",
        new(Service {
            netmask: Netmask::V4("255.255.255.0".parse().unwrap()),
            ..service(tcp("10.96.0.2", 80), "wlc").persistent(10800)
        }),
    );
    check(
        &captures,
        "new-persistent6",
        new(Service { netmask: Netmask::V6(64), ..service(tcp("fd00:96::b", 80), "rr").persistent(300) }),
    );
    check(
        &captures,
        "new-mh",
        new(Service {
            flags: ServiceFlags::exactly(ServiceFlags::SCHEDULER_1 | ServiceFlags::SCHEDULER_2),
            ..service(tcp("10.96.0.3", 80), "mh")
        }),
    );
    check(
        &captures,
        "new-ops",
        new(Service {
            flags: ServiceFlags::exactly(ServiceFlags::ONE_PACKET),
            ..service(udp("10.96.0.4", 53), "rr")
        }),
    );
}

#[test]
fn services_are_edited_and_deleted_as_ipvsadm_does() {
    let captures = capture::ipvs();
    check(&captures, "edit-service", Request::SetService(service(tcp("10.96.0.1", 443), "wrr")));
    check(&captures, "delete-service", Request::DeleteService(tcp("10.96.0.1", 443)));
    check(&captures, "delete-fwm6", Request::DeleteService(mark(Family::V6, 17)));
    check(&captures, "clear", Request::Flush);
}

#[test]
fn destinations_are_added_edited_and_deleted_as_ipvsadm_does() {
    use ForwardingMethod as By;
    let captures = capture::ipvs();
    let (key4, key6, mh) = (tcp("10.96.0.1", 443), udp("fd00:96::a", 53), tcp("10.96.0.3", 80));
    let new = Request::NewDestination;
    let one = destination(server("10.244.1.2", 6443), By::MASQUERADE, 1);
    check(&captures, "dest-masq4", new(key4, one));
    check(
        &captures,
        "dest-masq4-weight",
        new(
            key4,
            Destination {
                upper_threshold: 100,
                lower_threshold: 50,
                ..destination(server("10.244.2.2", 6443), By::MASQUERADE, 70_000)
            },
        ),
    );
    check(&captures, "dest-masq6", new(key6, destination(server("fd00:244::2", 5353), By::MASQUERADE, 1)));
    check(
        &captures,
        "dest-droute",
        new(tcp("10.96.0.2", 80), destination(server("192.168.0.21", 80), By::DIRECT_ROUTE, 1)),
    );
    check(&captures, "dest-tunnel", new(mh, destination(server("192.168.0.22", 80), By::TUNNEL, 1)));
    let gue = Tunnel { kind: TunnelKind::GUE, port: 6080, flags: TunnelFlags::CHECKSUM };
    check(
        &captures,
        "dest-tunnel-gue",
        new(mh, Destination { tunnel: Some(gue), ..destination(server("192.168.0.23", 80), By::TUNNEL, 1) }),
    );
    // A server of the other family, as tunnels allow.
    check(&captures, "dest-tunnel-6in4", new(mh, destination(server("fd00::23", 80), By::TUNNEL, 1)));
    check(
        &captures,
        "dest-fwm4",
        new(mark(Family::V4, 17), destination(server("10.244.1.3", 0), By::MASQUERADE, 1)),
    );
    check(&captures, "edit-dest", Request::SetDestination(key4, Destination { weight: 0, ..one }));
    // ipvsadm sends what it would send to add it, the kernel reads address and port.
    assert_eq!(
        decode(named(&captures, "delete-dest").request()),
        Request::DeleteDestination(key4, server("10.244.2.2", 6443)),
    );
}

#[test]
fn version_and_timeouts_are_read_and_set() {
    let captures = capture::ipvs();
    let timeouts = Timeouts { tcp: Some(900), tcp_fin: Some(120), udp: Some(300) };
    check(&captures, "set-config", Request::SetConfig(timeouts));
    check(&captures, "get-config", Request::GetConfig);
    let config = named(&captures, "get-config");
    assert_eq!(decode(only(&config.sent[0])), Request::GetInfo);
    let replies: Vec<_> =
        config.replies().map(|message| Reply::parse_payload(message.payload).unwrap()).collect();
    let info = Info { version: 0x01_02_01, connection_table_size: 4096 };
    assert_eq!(replies, [Reply::Info(info), Reply::Config(timeouts)]);
}

#[test]
fn a_listing_tells_every_service_and_destination() {
    let captures = capture::ipvs();
    let listing = named(&captures, "list-stats");
    let (mut services, mut destinations, mut done) = (Vec::new(), Vec::new(), 0);
    for message in listing.replies() {
        assert!(!message.is_interrupted());
        match message.kind().unwrap() {
            Kind::Data(payload) => match Reply::parse_payload(payload).unwrap() {
                Reply::Service(service) => services.push(service),
                Reply::Destination(destination) => destinations.push(destination),
                other => panic!("{other:?}"),
            },
            Kind::Done(error) => {
                assert_eq!(error, None);
                done += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let requests: Vec<_> = listing.sent.iter().map(|datagram| decode(only(datagram))).collect();
    assert_eq!(requests[0], Request::GetServices);
    let asked: Vec<_> = requests[1..]
        .iter()
        .map(|request| match request {
            Request::GetDestinations(key) => *key,
            other => panic!("{other:?}"),
        })
        .collect();
    // ipvsadm sorts what the kernel told before it asks on.
    services.sort_by_key(|service| asked.iter().position(|key| *key == service.key));
    assert_eq!(asked, services.iter().map(|service| service.key).collect::<Vec<_>>());
    assert_eq!(done, requests.len());

    let shown: Vec<_> = services
        .iter()
        .map(|service| {
            let scheduler = service.scheduler.unwrap();
            format!("{} {scheduler} {:#x} {}", service.key, service.flags.configured(), service.timeout)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "TCP 10.96.0.1:443 wrr 0x0 0",
            "TCP 10.96.0.2:80 wlc 0x1 10800",
            "TCP 10.96.0.3:80 mh 0x18 0",
            "UDP 10.96.0.4:53 rr 0x4 0",
            "SCTP 10.96.0.9:7777 wlc 0x0 0",
            "TCP [fd00:96::b]:80 rr 0x1 300",
            "UDP [fd00:96::a]:53 wrr 0x0 0",
            "FWM 17 IPv4 lc 0x0 0",
            "FWM 17 IPv6 lc 0x0 0",
        ]
    );
    assert_eq!(services[1].netmask, Netmask::V4("255.255.255.0".parse().unwrap()));
    assert_eq!(services[5].netmask, Netmask::V6(64));

    // Newest first, each service for itself.
    let shown: Vec<_> = destinations
        .iter()
        .map(|server| {
            format!(
                "{} {} {} {}/{}",
                server.key, server.forwarding, server.weight, server.upper_threshold, server.lower_threshold
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "10.244.2.2:6443 Masquerade 70000 100/50",
            "10.244.1.2:6443 Masquerade 0 0/0",
            "192.168.0.21:80 DirectRoute 1 0/0",
            "[fd00::23]:80 Tunnel 1 0/0",
            "192.168.0.23:80 Tunnel 1 0/0",
            "192.168.0.22:80 Tunnel 1 0/0",
            "[fd00:244::2]:5353 Masquerade 1 0/0",
            "10.244.1.3:0 Masquerade 1 0/0",
        ]
    );
    let gue = Tunnel { kind: TunnelKind::GUE, port: 6080, flags: TunnelFlags::CHECKSUM };
    assert_eq!(destinations[4].tunnel, Some(gue));
    assert_eq!(destinations[0].connections, Some(ConnectionCounts { active: 0, inactive: 3, persistent: 0 }));
    let totals = Statistics {
        connections: 3,
        packets_in: 12,
        packets_out: 12,
        bytes_in: 648,
        bytes_out: 663,
        ..Statistics::default()
    };
    for statistics in [destinations[0].statistics.unwrap(), services[0].statistics.unwrap()] {
        let rates_aside = Statistics {
            connection_rate: 0,
            packet_rate_in: 0,
            packet_rate_out: 0,
            byte_rate_in: 0,
            byte_rate_out: 0,
            ..statistics
        };
        assert_eq!(rates_aside, totals);
    }
}

#[test]
fn one_service_can_be_read() {
    let captures = capture::ipvs();
    let listing = named(&captures, "list-one");
    assert_eq!(decode(only(&listing.sent[0])), Request::GetService(tcp("10.96.0.1", 443)));
    let first = listing.replies().next().unwrap();
    let Reply::Service(service) = Reply::parse_payload(first.payload).unwrap() else { panic!("no service") };
    assert_eq!(service.key, tcp("10.96.0.1", 443));
}

#[test]
fn refusals_are_told_in_the_kernels_words() {
    let captures = capture::ipvs();
    for (name, words) in [
        ("exists", "File exists (os error 17)"),
        ("absent-service", "No such process (os error 3)"),
        ("absent-dest", "No such file or directory (os error 2)"),
        ("no-scheduler", "No such file or directory (os error 2)"),
    ] {
        let capture = named(&captures, name);
        let Kind::Error(error) = capture.outcome() else { panic!("{name}: no error") };
        assert_eq!(error.to_string(), words, "{name}");
        let request = capture.request().header;
        assert_eq!(error.request.map(|header| header.sequence_number), Some(request.sequence_number));
    }
    assert_eq!(named(&captures, "new-tcp4").outcome(), Kind::Acknowledgement);
}

#[test]
fn what_was_received_survives_encoding() {
    for capture in capture::ipvs() {
        for message in capture.replies() {
            if let Kind::Data(payload) = message.kind().unwrap() {
                let reply = Reply::parse_payload(payload).unwrap();
                let mut bytes = vec![0; reply.buffer_len()];
                reply.emit(&mut bytes);
                assert_eq!(Reply::parse(reply.command(), &bytes), Ok(reply));
            }
        }
    }
}
