//! The codecs against the kernel that runs the tests, in a network namespace of their own. They need root,
//! and the one of IPVS a kernel that has it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkSerializable, ParseableParametrized};
use netlink_packet_generic::{
    GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER},
};
use nix::sched::{CloneFlags, unshare};
use nodenet_wire::{
    Family, IpProtocol,
    extack::KernelError,
    ipset::{
        self, CreateOptions, Element, Entry, EntryBatch, ErrorCode, ListScope, PortRange, SetType, SkbMark,
    },
    ipvs::{self, Destination, DestinationKey, ForwardingMethod, Service, ServiceFlags, ServiceKey},
    message::{self, Flags, Kind, Messages},
};

/// One's own network namespace, for the thread that a test runs in. `false` when that is not allowed.
fn enter_namespace() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root");
        return false;
    }
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            // Without an address there is no local table, and without that IPVS takes every server's address
            // for a broadcast one.
            let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(status.unwrap().success(), "ip link set lo up");
            true
        }
        Err(error) => {
            println!("SKIP: no network namespace: {error}");
            false
        }
    }
}

struct Kernel {
    socket: Socket,
    sequence: u32,
}

/// What came back for a batch: errors by the position of their request, and all data.
#[derive(Default)]
struct Answers {
    errors: Vec<(usize, KernelError)>,
    data: Vec<(u16, Vec<u8>)>,
}

impl Kernel {
    fn new(protocol: isize) -> Self {
        let mut socket = Socket::new(protocol).unwrap();
        socket.set_ext_ack(true).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        Self { socket, sequence: 0 }
    }

