//! The ipset codec against what `ipset` and the kernel said to each other.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod capture;

use capture::{Capture, named, only};
use netlink_packet_core::Emitable;
use nodenet_wire::{
    Family, IpProtocol,
    ipset::{
        CreateOptions, Element, Entry, EntryBatch, ErrorCode, ListScope, Listing, PortRange, Reply, Request,
        Revisions, SetIdentity, SetName, SetType, SkbMark,
    },
    message::{Flags, Kind, Message},
};

/// Where the protocol's number stands in a payload: `ipset` sends 7, this codec 6, which older kernels
/// take too.
const PROTOCOL_PLACE: usize = 8;

fn set(name: &str) -> SetName {
    name.parse().unwrap()
}

fn decode(message: Message<'_>) -> Request {
    Request::parse(message.header.message_type, message.header.flags, message.payload).unwrap()
}

fn encode(request: &Request) -> Vec<u8> {
    let mut bytes = vec![0xaa; request.buffer_len()];
    request.emit(&mut bytes);
    bytes
}

/// The request decodes to the expected one, which encodes to the bytes that were sent.
#[track_caller]
fn check(captures: &[Capture], name: &str, expected: Request) {
    let message = named(captures, name).request();
    assert_eq!(decode(message), expected, "{name}");
    let mut sent = message.payload.to_vec();
    sent[PROTOCOL_PLACE] = 6;
    match &expected {
        // ipset ends single entries with a line of 0, which says nothing.
        Request::Add { set, .. } | Request::Delete { set, .. } => {
            let line = sent.split_off(sent.len() - 8);
            assert_eq!(line, [8, 0, 9, 0x40, 0, 0, 0, 0]);
            let data = 12 + (4 + set.as_bytes().len() + 1).next_multiple_of(4);
            assert_eq!(sent[data + 2], 7, "the data");
            sent[data] -= 8;
        }
        // ipset begins with the line of the first entry, this codec with none.
        Request::AddBatch { set, .. } | Request::DeleteBatch { set, .. } => {
            let line = 12 + (4 + set.as_bytes().len() + 1).next_multiple_of(4);
            assert_eq!(sent[line..line + 8], [8, 0, 9, 0x40, 0, 0, 0, 1]);
            sent[line + 7] = 0;
        }
        _ => {}
    }
    assert_eq!(encode(&expected), sent, "{name}");
    assert_eq!(expected.message_type(), message.header.message_type, "{name}");
}

