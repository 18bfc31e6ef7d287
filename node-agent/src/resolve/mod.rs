//! What this node must have: its NodeNetState, the slices and its own interfaces, resolved to one [`NodeState`].
//!
//! Kept incrementally. Each input returns the [`Scope`] that it touched, so that cost follows the change and not the
//! number of Services. Both lanes read the same desired state; [`Scope::lanes`] parts what each of them looks at.

mod addresses;
mod claims;
mod frame;
mod health_checks;
mod plans;
mod problem;
mod ranges;
mod requirements;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::{FrontendKind, NodeNetSliceSpec, NodeNetStateSpec};

pub use addresses::{AddressFault, VirtualAddress, VirtualIp};
pub use health_checks::{HealthCheck, HealthChecks};
pub use plans::Incomplete;
pub use problem::{Problem, Reason};
pub use requirements::schedulers;

use self::addresses::Node;
use self::claims::Claims;
use self::plans::{Plans, Uid};
use self::ranges::Judged;
use self::services::View;
use crate::diff::Prune;
use crate::filter::{Config, InsideMarks};
use crate::state::{Address, AddressKey, Link, NodeState, Scope, Which, promote_secondaries};

/// Settings of a resolver.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// Whether Services are served at all; otherwise the node has its virtual IPs and nothing else.
    pub service_proxy: bool,
    /// Scheduler of ports that name none.
    pub default_scheduler: String,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// Mark of packets that are to be masqueraded.
    pub mark: u32,
    /// The bits of the mark that are ours.
    pub mask: u32,
    /// Marks of packets of the node's own clients.
    pub inside: InsideMarks,
    /// Settings of the kernel beside those that all nodes need: what this node's kernel or its administrator asks for. What
    /// the NodeNetState says comes before.
    pub settings: BTreeMap<String, String>,
    /// Whether source ports are chosen at random.
    pub random_fully: bool,
    /// Lifetime of held addresses in seconds; `None` is forever.
    pub address_lifetime: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let Config { masquerade_all, mark, mask, inside, random_fully, .. } = Config::default();
        Self {
            node: String::new(),
            service_proxy: true,
            default_scheduler: "rr".into(),
            masquerade_all,
            mark,
            mask,
            inside,
            settings: BTreeMap::new(),
            random_fully,
            address_lifetime: None,
        }
    }
}

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The API server: what it does not name may be removed.
    Api,
    /// A copy on disk: it may be old, nothing is removed by it.
    Disk,
}

/// Keeps what this node must have.
pub struct Resolver {
    options: Options,
    spec: Option<Spec>,
    from_api: bool,
    node: Option<Node>,
    withheld: Which<String>,
    withheld_addresses: BTreeSet<AddressKey>,
    plans: Plans,
    view: View,
    claims: Claims,
    virtual_ips: Vec<VirtualIp>,
    problems: Vec<Problem>,
    desired: NodeState,
    health_checks: health_checks::Asked,
    /// Services whose plan depends on the node's addresses, or on those of virtual IPs.
    on_node_addresses: BTreeSet<Uid>,
    on_virtual_addresses: BTreeSet<Uid>,
    /// Modules that are wanted whatever the schedulers in use.
    modules: BTreeMap<String, bool>,
}

struct Spec {
    written: NodeNetStateSpec,
    /// Service ranges as written, those that make sense.
    wanted: Vec<IpNet>,
    /// Pod networks of the cluster and of the node, those that make sense.
    pod_networks: Vec<IpNet>,
    /// Those of the wanted ranges that are made local.
    judged: Judged,
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(options: Options) -> Self {
        let inside = options.inside;
        Self {
            plans: Plans::new(options.node.clone(), options.inside),
            options,
            spec: None,
            from_api: false,
            node: None,
            withheld: Which::default(),
            withheld_addresses: BTreeSet::new(),
            view: View { inside, ..View::default() },
            claims: Claims::default(),
            virtual_ips: Vec::new(),
            problems: Vec::new(),
            desired: NodeState::default(),
            health_checks: health_checks::Asked::default(),
            on_node_addresses: BTreeSet::new(),
            on_virtual_addresses: BTreeSet::new(),
            modules: BTreeMap::new(),
        }
    }

    /// What this node must have.
    pub fn desired(&self) -> &NodeState {
        &self.desired
    }

    /// What may be removed by now.
    pub fn prune(&self) -> Prune {
        let addresses = self.from_api && self.spec.is_some() && self.node.is_some();
        let real_servers = addresses && self.plans.complete();
        Prune { addresses, real_servers, services: real_servers && self.plans.all_known() }
    }

