//! The ipset codec against the kernel that runs the tests. They need root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod running_kernel;

use std::{collections::BTreeSet, net::IpAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nodenet_wire::{
    Family, IpProtocol,
    ipset::{
        self, CreateOptions, Element, Entry, EntryBatch, ErrorCode, ListScope, PortRange, SetType, SkbMark,
    },
};
use running_kernel::{Kernel, enter_namespace, ip};

fn name(text: &str) -> ipset::SetName {
    text.parse().unwrap()
}

fn entries(kernel: &mut Kernel, set: &str) -> BTreeSet<Entry> {
    let answers = kernel.ask(&[ipset::Request::List { set: Some(name(set)), scope: ListScope::Entries }]);
    assert_eq!(answers.errors, []);
    let mut entries = BTreeSet::new();
    for (message_type, payload) in &answers.data {
        let ipset::Reply::List(listing) = ipset::Reply::parse(*message_type, payload).unwrap() else {
            panic!("no listing");
        };
        assert_eq!(listing.set, set);
        entries.extend(listing.entries().map(Result::unwrap));
    }
    entries
}

fn create(kernel: &mut Kernel, set: &str, set_type: SetType, family: Option<Family>, options: CreateOptions) {
    let asked = kernel.ask(&[ipset::Request::Type { set_type, family }]);
    assert_eq!(asked.errors, []);
    let (message_type, payload) = &asked.data[0];
    let Ok(ipset::Reply::Type(revisions)) = ipset::Reply::parse(*message_type, payload) else {
        panic!("no revisions");
    };
    kernel.carry_out(&[ipset::Request::Create {
        set: name(set),
        set_type,
        revision: set_type.revision(revisions),
        family,
        options,
        exist: false,
    }]);
}

#[test]
fn sets_of_every_type_hold_what_was_added() {
    if !enter_namespace() {
        return;
    }
    let mut kernel = Kernel::new(NETLINK_NETFILTER);
    for family in [Family::V4, Family::V6] {
        let (one, two, net, prefix) = match family {
            Family::V4 => (ip("10.96.0.1"), ip("10.244.1.2"), ip("203.0.113.0"), 24),
            Family::V6 => (ip("fd00:96::1"), ip("fd00:244::2"), ip("2001:db8:1::"), 48),
        };
        for (set_type, element) in [
            (SetType::HashIp, Element::Ip(one)),
            (SetType::HashIpPort, Element::IpPort(one, IpProtocol::TCP, 443)),
            (SetType::HashIpPortIp, Element::IpPortIp(one, IpProtocol::UDP, 53, two)),
            (SetType::HashIpPortNet, Element::IpPortNet(one, IpProtocol::SCTP, 80, net, prefix)),
            (SetType::HashNet, Element::Net(net, prefix)),
            (SetType::HashNetPort, Element::NetPort(net, prefix, IpProtocol::TCP, 22)),
            (SetType::BitmapPort, Element::Port(30080)),
        ] {
            let set = format!("NODENET-{family}-{set_type}").replace([':', ','], "-");
            let (family, options) = if set_type.has_family() {
                (Some(family), CreateOptions { marks: true, ..CreateOptions::hash(64, 100_000) })
            } else {
                (None, CreateOptions { marks: true, ..CreateOptions::bitmap(PortRange::ALL) })
            };
            create(&mut kernel, &set, set_type, family, options);
            let mark = Some(SkbMark { value: 0x4001, mask: 0xffff_ffff });
            let entry = Entry { mark, ..Entry::from(element) };
            let (set, exist) = (name(&set), false);
            kernel.carry_out(&[
                ipset::Request::Add { set, entry, exist },
                ipset::Request::Add { set, entry, exist: true },
                ipset::Request::Test { set, entry },
            ]);
            assert_eq!(entries(&mut kernel, &set.to_str()), [entry].into());
            kernel.carry_out(&[
                ipset::Request::Delete { set, entry, exist },
                ipset::Request::Delete { set, entry, exist: true },
            ]);
            let answers = kernel.ask(&[ipset::Request::Test { set, entry }]);
            let code = ErrorCode::from_errno(answers.errors[0].1.errno, Some(set_type));
            assert_eq!(code, Some(ErrorCode::Exist));
            kernel.carry_out(&[ipset::Request::Destroy { set }]);
        }
    }
}

#[test]
fn a_batch_stops_at_the_entry_that_it_names() {
    if !enter_namespace() {
        return;
    }
    let mut kernel = Kernel::new(NETLINK_NETFILTER);
    let set = name("NODENET-BATCH");
    create(&mut kernel, "NODENET-BATCH", SetType::HashIp, Some(Family::V4), CreateOptions::hash(64, 100_000));
    let many: Vec<Entry> = (0..5000_u32)
        .map(|number| Element::Ip(IpAddr::from((0x0a00_0000 + number).to_be_bytes())).into())
        .collect();
    let requests: Vec<_> = EntryBatch::split(&many)
        .map(|entries| ipset::Request::AddBatch { set, entries, exist: false })
        .collect();
    assert_eq!(requests.len(), 10);
    kernel.carry_out(&requests);
    assert_eq!(entries(&mut kernel, "NODENET-BATCH"), many.iter().copied().collect());

    // The third is there already: two are added, the rest is not tried.
    let new = |number: u8| Entry::from(Element::Ip(ip(&format!("10.9.9.{number}"))));
    let batch = EntryBatch::split(&[new(1), new(2), many[7], new(3)]).next().unwrap();
    let request = ipset::Request::AddBatch { set, entries: batch.clone(), exist: false };
    let answers = kernel.ask(&[request]);
    let (index, error) = &answers.errors[0];
    assert_eq!((*index, error.line), (0, Some(3)));
    assert_eq!(batch.at_line(3), Some(&many[7]));
    let now = entries(&mut kernel, "NODENET-BATCH");
    assert_eq!([new(1), new(2), new(3)].map(|entry| now.contains(&entry)), [true, true, false]);

    // A set that is not there fails as a whole.
    let batch = EntryBatch::new(new(1));
    let absent = ipset::Request::AddBatch { set: name("NODENET-ABSENT"), entries: batch, exist: false };
    let answers = kernel.ask(&[absent]);
    assert_eq!((answers.errors[0].1.errno, answers.errors[0].1.line), (2, None));

    let requests: Vec<_> = EntryBatch::split(&many)
        .map(|entries| ipset::Request::DeleteBatch { set, entries, exist: true })
        .collect();
    kernel.carry_out(&requests);
    assert_eq!(entries(&mut kernel, "NODENET-BATCH").len(), 2);
}

#[test]
fn sets_are_swapped_renamed_and_described() {
    if !enter_namespace() {
        return;
    }
    let mut kernel = Kernel::new(NETLINK_NETFILTER);
    let options = CreateOptions { timeout: Some(600), ..CreateOptions::hash(1024, 70_000) };
    for set in ["NODENET-A", "NODENET-B"] {
        create(&mut kernel, set, SetType::HashNet, Some(Family::V4), options);
    }
    let entry = Entry { nomatch: true, ..Entry::from(Element::Net(ip("10.1.0.0"), 16)) };
    kernel.carry_out(&[
        ipset::Request::Add { set: name("NODENET-A"), entry, exist: false },
        ipset::Request::Swap { set: name("NODENET-A"), with: name("NODENET-B") },
        ipset::Request::Rename { set: name("NODENET-A"), to: name("NODENET-C") },
    ]);
    let listed: Vec<_> = entries(&mut kernel, "NODENET-B").into_iter().collect();
    assert_eq!((listed[0].element, listed[0].nomatch), (entry.element, true));
    assert!(listed[0].timeout.is_some_and(|left| left > 0 && left <= 600));
    let answers = kernel.ask(&[ipset::Request::List { set: None, scope: ListScope::Headers }]);
    let mut described: Vec<_> = answers
        .data
        .iter()
        .map(|(message_type, payload)| match ipset::Reply::parse(*message_type, payload) {
            Ok(ipset::Reply::List(listing)) => {
                let header = listing.header.unwrap();
                assert_eq!(SetType::from_name(&header.type_name), Some(SetType::HashNet));
                assert_eq!((header.family, header.options), (Some(Family::V4), options));
                format!("{} {:?}", listing.set, header.elements)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    described.sort();
    assert_eq!(described, ["NODENET-B Some(1)", "NODENET-C Some(0)"]);
    // Everything is everything: a prefix of 0 is refused, its halves are not.
    let net = |text, prefix| Entry::from(Element::Net(ip(text), prefix));
    let set = name("NODENET-C");
    let answers = kernel.ask(&[
        ipset::Request::Add { set, entry: net("0.0.0.0", 0), exist: false },
        ipset::Request::Add { set, entry: net("0.0.0.0", 1), exist: false },
        ipset::Request::Add { set, entry: net("128.0.0.0", 1), exist: false },
    ]);
    assert_eq!(answers.errors.len(), 1);
    let (index, error) = &answers.errors[0];
    let code = ErrorCode::from_errno(error.errno, Some(SetType::HashNet));
    assert_eq!((*index, code), (0, Some(ErrorCode::InvalidCidr)));
    kernel.carry_out(&[ipset::Request::Flush { set }]);
    assert!(entries(&mut kernel, "NODENET-C").is_empty());
}