/// As [`check`], and the flags are those of `ipset`.
#[track_caller]
fn check_with_flags(captures: &[Capture], name: &str, expected: Request) {
    assert_eq!(expected.flags(), named(captures, name).request().header.flags, "{name}");
    check(captures, name, expected);
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

#[test]
fn sets_are_created_as_ipset_does() {
    let captures = capture::ipset();
    let all = [
        ("create-hip6", "NODENET6-IP", SetType::HashIp, 6, Family::V6),
        ("create-hipport6", "NODENET6-CLUSTER-IP", SetType::HashIpPort, 7, Family::V6),
        ("create-hipportip", "NODENET-LOOP-BACK", SetType::HashIpPortIp, 6, Family::V4),
        ("create-hipportip6", "NODENET6-LOOP-BACK", SetType::HashIpPortIp, 6, Family::V6),
        ("create-hipportnet", "NODENET-SRC", SetType::HashIpPortNet, 8, Family::V4),
        ("create-hipportnet6", "NODENET6-SRC", SetType::HashIpPortNet, 8, Family::V6),
        ("create-hnet", "NODENET-NET", SetType::HashNet, 7, Family::V4),
        ("create-hnet6", "NODENET6-NET", SetType::HashNet, 7, Family::V6),
        ("create-hnetport", "NODENET-NETPORT", SetType::HashNetPort, 8, Family::V4),
        ("create-hnetport6", "NODENET6-NETPORT", SetType::HashNetPort, 8, Family::V6),
    ];
    let create = |name: &str, set_type, revision, family, options, exist| Request::Create {
        set: set(name),
        set_type,
        revision,
        family,
        options,
        exist,
    };
    let none = CreateOptions::default();
    for (capture, name, set_type, revision, family) in all {
        let request = create(name, set_type, revision, Some(family), none, false);
        check_with_flags(&captures, capture, request);
    }
    let v4 = Some(Family::V4);
    let sized = CreateOptions::hash(1024, 100_000);
    let request = create("NODENET-IP", SetType::HashIp, 6, v4, sized, false);
    check_with_flags(&captures, "create-hip", request);
    let extended = CreateOptions { timeout: Some(0), marks: true, counters: true, comments: true, ..none };
    let request = create("NODENET-MARK", SetType::HashIpPort, 7, v4, extended, false);
    check_with_flags(&captures, "create-hipport", request);
    let ports = CreateOptions::bitmap(PortRange::ALL);
    let request = create("NODENET-PORT", SetType::BitmapPort, 3, None, ports, false);
    check_with_flags(&captures, "create-bitmap", request);
    let request = create("NODENET-NET", SetType::HashNet, 7, v4, none, true);
    check_with_flags(&captures, "create-exist-ok", request);
}

#[test]
fn sets_are_changed_as_ipset_does() {
    let captures = capture::ipset();
    let one = set("NODENET-IP");
    // ipset asks for NLM_F_EXCL here too, which the kernel looks at only where sets or entries are added.
    check(&captures, "destroy-one", Request::Destroy { set: one });
    check_with_flags(&captures, "flush", Request::Flush { set: one });
    check_with_flags(&captures, "rename", Request::Rename { set: one, to: set("NODENET-IP-2") });
    check_with_flags(&captures, "swap", Request::Swap { set: set("NODENET-IP-2"), with: one });
}

#[test]
fn entries_are_added_deleted_and_tested_as_ipset_does() {
    use IpProtocol as Of;
    let captures = capture::ipset();
    let all = [
        ("add-hip", "NODENET-IP", Element::Ip(ip("10.0.0.1"))),
        ("add-hip6", "NODENET6-IP", Element::Ip(ip("2001:db8::1"))),
        ("add-hipport6", "NODENET6-CLUSTER-IP", Element::IpPort(ip("fd00:96::10"), Of::TCP, 443)),
        (
            "add-hipportip",
            "NODENET-LOOP-BACK",
            Element::IpPortIp(ip("10.244.1.2"), Of::TCP, 8080, ip("10.244.1.2")),
        ),
        (
            "add-hipportip6",
            "NODENET6-LOOP-BACK",
            Element::IpPortIp(ip("fd00::2"), Of::TCP, 8080, ip("fd00::2")),
        ),
        (
            "add-hipportnet",
            "NODENET-SRC",
            Element::IpPortNet(ip("192.0.2.1"), Of::TCP, 80, ip("203.0.113.0"), 24),
        ),
        (
            "add-hipportnet6",
            "NODENET6-SRC",
            Element::IpPortNet(ip("2001:db8::10"), Of::SCTP, 80, ip("2001:db8:1::"), 48),
        ),
        ("add-hnet", "NODENET-NET", Element::Net(ip("10.0.0.0"), 8)),
        ("add-hnet6", "NODENET6-NET", Element::Net(ip("2001:db8::"), 32)),
        ("add-hnetport", "NODENET-NETPORT", Element::NetPort(ip("192.168.0.0"), 16, Of::TCP, 22)),
        ("add-hnetport6", "NODENET6-NETPORT", Element::NetPort(ip("fd00::"), 8, Of::UDP, 53)),
        ("add-bitmap", "NODENET-PORT", Element::Port(30080)),
    ];
    for (capture, name, element) in all {
        let request = Request::Add { set: set(name), entry: element.into(), exist: false };
        check_with_flags(&captures, capture, request);
    }
    let one = set("NODENET-IP");
    let entry = Entry::from(Element::Ip(ip("10.0.0.1")));
    check_with_flags(&captures, "add-exist-ok", Request::Add { set: one, entry, exist: true });
    let marked = Entry {
        mark: Some(SkbMark { value: 0x4001, mask: u32::MAX }),
        timeout: Some(600),
        ..Entry::from(Element::IpPort(ip("10.96.0.10"), Of::UDP, 53))
    };
    let request = Request::Add { set: set("NODENET-MARK"), entry: marked, exist: false };
    check_with_flags(&captures, "add-hipport", request);
    let exception = Entry { nomatch: true, ..Entry::from(Element::Net(ip("10.1.0.0"), 16)) };
    let request = Request::Add { set: set("NODENET-NET"), entry: exception, exist: false };
    check_with_flags(&captures, "add-hnet-nomatch", request);

    let other = Element::Ip(ip("10.0.1.1")).into();
    check_with_flags(&captures, "del", Request::Delete { set: one, entry: other, exist: false });
    check_with_flags(&captures, "test-in", Request::Test { set: one, entry });
}

#[test]
fn batches_are_sent_as_ipset_restore_does() {
    let captures = capture::ipset();
    let one = set("NODENET-IP");
    let batch = |addresses: &[&str]| {
        let entries: Vec<_> = addresses.iter().map(|text| Element::Ip(ip(text)).into()).collect();
        EntryBatch::split(&entries).next().unwrap()
    };
    let entries = batch(&["10.0.2.1", "10.0.2.2", "10.0.2.3"]);
    check_with_flags(&captures, "restore-ok", Request::AddBatch { set: one, entries, exist: false });
    let entries = batch(&["10.0.2.1", "10.0.2.2"]);
    check_with_flags(&captures, "restore-del", Request::DeleteBatch { set: one, entries, exist: false });

    let failed = named(&captures, "restore-fail");
    let Kind::Error(error) = failed.outcome() else { panic!("no error") };
    let entries = batch(&["10.0.1.1", "10.0.1.2", "10.0.0.1", "10.0.1.4"]);
    assert_eq!(entries.at_line(error.line.unwrap()), Some(&Element::Ip(ip("10.0.0.1")).into()));
    assert_eq!(
        error.to_string(),
        "the entry is there already when added, or not there when deleted or tested (ipset error 4103) (line 3)"
    );
}

#[test]
fn the_kernel_tells_its_protocols_and_revisions() {
    let captures = capture::ipset();
    let created = named(&captures, "create-hip");
    let requests: Vec<_> = created.sent.iter().map(|datagram| decode(only(datagram))).collect();
    assert_eq!(requests[0], Request::Protocol);
    assert_eq!(requests[1], Request::Type { set_type: SetType::HashIp, family: Some(Family::V4) });
    let replies: Vec<_> = created.replies().map(reply).collect();
    let revisions = Revisions { lowest: 0, highest: 6 };
    assert_eq!(replies[..2], [Some(Reply::Protocol { highest: 7, lowest: 6 }), Some(Reply::Type(revisions))]);
    assert_eq!(SetType::HashIp.revision(revisions), 4);
    assert_eq!(SetType::HashIp.revision(Revisions { lowest: 0, highest: 2 }), 2);

    let added = named(&captures, "add-hip");
    assert!(
        added
            .sent
            .iter()
            .any(|datagram| { decode(only(datagram)) == Request::Header { set: set("NODENET-IP") } })
    );
    let identity = SetIdentity {
        set: set("NODENET-IP"),
        type_name: "hash:ip".parse().unwrap(),
        revision: 6,
        family: Some(Family::V4),
    };
    assert!(added.replies().any(|message| reply(message) == Some(Reply::Header(identity))));
}

fn reply(message: Message<'_>) -> Option<Reply<'_>> {
    match message.kind().unwrap() {
        Kind::Data(payload) => Some(Reply::parse(message.header.message_type, payload).unwrap()),
        _ => None,
    }
}

fn listings<'a>(capture: &'a Capture) -> Vec<Listing<'a>> {
    capture
        .replies()
        .filter_map(|message| match reply(message) {
            Some(Reply::List(listing)) => Some(listing),
            _ => None,
        })
        .collect()
}

