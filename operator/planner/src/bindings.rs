//! Which ports of which Services answer on a virtual IP.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nodenet_crds::{Frontend, FrontendKind, Protocol, ServiceBinding, ServicePlan};

use crate::service::{BoundFrontend, Named, ServiceInfo};

/// What is wrong with one entry of `spec.services`. It concerns that entry alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BindingProblem {
    /// There is no such Service.
    NotFound(Named),
    /// The entry cannot be had as it is written; in words, with what must change.
    Unusable(String),
}

/// The frontends of each bound Service.
pub(crate) type Frontends = BTreeMap<Named, Vec<BoundFrontend>>;

/// The frontends of each bound Service, and what cannot be had. A port that two Services want goes to the first entry.
pub(crate) fn bind(
    bindings: &[ServiceBinding],
    addresses: &[IpAddr],
    service: impl Fn(&Named) -> Option<ServiceInfo>,
) -> (Frontends, Vec<(usize, BindingProblem)>) {
    let mut out = Frontends::new();
    let mut problems = Vec::new();
    let mut taken: BTreeMap<(Protocol, u16), Named> = BTreeMap::new();
    for (i, binding) in bindings.iter().enumerate() {
        let named = Named::new(&binding.namespace, &binding.name);
        let Some(info) = service(&named) else {
            problems.push((i, BindingProblem::NotFound(named)));
            continue;
        };
        let mut unusable = |words: String| problems.push((i, BindingProblem::Unusable(words)));
        if let Some(left_alone) = info.left_alone {
            unusable(format!(
                "Service {named} is {}, so it has no virtual servers: remove the entry or change the Service",
                left_alone.words()
            ));
            continue;
        }
        let wanted = |port: u16| binding.ports.as_ref().is_none_or(|l| l.contains(&i32::from(port)));
        for port in binding.ports.iter().flatten() {
            if !info.ports.iter().any(|p| i32::from(p.port) == *port) {
                let have = info.ports.iter().map(|p| p.port.to_string()).collect::<Vec<_>>().join(", ");
                unusable(format!("Service {named} has no port {port}: choose of {have}"));
            }
        }
        let mut node_port_found = false;
        for port in info.ports.iter().filter(|p| wanted(p.port)) {
            let own = (FrontendKind::VirtualIP, port.port);
            let node_port = port.node_port.filter(|_| binding.node_ports);
            node_port_found |= node_port.is_some();
            let node_port = node_port.map(|p| (FrontendKind::VirtualIPNodePort, p));
            for (kind, number) in [Some(own), node_port].into_iter().flatten() {
                if let Some(other) = taken.get(&(port.protocol, number)) {
                    if *other != named {
                        unusable(format!(
                            "{:?} port {number} of Service {named} is taken on these addresses by Service \
                             {other}, which stands before it: limit spec.services[{i}].ports or use other addresses",
                            port.protocol
                        ));
                    }
                    continue;
                }
                taken.insert((port.protocol, number), named.clone());
                for address in addresses {
                    out.entry(named.clone()).or_default().push(BoundFrontend {
                        protocol: port.protocol,
                        service_port: port.port,
                        frontend: Frontend { kind, address: Some(address.to_string()), port: number.into() },
                    });
                }
            }
        }
        if binding.node_ports && !node_port_found {
            unusable(format!(
                "Service {named} has no node ports: make it type NodePort, or remove nodePorts from the entry"
            ));
        }
    }
    for list in out.values_mut() {
        list.sort_unstable();
    }
    (out, problems)
}

/// The bindings that published plans show for `addresses`: what was in force before this process began.
pub(crate) fn published<'a>(
    addresses: &[IpAddr],
    plans: impl Iterator<Item = &'a ServicePlan>,
) -> Vec<ServiceBinding> {
    let mut found: BTreeMap<(String, String), (Vec<i32>, bool)> = BTreeMap::new();
    for plan in plans {
        for frontend in plan.ports.iter().flat_map(|p| &p.frontends) {
            let on = frontend.address.as_ref().and_then(|a| a.parse().ok());
            if !on.is_some_and(|a: IpAddr| addresses.contains(&a)) {
                continue;
            }
            let entry = || (plan.namespace.clone(), plan.name.clone());
            match frontend.kind {
                FrontendKind::VirtualIP => found.entry(entry()).or_default().0.push(frontend.port),
                FrontendKind::VirtualIPNodePort => found.entry(entry()).or_default().1 = true,
                FrontendKind::ClusterIP
                | FrontendKind::NodePort
                | FrontendKind::ExternalIP
                | FrontendKind::LoadBalancer
                | FrontendKind::Unknown => {}
            }
        }
    }
    found
        .into_iter()
        .map(|((namespace, name), (mut ports, node_ports))| {
            ports.sort_unstable();
            ports.dedup();
            ServiceBinding { namespace, name, ports: Some(ports), node_ports }
        })
        .collect()
}
