//! Interface addresses with the kernel's rules: first of a subnet, those behind it, promotion, lifetimes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::KernelAddressRole as Role;

use crate::state::{Address, AddressKey};

#[derive(Debug)]
struct Entry {
    net: IpNet,
    secondary: bool,
    deprecated: bool,
    ours: bool,
    expires: Option<Duration>,
}

/// Addresses by interface, in the kernel's order: primaries first.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    lists: BTreeMap<String, Vec<Entry>>,
}

fn same_subnet(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() && a.trunc() == b.trunc()
}

impl Addresses {
    pub fn add(
        &mut self,
        interface: &str,
        net: IpNet,
        ours: bool,
        deprecated: bool,
        expires: Option<Duration>,
    ) -> Result<(), i32> {
        let list = self.lists.entry(interface.to_owned()).or_default();
        let twice = list.iter().any(|e| {
            e.net.addr() == net.addr() && (net.addr().is_ipv6() || e.net.prefix_len() == net.prefix_len())
        });
        if twice {
            return Err(libc::EEXIST);
        }
        let secondary = list.iter().any(|e| same_subnet(&e.net, &net));
        let entry = Entry { net, secondary, deprecated: deprecated && net.addr().is_ipv6(), ours, expires };
        let at = if secondary { list.len() } else { list.iter().filter(|e| !e.secondary).count() };
        list.insert(at, entry);
        Ok(())
    }

    /// Changes lifetime and deprecation in place.
    pub fn set(
        &mut self,
        interface: &str,
        net: IpNet,
        deprecated: bool,
        expires: Option<Duration>,
    ) -> Result<(), i32> {
        let found = self.find(interface, net.addr(), Some(net.prefix_len())).ok_or(libc::ENOENT)?;
        found.expires = expires;
        found.deprecated = deprecated && net.addr().is_ipv6();
        Ok(())
    }

    fn find(&mut self, interface: &str, address: IpAddr, prefix_length: Option<u8>) -> Option<&mut Entry> {
        let list = self.lists.get_mut(interface)?;
        list.iter_mut().find(|e| {
            e.net.addr() == address && prefix_length.is_none_or(|length| e.net.prefix_len() == length)
        })
    }

    /// Deletes an address, and with a primary one those behind it, or promotes the next. All that changed; `None` where
    /// it is not there.
    pub fn delete(
        &mut self,
        interface: &str,
        address: IpAddr,
        prefix_length: Option<u8>,
        promote: bool,
    ) -> Option<Vec<AddressKey>> {
        let list = self.lists.get_mut(interface)?;
        let at = list.iter().position(|e| {
            e.net.addr() == address && prefix_length.is_none_or(|length| e.net.prefix_len() == length)
        })?;
        let gone = list.remove(at);
        let key = |net: &IpNet| AddressKey { interface: interface.to_owned(), address: net.addr() };
        let mut changed = vec![key(&gone.net)];
        if !gone.secondary && gone.net.addr().is_ipv4() {
            if promote {
                if let Some(next) = list.iter().position(|e| same_subnet(&e.net, &gone.net)) {
                    let mut heir = list.remove(next);
                    heir.secondary = false;
                    changed.push(key(&heir.net));
                    let at = list.iter().filter(|e| !e.secondary).count();
                    list.insert(at, heir);
                }
            } else {
                changed.extend(list.iter().filter(|e| same_subnet(&e.net, &gone.net)).map(|e| key(&e.net)));
                list.retain(|e| !same_subnet(&e.net, &gone.net));
            }
        }
        Some(changed)
    }

    pub fn remove_interface(&mut self, interface: &str) {
        self.lists.remove(interface);
    }

    /// The address that ran out first.
    pub fn expired(&self, now: Duration) -> Option<(String, IpAddr)> {
        self.lists
            .iter()
            .flat_map(|(interface, list)| list.iter().map(move |e| (interface, e)))
            .filter(|(_, e)| e.expires.is_some_and(|at| at <= now))
            .min_by_key(|(_, e)| e.expires)
            .map(|(interface, e)| (interface.clone(), e.net.addr()))
    }

    pub fn observe(&self, now: Duration, no_protocol: bool) -> BTreeMap<AddressKey, Address> {
        let mut seen = BTreeMap::new();
        for (interface, list) in &self.lists {
            for e in list {
                let role = match (e.net, e.secondary, e.deprecated) {
                    (IpNet::V4(_), true, _) => Role::Secondary,
                    (IpNet::V4(_), false, _) => Role::Primary,
                    (IpNet::V6(_), _, true) => Role::Deprecated,
                    (IpNet::V6(_), _, false) => Role::Preferred,
                };
                let left = |at: Duration| u32::try_from(at.saturating_sub(now).as_secs()).unwrap_or(u32::MAX);
                let address = Address {
                    prefix_length: e.net.prefix_len(),
                    role: Some(role),
                    lifetime: e.expires.map(left),
                    ours: e.ours && !no_protocol,
                    unusable: false,
                };
                seen.insert(AddressKey { interface: interface.clone(), address: e.net.addr() }, address);
            }
        }
        seen
    }
}