#[test]
fn a_listing_tells_every_set_and_entry() {
    let captures = capture::ipset();
    let capture = named(&captures, "list");
    check(&captures, "list", Request::List { set: None, scope: ListScope::Entries });
    assert_eq!(capture.outcome(), Kind::Done(None));
    let mut shown = Vec::new();
    for listing in listings(capture) {
        let header = listing.header.unwrap();
        let family = header.family.map_or("-".to_owned(), |family| family.to_string());
        shown.push(format!("{} {} {family} {}", listing.set, header.type_name, header.elements.unwrap()));
        for entry in listing.entries() {
            let entry = entry.unwrap();
            let nomatch = if entry.nomatch { " nomatch" } else { "" };
            let mark =
                entry.mark.map_or_else(String::new, |mark| format!(" {:#x}/{:#x}", mark.value, mark.mask));
            shown.push(format!("  {}{nomatch}{mark}", entry.element));
        }
    }
    assert_eq!(
        shown,
        [
            "NODENET-IP hash:ip IPv4 1",
            "  10.0.0.1",
            "NODENET6-IP hash:ip IPv6 1",
            "  2001:db8::1",
            "NODENET-MARK hash:ip,port IPv4 1",
            "  10.96.0.10,udp:53 0x4001/0xffffffff",
            "NODENET6-CLUSTER-IP hash:ip,port IPv6 1",
            "  fd00:96::10,tcp:443",
            "NODENET-LOOP-BACK hash:ip,port,ip IPv4 1",
            "  10.244.1.2,tcp:8080,10.244.1.2",
            "NODENET6-LOOP-BACK hash:ip,port,ip IPv6 1",
            "  fd00::2,tcp:8080,fd00::2",
            "NODENET-SRC hash:ip,port,net IPv4 1",
            "  192.0.2.1,tcp:80,203.0.113.0/24",
            "NODENET6-SRC hash:ip,port,net IPv6 1",
            "  2001:db8::10,sctp:80,2001:db8:1::/48",
            "NODENET-NET hash:net IPv4 2",
            "  10.0.0.0/8",
            "  10.1.0.0/16 nomatch",
            "NODENET6-NET hash:net IPv6 1",
            "  2001:db8::/32",
            "NODENET-NETPORT hash:net,port IPv4 1",
            "  192.168.0.0/16,tcp:22",
            "NODENET6-NETPORT hash:net,port IPv6 1",
            "  fd00::/8,udp:53",
            "NODENET-PORT bitmap:port - 1",
            "  30080",
        ]
    );
}

