//! Whether the spec of a VirtualIP can be put in force, and what is in force.
//!
//! What is in force changes only when a spec is accepted. So a bad edit changes nothing on any node; nor does a restart,
//! because what is in force is rebuilt from what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nodenet_crds::conditions::reason;
use nodenet_crds::{
    AddressRole, Announce, AssignedVirtualIP, DEFAULT_PRIORITY, NodeNetStateStatus, ServiceBinding,
    VirtualIPSpec, validate,
};

use crate::bindings::{self, BindingProblem, Frontends};
use crate::node::{Fit, NodeInfo, StateInfo, address_of, fit};
use crate::service::{Named, ServiceInfo};
use crate::{Settings, selector};

/// What is known of the cluster, apart from VirtualIPs.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) settings: Settings,
    pub(crate) nodes: BTreeMap<String, NodeInfo>,
    pub(crate) states: BTreeMap<String, StateInfo>,
    pub(crate) services: BTreeMap<Named, ServiceInfo>,
    /// Where the API servers are, by the endpoints of their Service.
    pub(crate) api_servers: BTreeSet<IpAddr>,
    /// There are no agents whose reports could be waited for: what only they know is taken to be as it should.
    pub(crate) offline: bool,
}

/// Order of ownership of an address: the older object, then the first name.
pub(crate) type Claim = (Option<Timestamp>, String);

/// Who wants and who has which address, or place at one.
#[derive(Debug)]
pub(crate) struct Claims<K = IpAddr> {
    by_key: BTreeMap<K, BTreeSet<Claim>>,
    of: BTreeMap<String, (Claim, BTreeSet<K>)>,
    version: u64,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), of: BTreeMap::new(), version: 0 }
    }
}

impl<K: Copy + Ord> Claims<K> {
    /// Sets the claims of `claim.1` and returns the names of the others whose standing may change by it.
    pub(crate) fn set(&mut self, claim: Claim, keys: BTreeSet<K>) -> BTreeSet<String> {
        let name = claim.1.clone();
        let before = self.of.remove(&name);
        if before.as_ref().is_some_and(|(c, k)| *c == claim && *k == keys) {
            if let Some(same) = before {
                self.of.insert(name, same);
            }
            return BTreeSet::new();
        }
        self.version += 1;
        let mut others = BTreeSet::new();
        if let Some((old, list)) = before {
            for key in list {
                if let Some(all) = self.by_key.get_mut(&key) {
                    all.remove(&old);
                    others.extend(all.iter().map(|c| c.1.clone()));
                    if all.is_empty() {
                        self.by_key.remove(&key);
                    }
                }
            }
        }
        for key in &keys {
            let all = self.by_key.entry(*key).or_default();
            others.extend(all.iter().map(|c| c.1.clone()));
            all.insert(claim.clone());
        }
        if !keys.is_empty() {
            self.of.insert(name.clone(), (claim, keys));
        }
        others.remove(&name);
        others
    }

    /// Takes back all claims of a name; returns the names of the others whose standing may change by it.
    pub(crate) fn remove(&mut self, name: &str) -> BTreeSet<String> {
        match self.of.get(name).map(|(claim, _)| claim.clone()) {
            Some(claim) => self.set(claim, BTreeSet::new()),
            None => BTreeSet::new(),
        }
    }

    /// Who of those that claim `key` it belongs to.
    pub(crate) fn owner(&self, key: K) -> Option<&str> {
        self.by_key.get(&key)?.first().map(|c| c.1.as_str())
    }

    /// Grows with every change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }
}

/// The spec that is in force for a VirtualIP.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InForce {
    /// Generation of the object that it was taken from; `None`: rebuilt from what is published.
    pub(crate) generation: Option<i64>,
    /// As in the spec, with their parsed form.
    pub(crate) addresses: Vec<(String, IpNet)>,
    pub(crate) interface: Option<String>,
    pub(crate) address_role: AddressRole,
    pub(crate) announce: Announce,
    pub(crate) preempt: bool,
    pub(crate) preempt_delay: Duration,
    /// Nodes that may hold it, with their priority.
    pub(crate) candidates: BTreeMap<String, i32>,
    pub(crate) bindings: Vec<ServiceBinding>,
}

impl InForce {
    /// What published NodeNetStates show of a VirtualIP: (node, entry).
    pub(crate) fn from_published<'a>(
        entries: impl Iterator<Item = (&'a str, &'a AssignedVirtualIP)>,
    ) -> Option<Self> {
        let mut out: Option<Self> = None;
        for (node, entry) in entries {
            let made = out.get_or_insert_with(|| Self {
                generation: None,
                addresses: entry
                    .addresses
                    .iter()
                    .filter_map(|a| Some((a.clone(), a.parse().ok()?)))
                    .collect(),
                interface: entry.interface.clone(),
                address_role: entry.address_role,
                announce: entry.announce.clone(),
                preempt: false,
                preempt_delay: Duration::ZERO,
                candidates: BTreeMap::new(),
                bindings: Vec::new(),
            });
            made.candidates.insert(node.to_owned(), entry.priority);
        }
        out
    }
}