    /// Virtual IPs of the node's state, by name.
    pub fn virtual_ips(&self) -> &[VirtualIp] {
        &self.virtual_ips
    }

    /// What of the input makes no sense, one object each.
    pub fn problems(&self) -> Vec<Problem> {
        let ranges = self.spec.iter().flat_map(|spec| &spec.judged.problems);
        let mut all: Vec<Problem> =
            self.problems.iter().chain(ranges).chain(self.plans.problems()).cloned().collect();
        all.extend(self.claims.problems(&self.plans));
        all.sort();
        all.dedup();
        all
    }

    /// What load balancers may ask this node, where that changed since the last call.
    pub fn take_health_checks(&mut self) -> Option<HealthChecks> {
        let name = |uid: &Uid| {
            let service = self.plans.get(uid)?;
            Some((service.namespace.to_string(), service.name.to_string()))
        };
        self.health_checks.take(name)
    }

    /// Services whose newest plan lacks parts.
    pub fn incomplete(&self) -> Vec<Incomplete> {
        self.plans.incomplete()
    }

    /// Highest publication number of the slices that were put in.
    pub fn slice_revision(&self) -> Option<i64> {
        self.plans.revision()
    }

    /// Takes the node's own spec.
    pub fn put_spec(&mut self, spec: &NodeNetStateSpec, origin: Origin) -> Scope {
        let first = self.spec.is_none();
        self.from_api |= origin == Origin::Api;
        if self.spec.as_ref().is_some_and(|old| old.written == *spec) {
            return Scope::default();
        }
        self.problems.clear();
        let mut wanted = Vec::new();
        for text in &spec.service_addresses.cidrs {
            match text.parse::<IpNet>() {
                Ok(net) if ranges::usable(net) => wanted.push(net.trunc()),
                _ => {
                    let reason = Reason::Range { value: text.clone() };
                    self.problems.push(Problem::new("service addresses".into(), reason));
                }
            }
        }
        if !self.options.service_proxy {
            wanted.clear();
        }
        let pod_networks = spec.cluster_cidrs.iter().chain(&spec.pod_cidrs);
        let pod_networks = pod_networks.filter_map(|text| text.parse().ok()).collect();
        let judged = Judged::default();
        self.spec = Some(Spec { written: spec.clone(), wanted, pod_networks, judged });
        self.judge_ranges();
        let mut touched = self.frame();
        touched.merge(self.addresses());
        touched.merge(self.review(first));
        if first {
            touched.merge(Scope::all(&self.desired));
        }
        touched
    }

    /// Takes a slice, new or changed.
    pub fn put_slice(&mut self, name: &str, spec: &NodeNetSliceSpec) -> Scope {
        let changed = self.plans.put(name, spec);
        self.services(changed)
    }

    /// A slice is there and cannot be read. What it held before stays in force. Where nothing is known of it, any
    /// Service may stand in it: what no other slice asks for is not removed until it can be read or is gone.
    pub fn slice_unreadable(&mut self, name: &str) {
        self.plans.set_unreadable(name);
    }

    /// Slices that cannot be read, each with whether an earlier content of it is in force.
    pub fn unreadable_slices(&self) -> impl Iterator<Item = (&str, bool)> {
        self.plans.unreadable()
    }

    /// A slice was deleted. Services that it held and no other slice mentions go, unless a list is being read or no slice
    /// holds a plan any more.
    pub fn remove_slice(&mut self, name: &str) -> Scope {
        let changed = self.plans.remove(name);
        self.services(changed)
    }

    /// A new list of slices begins: until it ends, a Service that no slice mentions may stand in one still to come.
    pub fn list_started(&mut self) {
        self.plans.list_started();
    }

    /// The list of slices was complete with these names. One without any plan takes nothing away.
    pub fn list_completed(&mut self, names: &BTreeSet<String>) -> Scope {
        let first = !self.plans.complete();
        let changed = self.plans.list_completed(names);
        let mut touched = self.services(changed);
        if first && self.plans.complete() && self.spec.is_some() {
            // From now on what is no longer wanted may go, wherever it is.
            touched.merge(Scope::all(&self.desired));
        }
        touched
    }

    /// The node's own state was deleted. The last one stays in force, and nothing is removed until there is one again:
    /// what is published is being taken away, not changed.
    pub fn state_gone(&mut self) {
        self.from_api = false;
    }

    /// To be called each verify period: when slices came one by one after a list that was empty, and none came for a
    /// whole period, they are taken for all there are.
    pub fn confirm_slices(&mut self) -> Scope {
        let changed = self.plans.confirm();
        self.services(changed)
    }

