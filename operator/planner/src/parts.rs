//! How large a plan is, and how one that is too large is split.

use nodenet_crds::{Endpoint, PortPlan, ServicePlan};

/// Most endpoints of one port in one part and ports in one part (the schema's bounds).
pub(crate) const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 100;

/// Length of the JSON of `plan`, roughly: close enough to shard by, without writing it down.
pub(crate) fn json_bytes(plan: &ServicePlan) -> usize {
    let ports = plan.ports.iter().map(port_bytes).sum::<usize>();
    let health_check = plan.health_check_node_port.map_or(0, |_| 30);
    80 + plan.namespace.len() + plan.name.len() + plan.uid.len() + health_check + ports
}

pub(crate) fn port_bytes(port: &PortPlan) -> usize {
    let frontends =
        port.frontends.iter().map(|f| 45 + f.address.as_ref().map_or(0, |a| a.len() + 13)).sum::<usize>();
    let endpoints = port.endpoints.iter().map(endpoint_bytes).sum::<usize>();
    let policies = [port.internal_traffic_policy, port.external_traffic_policy];
    let local = policies.iter().filter(|policy| !policy.is_cluster()).count() * 45;
    let scheduling = port.scheduler_flags.len() * 12
        + port.persistence_seconds.map_or(0, |_| 27)
        + port.drain_timeout_seconds.map_or(0, |_| 28);
    let sources = port.source_ranges.iter().map(|range| range.len() + 3).sum::<usize>();
    80 + local
        + sources
        + scheduling
        + port.name.len()
        + port.scheduler.as_ref().map_or(0, |s| s.len() + 15)
        + frontends
        + endpoints
}

pub(crate) fn endpoint_bytes(endpoint: &Endpoint) -> usize {
    let node = endpoint.node.as_ref().map_or(0, |node| node.len() + 10);
    let names = |list: &[String], field: usize| match list {
        [] => 0,
        some => field + some.iter().map(|name| name.len() + 3).sum::<usize>(),
    };
    let hints = names(&endpoint.for_zones, 15) + names(&endpoint.for_nodes, 15);
    let weight = endpoint.weight.map_or(0, |_| 13);
    28 + endpoint.address.len() + node + hints + weight + if endpoint.terminating { 19 } else { 0 }
}

/// How far the parts of a new layout are filled: what comes later has room.
pub(crate) fn fill(part_bytes: usize) -> usize {
    part_bytes - part_bytes / 4
}

/// The ports of a Service in parts: one while it fits, else several with some room in each.
pub(crate) fn lay_out(ports: Vec<PortPlan>, part_bytes: usize) -> Vec<Vec<PortPlan>> {
    let mut parts = split(ports, part_bytes);
    if parts.len() > 1 {
        // Put together again: only here they are known to be too many for one.
        let mut ports: Vec<PortPlan> = Vec::new();
        for port in parts.into_iter().flatten() {
            match ports.last_mut().filter(|last| {
                last.name == port.name && last.protocol == port.protocol && last.frontends == port.frontends
            }) {
                Some(last) => last.endpoints.extend(port.endpoints),
                None => ports.push(port),
            }
        }
        parts = split(ports, fill(part_bytes));
    }
    parts
}

/// Splits the ports of a Service into parts of at most `part_bytes` and within the schema's bounds.
pub(crate) fn split(ports: Vec<PortPlan>, part_bytes: usize) -> Vec<Vec<PortPlan>> {
    let mut parts: Vec<Vec<PortPlan>> = vec![Vec::new()];
    let mut bytes = 0;
    for mut port in ports {
        let endpoints = std::mem::take(&mut port.endpoints);
        let head = port_bytes(&port);
        let mut rest = endpoints.into_iter().peekable();
        loop {
            let full = parts
                .last()
                .is_some_and(|p| !p.is_empty() && (p.len() >= PORTS_MAX || bytes + head > part_bytes));
            if full {
                parts.push(Vec::new());
                bytes = 0;
            }
            let mut piece = port.clone();
            bytes += head;
            while piece.endpoints.len() < ENDPOINTS_MAX && (bytes < part_bytes || piece.endpoints.is_empty())
            {
                let Some(e) = rest.next() else { break };
                bytes += endpoint_bytes(&e);
                piece.endpoints.push(e);
            }
            if let Some(part) = parts.last_mut() {
                part.push(piece);
            }
            if rest.peek().is_none() {
                break;
            }
            parts.push(Vec::new());
            bytes = 0;
        }
    }
    parts
}
