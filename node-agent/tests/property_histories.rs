//! From Service to kernel: whatever happened before, in whatever order, and whatever stood in the kernel at the start, the
//! end is that of a fresh start.
//!
//! Operator (its planner) and agent (its resolver, comparison and a kernel in memory) work on one API server in memory,
//! each at its own pace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod convergence;
mod plans;
#[path = "../../operator/planner/tests/simulation/mod.rs"]
mod simulation;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, SessionAffinityConfig,
};
use nodenet_agent::diff::Journal;
use nodenet_agent::filter::SetName;
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::resolve::Origin;
use nodenet_agent::state::*;
use nodenet_crds::{LABEL_HEADLESS, NodeNetSliceSpec, NodeNetStateSpec};
use nodenet_planner::{Kind, ObjectRef, Settings};
use proptest::prelude::*;
use proptest::sample::select;
use simulation::Cluster;

/// The node that is looked at; the other one is only somewhere for pods to be.
const NODES: [&str; 2] = [plans::NODE, "node-2"];

/// What a Service is, beside its ClusterIP.
#[derive(Clone, Copy, Debug)]
enum Form {
    ClusterIP,
    NodePort,
    InternalLocal,
    External,
    ExternalLocal,
    LoadBalancerLocal,
    SourceRanges,
    Affinity,
    Udp,
    Headless,
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Form),
    DeleteService(u8),
    /// Pods of a Service: (number, on which node, whether it terminates).
    Endpoints(u8, Vec<(u8, usize, bool)>),
    DeleteEndpoints(u8),
    /// An address of the node that comes or goes.
    Address(&'static str, bool),
    /// Another hand takes something of ours out of the kernel.
    Drift(usize),
    /// The operator plans and writes; otherwise it is behind.
    Plan,
    /// The agent reads what is new and makes the kernel so; otherwise it is behind.
    Agent,
    RestartOperator,
    /// The next process has the journal of the one before and looks at everything.
    RestartAgent,
}

