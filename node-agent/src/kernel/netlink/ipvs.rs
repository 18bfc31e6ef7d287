//! Virtual servers and their real servers (IPVS).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use netlink_packet_core::{NetlinkHeader, ParseableParametrized};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use nodenet_wire::{
    DecodeError, Family as WireFamily, IpProtocol,
    ipvs::{
        Destination, DestinationKey, FAMILY_NAME, ForwardingMethod, Reply, Request, SchedulerName, Service,
        ServiceFlags, ServiceKey, Timeouts,
    },
    message::Flags,
};

use super::transport::{Batch, Connection, TransportError};
use crate::{
    kernel::KernelError,
    state::{
        Family, Forwarding, IPVS_TIMEOUTS, Protocol, RealServer, RealServerKey, VirtualServer,
        VirtualServerKey, Which,
    },
};

/// Number of the generic netlink family, which the kernel gives when the module is loaded.
pub(super) fn family_id(generic: &mut Connection) -> Result<u16, KernelError> {
    const OBJECT: &str = "virtual servers";
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY_NAME.to_owned())],
    });
    let answer = generic.get(&request, |header, payload| {
        let unreadable = DecodeError::Missing { object: "netlink family", attribute: "CTRL_ATTR_FAMILY_ID" };
        let message = GenlMessage::<GenlCtrl>::parse_with_param(payload, header.message_type)
            .map_err(|_| unreadable.clone())?;
        message
            .payload
            .nlas
            .iter()
            .find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            })
            .ok_or(unreadable)
    });
    match answer {
        Ok(id) => Ok(id),
        Err(error) if error.errno() == Some(libc::ENOENT) => Err(KernelError::Missing {
            operation: "find",
            object: OBJECT.to_owned(),
            feature: "IPVS",
            module: "ip_vs",
        }),
        Err(error) => Err(error.about("find", OBJECT)),
    }
}

/// Reads virtual servers with their real servers. Of those named, the ones that exist.
pub(super) fn read(
    generic: &mut Connection,
    family: u16,
    which: &Which<VirtualServerKey>,
) -> Result<BTreeMap<VirtualServerKey, VirtualServer>, KernelError> {
    let services = match which {
        Which::All => {
            all_services(generic, family).map_err(|error| error.about("read", "virtual servers"))?
        }
        Which::Only(keys) => some_services(generic, family, keys)?,
    };
    let mut servers = BTreeMap::new();
    for (key, service) in services {
        match destinations(generic, family, key) {
            Ok(real_servers) => {
                servers.insert(key, virtual_server(&service, real_servers));
            }
            // Gone since the list was read.
            Err(error) if error.errno() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error.about("read real servers of", name(key))),
        }
    }
    Ok(servers)
}

fn all_services(
    generic: &mut Connection,
    family: u16,
) -> Result<Vec<(VirtualServerKey, Service)>, TransportError> {
    generic.dump(
        &Request::GetServices.message(family),
        |services: &mut Vec<_>, _: &NetlinkHeader, payload| {
            if let Reply::Service(service) = Reply::parse_payload(payload)?
                && let Some(key) = state_key(service.key)
            {
                services.push((key, service));
            }
            Ok(())
        },
    )
}

fn some_services(
    generic: &mut Connection,
    family: u16,
    keys: &BTreeSet<VirtualServerKey>,
) -> Result<Vec<(VirtualServerKey, Service)>, KernelError> {
    let mut services = Vec::new();
    for key in keys {
        let request = Request::GetService(wire_key(*key)).message(family);
        match generic.get(&request, |_, payload| Reply::parse_payload(payload)) {
            Ok(Reply::Service(service)) => services.push((*key, service)),
            Ok(_) => {}
            Err(error) if error.errno() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error.about("read", name(*key))),
        }
    }
    Ok(services)
}

/// The timeouts, by the names that settings have.
pub(super) fn timeouts(generic: &mut Connection, family: u16) -> Result<[Option<u32>; 3], KernelError> {
    match generic.get(&Request::GetConfig.message(family), |_, payload| Reply::parse_payload(payload)) {
        Ok(Reply::Config(Timeouts { tcp, tcp_fin, udp })) => Ok([tcp, tcp_fin, udp]),
        Ok(_) => Ok([None; 3]),
        Err(error) => Err(error.about("read", "timeouts of IPVS")),
    }
}

/// Changes one timeout; the others stay.
pub(super) fn set_timeout(
    generic: &mut Connection,
    family: u16,
    name: &str,
    value: &str,
) -> Result<(), KernelError> {
    let object = || format!("setting {name}");
    let invalid = |problem: &str| KernelError::Refused {
        operation: "write",
        object: object(),
        errno: libc::EINVAL,
        message: Some(problem.to_owned()),
    };
    let seconds = value.parse().map_err(|_| invalid("not a number of seconds"))?;
    let mut timeouts = Timeouts::default();
    match IPVS_TIMEOUTS.iter().position(|known| *known == name) {
        Some(0) => timeouts.tcp = Some(seconds),
        Some(1) => timeouts.tcp_fin = Some(seconds),
        Some(2) => timeouts.udp = Some(seconds),
        _ => return Err(invalid("IPVS has no such timeout")),
    }
    let request = Request::SetConfig(timeouts);
    let mut batch = generic.batch();
    batch.push(request.flags(), &request.message(family));
    match batch.finish().pop() {
        Some((_, error)) => Err(error.about("write", object())),
        None => Ok(()),
    }
}

fn destinations(
    generic: &mut Connection,
    family: u16,
    key: VirtualServerKey,
) -> Result<BTreeMap<RealServerKey, RealServer>, TransportError> {
    let request = Request::GetDestinations(wire_key(key)).message(family);
    generic.dump(&request, |servers: &mut BTreeMap<_, _>, _: &NetlinkHeader, payload| {
        if let Reply::Destination(destination) = Reply::parse_payload(payload)? {
            let DestinationKey { address, port } = destination.key;
            servers.insert(RealServerKey { address, port }, real_server(&destination));
        }
        Ok(())
    })
}

