//! Addresses of Services that come from outside: `externalIPs`, and those that a load balancer was given.
//!
//! A node takes packets to them for its own, so an address that something else has would be cut off. The author of a
//! Service is not the cluster's administrator: what is not granted, or is another's, is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::{Frontend, FrontendKind, Protocol, ServicePlan};

use crate::accept::{self, Claim, Claims, Facts};
use crate::complaints::Complaint;
use crate::service::{BoundFrontend, Named, ServiceInfo};

/// Where a port of a Service answers.
type Place = (IpAddr, Protocol, u16);

/// Who has which place, and who wants it.
#[derive(Debug, Default)]
pub(crate) struct External {
    claims: Claims<Place>,
    /// Services that want any, by their name in a claim.
    services: BTreeMap<String, Named>,
    /// Who names which address, whether he gets it or not.
    named: BTreeMap<IpAddr, BTreeSet<Named>>,
    addresses: BTreeMap<Named, BTreeSet<IpAddr>>,
    /// By what they were judged last; `None`: some could not be.
    judged: Option<u64>,
}

/// What became of the addresses of a Service.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) frontends: Vec<BoundFrontend>,
    pub(crate) complaints: Vec<Complaint>,
    /// Services that may lose or get a place by it.
    pub(crate) others: BTreeSet<Named>,
}

impl External {
    /// Services to be judged again because what they are judged by is `version` now.
    pub(crate) fn outdated(&mut self, version: u64) -> BTreeSet<Named> {
        if self.judged.replace(version) == Some(version) {
            return BTreeSet::new();
        }
        self.services.values().cloned().collect()
    }

    /// Services that name an address within these: whose they are may have changed.
    pub(crate) fn within(&self, ranges: &BTreeSet<IpNet>) -> BTreeSet<Named> {
        let within = |range: &IpNet| self.named.range(range.network()..=range.broadcast());
        ranges.iter().flat_map(within).flat_map(|(_, services)| services).cloned().collect()
    }

    fn set_named(&mut self, service: &Named, addresses: BTreeSet<IpAddr>) {
        for address in self.addresses.remove(service).unwrap_or_default().difference(&addresses) {
            if let Some(services) = self.named.get_mut(address) {
                services.remove(service);
                if services.is_empty() {
                    self.named.remove(address);
                }
            }
        }
        for address in &addresses {
            self.named.entry(*address).or_default().insert(service.clone());
        }
        if !addresses.is_empty() {
            self.addresses.insert(service.clone(), addresses);
        }
    }

    /// A Service could not be judged.
    pub(crate) fn wait(&mut self) {
        self.judged = None;
    }

