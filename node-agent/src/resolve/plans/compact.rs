//! Plans as they are kept: small, and without what makes no sense.

use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::{FrontendKind, NOBODY, PortPlan, SchedulerFlag, ServicePlan, TrafficPolicy};
use nodenet_wire::ipvs::ServiceFlags;

use super::{Endpoint, Frontend, Part, Port};
use crate::filter::{INSIDE_NUMBERS, InsideMarks};
use crate::resolve::problem::{Problem, Reason};
use crate::state::Protocol;

/// A set of zones, of those that were ever named here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::resolve) struct Zones(u64);

impl Zones {
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Zones by name. A cluster has a handful of them; what comes beyond 63 is one and the same zone, that of no node.
#[derive(Debug, Default)]
pub(super) struct ZoneNames(Vec<Box<str>>);

impl ZoneNames {
    pub fn zone(&mut self, name: &str) -> Zones {
        const MOST: usize = 63;
        let index = match self.0.iter().position(|known| **known == *name) {
            Some(index) => index,
            None if self.0.len() < MOST => {
                self.0.push(name.into());
                self.0.len() - 1
            }
            None => MOST,
        };
        Zones(1 << index)
    }
}

/// A part as it is kept, without what makes no sense; `None` where nothing of it does.
pub(super) fn compact(
    plan: &ServicePlan,
    node: &str,
    inside: InsideMarks,
    zones: &mut ZoneNames,
    problems: &mut Vec<Problem>,
) -> Option<Part> {
    let object = || format!("Service {}/{}", plan.namespace, plan.name);
    let (Ok(part), Ok(parts)) = (u16::try_from(plan.part), u16::try_from(plan.parts)) else {
        problems.push(Problem::new(object(), Reason::Part { part: plan.part, parts: plan.parts }));
        return None;
    };
    if part >= parts || plan.uid.is_empty() {
        problems.push(Problem::new(object(), Reason::Part { part: plan.part, parts: plan.parts }));
        return None;
    }
    let ports = plan
        .ports
        .iter()
        .filter_map(|port| compact_port(port, node, inside, zones, &object, problems))
        .collect();
    let health_check_node_port = plan.health_check_node_port.and_then(|port| match check(None, port) {
        Ok((_, port)) => Some(port),
        Err(reason) => {
            problems.push(Problem::new(object(), reason));
            None
        }
    });
    Some(Part { revision: plan.revision, part, parts, health_check_node_port, ports })
}

fn compact_port(
    port: &PortPlan,
    node: &str,
    inside: InsideMarks,
    zones: &mut ZoneNames,
    object: &dyn Fn() -> String,
    problems: &mut Vec<Problem>,
) -> Option<Port> {
    let mut newer = |what: &'static str| problems.push(Problem::new(object(), Reason::Newer { what }));
    let protocol = match port.protocol {
        nodenet_crds::Protocol::TCP => Protocol::TCP,
        nodenet_crds::Protocol::UDP => Protocol::UDP,
        nodenet_crds::Protocol::SCTP => Protocol::SCTP,
        nodenet_crds::Protocol::Unknown => {
            newer("the protocol of a port");
            return None;
        }
    };
    // To guess whom a port answers would be worse than no answer.
    if [port.internal_traffic_policy, port.external_traffic_policy].contains(&TrafficPolicy::Unknown) {
        newer("the traffic policy of a port");
        return None;
    }
    if port.frontends.iter().any(|frontend| frontend.kind == FrontendKind::Unknown) {
        newer("an address of a port");
    }
    if port.scheduler_flags.contains(&SchedulerFlag::Unknown) {
        newer("a flag of the scheduler");
    }
    let mut checked = |address: Option<&str>, number: i32| match check(address, number) {
        Ok(found) => Some(found),
        Err(reason) => {
            problems.push(Problem::new(object(), reason));
            None
        }
    };
    let frontends = port
        .frontends
        .iter()
        .filter(|f| f.kind != FrontendKind::Unknown)
        .filter_map(|f| {
            let address = if f.kind == FrontendKind::NodePort {
                None
            } else {
                Some(f.address.as_deref().unwrap_or(""))
            };
            let (address, port) = checked(address, f.port)?;
            Some(Frontend { kind: f.kind, address, port })
        })
        .collect();
    let endpoints = port
        .endpoints
        .iter()
        .filter_map(|e| {
            let (address, port) = checked(Some(&e.address), e.port)?;
            let local = e.node.as_deref() == Some(node);
            let for_zones = e.for_zones.iter().fold(0, |set, name| set | zones.zone(name).0);
            let for_nodes = (!e.for_nodes.is_empty()).then(|| e.for_nodes.iter().any(|name| name == node));
            let for_zones = Zones(for_zones);
            Some(Endpoint {
                address: address?,
                port,
                weight: e.weight.map_or(1, |weight| u16::try_from(weight.max(0)).unwrap_or(u16::MAX)),
                local,
                terminating: e.terminating,
                for_zones,
                for_nodes,
            })
        })
        .collect();
    let scheduler =
        port.scheduler.as_deref().filter(|name| match crate::resolve::requirements::scheduler_module(name) {
            Some(_) => true,
            None => {
                problems.push(Problem::new(object(), Reason::Scheduler { name: (*name).to_owned() }));
                false
            }
        });
    let mut source_ranges = Vec::new();
    for text in &port.source_ranges {
        match text.parse::<IpNet>() {
            Ok(range) => source_ranges.push(range.trunc()),
            Err(_) => problems.push(Problem::new(object(), Reason::Range { value: text.clone() })),
        }
    }
    if source_ranges.is_empty() && !port.source_ranges.is_empty() {
        source_ranges.extend(NOBODY.map(IpNet::from));
    }
    let source_ranges = source_ranges.into();
    let number =
        port.inside_number.and_then(|n| u16::try_from(n).ok()).filter(|n| INSIDE_NUMBERS.contains(n));
    let inside_number = number.filter(|number| *number <= inside.greatest());
    if let (Some(number), None) = (number, inside_number) {
        problems.push(Problem::new(object(), Reason::InsideNumber { number, greatest: inside.greatest() }));
    }
    let flag = |flag: &SchedulerFlag| match flag {
        SchedulerFlag::Fallback => ServiceFlags::SCHEDULER_1,
        SchedulerFlag::Port => ServiceFlags::SCHEDULER_2,
        SchedulerFlag::Unknown => 0,
    };
    Some(Port {
        protocol,
        // Flags mean something to the scheduler that they were written for.
        scheduler_flags: if scheduler.is_some() {
            port.scheduler_flags.iter().map(flag).fold(0, |a, b| a | b)
        } else {
            0
        },
        scheduler: scheduler.map(Into::into),
        internal_local: port.internal_traffic_policy == TrafficPolicy::Local,
        source_ranges,
        external_local: port.external_traffic_policy == TrafficPolicy::Local,
        inside_number,
        persistence: port.persistence_seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
        drain_timeout: port.drain_timeout_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        frontends,
        endpoints,
    })
}

fn check(address: Option<&str>, port: i32) -> Result<(Option<IpAddr>, u16), Reason> {
    let port = match u16::try_from(port) {
        Ok(port) if port > 0 => port,
        _ => return Err(Reason::Port { value: port }),
    };
    let Some(text) = address else { return Ok((None, port)) };
    let address: IpAddr = text.parse().map_err(|_| Reason::Address { value: text.to_owned() })?;
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local {
        return Err(Reason::Address { value: text.to_owned() });
    }
    Ok((Some(address), port))
}