fn virtual_server(service: &Service, real_servers: BTreeMap<RealServerKey, RealServer>) -> VirtualServer {
    let flags = service.flags.configured();
    let persistent = flags & ServiceFlags::PERSISTENT != 0;
    VirtualServer {
        scheduler: service.scheduler.map(|it| it.to_string()).unwrap_or_default(),
        flags: flags & !ServiceFlags::PERSISTENT,
        persistence: if persistent { service.timeout } else { 0 },
        drain_timeout: None,
        real_servers,
    }
}

fn real_server(destination: &Destination) -> RealServer {
    let connections = destination.connections.unwrap_or_default();
    RealServer {
        weight: destination.weight,
        forwarding: match destination.forwarding {
            ForwardingMethod::MASQUERADE => Forwarding::Masquerade,
            ForwardingMethod::TUNNEL => Forwarding::Tunnel,
            // The kernel's own choices (to this node, past the cache) are made for direct routing.
            _ => Forwarding::DirectRoute,
        },
        active_connections: connections.active,
        inactive_connections: connections.inactive,
    }
}

/// One change of virtual servers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    Add(VirtualServerKey, &'a VirtualServer),
    Set(VirtualServerKey, &'a VirtualServer),
    Delete(VirtualServerKey),
    AddReal(VirtualServerKey, RealServerKey, &'a RealServer),
    SetReal(VirtualServerKey, RealServerKey, &'a RealServer),
    DeleteReal(VirtualServerKey, RealServerKey),
}

impl Change<'_> {
    /// What is done to what, in words.
    pub(super) fn words(&self) -> (&'static str, String) {
        let real = |key: &VirtualServerKey, real: &RealServerKey| {
            format!("real server {} of {}", SocketAddr::new(real.address, real.port), name(*key))
        };
        match self {
            Self::Add(key, _) => ("add", name(*key)),
            Self::Set(key, _) => ("change", name(*key)),
            Self::Delete(key) => ("remove", name(*key)),
            Self::AddReal(key, server, _) => ("add", real(key, server)),
            Self::SetReal(key, server, _) => ("change", real(key, server)),
            Self::DeleteReal(key, server) => ("remove", real(key, server)),
        }
    }

    /// Adds the request for it to a batch.
    pub(super) fn push(&self, batch: &mut Batch<'_>, family: u16) -> Result<(), KernelError> {
        let request = match self {
            Self::Add(key, server) => Request::NewService(self.service(*key, server)?),
            Self::Set(key, server) => Request::SetService(self.service(*key, server)?),
            Self::Delete(key) => Request::DeleteService(wire_key(*key)),
            Self::AddReal(key, server, how) => {
                Request::NewDestination(wire_key(*key), destination(*server, how))
            }
            Self::SetReal(key, server, how) => {
                Request::SetDestination(wire_key(*key), destination(*server, how))
            }
            Self::DeleteReal(key, server) => {
                Request::DeleteDestination(wire_key(*key), destination_key(*server))
            }
        };
        batch.push(request.flags(), &request.message(family));
        Ok(())
    }

    fn service(&self, key: VirtualServerKey, server: &VirtualServer) -> Result<Service, KernelError> {
        let scheduler = SchedulerName::new(&server.scheduler).map_err(|error| {
            let (operation, object) = self.words();
            KernelError::Refused {
                operation,
                object,
                errno: libc::EINVAL,
                message: Some(format!("scheduler: {error}")),
            }
        })?;
        let mut service = Service::new(wire_key(key), scheduler);
        service.flags = ServiceFlags::exactly(server.flags & ServiceFlags::CONFIGURABLE);
        if server.persistence > 0 {
            service = service.persistent(server.persistence);
        }
        Ok(service)
    }
}

fn destination(key: RealServerKey, server: &RealServer) -> Destination {
    let forwarding = match server.forwarding {
        Forwarding::Masquerade => ForwardingMethod::MASQUERADE,
        Forwarding::DirectRoute => ForwardingMethod::DIRECT_ROUTE,
        Forwarding::Tunnel => ForwardingMethod::TUNNEL,
    };
    Destination::new(destination_key(key), forwarding, server.weight)
}

fn destination_key(key: RealServerKey) -> DestinationKey {
    DestinationKey { address: key.address, port: key.port }
}

fn wire_key(key: VirtualServerKey) -> ServiceKey {
    match key {
        VirtualServerKey::Address(protocol, address, port) => {
            ServiceKey::Address { protocol: IpProtocol(protocol.number()), address, port }
        }
        VirtualServerKey::FirewallMark(family, mark) => {
            let family = match family {
                Family::V4 => WireFamily::V4,
                Family::V6 => WireFamily::V6,
            };
            ServiceKey::FirewallMark { family, mark }
        }
    }
}

/// `None` for protocols that no virtual server of Kubernetes has (AH, ESP).
fn state_key(key: ServiceKey) -> Option<VirtualServerKey> {
    Some(match key {
        ServiceKey::Address { protocol, address, port } => {
            VirtualServerKey::Address(Protocol::from_number(protocol.0)?, address, port)
        }
        ServiceKey::FirewallMark { family, mark } => {
            let family = match family {
                WireFamily::V4 => Family::V4,
                WireFamily::V6 => Family::V6,
            };
            VirtualServerKey::FirewallMark(family, mark)
        }
    })
}

/// As `ipvsadm` lists it.
pub(super) fn name(key: VirtualServerKey) -> String {
    format!("virtual server {}", wire_key(key))
}