fn form() -> impl Strategy<Value = Form> {
    use Form::*;
    select(vec![
        ClusterIP,
        NodePort,
        InternalLocal,
        External,
        ExternalLocal,
        LoadBalancerLocal,
        SourceRanges,
        Affinity,
        Udp,
        Headless,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let of = 0..6_u8;
    let pods = proptest::collection::vec((1..7_u8, 0..NODES.len(), any::<bool>()), 0..5);
    prop_oneof![
        8 => (of.clone(), form()).prop_map(|(of, form)| Step::Service(of, form)),
        2 => of.clone().prop_map(Step::DeleteService),
        10 => (of.clone(), pods).prop_map(|(of, pods)| Step::Endpoints(of, pods)),
        1 => of.prop_map(Step::DeleteEndpoints),
        2 => (select(vec!["192.168.0.21/24", "10.9.0.1/16"]), any::<bool>()).prop_map(|(a, there)| Step::Address(a, there)),
        3 => any::<usize>().prop_map(Step::Drift),
        10 => Just(Step::Plan),
        10 => Just(Step::Agent),
        1 => Just(Step::RestartOperator),
        2 => Just(Step::RestartAgent),
    ]
}

fn settings() -> Settings {
    Settings {
        service_cidrs: vec!["10.96.0.0/24".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        external_ip_cidrs: vec!["198.51.100.0/24".parse().unwrap()],
        // Few Services already share, split and move.
        slice_bytes: 1500,
        part_bytes: 4000,
        ..Settings::default()
    }
}

fn name(of: u8) -> String {
    format!("svc-{of}")
}

fn put_service(cluster: &mut Cluster, of: u8, form: Form) {
    let mut service = simulation::service("default", &name(of), &format!("10.96.0.{}", of + 1), None);
    let spec = service.spec.as_mut().unwrap();
    let node_port = 30_000 + i32::from(of);
    let local = Some("Local".to_owned());
    match form {
        Form::ClusterIP => {}
        Form::InternalLocal => spec.internal_traffic_policy = local,
        Form::External => spec.external_ips = Some(vec![format!("198.51.100.{}", of / 2 + 1)]),
        Form::ExternalLocal => {
            spec.external_ips = Some(vec![format!("198.51.100.{}", of / 2 + 1)]);
            spec.external_traffic_policy = local;
        }
        Form::Affinity => {
            spec.session_affinity = Some("ClientIP".to_owned());
            let client_ip = Some(ClientIPConfig { timeout_seconds: Some(60 + i32::from(of)) });
            spec.session_affinity_config = Some(SessionAffinityConfig { client_ip });
        }
        Form::Udp => spec.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned()),
        Form::Headless => {
            service.metadata.labels = Some(BTreeMap::from([(LABEL_HEADLESS.to_owned(), String::new())]));
        }
        Form::NodePort => {
            spec.type_ = Some("NodePort".to_owned());
            spec.ports.as_mut().unwrap()[0].node_port = Some(node_port);
        }
        Form::LoadBalancerLocal | Form::SourceRanges => {
            spec.type_ = Some("LoadBalancer".to_owned());
            spec.ports.as_mut().unwrap()[0].node_port = Some(node_port);
            if matches!(form, Form::SourceRanges) {
                spec.load_balancer_source_ranges = Some(vec![format!("203.0.{of}.0/24")]);
            } else {
                spec.external_traffic_policy = local;
                spec.health_check_node_port = Some(31_000 + i32::from(of));
            }
            let ingress =
                LoadBalancerIngress { ip: Some(format!("192.0.2.{}", of + 10)), ..Default::default() };
            let load_balancer = Some(LoadBalancerStatus { ingress: Some(vec![ingress]) });
            service.status.get_or_insert_default().load_balancer = load_balancer;
        }
    }
    cluster.put(service);
}

fn put_endpoints(cluster: &mut Cluster, of: u8, pods: &[(u8, usize, bool)]) {
    let addresses: Vec<String> =
        pods.iter().map(|(pod, node, _)| format!("10.244.{}.{}", node + 1, of * 8 + pod)).collect();
    let mut slice = simulation::endpoints("default", &name(of), &name(of), &addresses);
    for (endpoint, (_, node, terminating)) in slice.endpoints.iter_mut().zip(pods) {
        endpoint.node_name = Some(NODES[*node].to_owned());
        let conditions = endpoint.conditions.get_or_insert_default();
        conditions.ready = Some(!terminating);
        conditions.serving = Some(true);
        conditions.terminating = Some(*terminating);
    }
    // One slice serves both: the port's name is what a Service looks for, and each takes its own protocol.
    let mut datagrams = slice.clone();
    datagrams.metadata.name = Some(format!("{}-udp", name(of)));
    datagrams.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned());
    cluster.put(slice);
    cluster.put(datagrams);
}

/// The agent, and what it has read of the API server's objects.
struct Node {
    agent: plans::Agent,
    spec: Option<NodeNetStateSpec>,
    slices: BTreeMap<String, NodeNetSliceSpec>,
    pending: Scope,
}

impl Node {
    fn on(kernel: FakeKernel, journal: Journal) -> Self {
        let agent = plans::Agent::on(kernel, journal);
        Self { agent, spec: None, slices: BTreeMap::new(), pending: Scope::default() }
    }

    /// Reads what changed since it read last, as a watch brings it. The first time it is the complete list.
    fn read(&mut self, cluster: &Cluster) {
        let resolver = &mut self.agent.resolver;
        let first = self.spec.is_none();
        let Some(state) = cluster.state(plans::NODE) else { return };
        if self.spec.as_ref() != Some(&state.spec) {
            self.pending.merge(resolver.put_spec(&state.spec, Origin::Api));
            self.spec = Some(state.spec.clone());
        }
        let now: BTreeMap<String, NodeNetSliceSpec> = cluster
            .slices()
            .into_iter()
            .map(|slice| (slice.metadata.name.clone().unwrap(), slice.spec.clone()))
            .collect();
        if first {
            resolver.list_started();
        }
        for (name, slice) in &now {
            if self.slices.get(name) != Some(slice) {
                self.pending.merge(resolver.put_slice(name, slice));
            }
        }
        if first {
            self.pending.merge(resolver.list_completed(&now.keys().cloned().collect()));
        }
        for gone in self.slices.keys().filter(|name| !now.contains_key(*name)) {
            self.pending.merge(resolver.remove_slice(gone));
        }
        self.slices = now;
    }

    /// Reads, and makes the kernel so where something changed.
    fn work(&mut self, cluster: &Cluster) {
        let (first, before) = (self.spec.is_none(), self.agent.resolver.prune());
        let look = self.agent.look_at_node();
        self.pending.merge(look);
        self.read(cluster);
        if self.spec.is_some() {
            let pending = std::mem::take(&mut self.pending);
            // As the service lane: at everything where it never looked, or where more may be removed than before.
            let all = first || self.agent.resolver.prune() != before;
            let scope = if all { Scope::all(self.agent.resolver.desired()) } else { pending };
            self.try_once(scope.lanes().1);
        }
    }

    /// Makes a part of the kernel as wanted. What the kernel refuses is tried again at the next occasion: a set of another
    /// kind under a name of ours is not removed before the list of slices is known to be complete.
    fn try_once(&mut self, mut scope: Scope) {
        for _ in 0..8 {
            let prune = self.agent.resolver.prune();
            let outcome = self.agent.compare(&scope, prune);
            self.agent.journal.merge(outcome.claims);
            scope.merge(outcome.widen);
            let committed = self.agent.kernel.commit(&outcome.transaction);
            if !committed.failed.is_empty() {
                return self.pending.merge(scope);
            }
            if outcome.transaction.is_empty() {
                return;
            }
        }
    }

    /// As the verify period does: everything is looked at. Twice, because what may go only when two looks agree goes with
    /// the second.
    fn verify(&mut self, cluster: &Cluster) {
        for _ in 0..3 {
            self.work(cluster);
            if self.spec.is_some() {
                self.agent.resolver.confirm_slices();
                self.try_once(Scope::all(self.agent.resolver.desired()).lanes().1);
            }
        }
    }

    fn observe(&mut self) -> NodeState {
        let all = Scope::all(self.agent.resolver.desired());
        self.agent.kernel.observe(&all).expect("the kernel in memory can be read")
    }

    /// Something of ours goes, as if by another hand.
    fn drift(&mut self, which: usize) {
        let state = self.observe();
        let mut ours: Vec<Operation> = Vec::new();
        for (key, server) in &self.agent.resolver.desired().virtual_servers {
            if let Some(there) = state.virtual_servers.get(key) {
                ours.push(Operation::DeleteVirtualServer(*key));
                let both = server.real_servers.keys().filter(|real| there.real_servers.contains_key(real));
                ours.extend(both.map(|real| Operation::DeleteRealServer(*key, *real)));
            }
        }
        for (name, set) in &state.sets {
            ours.extend(set.entries.iter().take(2).map(|entry| Operation::DeleteEntry(name.clone(), *entry)));
        }
        ours.extend(state.routes.iter().cloned().map(Operation::DeleteRoute));
        if !ours.is_empty() {
            let chosen = ours.swap_remove(which % ours.len());
            self.agent.kernel.commit(&Transaction::new(vec![chosen]));
        }
    }
}

/// What is ours in the kernel. Marks depend on who came first: each is called by the ports that have it.
fn ours(state: &NodeState, not: &BTreeSet<VirtualServerKey>) -> String {
    let mut marks: BTreeMap<u32, BTreeSet<SetEntry>> = BTreeMap::new();
    let mut sets = BTreeMap::new();
    let inside: Vec<String> = [Family::V4, Family::V6].map(|family| SetName::Inside.name(family)).to_vec();
    for (name, set) in &state.sets {
        let mut entries = BTreeSet::new();
        for entry in &set.entries {
            match entry {
                SetEntry::IpPortMark(ip, protocol, port, mark) if inside.contains(name) => {
                    marks.entry(*mark).or_default().insert(SetEntry::IpPort(*ip, *protocol, *port));
                    entries.insert(SetEntry::IpPort(*ip, *protocol, *port));
                }
                entry => drop(entries.insert(*entry)),
            }
        }
        sets.insert(name, (set.kind, set.family, entries));
    }
    let mut servers: Vec<String> = state
        .virtual_servers
        .iter()
        .filter(|(key, _)| !not.contains(key))
        .map(|(key, server)| {
            let key = match key {
                VirtualServerKey::FirewallMark(family, mark) => format!("{family:?} {:?}", marks.get(mark)),
                key => key.to_string(),
            };
            let real: Vec<_> = server.real_servers.iter().map(|(real, it)| (real, it.weight)).collect();
            format!("{key}: {:?} {:?} {real:?}", server.scheduler, server.persistence)
        })
        .collect();
    servers.sort();
    format!("{servers:#?}\n{sets:#?}\n{:#?}\n{:#?}", state.routes, state.rules)
}

/// A kernel of the node before nodenet.
fn kernel(addresses: &BTreeSet<&str>) -> FakeKernel {
    let kernel = FakeKernel::new();
    for interface in ["eth0", convergence::INTERFACE] {
        kernel.add_link(interface, "");
    }
    kernel.add_address("eth0", "192.168.0.11/24");
    for address in addresses {
        kernel.add_address("eth0", address);
    }
    kernel
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(settings());
    for (node, ip) in NODES.into_iter().zip(["192.168.0.11", "192.168.0.12"]) {
        cluster.put(simulation::node(node, ip));
    }
    cluster
}

fn run(start: &convergence::Case, steps: Vec<Step>) {
    let mut addresses = BTreeSet::new();
    let mut kernel_at_start = kernel(&addresses);
    // Addresses are another lane's; what an earlier agent left of them is its test's matter.
    let services = |operation: &&Operation| !matches!(operation, Operation::AddAddress(..));
    let left = start.start.iter().filter(services).cloned().collect();
    kernel_at_start.commit(&Transaction::new(left));
    let journal = Journal { addresses: Default::default(), ..start.journal.clone() };
    let mut node = Node::on(kernel_at_start, journal);
    // Nobody knows whose these are: they stay, and a Service that wants the same key waits.
    let foreign: BTreeSet<VirtualServerKey> = node
        .observe_all()
        .virtual_servers
        .into_keys()
        .filter(|key| !start.journal.virtual_servers.contains(key) && !in_service_range(key))
        .collect();
    let mut cluster = cluster();
    for step in steps {
        match step {
            Step::Service(of, form) => put_service(&mut cluster, of, form),
            Step::DeleteService(of) => {
                cluster.delete(&ObjectRef::namespaced(Kind::Service, "default", name(of)));
            }
            Step::Endpoints(of, pods) => put_endpoints(&mut cluster, of, &pods),
            Step::DeleteEndpoints(of) => {
                for slice in [name(of), format!("{}-udp", name(of))] {
                    cluster.delete(&ObjectRef::namespaced(Kind::EndpointSlice, "default", slice));
                }
            }
            Step::Address(address, true) => {
                if addresses.insert(address) {
                    node.agent.kernel.add_address("eth0", address);
                }
            }
            Step::Address(address, false) => {
                if addresses.remove(address) {
                    let (ip, _) = address.split_once('/').unwrap();
                    node.agent.kernel.remove_address("eth0", ip.parse().unwrap());
                }
            }
            Step::Drift(which) => node.drift(which),
            Step::Plan => cluster.settle(),
            Step::Agent => node.work(&cluster),
            Step::RestartOperator => cluster.restart_operator(),
            Step::RestartAgent => {
                node.work(&cluster);
                node = Node::on(node.agent.kernel.clone(), node.agent.journal.clone());
                node.verify(&cluster);
            }
        }
    }
    // There is always one Service in a cluster, and an agent takes no empty list for the truth.
    put_service(&mut cluster, 7, Form::ClusterIP);
    put_endpoints(&mut cluster, 7, &[(1, 0, false)]);
    cluster.settle();
    node.verify(&cluster);

    let mut again = self::cluster();
    for (name, object) in &cluster.objects {
        if !matches!(name.kind, Kind::NodeNetSlice | Kind::NodeNetState) {
            again.put(object.clone());
        }
    }
    again.settle();
    let mut fresh = Node::on(kernel(&addresses), Journal::default());
    fresh.verify(&again);

    let (end, expected) = (node.observe_all(), fresh.observe_all());
    let (end, expected) = (ours(&end, &foreign), ours(&expected, &foreign));
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|it| it == *line)).map(str::to_owned).collect()
    };
    let differences = (only(&end, &expected), only(&expected, &end));
    assert!(end == expected, "the end is that of a fresh start; only here and only there: {differences:#?}");
    let all = Scope::all(node.agent.resolver.desired()).lanes().1;
    assert_eq!(node.agent.settle(all), Vec::<Operation>::new(), "and there it stays");
}

fn in_service_range(key: &VirtualServerKey) -> bool {
    matches!(key, VirtualServerKey::Address(_, address, _) if settings().service_cidrs.iter().any(|range| range.contains(address)))
}

impl Node {
    /// Everything of the packet filter, the routes and IPVS.
    fn observe_all(&mut self) -> NodeState {
        let all = Scope {
            routes: true,
            sets: Which::All,
            rules: true,
            virtual_servers: Which::All,
            ..Scope::default()
        };
        self.agent.kernel.observe(&all).expect("the kernel in memory can be read")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_from_any_kernel_ends_where_a_fresh_start_ends(
        start in convergence::cases(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        run(&start, steps);
    }
}
