//! Virtual IPs: which address goes on which interface, and why one cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::{
    AddressRole, Announce, AssignedState, AssignedVirtualIP, KernelAddressRole, VirtualIPState, validate,
};

use super::ranges::overlap;
use crate::state::{Address, AddressKey, Link, SERVICE_INTERFACE, Which, kube_proxy, promote_secondaries};

/// What this node does with a virtual IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualIp {
    /// Name of the VirtualIP.
    pub name: String,
    /// What the node does with it, by the operator's word, what the node withholds and what stands in the way.
    /// `Active` says that the addresses are desired, not that the kernel has them.
    pub state: VirtualIPState,
    /// Its addresses, in the order of the spec.
    pub addresses: Vec<VirtualAddress>,
    /// How it is announced.
    pub announce: Announce,
    /// This node's priority.
    pub priority: i32,
}

impl VirtualIp {
    /// Why it cannot be held, in words.
    pub fn fault(&self) -> Option<String> {
        let faults: Vec<String> =
            self.addresses.iter().filter_map(|a| a.fault.as_ref()).map(ToString::to_string).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

/// An address of a virtual IP on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// As the spec writes it.
    pub text: String,
    /// Where it goes.
    pub key: Option<AddressKey>,
    /// Why it cannot be held.
    pub fault: Option<AddressFault>,
    /// No subnet of the interface holds it: other hosts of the link have no route to it. It is held all the same.
    pub not_on_link: bool,
}

/// Why an address cannot be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// Not an address.
    #[error("{problem}")]
    Invalid {
        /// As written.
        value: String,
        /// What is wrong with it.
        problem: validate::Problem,
    },
    /// There is no interface for it.
    #[error("{}", match interface {
        Some(name) => format!("interface {name} for {address} does not exist"),
        None => format!("no interface has a subnet that holds {address}"),
    })]
    InterfaceMissing {
        /// The address.
        address: IpAddr,
        /// The interface, where the spec names one.
        interface: Option<String>,
    },
    /// Its interface is down or has no carrier.
    #[error("interface {interface} for {address} is down")]
    InterfaceDown {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// It must be secondary, but there is none to be second to.
    #[error(
        "{address} must be secondary, but interface {interface} has no primary address of its subnet and mask"
    )]
    NoPrimary {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// Another virtual IP has the same address.
    #[error("{address} belongs to virtual IP {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        owner: String,
    },
}

/// The node's own interfaces and addresses, as far as they decide anything. Lifetimes are left out: they always move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub links: BTreeMap<String, Link>,
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Next hops of its default routes.
    pub gateways: BTreeSet<IpAddr>,
}

/// Whether an address means something on this host, or on one link, only.
fn of_host_or_link(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    address.is_loopback() || link_local
}

impl Node {
    /// Addresses that are neither ours nor those of Services.
    fn own(&self) -> impl Iterator<Item = (&AddressKey, &Address)> {
        self.addresses.iter().filter(|(key, address)| {
            !address.ours && key.interface != SERVICE_INTERFACE && key.interface != kube_proxy::INTERFACE
        })
    }

    /// A network of the node that has an address in common with `range`, with its interface: its own addresses and all
    /// that is on link.
    pub fn network_in(&self, range: &IpNet) -> Option<(&str, IpNet)> {
        self.own().find_map(|(key, there)| {
            // Nobody is on link with everybody: only the address itself counts.
            let length = if there.prefix_length == 0 { u8::MAX } else { there.prefix_length };
            let net = IpNet::new(key.address, length).unwrap_or_else(|_| IpNet::from(key.address)).trunc();
            overlap(range, &net).then_some((key.interface.as_str(), net))
        })
    }

    /// Addresses that are neither ours nor those of Services, and that other hosts can reach: those of each link that
    /// comes and goes are none.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.own().map(|(key, _)| key.address).filter(|address| !of_host_or_link(address)).collect()
    }

    /// Addresses on which node ports answer.
    pub fn node_port_addresses(
        &self,
        virtual_addresses: &BTreeSet<IpAddr>,
        ranges: &[IpNet],
        within: Option<&[IpNet]>,
    ) -> Vec<IpAddr> {
        let mut list: Vec<IpAddr> = self
            .own()
            .map(|(key, _)| key.address)
            .filter(|address| {
                !of_host_or_link(address)
                    && within.is_none_or(|within| within.iter().any(|range| range.contains(address)))
                    && !virtual_addresses.contains(address)
                    && !ranges.iter().any(|range| range.contains(address))
            })
            .collect();
        list.sort();
        list.dedup();
        list
    }

    /// The interface whose subnet holds the address: the one that has it already, else the narrowest subnet, else the
    /// first name; one that is up before one that is not.
    fn interface_of(&self, address: IpAddr) -> Option<&String> {
        let held = self.addresses.iter().find(|(key, there)| key.address == address && there.ours);
        if let Some((key, _)) = held {
            return Some(&key.interface);
        }
        self.own()
            .filter(|(key, there)| key.address != address && holds(key, there, address))
            .max_by_key(|(key, there)| {
                let up = self.links.get(&key.interface).is_some_and(|link| link.up);
                (up, there.prefix_length, std::cmp::Reverse(&key.interface))
            })
            .map(|(key, _)| &key.interface)
    }

    /// Whether an address of the node on the interface has the same subnet and mask.
    fn has_primary(&self, net: IpNet, interface: &str) -> bool {
        self.own().any(|(key, there)| {
            key.interface == interface
                && key.address != net.addr()
                && there.prefix_length == net.prefix_len()
                && holds(key, there, net.addr())
        })
    }

    fn on_link(&self, address: IpAddr, interface: &str) -> bool {
        self.own().any(|(key, there)| {
            key.interface == interface && key.address != address && holds(key, there, address)
        })
    }
}

