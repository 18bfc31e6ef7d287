//! A kernel in memory with the real one's semantics, for tests and for an agent without root.
//!
//! Clones share one kernel, as the sockets of two threads do.

mod addresses;
mod apply;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use self::addresses::Addresses;
use super::{Committed, Kernel, KernelError, KernelEvent, RunningSign};
use crate::state::{
    AddressKey, Family, IpSet, KubeProxy, Link, LocalRoute, NodeState, Operation, PREFIX, PREFIX6,
    RealServerKey, Ruleset, Scope, SetEntry, Transaction, VirtualServer, VirtualServerKey, Which, kube_proxy,
};

/// A kernel in memory.
#[derive(Clone, Default)]
pub struct FakeKernel {
    inner: Arc<Mutex<Inner>>,
}

/// What it counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations that were sent, refused ones included.
    pub messages: usize,
    /// Observations.
    pub observations: usize,
    /// Connections of TCP that broke, because their real server was removed under them.
    pub broken_connections: u64,
    /// Times that tracked connections were forgotten.
    pub forgotten: usize,
    /// Times that the packet filter was read for kube-proxy's rules.
    pub kube_proxy_rules_read: usize,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with an error number.
    Refused(i32),
    /// It is carried out, but the answer is lost (`ENOBUFS`).
    AnswerLost,
}

#[derive(Default)]
struct Inner {
    modules: BTreeMap<String, bool>,
    missing_modules: BTreeSet<String>,
    sysctls: BTreeMap<String, String>,
    read_only_sysctls: bool,
    links: BTreeMap<String, Link>,
    addresses: Addresses,
    routes: BTreeSet<LocalRoute>,
    gateways: BTreeSet<IpAddr>,
    sets: BTreeMap<String, IpSet>,
    rules: BTreeMap<Family, Ruleset>,
    /// Families in which kube-proxy has its chains.
    kube_proxy_rules: BTreeSet<Family>,
    kube_proxy_runs: Option<RunningSign>,
    kube_proxy_iptables: bool,
    virtual_servers: BTreeMap<VirtualServerKey, VirtualServer>,
    /// No `IFA_PROTO` (before 5.18).
    no_address_protocol: bool,
    clock: Duration,
    counters: Counters,
    latency: Duration,
    faults: BTreeMap<usize, Fault>,
    /// Operations that it does not take.
    refused: Option<fn(&Operation) -> bool>,
    kube_proxy_unreadable: bool,
    observation_faults: BTreeMap<usize, i32>,
    log: Option<Vec<Operation>>,
    listeners: Vec<Sender<KernelEvent>>,
}

impl Inner {
    fn tell(&mut self, event: KernelEvent) {
        self.listeners.retain(|listener| listener.send(event.clone()).is_ok());
    }

    fn tell_addresses(&mut self, keys: Vec<AddressKey>) {
        for key in keys {
            self.tell(KernelEvent::Address(key));
        }
    }

    fn promotes(&self, interface: &str) -> bool {
        let on = |name: &str| self.sysctls.get(name).map(String::as_str) == Some("1");
        on("net.ipv4.conf.all.promote_secondaries") || on(&crate::state::promote_secondaries(interface))
    }
}

impl FakeKernel {
    /// A kernel with a loopback interface and the usual settings, no module loaded.
    pub fn new() -> Self {
        let kernel = Self::default();
        {
            let mut inner = kernel.lock();
            for (name, value) in [
                ("net.ipv4.ip_forward", "0"),
                ("net.ipv4.conf.all.arp_ignore", "0"),
                ("net.ipv4.conf.all.arp_announce", "0"),
                ("net.ipv4.conf.all.promote_secondaries", "0"),
                ("net.ipv6.conf.all.forwarding", "0"),
            ] {
                inner.sysctls.insert(name.into(), value.into());
            }
        }
        kernel.add_link("lo", "");
        kernel.add_address("lo", "127.0.0.1/8");
        kernel
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere must not hide its own message behind a poisoned lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an interface that is up, as another hand would.
    pub fn add_link(&self, name: &str, kind: &str) {
        let mut inner = self.lock();
        inner.links.insert(name.into(), Link { kind: kind.into(), up: true, carrier: true });
        inner.sysctls.insert(crate::state::promote_secondaries(name), "0".into());
        inner.tell(KernelEvent::Link(name.into()));
    }

    /// Sets the next hops of the default routes, as another hand would.
    pub fn set_gateways(&self, gateways: &[&str]) {
        let mut inner = self.lock();
        inner.gateways = gateways.iter().filter_map(|text| text.parse().ok()).collect();
        inner.tell(KernelEvent::Gateway);
    }

    /// Sets an interface up or down, carrier included.
    pub fn set_link(&self, name: &str, up: bool) {
        let mut inner = self.lock();
        if let Some(link) = inner.links.get_mut(name) {
            (link.up, link.carrier) = (up, up);
        }
        if !up {
            inner.routes.retain(|route| route.interface != name);
        }
        inner.tell(KernelEvent::Link(name.into()));
    }

    /// Removes an interface with all that is on it, as another hand would.
    pub fn remove_link(&self, name: &str) {
        let mut inner = self.lock();
        inner.delete_link(name);
    }

    /// Adds an address, as another hand would. Nonsense is ignored.
    pub fn add_address(&self, interface: &str, address: &str) {
        let Ok(net) = address.parse::<IpNet>() else { return };
        let mut inner = self.lock();
        if inner.links.contains_key(interface)
            && inner.addresses.add(interface, net, false, false, None).is_ok()
        {
            inner.tell(KernelEvent::Address(AddressKey { interface: interface.into(), address: net.addr() }));
        }
    }

    /// Removes an address whoever set it, as another hand would; whether it was there.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> bool {
        let mut inner = self.lock();
        let promotes = inner.promotes(interface);
        let changed = inner.addresses.delete(interface, address, None, promotes);
        let there = changed.is_some();
        inner.tell_addresses(changed.unwrap_or_default());
        there
    }