    /// Takes over who has what by the published plans: a Service that cannot be read keeps its places, and those that are
    /// judged first take none of the older ones'.
    pub(crate) fn adopt<'a>(
        &mut self,
        published: impl Iterator<Item = &'a ServicePlan>,
        created: impl Fn(&Named) -> Option<Timestamp>,
    ) {
        let mut places: BTreeMap<Named, BTreeSet<Place>> = BTreeMap::new();
        for plan in published {
            for port in &plan.ports {
                let from_outside = |frontend: &&Frontend| {
                    matches!(frontend.kind, FrontendKind::ExternalIP | FrontendKind::LoadBalancer)
                };
                for frontend in port.frontends.iter().filter(from_outside) {
                    let address = frontend.address.as_ref().and_then(|text| text.parse::<IpAddr>().ok());
                    if let (Some(address), Ok(number)) = (address, u16::try_from(frontend.port)) {
                        let service = Named::new(&plan.namespace, &plan.name);
                        places.entry(service).or_default().insert((address, port.protocol, number));
                    }
                }
            }
        }
        for (service, places) in places {
            let name = service.to_string();
            self.claims.set((created(&service), name.clone()), places);
            self.services.insert(name, service);
        }
        self.wait();
    }

    /// The Service wants no such address, or is gone. Returns those that may have its places now.
    pub(crate) fn remove(&mut self, service: &Named) -> BTreeSet<Named> {
        let name = service.to_string();
        self.set_named(service, BTreeSet::new());
        match self.services.remove(&name) {
            Some(_) => {
                let others = self.claims.remove(&name);
                self.named(others)
            }
            None => BTreeSet::new(),
        }
    }

    /// Judges the addresses of a Service. `virtual_ip` names the VirtualIP that has an address, and says whether it names
    /// this Service; `served` says whether it answers at an address already.
    pub(crate) fn judge(
        &mut self,
        service: &Named,
        info: &ServiceInfo,
        facts: &Facts,
        virtual_ip: impl Fn(IpAddr) -> Option<(String, bool)>,
        served: impl Fn(IpAddr) -> bool,
    ) -> Judged {
        if info.external.is_empty() {
            return Judged { others: self.remove(service), ..Judged::default() };
        }
        self.set_named(service, info.external.iter().map(|(_, address)| *address).collect());
        let mut complaints = Vec::new();
        let mut usable = Vec::new();
        for (kind, address) in &info.external {
            let field = match kind {
                FrontendKind::ExternalIP => "spec.externalIPs",
                _ => "status.loadBalancer.ingress",
            };
            let refuse = |what: String| Complaint {
                reason: "AddressRefused",
                note: format!("{field}: {address} is {what}; it is not served"),
            };
            match virtual_ip(*address) {
                // It answers there by the VirtualIP already.
                Some((_, true)) => continue,
                Some((name, false)) => {
                    complaints.push(refuse(format!(
                        "an address of VirtualIP {name}, which does not name this Service in spec.services"
                    )));
                    continue;
                }
                None => {}
            }
            if *kind == FrontendKind::ExternalIP
                && !facts.settings.external_ip_cidrs.iter().any(|granted| granted.contains(address))
            {
                complaints.push(refuse(
                    "in no range that the cluster's administrator grants to Services (externalIPCIDRs of the chart)"
                        .to_owned(),
                ));
                continue;
            }
            if let Some(what) = accept::cluster_has(*address, facts) {
                complaints.push(refuse(what));
                continue;
            }
            if let Some((what, consequence)) = by_word(*kind, *address, facts) {
                if !served(*address) {
                    complaints.push(refuse(format!("{what}{consequence}")));
                    continue;
                }
                // Agents see to their own nodes; their word takes nothing from the others that works.
                complaints.push(Complaint {
                    reason: "AddressRefused",
                    note: format!(
                        "{field}: {address} is {what}, by the word of agents alone; these do not serve it, all other nodes \
                         do"
                    ),
                });
            }
            usable.push((*kind, *address));
        }

        let name = service.to_string();
        let claim: Claim = (info.created, name.clone());
        let places: BTreeSet<Place> = usable
            .iter()
            .flat_map(|(_, address)| info.ports.iter().map(|port| (*address, port.protocol, port.port)))
            .collect();
        let others = self.claims.set(claim, places);
        let others = self.named(others);
        self.services.insert(name.clone(), service.clone());

        let mut frontends = Vec::new();
        for (kind, address) in usable {
            for port in &info.ports {
                let owner = self.claims.owner((address, port.protocol, port.port));
                if let Some(owner) = owner.filter(|owner| **owner != *name) {
                    complaints.push(Complaint {
                        reason: "AddressRefused",
                        note: format!(
                            "{:?} port {} of {address} belongs to Service {owner}, which was there first; it is not \
                             served for this one",
                            port.protocol, port.port
                        ),
                    });
                    continue;
                }
                frontends.push(BoundFrontend {
                    protocol: port.protocol,
                    service_port: port.port,
                    frontend: Frontend { kind, address: Some(address.to_string()), port: port.port.into() },
                });
            }
        }
        Judged { frontends, complaints, others }
    }

    fn named(&self, names: BTreeSet<String>) -> BTreeSet<Named> {
        names.iter().filter_map(|name| self.services.get(name).cloned()).collect()
    }
}

/// What only agents know of an address, and why that matters.
fn by_word(kind: FrontendKind, address: IpAddr, facts: &Facts) -> Option<(String, &'static str)> {
    let named = |what: &str, nodes: &[&str]| match nodes {
        [] => None,
        [node] => Some(format!("{what} Node {node}")),
        [node, ..] => Some(format!("{what} Node {node} and others")),
    };
    // What gives a load balancer its address may well bind it on a node, to draw the packets there.
    let bound = match kind {
        FrontendKind::LoadBalancer => None,
        _ => named("on an interface of", &accept::on_interface_of(address, facts)),
    };
    let gateway = || {
        let gateway = named("the gateway of", &accept::gateway_of(address, facts))?;
        Some((gateway, ", which would lose its way to other networks"))
    };
    bound.map(|bound| (bound, " already")).or_else(gateway)
}