fn holds(key: &AddressKey, there: &Address, address: IpAddr) -> bool {
    IpNet::new(key.address, there.prefix_length).is_ok_and(|net| net.contains(&address))
}

/// What the virtual IPs ask for.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub virtual_ips: Vec<VirtualIp>,
    pub addresses: BTreeMap<AddressKey, Address>,
    pub sysctls: BTreeMap<String, String>,
}

pub(super) fn resolve(
    assigned: &[AssignedVirtualIP],
    node: &Node,
    withheld: &Which<String>,
    withheld_addresses: &BTreeSet<AddressKey>,
    lifetime: Option<u32>,
) -> Resolved {
    let mut resolved = Resolved::default();
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut in_order: Vec<&AssignedVirtualIP> = assigned.iter().collect();
    in_order.sort_by(|a, b| a.name.cmp(&b.name));
    for vip in in_order {
        let mut wanted = Vec::new();
        let mut addresses = Vec::new();
        for text in &vip.addresses {
            let (address, entry) = place(text, vip, node, &mut owners);
            addresses.push(address);
            wanted.extend(entry);
        }
        let faulty = addresses.iter().any(|a| a.fault.is_some());
        let active = vip.state == AssignedState::Active && !withheld.contains(vip.name.as_str());
        let state = match (faulty, active) {
            (true, _) => VirtualIPState::Fault,
            (false, true) => VirtualIPState::Active,
            (false, false) => VirtualIPState::Backup,
        };
        for (key, role, prefix_length) in wanted {
            if key.address.is_ipv4() {
                resolved.sysctls.insert(promote_secondaries(&key.interface), "1".into());
            }
            if state == VirtualIPState::Active && !withheld_addresses.contains(&key) {
                let address = Address { prefix_length, role, lifetime, ours: true, unusable: false };
                resolved.addresses.insert(key, address);
            }
        }
        let (announce, priority) = (vip.announce.clone(), vip.priority);
        resolved.virtual_ips.push(VirtualIp { name: vip.name.clone(), state, addresses, announce, priority });
    }
    // Where another hand has put a virtual IP, and where one of ours still is, the node's own address must not take it
    // along.
    for (key, address) in &node.addresses {
        let behind = address.role == Some(KernelAddressRole::Secondary) || address.ours;
        if key.address.is_ipv4() && behind && key.interface != SERVICE_INTERFACE {
            resolved.sysctls.insert(promote_secondaries(&key.interface), "1".into());
        }
    }
    resolved
}

type Entry = (AddressKey, Option<KernelAddressRole>, u8);

fn place(
    text: &str,
    vip: &AssignedVirtualIP,
    node: &Node,
    owners: &mut BTreeMap<IpAddr, String>,
) -> (VirtualAddress, Option<Entry>) {
    let mut result = VirtualAddress { text: text.to_owned(), key: None, fault: None, not_on_link: false };
    let net = match validate::host_cidr(text) {
        Ok(net) => net,
        Err(problem) => {
            result.fault = Some(AddressFault::Invalid { value: text.to_owned(), problem });
            return (result, None);
        }
    };
    let address = net.addr();
    match owners.get(&address) {
        Some(owner) if *owner != vip.name => {
            result.fault = Some(AddressFault::Taken { address, owner: owner.clone() });
            return (result, None);
        }
        _ => {
            owners.insert(address, vip.name.clone());
        }
    }
    let chosen = match &vip.interface {
        Some(name) => node.links.get_key_value(name).map(|(name, _)| name),
        None => node.interface_of(address),
    };
    let Some(interface) = chosen else {
        result.fault = Some(AddressFault::InterfaceMissing { address, interface: vip.interface.clone() });
        return (result, None);
    };
    let key = AddressKey { interface: interface.clone(), address };
    result.key = Some(key.clone());
    if !node.links.get(interface).is_some_and(|link| link.up && link.carrier) {
        result.fault = Some(AddressFault::InterfaceDown { address, interface: interface.clone() });
    }
    result.not_on_link = !node.on_link(address, interface);
    let (role, prefix_length) = match net {
        IpNet::V6(_) => (Some(KernelAddressRole::Deprecated), net.prefix_len()),
        IpNet::V4(_) if vip.address_role == AddressRole::Primary => (Some(KernelAddressRole::Primary), 32),
        IpNet::V4(_) => {
            let behind = node.has_primary(net, interface);
            // One that is held stays when the primary goes: it was promoted, and keeps answering.
            let held = node.addresses.get(&key).is_some_and(|there| there.ours);
            if vip.address_role == AddressRole::Secondary && !behind && !held && result.fault.is_none() {
                result.fault = Some(AddressFault::NoPrimary { address, interface: interface.clone() });
            }
            (behind.then_some(KernelAddressRole::Secondary), net.prefix_len())
        }
    };
    (result, Some((key, role, prefix_length)))
}