    /// Adds or replaces a virtual server, as another hand would.
    pub fn put_virtual_server(&self, key: VirtualServerKey, server: VirtualServer) {
        self.lock().virtual_servers.insert(key, server);
    }

    /// Removes a virtual server, as another hand would.
    pub fn remove_virtual_server(&self, key: &VirtualServerKey) {
        self.lock().virtual_servers.remove(key);
    }

    /// Sets the connections of a real server.
    pub fn set_connections(
        &self,
        server: &VirtualServerKey,
        real: &RealServerKey,
        active: u32,
        inactive: u32,
    ) {
        let mut inner = self.lock();
        let found = inner.virtual_servers.get_mut(server).and_then(|s| s.real_servers.get_mut(real));
        if let Some(found) = found {
            (found.active_connections, found.inactive_connections) = (active, inactive);
        }
    }

    /// Adds or replaces a set, as another hand would.
    pub fn put_set(&self, name: &str, set: IpSet) {
        self.lock().sets.insert(name.into(), set);
    }

    /// Removes an entry, as another hand would.
    pub fn remove_entry(&self, set: &str, entry: &SetEntry) {
        if let Some(set) = self.lock().sets.get_mut(set) {
            set.entries.remove(entry);
        }
    }

    /// Replaces our rules of a family, as another hand would.
    pub fn put_rules(&self, family: Family, rules: Ruleset) {
        self.lock().rules.insert(family, rules);
    }

    /// kube-proxy binds an address of a Service, and has its chains.
    pub fn kube_proxy_binds(&self, address: &str) {
        if !self.state().links.contains_key(kube_proxy::INTERFACE) {
            self.add_link(kube_proxy::INTERFACE, "dummy");
        }
        self.add_address(kube_proxy::INTERFACE, address);
        self.lock().kube_proxy_rules.extend([Family::V4, Family::V6]);
    }

    /// Rules of kube-proxy's iptables mode treat packets, or no longer.
    pub fn set_kube_proxy_iptables(&self, there: bool) {
        self.lock().kube_proxy_iptables = there;
    }

    /// The node is started again: of Services and of kube-proxy the kernel knows nothing any more.
    pub fn restart(&self) {
        let links = self.state().links;
        let mut inner = self.lock();
        inner.sets.clear();
        inner.rules.clear();
        inner.routes.clear();
        inner.virtual_servers.clear();
        inner.kube_proxy_rules.clear();
        inner.kube_proxy_iptables = false;
        inner.kube_proxy_runs = None;
        drop(inner);
        for link in [kube_proxy::INTERFACE, crate::state::SERVICE_INTERFACE] {
            if links.contains_key(link) {
                self.remove_link(link);
            }
        }
    }

    /// kube-proxy starts (with a sign of it), or stops: what it made stays.
    pub fn set_kube_proxy_runs(&self, sign: Option<RunningSign>) {
        self.lock().kube_proxy_runs = sign;
    }

    /// Removes a local route of ours, as another hand would.
    pub fn remove_route(&self, route: &LocalRoute) {
        let mut inner = self.lock();
        inner.routes.remove(route);
        inner.tell(KernelEvent::Route);
    }

    /// Adds a local route of ours, as an earlier agent would have.
    pub fn put_route(&self, route: LocalRoute) {
        self.lock().routes.insert(route);
    }

