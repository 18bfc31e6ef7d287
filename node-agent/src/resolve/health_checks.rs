//! What load balancers may ask this node: whether it has endpoints of a Service (`healthCheckNodePort`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::plans::{Plan, Uid};

/// The ports on which load balancers ask, and the answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// Addresses of the node on which they may ask: those of node ports. Without it all.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Another proxy has the Services, and its ports with them: nobody is heard here.
    pub elsewhere: bool,
    /// By port.
    pub ports: BTreeMap<u16, HealthCheck>,
}

/// What is answered on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Endpoints on this node that take new connections: those that terminate are none.
    pub local_endpoints: usize,
}

/// Port and count of one Service.
type Answer = (u16, usize);

/// What the Services ask for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    addresses: Option<BTreeSet<IpAddr>>,
    services: BTreeMap<Uid, Answer>,
    changed: bool,
}

/// The port of a Service and how many of its endpoints are on this node. A pod counts once, whatever its ports are and
/// with an address of each family, too.
pub(super) fn asked(plan: &Plan) -> Option<Answer> {
    let port = plan.health_check_node_port()?;
    let endpoints = plan.ports().flat_map(|port| port.endpoints.iter());
    let ready: BTreeSet<IpAddr> = endpoints
        .filter(|endpoint| endpoint.local && !endpoint.terminating)
        .map(|endpoint| endpoint.address)
        .collect();
    let v4 = ready.iter().filter(|address| address.is_ipv4()).count();
    Some((port, v4.max(ready.len() - v4)))
}

impl Asked {
    /// A Service asks for this now.
    pub fn put(&mut self, uid: &Uid, answer: Option<Answer>) {
        let before = match answer {
            Some(answer) => self.services.insert(uid.clone(), answer),
            None => self.services.remove(uid),
        };
        self.changed |= before != answer;
    }

    /// The addresses on which node ports answer are these now; without it all.
    pub fn set_addresses(&mut self, addresses: Option<BTreeSet<IpAddr>>) {
        self.changed |= self.addresses != addresses;
        self.addresses = addresses;
    }

    /// Everything, where it changed since the last call.
    pub fn take(&mut self, name: impl Fn(&Uid) -> Option<(String, String)>) -> Option<HealthChecks> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut ports = BTreeMap::new();
        for (uid, (port, local_endpoints)) in &self.services {
            let Some((namespace, name)) = name(uid) else { continue };
            let check = HealthCheck { namespace, name, local_endpoints: *local_endpoints };
            // Beside a Service that was made again stands its old plan for a moment: what has endpoints counts.
            let better = |there: &HealthCheck| there.local_endpoints < check.local_endpoints;
            if ports.get(port).is_none_or(better) {
                ports.insert(*port, check);
            }
        }
        Some(HealthChecks { addresses: self.addresses.clone(), elsewhere: false, ports })
    }
}