/// Why a spec is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Nothing is wrong with it as far as is known, and not enough is known.
    pub(crate) waits: bool,
    pub(crate) reason: &'static str,
    /// Names the field and what must change.
    pub(crate) message: String,
}

/// What became of a spec.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) refusal: Option<Refusal>,
    /// What may be put in force: all of the spec, or, where only single Services are at fault, the rest of it.
    pub(crate) usable: Option<InForce>,
}

impl Verdict {
    fn refused(reason: &'static str, message: impl Into<String>) -> Self {
        Self { refusal: Some(Refusal { waits: false, reason, message: message.into() }), usable: None }
    }

    fn waits(message: impl Into<String>) -> Self {
        let refusal = Refusal { waits: true, reason: reason::PENDING, message: message.into() };
        Self { refusal: Some(refusal), usable: None }
    }
}

/// Everything that is wrong with the spec by itself.
pub(crate) fn violations(spec: &VirtualIPSpec) -> Vec<validate::Violation> {
    let mut found = validate::virtual_ip(spec);
    if let Some(s) = &spec.node_selector {
        found.extend(selector::check(s, "spec.nodeSelector"));
    }
    for (i, p) in spec.priorities.iter().enumerate() {
        found.extend(selector::check(&p.node_selector, &format!("spec.priorities[{i}].nodeSelector")));
    }
    found
}

/// The addresses of a spec that is valid by itself; of another none.
pub(crate) fn claimed(spec: &VirtualIPSpec) -> BTreeSet<IpAddr> {
    if !violations(spec).is_empty() {
        return BTreeSet::new();
    }
    spec.addresses.iter().filter_map(|a| a.parse::<IpNet>().ok()).map(|n| n.addr()).collect()
}