    /// Writes a setting, as another hand would.
    pub fn put_sysctl(&self, name: &str, value: &str) {
        self.lock().sysctls.insert(name.into(), value.into());
    }

    /// Makes settings unchangeable, as a container's read-only `/proc/sys` does.
    pub fn set_sysctls_read_only(&self, read_only: bool) {
        self.lock().read_only_sysctls = read_only;
    }

    /// Takes a module away from the kernel.
    pub fn lack_module(&self, name: &str) {
        self.lock().missing_modules.insert(name.into());
    }

    /// Behaves as a kernel before 5.18, which does not keep whose an address is.
    pub fn lack_address_protocol(&self) {
        self.lock().no_address_protocol = true;
    }

    /// Lets time pass: lifetimes of addresses run out.
    pub fn advance(&self, time: Duration) {
        let mut inner = self.lock();
        inner.clock += time;
        let now = inner.clock;
        while let Some((interface, address)) = inner.addresses.expired(now) {
            let promotes = inner.promotes(&interface);
            let changed = inner.addresses.delete(&interface, address, None, promotes).unwrap_or_default();
            inner.tell_addresses(changed);
        }
    }

    /// Makes the operation fail that is the `nth` from now, from 0.
    pub fn fail_nth(&self, nth: usize, fault: Fault) {
        let mut inner = self.lock();
        let at = inner.counters.messages + nth;
        inner.faults.insert(at, fault);
    }

    /// Refuses such operations from now on, or none.
    pub fn refuse(&self, which: Option<fn(&Operation) -> bool>) {
        self.lock().refused = which;
    }

    /// What there is of kube-proxy cannot be read, or can again.
    pub fn set_kube_proxy_unreadable(&self, unreadable: bool) {
        self.lock().kube_proxy_unreadable = unreadable;
    }

    /// Makes the observation fail that is the `nth` from now, from 0 (for example with `EINTR`: dump interrupted).
    pub fn fail_nth_observation(&self, nth: usize, errno: i32) {
        let mut inner = self.lock();
        let at = inner.counters.observations + nth;
        inner.observation_faults.insert(at, errno);
    }

    /// Makes every operation take so long.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// What it counted.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Keeps the operations from now on; the ones kept so far are returned.
    pub fn take_log(&self) -> Vec<Operation> {
        self.lock().log.replace(Vec::new()).unwrap_or_default()
    }

    /// Changes of interfaces, addresses and routes from now on.
    pub fn events(&self) -> Receiver<KernelEvent> {
        let (sender, receiver) = channel();
        self.lock().listeners.push(sender);
        receiver
    }

    /// All that it has, foreign sets included.
    pub fn state(&self) -> NodeState {
        let inner = self.lock();
        NodeState {
            modules: inner.modules.clone(),
            sysctls: inner.sysctls.clone(),
            links: inner.links.clone(),
            addresses: inner.addresses.observe(inner.clock, inner.no_address_protocol),
            routes: inner.routes.clone(),
            gateways: Some(inner.gateways.clone()),
            sets: inner.sets.clone(),
            rules: inner.rules.clone(),
            virtual_servers: inner.virtual_servers.clone(),
        }
    }
}