    /// Takes the node's interfaces and all their addresses, with `ours` set on those that are.
    pub fn put_observed(&mut self, observed: &NodeState) -> Scope {
        let plain = |address: &Address| Address { lifetime: None, unusable: false, ..address.clone() };
        let node = Node {
            links: observed
                .links
                .iter()
                .map(|(name, link)| (name.clone(), Link { kind: String::new(), ..link.clone() }))
                .collect(),
            addresses: observed
                .addresses
                .iter()
                .map(|(key, address)| (key.clone(), plain(address)))
                .collect(),
            gateways: observed.gateways.clone().unwrap_or_default(),
        };
        if self.node.as_ref() == Some(&node) {
            return Scope::default();
        }
        let first = self.node.is_none();
        self.node = Some(node);
        let mut touched = if self.judge_ranges() { self.frame() } else { Scope::default() };
        touched.merge(self.addresses());
        touched.merge(self.review(false));
        if first && self.spec.is_some() {
            touched.merge(Scope::all(&self.desired));
        }
        touched
    }

    /// Changes the lifetime of addresses that are set from now on.
    pub fn set_address_lifetime(&mut self, lifetime: Option<u32>) -> Scope {
        self.options.address_lifetime = lifetime;
        self.addresses()
    }

    /// Names virtual IPs, and single addresses of others, that this node does not hold whatever its spec says: it asks
    /// for them first, or another host has them.
    pub fn set_withheld(&mut self, virtual_ips: Which<String>, addresses: BTreeSet<AddressKey>) -> Scope {
        (self.withheld, self.withheld_addresses) = (virtual_ips, addresses);
        self.addresses()
    }

    /// Whether Services are served.
    pub fn serves(&self) -> bool {
        self.options.service_proxy
    }

    /// Ports of Services that virtual IPs of this node ask for and that nobody serves where Services are not
    /// ([`Options::service_proxy`]), each as `NAME ADDRESS:PORT`. Node ports are served by whoever serves Services.
    pub fn unserved(&self) -> BTreeSet<String> {
        let of_virtual_ip = |text: &IpAddr| self.view.virtual_addresses.contains(text);
        let mut unserved = BTreeSet::new();
        for service in self.plans.uids().filter_map(|uid| self.plans.get(uid)) {
            let ports = service.plan.iter().flat_map(|plan| plan.ports());
            for (port, frontend) in ports.flat_map(|port| port.frontends.iter().map(move |f| (port, f))) {
                if frontend.kind == FrontendKind::VirtualIP
                    && let Some(address) = frontend.address.filter(of_virtual_ip)
                {
                    let at = std::net::SocketAddr::new(address, frontend.port);
                    unserved.insert(format!("{} at {:?} {at}", service.full_name(), port.protocol));
                }
            }
        }
        unserved
    }

    /// Whether packets to an address come to this node, or must not, without an address that another proxy has bound: by a
    /// local route, by an address of its own, or because it is a virtual IP's, which one node holds.
    pub fn answers_at(&self, address: IpAddr) -> bool {
        self.desired.routes.iter().any(|route| route.range.contains(&address))
            || self.view.own_addresses.contains(&address)
            || self.view.virtual_addresses.contains(&address)
    }

    /// Which ranges are made local, by what the node has now; whether they are others than before.
    fn judge_ranges(&mut self) -> bool {
        let Some(spec) = &mut self.spec else { return false };
        let standing = self.desired.routes.iter().map(|route| route.range).collect();
        let judged = ranges::judge(&spec.wanted, &spec.pod_networks, self.node.as_ref(), &standing);
        let changed = spec.judged.ranges != judged.ranges;
        spec.judged = judged;
        changed
    }

    /// Places the virtual IPs.
    fn addresses(&mut self) -> Scope {
        let (Some(spec), Some(node)) = (&self.spec, &self.node) else { return Scope::default() };
        let resolved = addresses::resolve(
            &spec.written.virtual_ips,
            node,
            &self.withheld,
            &self.withheld_addresses,
            self.options.address_lifetime,
        );
        let mut touched = Scope::default();
        let ours = self.desired.sysctls.iter().filter(|(name, _)| crate::state::of_address_lane(name));
        let before: BTreeMap<String, String> =
            ours.map(|(name, value)| (name.clone(), value.clone())).collect();
        if before != resolved.sysctls {
            touched.sysctls.extend(resolved.sysctls.keys().cloned());
            self.desired.sysctls.retain(|name, _| !before.contains_key(name));
            self.desired.sysctls.extend(resolved.sysctls);
        }
        // A role that the kernel changed must be looked at although the wish is the same.
        let moved = resolved.addresses != self.desired.addresses
            || resolved.addresses.iter().any(|(key, wanted)| {
                wanted.role.is_some() && node.addresses.get(key).is_none_or(|there| there.role != wanted.role)
            })
            || node.addresses.iter().any(|(key, there)| there.ours && !resolved.addresses.contains_key(key));
        if moved {
            touched.addresses = true;
            touched.sysctls.extend(resolved.addresses.keys().map(|key| promote_secondaries(&key.interface)));
        }
        self.desired.addresses = resolved.addresses;
        self.virtual_ips = resolved.virtual_ips;
        touched
    }

