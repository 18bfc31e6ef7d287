//! The real kernel of one network namespace.
//!
//! | module | owns |
//! |---|---|
//! | `transport` | sockets: batches, dumps, acknowledgements; knows no family |
//! | `namespace` | doing things in another network namespace |
//! | `link`, `address`, `route` | interfaces, their addresses, local routes (rtnetlink) |
//! | `ipvs` | virtual servers and real servers (generic netlink) |
//! | `ipset` | sets (nfnetlink) |
//! | `conntrack` | forgetting connections of backends that went (nfnetlink) |
//! | `rules` | chains and jumps, by the host's iptables |
//! | `program` | running programs, with a limit of time |
//! | `kube_proxy` | what there is of kube-proxy, and whether it runs |
//! | `sysctl`, `modules` | settings and modules |
//! | `forwarding` | routers that a node still needs when it begins to forward IPv6 |
//! | `commit` | a transaction, step by step |
//! | [`events`], [`listener`] | hearing of changes; threads that hear |
//! | `frames` | Ethernet frames on packet sockets |
//! | [`announce`], [`probe`], [`owner`] | ARP and neighbour discovery: telling, asking, hearing other owners |

pub mod announce;
pub mod events;
pub mod listener;
pub mod owner;
pub mod probe;

mod address;
mod commit;
mod conntrack;
mod forwarding;
mod frames;
mod ipset;
mod ipvs;
mod kube_proxy;
mod link;
mod modules;
mod namespace;
mod program;
mod route;
mod rules;
mod sysctl;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

pub use self::{namespace::Namespace, rules::PacketFilterMode, transport::Cost};

use self::{
    modules::Modules,
    rules::Rules,
    sysctl::Settings,
    transport::{Connection, Protocol},
};
use super::{Committed, Kernel, KernelError, RunningSign};
use crate::state::{
    IPVS_TIMEOUTS, KubeProxy, NodeState, Scope, Transaction, VirtualServer, VirtualServerKey,
};

/// Where the kernel's parts are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Network namespace.
    pub namespace: Namespace,
    /// Folder of the settings; the host's, where it is mounted elsewhere.
    pub sysctl_root: PathBuf,
    /// Folder of the modules, with one folder for each kernel release.
    pub modules_root: PathBuf,
    /// Which of the two packet filters.
    pub packet_filter: PacketFilterMode,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: Namespace::own(),
            sysctl_root: "/proc/sys".into(),
            modules_root: "/lib/modules".into(),
            packet_filter: PacketFilterMode::Auto,
        }
    }
}

/// The kernel of a network namespace.
///
/// Its sockets are its own: two of them on two threads do not wait for each other.
pub struct NetlinkKernel {
    namespace: Namespace,
    route: Connection,
    /// Opened when first needed: a node may do without.
    generic: Option<Connection>,
    netfilter: Option<Connection>,
    /// Number of the family of IPVS; unknown while its module is not loaded.
    ipvs: Option<u16>,
    rules: Rules,
    settings: Settings,
    modules: Modules,
    /// Settings and modules written.
    written: u64,
}

impl NetlinkKernel {
    /// Opens the kernel of a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or a netlink socket cannot be opened there.
    pub fn new(options: Options) -> Result<Self, KernelError> {
        let Options { namespace, sysctl_root, modules_root, packet_filter } = options;
        Ok(Self {
            route: Connection::open(Protocol::Route, &namespace)?,
            generic: None,
            netfilter: None,
            ipvs: None,
            rules: Rules::new(namespace.clone(), packet_filter),
            settings: Settings::new(sysctl_root, namespace.clone()),
            modules: Modules::new(modules_root),
            namespace,
            written: 0,
        })
    }

    /// What was spent since it was opened.
    pub fn cost(&self) -> Cost {
        let mut cost =
            Cost { messages: self.written, programs: self.rules.programs_run(), ..Cost::default() };
        let connections = [Some(&self.route), self.generic.as_ref(), self.netfilter.as_ref()];
        for connection in connections.into_iter().flatten() {
            cost.messages += connection.cost().messages;
            cost.system_calls += connection.cost().system_calls;
        }
        cost
    }

    /// The packet filter in use; `None` before rules were first found or written.
    pub fn packet_filter_mode(&self) -> Option<PacketFilterMode> {
        self.rules.mode()
    }

    fn netfilter(&mut self) -> Result<&mut Connection, KernelError> {
        open(&mut self.netfilter, Protocol::Netfilter, &self.namespace)
    }