    /// Sends requests in one datagram and reads until the last was answered. Only the last asks to be
    /// acknowledged; errors come in any case.
    fn ask<R: Flags + NetlinkSerializable>(&mut self, requests: &[R]) -> Answers {
        let mut batch = Vec::new();
        let first = self.sequence + 1;
        for (index, request) in requests.iter().enumerate() {
            let mut flags = request.flags();
            if index + 1 < requests.len() {
                flags &= !NLM_F_ACK;
            }
            self.sequence += 1;
            message::append(&mut batch, flags, self.sequence, request);
        }
        assert_eq!(self.socket.send(&batch, 0).unwrap(), batch.len());
        let mut answers = Answers::default();
        loop {
            let (datagram, _) = self.socket.recv_from_full().unwrap();
            for message in Messages::new(&datagram) {
                let message = message.unwrap();
                let is_last = message.header.sequence_number == self.sequence;
                match message.kind().unwrap() {
                    Kind::Data(payload) => {
                        answers.data.push((message.header.message_type, payload.to_vec()));
                        // A single answer that nobody asked to be acknowledged.
                        let last_flags = requests.last().unwrap().flags();
                        if is_last && last_flags == NLM_F_REQUEST {
                            return answers;
                        }
                    }
                    Kind::Acknowledgement | Kind::Done(None) if is_last => return answers,
                    Kind::Acknowledgement | Kind::Done(None) => {}
                    Kind::Error(error) | Kind::Done(Some(error)) => {
                        let index = message.header.sequence_number - first;
                        answers.errors.push((usize::try_from(index).unwrap(), error));
                        if is_last {
                            return answers;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[track_caller]
    fn carry_out<R: Flags + NetlinkSerializable>(&mut self, requests: &[R]) {
        let answers = self.ask(requests);
        assert_eq!(answers.errors, []);
    }
}

fn name(text: &str) -> ipset::SetName {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
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

/// A request to the generic netlink controller.
struct FamilyQuestion(GenlMessage<GenlCtrl>);

impl Flags for FamilyQuestion {
    fn flags(&self) -> u16 {
        NLM_F_REQUEST | NLM_F_ACK
    }
}

impl NetlinkSerializable for FamilyQuestion {
    fn message_type(&self) -> u16 {
        self.0.message_type()
    }

    fn buffer_len(&self) -> usize {
        NetlinkSerializable::buffer_len(&self.0)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.0.serialize(buffer);
    }
}

/// The number of the IPVS family, or the reason that there is none.
fn ipvs_family(kernel: &mut Kernel) -> Result<u16, KernelError> {
    let nlas = vec![GenlCtrlAttrs::FamilyName(ipvs::FAMILY_NAME.to_owned())];
    let question = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
    let mut answers = kernel.ask(&[FamilyQuestion(question)]);
    if let Some((_, error)) = answers.errors.pop() {
        return Err(error);
    }
    let (_, payload) = &answers.data[0];
    let header = GenlHeader { cmd: payload[0], version: payload[1] };
    let answer = GenlCtrl::parse_with_param(&payload[4..], header).unwrap();
    let id = answer.nlas.iter().find_map(|nla| match nla {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    });
    Ok(id.unwrap())
}

struct Ipvs {
    kernel: Kernel,
    family: u16,
}

impl Ipvs {
    /// `None` where the kernel has no IPVS.
    fn open() -> Option<Self> {
        if !enter_namespace() {
            return None;
        }
        let mut kernel = Kernel::new(NETLINK_GENERIC);
        match ipvs_family(&mut kernel) {
            Ok(family) => Some(Self { kernel, family }),
            Err(error) => {
                println!("SKIP: no IPVS in this kernel: {error}");
                None
            }
        }
    }

    fn ask(&mut self, requests: &[ipvs::Request]) -> Answers {
        let messages: Vec<_> = requests.iter().map(|request| request.message(self.family)).collect();
        self.kernel.ask(&messages)
    }

    #[track_caller]
    fn carry_out(&mut self, requests: &[ipvs::Request]) {
        assert_eq!(self.ask(requests).errors, []);
    }

    fn replies(&mut self, request: ipvs::Request) -> Vec<ipvs::Reply> {
        let answers = self.ask(&[request]);
        assert_eq!(answers.errors, []);
        let replies = answers.data.iter().map(|(message_type, payload)| {
            assert_eq!(*message_type, self.family);
            ipvs::Reply::parse_payload(payload).unwrap()
        });
        replies.collect()
    }
}

fn tcp(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: IpProtocol::TCP, address: ip(address), port }
}

#[test]
fn virtual_servers_are_what_was_asked_for() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let scheduler = |text: &str| text.parse().unwrap();
    let hashed = Service {
        flags: ServiceFlags::exactly(ServiceFlags::SCHEDULER_1 | ServiceFlags::SCHEDULER_2),
        ..Service::new(tcp("10.96.0.3", 80), scheduler("mh"))
    };
    let services = [
        Service::new(tcp("10.96.0.1", 443), scheduler("rr")),
        Service::new(tcp("fd00:96::1", 443), scheduler("wlc")).persistent(10800),
        Service::new(ServiceKey::FirewallMark { family: Family::V4, mark: 0x8000_4001 }, scheduler("lc")),
        Service::new(ServiceKey::FirewallMark { family: Family::V6, mark: 0x8000_4001 }, scheduler("lc")),
        hashed,
    ];
    ipvs.carry_out(&services.map(ipvs::Request::NewService));
    let configured = |service: &Service| {
        (service.key, service.scheduler, service.flags.configured(), service.timeout, service.netmask)
    };
    let mut listed: Vec<_> = ipvs
        .replies(ipvs::Request::GetServices)
        .iter()
        .map(|reply| match reply {
            ipvs::Reply::Service(service) => configured(service),
            other => panic!("{other:?}"),
        })
        .collect();
    listed.sort_by_key(|(key, ..)| *key);
    let mut expected: Vec<_> = services.iter().map(configured).collect();
    expected.sort_by_key(|(key, ..)| *key);
    assert_eq!(listed, expected);

    let key = services[0].key;
    let server = |address: &str, weight| {
        let key = DestinationKey { address: ip(address), port: 6443 };
        Destination::new(key, ForwardingMethod::MASQUERADE, weight)
    };
    let limited = Destination { upper_threshold: 100, lower_threshold: 50, ..server("10.244.1.2", 70_000) };
    ipvs.carry_out(&[
        ipvs::Request::NewDestination(key, limited),
        ipvs::Request::NewDestination(key, server("10.244.2.2", 1)),
        ipvs::Request::SetDestination(key, server("10.244.2.2", 0)),
        ipvs::Request::NewDestination(key, server("10.244.3.2", 1)),
        ipvs::Request::DeleteDestination(key, server("10.244.3.2", 1).key),
        ipvs::Request::SetService(Service { scheduler: Some(scheduler("wrr")), ..services[0] }),
    ]);
    let mut listed: Vec<_> = ipvs
        .replies(ipvs::Request::GetDestinations(key))
        .iter()
        .map(|reply| match reply {
            ipvs::Reply::Destination(listed) => {
                assert!(listed.connections.unwrap().is_idle());
                (listed.key, listed.forwarding, listed.weight, listed.upper_threshold, listed.lower_threshold)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    listed.sort();
    let one = (limited.key, ForwardingMethod::MASQUERADE, 70_000, 100, 50);
    let two = (server("10.244.2.2", 0).key, ForwardingMethod::MASQUERADE, 0, 0, 0);
    assert_eq!(listed, [one, two]);
    let edited = ipvs.replies(ipvs::Request::GetService(key));
    assert!(matches!(edited[..], [ipvs::Reply::Service(service)] if service.scheduler.unwrap() == "wrr"));

    ipvs.carry_out(&[ipvs::Request::DeleteService(key)]);
    assert_eq!(ipvs.replies(ipvs::Request::GetServices).len(), 4);
    ipvs.carry_out(&[ipvs::Request::Flush]);
    assert_eq!(ipvs.replies(ipvs::Request::GetServices), []);
}

#[test]
fn what_ipvs_refuses_leaves_the_rest_of_the_batch_alone() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let service = Service::new(tcp("10.96.0.1", 443), "rr".parse().unwrap());
    let other = Service::new(tcp("10.96.0.2", 443), "rr".parse().unwrap());
    let server = Destination::new(
        DestinationKey { address: ip("10.244.1.2"), port: 6443 },
        ForwardingMethod::MASQUERADE,
        1,
    );
    let unknown = Service::new(tcp("10.96.0.3", 443), "nosuch".parse().unwrap());
    let answers = ipvs.ask(&[
        ipvs::Request::NewService(service),
        ipvs::Request::NewService(service),
        ipvs::Request::DeleteService(other.key),
        ipvs::Request::DeleteDestination(service.key, server.key),
        ipvs::Request::NewDestination(other.key, server),
        ipvs::Request::NewService(unknown),
        ipvs::Request::NewService(other),
    ]);
    let errors: Vec<_> = answers.errors.iter().map(|(index, error)| (*index, error.errno)).collect();
    assert_eq!(errors, [(1, 17), (2, 3), (3, 2), (4, 3), (5, 2)]);
    assert_eq!(ipvs.replies(ipvs::Request::GetServices).len(), 2);
}

#[test]
fn a_service_has_a_scheduler_or_none_by_name() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let idle = Service::new(tcp("10.96.0.1", 443), "none".parse().unwrap());
    let answers = ipvs.ask(&[ipvs::Request::NewService(Service { scheduler: None, ..idle })]);
    assert_eq!(answers.errors.iter().map(|(_, error)| error.errno).collect::<Vec<_>>(), [22]);
    ipvs.carry_out(&[ipvs::Request::NewService(idle)]);
    let listed = ipvs.replies(ipvs::Request::GetServices);
    assert!(matches!(listed[..], [ipvs::Reply::Service(service)] if service.scheduler == idle.scheduler));
}

#[test]
fn timeouts_are_set_and_read() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let timeouts = ipvs::Timeouts { tcp: Some(901), tcp_fin: Some(121), udp: Some(301) };
    ipvs.carry_out(&[ipvs::Request::SetConfig(timeouts)]);
    assert_eq!(ipvs.replies(ipvs::Request::GetConfig), [ipvs::Reply::Config(timeouts)]);
    let info = ipvs.replies(ipvs::Request::GetInfo);
    assert!(matches!(info[..], [ipvs::Reply::Info(info)] if info.version >> 16 == 1));
}

#[test]
fn the_answers_to_a_full_send_fit_the_receive_buffer() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let absent = ipvs::Request::DeleteService(tcp("10.96.0.1", 443));
    // With and without the request repeated in the error.
    for is_capped in [false, true] {
        ipvs.kernel.socket.set_cap_ack(is_capped).unwrap();
        let answers = ipvs.ask(&vec![absent; message::MOST_PER_SEND]);
        assert_eq!(answers.errors.len(), message::MOST_PER_SEND);
        assert!(answers.errors.iter().all(|(_, error)| error.errno == 3));
    }
}

#[test]
fn twenty_thousand_destinations_go_in_and_come_out() {
    let Some(mut ipvs) = Ipvs::open() else { return };
    let begin = Instant::now();
    let mut requests = Vec::new();
    for number in 0..2000_u16 {
        let [high, low] = number.to_be_bytes();
        let key = ServiceKey::Address {
            protocol: IpProtocol::TCP,
            address: IpAddr::from([10, 96, high, low]),
            port: 80,
        };
        requests.push(ipvs::Request::NewService(Service::new(key, "rr".parse().unwrap())));
        for server in 1..=10 {
            let key_of_server =
                DestinationKey { address: IpAddr::from([10, 200 + server, high, low]), port: 8080 };
            let server = Destination::new(key_of_server, ForwardingMethod::MASQUERADE, 1);
            requests.push(ipvs::Request::NewDestination(key, server));
        }
    }
    for chunk in requests.chunks(message::MOST_PER_SEND) {
        ipvs.carry_out(chunk);
    }
    let written = begin.elapsed();
    let begin = Instant::now();
    let services = ipvs.replies(ipvs::Request::GetServices);
    let mut destinations = 0;
    for reply in &services {
        let ipvs::Reply::Service(service) = reply else { panic!("no service") };
        destinations += ipvs.replies(ipvs::Request::GetDestinations(service.key)).len();
    }
    println!("2,000 services with 10 servers each: written in {written:?}, read in {:?}", begin.elapsed());
    assert_eq!((services.len(), destinations), (2000, 20_000));
}