    /// What of the node's own view changed, and the Services that depend on it.
    fn review(&mut self, all: bool) -> Scope {
        let Some(spec) = &self.spec else { return Scope::default() };
        let virtual_addresses: BTreeSet<IpAddr> = spec
            .written
            .virtual_ips
            .iter()
            .flat_map(|vip| &vip.addresses)
            .filter_map(|text| text.parse::<IpNet>().ok())
            .map(|net| net.addr())
            .collect();
        let within = spec.written.node_port_addresses.as_ref();
        let within: Option<Vec<IpNet>> =
            within.map(|texts| texts.iter().filter_map(|text| text.parse().ok()).collect());
        let node_port_addresses = self
            .node
            .as_ref()
            .map(|node| node.node_port_addresses(&virtual_addresses, &spec.judged.ranges, within.as_deref()))
            .unwrap_or_default();
        let own_addresses = self.node.as_ref().map(Node::own_addresses).unwrap_or_default();
        self.health_checks
            .set_addresses(within.is_some().then(|| node_port_addresses.iter().copied().collect()));
        let zone = self.plans.zone(spec.written.zone.as_deref());
        let gateways = self.node.as_ref().map(|node| node.gateways.clone()).unwrap_or_default();
        let ipv6 = self.view.ipv6;
        let inside = self.view.inside;
        let view =
            View { node_port_addresses, virtual_addresses, own_addresses, gateways, zone, ipv6, inside };
        let had_ipv6 = self.claims.ipv6();
        let mut again = BTreeSet::new();
        if all || had_ipv6 != view.ipv6 || view.zone != self.view.zone {
            again.extend(self.plans.uids().cloned());
        } else {
            let of_node = |view: &View| {
                (view.node_port_addresses.clone(), view.own_addresses.clone(), view.gateways.clone())
            };
            if of_node(&view) != of_node(&self.view) {
                again.extend(self.on_node_addresses.iter().cloned());
            }
            if view.virtual_addresses != self.view.virtual_addresses {
                again.extend(self.on_virtual_addresses.iter().cloned());
            }
        }
        self.view = view;
        self.services(again)
    }

    /// Derives Services again.
    fn services(&mut self, uids: BTreeSet<Uid>) -> Scope {
        let mut touched = Scope::default();
        if self.spec.is_none() {
            return touched;
        }
        self.claims.set_ipv6(self.view.ipv6);
        for uid in uids {
            let plan = self.plans.get(&uid).and_then(|service| service.plan.as_ref());
            self.health_checks.put(&uid, plan.and_then(health_checks::asked));
            let needs = plan.map(services::dependence);
            let (nodes, vips) =
                needs.map_or((false, false), |n| (n.on_node_addresses, n.on_virtual_addresses));
            set_member(&mut self.on_node_addresses, &uid, nodes);
            set_member(&mut self.on_virtual_addresses, &uid, vips);
            let derived = plan
                .filter(|_| self.options.service_proxy)
                .map(|plan| services::derive(plan, &self.view, &self.options.default_scheduler));
            let derive = |other: &Uid| {
                let plan = self.plans.get(other)?.plan.as_ref()?;
                Some(services::derive(plan, &self.view, &self.options.default_scheduler))
            };
            let name = |other: &Uid| self.plans.get(other).map(|s| s.full_name()).unwrap_or_default();
            self.claims.put(
                &uid,
                derived.unwrap_or_default(),
                &mut self.desired,
                &mut touched,
                &derive,
                &name,
            );
        }
        if self.claims.schedulers_changed() {
            touched.modules.extend(self.set_modules());
        }
        touched
    }
}

fn set_member(set: &mut BTreeSet<Uid>, uid: &Uid, member: bool) {
    if !member {
        set.remove(uid);
    } else if !set.contains(uid) {
        set.insert(uid.clone());
    }
}