/// Judges the spec of the VirtualIP `name`. `held` are the addresses that are in force for it already, `holder` is the
/// node that is to hold them now.
pub(crate) fn judge(
    name: &str,
    spec: &VirtualIPSpec,
    generation: Option<i64>,
    facts: &Facts,
    claims: &Claims,
    held: &BTreeSet<IpAddr>,
    holder: Option<&str>,
) -> Verdict {
    let found = violations(spec);
    if !found.is_empty() {
        let words = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Verdict::refused(reason::INVALID, words);
    }
    let addresses: Vec<(String, IpNet)> =
        spec.addresses.iter().filter_map(|a| Some((a.clone(), a.parse().ok()?))).collect();
    for (i, (_, net)) in addresses.iter().enumerate() {
        let address = net.addr();
        if let Some(owner) = claims.owner(address).filter(|o| *o != name) {
            return Verdict::refused(
                reason::ADDRESS_CONFLICT,
                format!(
                    "spec.addresses[{i}]: {address} belongs to VirtualIP {owner}, which was there first: use another \
                     address, or remove it there"
                ),
            );
        }
        if let Some(what) = in_use(address, facts, held) {
            return Verdict::refused(
                reason::ADDRESS_IN_USE,
                format!("spec.addresses[{i}]: {address} is {what}: use an address that nothing else has"),
            );
        }
        // What is in force is ours: nodes may well have their default route over it.
        if !held.contains(&address)
            && let Some(node) = gateway_of(address, facts).first()
        {
            return Verdict::refused(
                reason::ADDRESS_IN_USE,
                format!(
                    "spec.addresses[{i}]: {address} is the gateway of Node {node}, which would lose its way to other \
                     networks: use an address that nothing else has"
                ),
            );
        }
    }
    let selected: Vec<(&String, &NodeInfo)> = facts
        .nodes
        .iter()
        .filter(|(_, n)| spec.node_selector.as_ref().is_none_or(|s| selector::matches(s, &n.labels)))
        .collect();
    if selected.is_empty() {
        let message = match facts.nodes.len() {
            0 => "there is no Node".to_owned(),
            n => format!(
                "spec.nodeSelector matches none of the {n} Nodes: change it, or label the Nodes that may hold the addresses"
            ),
        };
        return Verdict::refused(reason::NO_MATCHING_NODES, message);
    }
    let nets: Vec<IpNet> = addresses.iter().map(|(_, n)| *n).collect();
    let interface = spec.interface.as_deref();
    let reported = |node: &str| facts.states.get(node).and_then(StateInfo::reported).is_some();
    let any_reported = selected.iter().any(|(node, _)| reported(node));
    let mut candidates = BTreeMap::new();
    let mut without = None;
    let mut unheard = Vec::new();
    for (node, info) in &selected {
        // Where other nodes speak for themselves, nothing is supposed of one that does not; the addresses of a Node say
        // what subnets it has, while nothing says what its interfaces are called.
        let supposed = facts.offline || (!any_reported && interface.is_none());
        let fit = match reported(node) || supposed {
            true => fit(Some(info), facts.states.get(*node), &nets, interface),
            // It was found fit before, and nothing says that it is not any more.
            false if holder == Some(node.as_str()) => Fit::Yes { down: None },
            false => {
                unheard.push(node.as_str());
                continue;
            }
        };
        match fit {
            Fit::Yes { .. } => {
                let of = spec.priorities.iter().find(|p| selector::matches(&p.node_selector, &info.labels));
                candidates.insert((*node).clone(), of.map_or(DEFAULT_PRIORITY, |p| p.priority));
            }
            Fit::NoInterface => {}
            Fit::NoSubnet(net) => without = Some(net),
        }
    }
    if candidates.is_empty() {
        if !any_reported && !facts.offline {
            return Verdict::waits(
                "no agent of the selected Nodes has reported its interfaces yet, so it is not known which of them can \
                 carry the addresses",
            );
        }
        return Verdict::refused(
            reason::NO_CANDIDATE,
            no_candidate(spec, facts, &selected, &unheard, without),
        );
    }
    let plain: Vec<IpAddr> = nets.iter().map(IpNet::addr).collect();
    let (_, problems) = bindings::bind(&spec.services, &plain, |s| facts.services.get(s).cloned());
    let refusal = (!problems.is_empty()).then(|| {
        let missing = problems.iter().any(|(_, p)| matches!(p, BindingProblem::NotFound(_)));
        let words = problems.iter().map(|(i, p)| match p {
            BindingProblem::NotFound(s) => {
                format!("spec.services[{i}]: Service {s} does not exist: create it, or remove the entry")
            }
            BindingProblem::Unusable(words) => format!("spec.services[{i}]: {words}"),
        });
        Refusal {
            waits: false,
            reason: if missing { reason::SERVICE_NOT_FOUND } else { reason::INVALID },
            message: words.collect::<Vec<_>>().join("; "),
        }
    });
    let delay = spec.failover.preempt_delay_seconds.unwrap_or(0);
    let usable = InForce {
        generation,
        addresses,
        interface: spec.interface.clone(),
        address_role: spec.address_role,
        announce: spec.announce.clone(),
        preempt: spec.failover.preempt,
        preempt_delay: Duration::from_secs(u64::try_from(delay).unwrap_or(0)),
        candidates,
        bindings: spec.services.clone(),
    };
    Verdict { refusal, usable: Some(usable) }
}

/// What of the cluster has `address`, in words: a Service, a pod, a Node or an API server.
pub(crate) fn cluster_has(address: IpAddr, facts: &Facts) -> Option<String> {
    if let Some(net) = facts.settings.service_cidrs.iter().find(|n| n.contains(&address)) {
        return Some(format!("in the range {net} of Services"));
    }
    if let Some(net) = facts.settings.cluster_cidrs.iter().find(|n| n.contains(&address)) {
        return Some(format!("in the pod network {net}"));
    }
    for (name, node) in &facts.nodes {
        if node.addresses.contains(&address) {
            return Some(format!("an address of Node {name}"));
        }
        if let Some(net) = node.pod_cidrs.iter().find(|n| n.contains(&address)) {
            return Some(format!("in the pod network {net} of Node {name}"));
        }
    }
    if facts.settings.api_servers.contains(&address) || facts.api_servers.contains(&address) {
        return Some("the address of an API server".to_owned());
    }
    None
}

/// Longest reach of a subnet that an agent's word counts in.
const PREFIX_LEAST: (u8, u8) = (16, 64);
/// Agents that must be in the same subnet to be believed although their Nodes' addresses are elsewhere: one token, or
/// two, are not enough to keep addresses from all nodes.
const WITNESSES: usize = 3;

/// Subnets on link that hold `address`, by an agent. One that is all the world says nothing.
fn subnets(status: &NodeNetStateStatus, address: IpAddr) -> impl Iterator<Item = IpNet> {
    let (v4, v6) = PREFIX_LEAST;
    let all = status.interfaces.iter().flat_map(|interface| &interface.addresses);
    let nets = all.filter_map(|text| text.parse::<IpNet>().ok());
    nets.filter(move |net| {
        net.contains(&address) && net.prefix_len() >= if address.is_ipv4() { v4 } else { v6 }
    })
}

