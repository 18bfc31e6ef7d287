//! The IPVS codec against the kernel that runs the tests. They need root and a kernel that has IPVS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod running_kernel;

use std::{net::IpAddr, time::Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkSerializable, ParseableParametrized};
use netlink_packet_generic::{
    GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nodenet_wire::{
    Family, IpProtocol,
    extack::KernelError,
    ipvs::{self, Destination, DestinationKey, ForwardingMethod, Service, ServiceFlags, ServiceKey},
    message::{self, Flags},
};
use running_kernel::{Answers, Kernel, enter_namespace, ip};

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