    fn virtual_servers(
        &mut self,
        scope: &Scope,
    ) -> Result<BTreeMap<VirtualServerKey, VirtualServer>, KernelError> {
        let (generic, family) = match self.ipvs() {
            Ok(ipvs) => ipvs,
            // A kernel without IPVS has no virtual server. Whoever wants one hears of it when it is to be made; before
            // that the module may get loaded.
            Err(KernelError::Missing { .. }) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let servers = ipvs::read(generic, family, &scope.virtual_servers);
        if servers.is_err() {
            // The module may have been loaded again, under another number.
            self.ipvs = None;
        }
        servers
    }

    /// Settings, those of IPVS that are no files among them. What the kernel does not have is left out.
    fn settings(&mut self, names: &BTreeSet<String>) -> Result<BTreeMap<String, String>, KernelError> {
        let (of_ipvs, files): (BTreeSet<String>, BTreeSet<String>) =
            names.iter().cloned().partition(|name| IPVS_TIMEOUTS.contains(&name.as_str()));
        let mut settings = self.settings.read(&files)?;
        if of_ipvs.is_empty() {
            return Ok(settings);
        }
        let (generic, family) = match self.ipvs() {
            Ok(ipvs) => ipvs,
            Err(KernelError::Missing { .. }) => return Ok(settings),
            Err(error) => return Err(error),
        };
        for (name, value) in IPVS_TIMEOUTS.iter().zip(ipvs::timeouts(generic, family)?) {
            if let Some(value) = value.filter(|_| of_ipvs.contains(*name)) {
                settings.insert((*name).to_owned(), value.to_string());
            }
        }
        Ok(settings)
    }

    /// Writes a setting; whether that was needed.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, KernelError> {
        if forwarding::turns_on(name, value) {
            self.written += forwarding::keep_routers(self)?;
        }
        if !IPVS_TIMEOUTS.contains(&name) {
            return self.settings.write(name, value);
        }
        let (generic, family) = self.ipvs()?;
        // It counts its messages itself.
        ipvs::set_timeout(generic, family, name, value).map(|()| false)
    }

    /// The socket and the number of the family of IPVS.
    fn ipvs(&mut self) -> Result<(&mut Connection, u16), KernelError> {
        let generic = open(&mut self.generic, Protocol::Generic, &self.namespace)?;
        let family = match self.ipvs {
            Some(family) => family,
            None => *self.ipvs.insert(ipvs::family_id(generic)?),
        };
        Ok((generic, family))
    }
}

fn open<'c>(
    connection: &'c mut Option<Connection>,
    protocol: Protocol,
    namespace: &Namespace,
) -> Result<&'c mut Connection, KernelError> {
    match connection {
        Some(connection) => Ok(connection),
        None => Ok(connection.insert(Connection::open(protocol, namespace)?)),
    }
}

impl Kernel for NetlinkKernel {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        let mut state = NodeState {
            modules: self.modules.read(&scope.modules)?,
            sysctls: self.settings(&scope.sysctls)?,
            ..NodeState::default()
        };
        if scope.links || scope.addresses || scope.routes {
            let interfaces =
                link::list(&mut self.route).map_err(|error| error.about("read", "interfaces"))?;
            if scope.addresses {
                state.addresses = address::list(&mut self.route, &interfaces)
                    .map_err(|error| error.about("read", "interface addresses"))?;
            }
            if scope.routes {
                state.routes = route::list(&mut self.route, &interfaces)
                    .map_err(|error| error.about("read", "local routes"))?;
            }
            if scope.links || scope.addresses {
                state.links = interfaces.into_values().map(|it| (it.name, it.link)).collect();
            }
        }
        if scope.gateways {
            // They are only reported: a node whose routes cannot be read has all the rest.
            match route::gateways(&mut self.route) {
                Ok(gateways) => state.gateways = Some(gateways),
                Err(error) => tracing::warn!("{}", error.about("read", "default routes")),
            }
        }
        if !scope.sets.is_none() || !scope.set_entries.is_empty() {
            state.sets = ipset::read(self.netfilter()?, scope)?;
        }
        if scope.rules {
            state.rules = self.rules.read()?;
        }
        if !scope.virtual_servers.is_none() {
            state.virtual_servers = self.virtual_servers(scope)?;
        }
        Ok(state)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        commit::commit(self, transaction)
    }

    fn kube_proxy(&mut self, rules: bool) -> Result<KubeProxy, KernelError> {
        kube_proxy::read(self, rules)
    }

    fn kube_proxy_runs(&mut self) -> Result<Option<RunningSign>, KernelError> {
        self.namespace.run(kube_proxy::running)
    }
}