impl Kernel for FakeKernel {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        let mut inner = self.lock();
        let at = inner.counters.observations;
        inner.counters.observations += 1;
        if let Some(errno) = inner.observation_faults.remove(&at) {
            return Err(KernelError::Refused {
                operation: "observe",
                object: "state".into(),
                errno,
                message: None,
            });
        }
        let mut seen = NodeState {
            modules: scope
                .modules
                .iter()
                .map(|name| (name.clone(), inner.modules.get(name).copied().unwrap_or(false)))
                .collect(),
            routes: if scope.routes { inner.routes.clone() } else { BTreeSet::new() },
            gateways: scope.gateways.then(|| inner.gateways.clone()),
            rules: if scope.rules { inner.rules.clone() } else { BTreeMap::new() },
            ..NodeState::default()
        };
        seen.rules.retain(|_, rules| *rules != Ruleset::default());
        seen.sysctls = only(&inner.sysctls, &scope.sysctls);
        if scope.links || scope.addresses {
            seen.links = inner.links.clone();
        }
        if scope.addresses {
            seen.addresses = inner.addresses.observe(inner.clock, inner.no_address_protocol);
        }
        let ours = |name: &str| name.starts_with(PREFIX) || name.starts_with(PREFIX6);
        seen.sets = match &scope.sets {
            Which::All => {
                inner.sets.iter().filter(|(n, _)| ours(n)).map(|(n, s)| (n.clone(), s.clone())).collect()
            }
            Which::Only(names) => only(&inner.sets, names),
        };
        for (name, entries) in
            scope.set_entries.iter().filter(|(name, _)| !scope.sets.contains(name.as_str()))
        {
            if let Some(set) = inner.sets.get(name) {
                let there = entries.iter().filter(|entry| set.entries.contains(entry)).copied().collect();
                let part = IpSet {
                    entries: there,
                    kind: set.kind,
                    family: set.family,
                    max_entries: set.max_entries,
                };
                seen.sets.insert(name.clone(), part);
            }
        }
        seen.virtual_servers = match &scope.virtual_servers {
            Which::All => inner.virtual_servers.clone(),
            Which::Only(keys) => only(&inner.virtual_servers, keys),
        };
        Ok(seen)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        let mut committed = Committed::default();
        let mut failed = BTreeSet::new();
        let latency = self.lock().latency;
        for operation in transaction.operations() {
            if needs(operation).is_some_and(|needed| failed.contains(&needed)) {
                continue;
            }
            if !latency.is_zero() {
                std::thread::sleep(latency);
            }
            let mut inner = self.lock();
            let at = inner.counters.messages;
            inner.counters.messages += 1;
            committed.messages += 1;
            if let Some(log) = &mut inner.log {
                log.push(operation.clone());
            }
            let result = match inner.faults.remove(&at) {
                None if inner.refused.is_some_and(|which| which(operation)) => Err((libc::EBUSY, None)),
                Some(Fault::Refused(errno)) => Err((errno, None)),
                Some(Fault::AnswerLost) => inner.apply(operation).and(Err((libc::ENOBUFS, None))),
                None => inner.apply(operation),
            };
            match result {
                Ok(()) => committed.done += 1,
                Err((errno, message)) => {
                    failed.extend(makes(operation));
                    let (verb, object) = apply::words(operation);
                    let error = KernelError::Refused { operation: verb, object, errno, message };
                    committed.failed.push((operation.clone(), error));
                }
            }
        }
        committed
    }

    fn kube_proxy(&mut self, rules: bool) -> Result<KubeProxy, KernelError> {
        let mut inner = self.lock();
        inner.counters.kube_proxy_rules_read += usize::from(rules);
        if inner.kube_proxy_unreadable {
            let (operation, object) = ("read", "kube-proxy's rules".to_owned());
            return Err(KernelError::Refused { operation, object, errno: libc::EMFILE, message: None });
        }
        let addresses = inner.addresses.observe(inner.clock, inner.no_address_protocol);
        let sets: BTreeMap<&String, &IpSet> =
            inner.sets.iter().filter(|(name, _)| kube_proxy::is_set(name)).collect();
        let ports = sets.iter().filter_map(|(name, set)| Some((kube_proxy::node_ports_of(name)?, set)));
        Ok(KubeProxy {
            interface: inner.links.contains_key(kube_proxy::INTERFACE),
            addresses: addresses
                .keys()
                .filter(|key| key.interface == kube_proxy::INTERFACE)
                .map(|key| key.address)
                .collect(),
            node_ports: ports
                .flat_map(|(protocol, set)| {
                    set.entries.iter().filter_map(port_of).map(move |port| (protocol, port))
                })
                .collect(),
            sets: sets.keys().map(|name| (*name).clone()).collect(),
            chains: inner
                .kube_proxy_rules
                .iter()
                .filter(|_| rules)
                .map(|f| (*f, ["nat KUBE-SERVICES".into()].into()))
                .collect(),
            jumps: rules && !inner.kube_proxy_rules.is_empty(),
            iptables_mode: rules && inner.kube_proxy_iptables,
        })
    }

    fn kube_proxy_runs(&mut self) -> Result<Option<RunningSign>, KernelError> {
        Ok(self.lock().kube_proxy_runs.clone())
    }
}

fn port_of(entry: &SetEntry) -> Option<u16> {
    match entry {
        SetEntry::Port(port) | SetEntry::IpPort(_, _, port) => Some(*port),
        _ => None,
    }
}

fn only<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>, keys: &BTreeSet<K>) -> BTreeMap<K, V> {
    keys.iter().filter_map(|key| map.get_key_value(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Something that later operations of a transaction need.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Needed {
    VirtualServer(VirtualServerKey),
    Set(String),
}

fn makes(operation: &Operation) -> Option<Needed> {
    match operation {
        Operation::AddVirtualServer(key, _) => Some(Needed::VirtualServer(*key)),
        Operation::CreateSet(name, ..) => Some(Needed::Set(name.clone())),
        _ => None,
    }
}

fn needs(operation: &Operation) -> Option<Needed> {
    match operation {
        Operation::AddRealServer(key, ..) => Some(Needed::VirtualServer(*key)),
        Operation::AddEntry(name, _) => Some(Needed::Set(name.clone())),
        _ => None,
    }
}