/// Whether an agent's word about `address` can be true as far as others know: the subnet that it is in must hold one of
/// the addresses that the API server knows of the agent's Node, or several agents must be in it. One node's token says
/// what it likes of all other addresses.
fn is_plausible(address: IpAddr, node: &str, status: &NodeNetStateStatus, facts: &Facts) -> bool {
    let known = facts.nodes.get(node).map(|node| node.addresses.as_slice()).unwrap_or_default();
    subnets(status, address).any(|net| {
        let witness = |(name, state): &(&String, &StateInfo)| {
            let mut there = state.reported().into_iter().flat_map(|status| subnets(status, address));
            facts.nodes.contains_key(*name) && there.any(|other| other.trunc() == net.trunc())
        };
        known.iter().any(|own| net.contains(own))
            || facts.states.iter().filter(witness).take(WITNESSES).count() == WITNESSES
    })
}

/// Nodes whose agents say `says` of `address`, as far as that can be true.
fn by_word(address: IpAddr, facts: &Facts, says: impl Fn(&NodeNetStateStatus) -> bool) -> Vec<&str> {
    let said = |(name, state): &(&String, &StateInfo)| {
        state.reported().is_some_and(|status| says(status) && is_plausible(address, name, status, facts))
    };
    facts.states.iter().filter(said).map(|(name, _)| name.as_str()).collect()
}

/// Nodes whose agents say that `address` is their gateway.
pub(crate) fn gateway_of(address: IpAddr, facts: &Facts) -> Vec<&str> {
    by_word(address, facts, |status| status.gateways.iter().any(|text| text.parse() == Ok(address)))
}

/// Nodes whose agents say that `address` is on an interface of theirs.
pub(crate) fn on_interface_of(address: IpAddr, facts: &Facts) -> Vec<&str> {
    by_word(address, facts, |status| interface_with(status, address).is_some())
}

fn interface_with(status: &NodeNetStateStatus, address: IpAddr) -> Option<&str> {
    let has = |texts: &[String]| texts.iter().any(|text| address_of(text) == Some(address));
    status.interfaces.iter().find(|interface| has(&interface.addresses)).map(|i| i.name.as_str())
}

/// What has `address` already, in words.
fn in_use(address: IpAddr, facts: &Facts, held: &BTreeSet<IpAddr>) -> Option<String> {
    if let Some(what) = cluster_has(address, facts) {
        return Some(what);
    }
    // An agent that has just restarted may report an address of ours as found; what is in force is ours.
    if held.contains(&address) {
        return None;
    }
    let node = *on_interface_of(address, facts).first()?;
    let status = facts.states.get(node).and_then(StateInfo::reported)?;
    Some(format!("on interface {} of Node {node} already", interface_with(status, address)?))
}

fn no_candidate(
    spec: &VirtualIPSpec,
    facts: &Facts,
    selected: &[(&String, &NodeInfo)],
    unheard: &[&str],
    without: Option<IpNet>,
) -> String {
    let heard = match selected.len() - unheard.len() {
        1 => "the selected Node".to_owned(),
        n => format!("any of the {n} selected Nodes"),
    };
    let nodes = match (selected, unheard) {
        ([(only, _)], _) => format!("Node {only}"),
        (_, []) => heard,
        (_, [one]) => format!("{heard} whose agent has reported ({one} has not)"),
        (_, [first, more @ ..]) => {
            format!("{heard} whose agent has reported ({first} and {} more have not)", more.len())
        }
    };
    let mut interfaces = BTreeSet::new();
    for (name, _) in selected {
        let reported = facts.states.get(*name).and_then(StateInfo::reported);
        interfaces.extend(reported.into_iter().flat_map(|s| &s.interfaces).map(|i| i.name.as_str()));
    }
    let have = if interfaces.is_empty() {
        String::new()
    } else {
        let list = interfaces.iter().take(8).copied().collect::<Vec<_>>().join(", ");
        format!(" (there is {list})")
    };
    match (&spec.interface, without) {
        (Some(interface), _) => format!(
            "spec.interface: {interface} does not exist, or carries no address, on {nodes}{have}: name another interface, or \
             remove it to use the one whose subnet holds the address"
        ),
        (None, Some(net)) => format!(
            "spec.addresses: no interface of {nodes} has a subnet that holds {}: use an address of the nodes' subnet, or name \
             the interface in spec.interface",
            net.addr()
        ),
        (None, None) => format!("spec.addresses: {nodes} cannot carry them"),
    }
}

/// The frontends that what is in force gives to Services. `addresses` are those of it that no older VirtualIP has.
pub(crate) fn frontends(in_force: &InForce, addresses: &[IpAddr], facts: &Facts) -> Frontends {
    bindings::bind(&in_force.bindings, addresses, |s| facts.services.get(s).cloned()).0
}