#[test]
fn listings_can_be_short() {
    let captures = capture::ipset();
    check(&captures, "list-names", Request::List { set: None, scope: ListScope::Names });
    let names = listings(named(&captures, "list-names"));
    assert_eq!(names.len(), 13);
    assert!(names.iter().all(|listing| listing.header.is_none() && listing.entries().next().is_none()));

    check(&captures, "list-terse", Request::List { set: None, scope: ListScope::Headers });
    let headers = listings(named(&captures, "list-terse"));
    assert_eq!(headers.len(), 13);
    assert!(headers.iter().all(|listing| listing.header.is_some() && listing.entries().next().is_none()));
    let marks = headers.iter().find(|listing| listing.set == "NODENET-MARK").unwrap().header.unwrap();
    assert_eq!(
        marks.options,
        CreateOptions {
            timeout: Some(0),
            marks: true,
            counters: true,
            comments: true,
            ..CreateOptions::hash(1024, 65536)
        }
    );
    assert_eq!(marks.references, 0);
    let ports = headers.iter().find(|listing| listing.set == "NODENET-PORT").unwrap().header.unwrap();
    assert_eq!(ports.options, CreateOptions::bitmap(PortRange::ALL));
}

#[test]
fn a_large_set_comes_in_several_messages() {
    let captures = capture::ipset();
    let scope = ListScope::Entries;
    check(&captures, "list-large", Request::List { set: Some(set("NODENET-MARK")), scope });
    let parts = listings(named(&captures, "list-large"));
    assert!(parts.len() > 1);
    assert!(parts[0].header.is_some());
    assert!(parts[1..].iter().all(|part| part.set == "NODENET-MARK" && part.header.is_none()));
    let entries: usize = parts.iter().map(|part| part.entries().map(Result::unwrap).count()).sum();
    assert_eq!(entries, 71);
}

#[test]
fn refusals_are_told_in_words() {
    let captures = capture::ipset();
    for (name, set_type, code) in [
        ("create-exist", SetType::HashNet, None),
        ("add-exist", SetType::HashIp, Some(ErrorCode::Exist)),
        ("test-out", SetType::HashIp, Some(ErrorCode::Exist)),
        ("del-absent", SetType::HashIp, Some(ErrorCode::Exist)),
        ("add-cidr0", SetType::HashNet, Some(ErrorCode::InvalidCidr)),
        ("swap-mismatch", SetType::HashIp, Some(ErrorCode::TypeMismatch)),
        ("full-add2", SetType::HashIp, Some(ErrorCode::HashFull)),
        ("bitmap-out", SetType::BitmapPort, Some(ErrorCode::BitmapRange)),
        ("list-absent", SetType::HashIp, None),
    ] {
        let Kind::Error(error) = named(&captures, name).outcome() else { panic!("{name}: no error") };
        assert_eq!(ErrorCode::from_errno(error.errno, Some(set_type)), code, "{name}: {error}");
        assert_eq!(error.line, None, "{name}");
    }
    assert_eq!(named(&captures, "test-in").outcome(), Kind::Acknowledgement);
    assert_eq!(named(&captures, "create-exist-ok").outcome(), Kind::Acknowledgement);
}

#[test]
fn what_was_received_survives_encoding() {
    for capture in capture::ipset() {
        for message in capture.replies() {
            let Some(reply) = reply(message) else { continue };
            let mut bytes = vec![0; reply.buffer_len()];
            reply.emit(&mut bytes);
            assert_eq!(Reply::parse(reply.message_type(), &bytes), Ok(reply));
        }
    }
}
