//! Specs and slices as an operator would write them, for tests.

#![allow(dead_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use nodenet_agent::diff::{Context, Draining, Journal, NOBODY, Outcome, Prune, diff};
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::resolve::{Options, Origin, Resolver};
use nodenet_agent::state::*;
use nodenet_crds as kinds;
use nodenet_crds::{
    FrontendKind, NodeNetSliceSpec, NodeNetStateSpec, PortPlan, ServiceAddresses, ServicePlan,
};

/// Name of the node that resolves.
pub const NODE: &str = "node-1";

/// A spec with a service range and a pod network.
pub fn spec() -> NodeNetStateSpec {
    NodeNetStateSpec {
        service_addresses: ServiceAddresses {
            cidrs: vec!["10.96.0.0/12".into()],
            ..ServiceAddresses::default()
        },
        cluster_cidrs: vec!["10.244.0.0/16".into()],
        ..NodeNetStateSpec::default()
    }
}

/// A virtual IP without an interface.
pub fn virtual_ip(name: &str, address: &str, state: kinds::AssignedState) -> kinds::AssignedVirtualIP {
    kinds::AssignedVirtualIP {
        name: name.into(),
        state,
        addresses: vec![address.into()],
        interface: None,
        address_role: kinds::AddressRole::Auto,
        priority: 100,
        announce: kinds::Announce::default(),
    }
}

/// A frontend.
pub fn frontend(kind: FrontendKind, address: Option<&str>, port: i32) -> kinds::Frontend {
    kinds::Frontend { kind, address: address.map(str::to_owned), port }
}

/// An endpoint on a node.
pub fn endpoint(address: &str, port: i32, node: &str) -> kinds::Endpoint {
    kinds::Endpoint { address: address.into(), port, node: Some(node.into()), ..kinds::Endpoint::default() }
}

/// A port.
pub fn port(
    protocol: kinds::Protocol,
    frontends: Vec<kinds::Frontend>,
    endpoints: Vec<kinds::Endpoint>,
) -> PortPlan {
    PortPlan { protocol, frontends, endpoints, ..PortPlan::default() }
}

/// A whole plan of one part.
pub fn plan(name: &str, revision: i64, ports: Vec<PortPlan>) -> ServicePlan {
    part(name, revision, 0, 1, ports)
}

/// One part of a plan.
pub fn part(name: &str, revision: i64, part: i32, parts: i32, ports: Vec<PortPlan>) -> ServicePlan {
    let (namespace, name, uid) = ("default".into(), name.into(), format!("uid-{name}"));
    ServicePlan { namespace, name, uid, revision, part, parts, ports, ..ServicePlan::default() }
}

/// A ClusterIP Service on TCP port 80 with these endpoints (address, node).
pub fn web(name: &str, revision: i64, cluster_ip: &str, endpoints: &[(&str, &str)]) -> ServicePlan {
    let endpoints = endpoints.iter().map(|(address, node)| endpoint(address, 8080, node)).collect();
    let frontends = vec![frontend(FrontendKind::ClusterIP, Some(cluster_ip), 80)];
    plan(name, revision, vec![port(kinds::Protocol::TCP, frontends, endpoints)])
}

/// A slice.
pub fn slice(revision: i64, services: Vec<ServicePlan>) -> NodeNetSliceSpec {
    NodeNetSliceSpec { revision, services, ..NodeNetSliceSpec::default() }
}

/// Key of a TCP virtual server.
pub fn tcp(address: &str, port: u16) -> VirtualServerKey {
    VirtualServerKey::Address(Protocol::TCP, address.parse().unwrap(), port)
}

/// Key of a UDP virtual server.
pub fn udp(address: &str, port: u16) -> VirtualServerKey {
    VirtualServerKey::Address(Protocol::UDP, address.parse().unwrap(), port)
}

/// Key of a real server.
pub fn real(address: &str, port: u16) -> RealServerKey {
    RealServerKey { address: address.parse().unwrap(), port }
}

/// A node's agent without its runtime: a resolver, a kernel, and what it keeps.
pub struct Agent {
    /// Resolver.
    pub resolver: Resolver,
    /// Kernel.
    pub kernel: FakeKernel,
    /// Journal.
    pub journal: Journal,
    /// Real servers on their way out.
    pub draining: Draining,
    /// Time.
    pub now: Duration,
}

impl Agent {
    /// On a node with `eth0` 192.168.0.11/24.
    pub fn new() -> Self {
        let kernel = FakeKernel::new();
        kernel.add_link("eth0", "");
        kernel.add_address("eth0", "192.168.0.11/24");
        Self::on(kernel, Journal::default())
    }

    /// On a kernel that an earlier agent left, with its journal.
    pub fn on(kernel: FakeKernel, journal: Journal) -> Self {
        let resolver = Resolver::new(Options { node: NODE.into(), ..Options::default() });
        Self { resolver, kernel, journal, draining: Draining::default(), now: Duration::ZERO }
    }

    /// Looks at the node's addresses.
    pub fn look_at_node(&mut self) -> Scope {
        let mut observed = self
            .kernel
            .observe(&Scope { addresses: true, gateways: true, ..Scope::default() })
            .expect("the kernel can be read");
        self.journal.mark(&mut observed);
        self.resolver.put_observed(&observed)
    }

    /// Reads a spec and a complete list of slices.
    pub fn read(&mut self, spec: &NodeNetStateSpec, slices: &[(&str, NodeNetSliceSpec)]) {
        self.look_at_node();
        self.resolver.put_spec(spec, Origin::Api);
        self.resolver.list_started();
        for (name, slice) in slices {
            self.resolver.put_slice(name, slice);
        }
        self.resolver.list_completed(&slices.iter().map(|(name, _)| (*name).to_owned()).collect());
    }

    /// One comparison within a scope.
    pub fn compare(&mut self, scope: &Scope, prune: Prune) -> Outcome {
        let observed = self.kernel.observe(scope).expect("the kernel can be read");
        let (now, drain_timeout) = (self.now, Duration::from_secs(600));
        let context = &mut Context {
            journal: &self.journal,
            prune,
            others: &NOBODY,
            draining: &mut self.draining,
            now,
            drain_timeout,
            inside: nodenet_agent::filter::InsideMarks::default(),
        };
        diff(self.resolver.desired(), &observed, scope, context)
    }

    /// Makes a part of the kernel as wanted; the operations that it took.
    pub fn settle(&mut self, mut scope: Scope) -> Vec<Operation> {
        let mut done = Vec::new();
        for _ in 0..8 {
            let prune = self.resolver.prune();
            let outcome = self.compare(&scope, prune);
            self.journal.merge(outcome.claims);
            if outcome.transaction.is_empty() && outcome.widen.is_empty() {
                return done;
            }
            scope.merge(outcome.widen);
            let committed = self.kernel.commit(&outcome.transaction);
            assert!(committed.failed.is_empty(), "{:#?}", committed.failed);
            done.extend(outcome.transaction.operations().iter().cloned());
        }
        panic!("not settled after 8 rounds: {done:#?}");
    }

    /// Makes all of the kernel as wanted.
    pub fn settle_all(&mut self) -> Vec<Operation> {
        self.settle(Scope::all(self.resolver.desired()))
    }
}

/// Names as a set.
pub fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}
