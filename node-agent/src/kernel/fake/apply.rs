//! What each operation does, and when it is refused.

use std::time::Duration;

use ipnet::IpNet;
use nodenet_crds::KernelAddressRole;

use super::Inner;
use crate::kernel::KernelEvent;
use crate::state::{
    Address, AddressKey, IPVS_TIMEOUTS, IpSet, Link, Operation, Protocol, RealServer, Ruleset, SetEntry,
    SetKind, VirtualServer, VirtualServerKey, kube_proxy, promote_secondaries,
};

/// Error number and the kernel's words.
pub(super) type Refusal = (i32, Option<String>);

fn refused<T>(errno: i32) -> Result<T, Refusal> {
    Err((errno, None))
}

impl Inner {
    pub(super) fn apply(&mut self, operation: &Operation) -> Result<(), Refusal> {
        match operation {
            Operation::LoadModule(name) => {
                if self.missing_modules.contains(name) {
                    return Err((libc::ENOENT, Some(format!("Module {name} not found."))));
                }
                self.modules.insert(name.clone(), true);
                if name == "ip_vs" {
                    for (setting, value) in
                        [("conntrack", "0"), ("expire_nodest_conn", "0"), ("conn_reuse_mode", "1")]
                    {
                        self.sysctls.entry(format!("net.ipv4.vs.{setting}")).or_insert_with(|| value.into());
                    }
                    for (timeout, seconds) in IPVS_TIMEOUTS.into_iter().zip(["900", "120", "300"]) {
                        self.sysctls.entry(timeout.into()).or_insert_with(|| seconds.into());
                    }
                    let template = "net.ipv4.vs.expire_quiescent_template";
                    self.sysctls.entry(template.into()).or_insert_with(|| "0".into());
                }
                Ok(())
            }
            Operation::SetSysctl(name, value) => {
                if self.read_only_sysctls {
                    return refused(libc::EROFS);
                }
                let Some(there) = self.sysctls.get_mut(name) else { return refused(libc::ENOENT) };
                there.clone_from(value);
                Ok(())
            }
            Operation::AddLink(name) => {
                let kind = "dummy";
                match self.links.get_mut(name) {
                    Some(link) if link.kind != kind => return refused(libc::EEXIST),
                    Some(link) => (link.up, link.carrier) = (true, true),
                    None => {
                        let link = Link { kind: kind.into(), up: true, carrier: true };
                        self.links.insert(name.clone(), link);
                        self.sysctls.insert(promote_secondaries(name), "0".into());
                    }
                }
                self.tell(KernelEvent::Link(name.clone()));
                Ok(())
            }
            Operation::DeleteLink(name) => {
                if !self.links.contains_key(name) {
                    return refused(libc::ENODEV);
                }
                self.delete_link(name);
                Ok(())
            }
            Operation::CreateSet(name, kind, family, size) => match self.sets.get_mut(name) {
                Some(set) if (set.kind, set.family) != (*kind, *family) || set.max_entries == *size => {
                    refused(libc::EEXIST)
                }
                Some(set) => {
                    set.max_entries = *size;
                    Ok(())
                }
                None => {
                    let set = IpSet {
                        kind: *kind,
                        family: *family,
                        max_entries: *size,
                        entries: Default::default(),
                    };
                    self.sets.insert(name.clone(), set);
                    Ok(())
                }
            },
            Operation::DestroySet(name) => {
                if !self.sets.contains_key(name) {
                    return refused(libc::ENOENT);
                }
                if self.rules.values().any(|rules| sets_of(rules).any(|set| set == name))
                    || (kube_proxy::is_set(name) && !self.kube_proxy_rules.is_empty())
                {
                    let words = "Set cannot be destroyed: it is in use by a kernel component";
                    return Err((libc::EBUSY, Some(words.into())));
                }
                self.sets.remove(name);
                Ok(())
            }
            Operation::AddEntry(name, entry) => {
                let Some(set) = self.sets.get_mut(name) else { return refused(libc::ENOENT) };
                if !fits(set.kind, entry) {
                    return refused(libc::EINVAL);
                }
                if set.kind != SetKind::BitmapPort
                    && !set.entries.contains(entry)
                    && set.entries.len() >= set.max_entries as usize
                {
                    return Err((libc::ENOSPC, Some("Hash is full, cannot add more elements".into())));
                }
                take_out(set, entry);
                set.entries.insert(*entry);
                Ok(())
            }
            Operation::DeleteEntry(name, entry) => {
                let Some(set) = self.sets.get_mut(name) else { return refused(libc::ENOENT) };
                take_out(set, entry);
                Ok(())
            }
            Operation::ReplaceRules(family, rules) => {
                if let Some(missing) = sets_of(rules).find(|set| !self.sets.contains_key(*set)) {
                    return Err((libc::ENOENT, Some(format!("Set {missing} doesn't exist."))));
                }
                if *rules == Ruleset::default() {
                    self.rules.remove(family);
                } else {
                    self.rules.insert(*family, rules.clone());
                }
                Ok(())
            }
            Operation::RemoveKubeProxyRules(family) => {
                self.kube_proxy_rules.remove(family);
                Ok(())
            }
            Operation::AddRoute(route) => {
                match self.links.get(&route.interface) {
                    None => return refused(libc::ENODEV),
                    Some(link) if !link.up => return refused(libc::ENETDOWN),
                    Some(_) => {}
                }
                if !self.routes.insert(route.clone()) {
                    return refused(libc::EEXIST);
                }
                self.tell(KernelEvent::Route);
                Ok(())
            }
            Operation::DeleteRoute(route) => {
                if !self.routes.remove(route) {
                    return refused(libc::ESRCH);
                }
                self.tell(KernelEvent::Route);
                Ok(())
            }
            Operation::AddVirtualServer(key, server) => {
                if self.virtual_servers.contains_key(key) {
                    return refused(libc::EEXIST);
                }
                self.check_scheduler(server)?;
                let server = VirtualServer { real_servers: Default::default(), ..server.clone() };
                self.virtual_servers.insert(*key, server);
                Ok(())
            }
            Operation::SetVirtualServer(key, server) => {
                self.check_scheduler(server)?;
                let there = self.server(key)?;
                there.scheduler.clone_from(&server.scheduler);
                (there.flags, there.persistence) = (server.flags, server.persistence);
                Ok(())
            }
            Operation::DeleteVirtualServer(key) => {
                let Some(gone) = self.virtual_servers.remove(key) else { return refused(libc::ESRCH) };
                for server in gone.real_servers.values() {
                    self.count_broken(key, server);
                }
                Ok(())
            }
            Operation::AddRealServer(key, real, server) => {
                let there = self.server(key)?;
                if there.real_servers.contains_key(real) {
                    return refused(libc::EEXIST);
                }
                let fresh = RealServer { active_connections: 0, inactive_connections: 0, ..*server };
                there.real_servers.insert(*real, fresh);
                Ok(())
            }
            Operation::SetRealServer(key, real, server) => {
                let there = self.server(key)?.real_servers.get_mut(real).ok_or((libc::ENOENT, None))?;
                (there.weight, there.forwarding) = (server.weight, server.forwarding);
                Ok(())
            }
            Operation::DeleteRealServer(key, real) => {
                let gone = self.server(key)?.real_servers.remove(real).ok_or((libc::ENOENT, None))?;
                self.count_broken(key, &gone);
                Ok(())
            }
            Operation::ForgetConnections(..) => {
                self.counters.forgotten += 1;
                Ok(())
            }
            Operation::AddAddress(key, address) => {
                if !self.links.contains_key(&key.interface) {
                    return refused(libc::ENODEV);
                }
                let (net, deprecated, expires) = self.address(key, address)?;
                let added = self.addresses.add(&key.interface, net, true, deprecated, expires);
                added.map_err(|errno| (errno, None))?;
                self.tell(KernelEvent::Address(key.clone()));
                Ok(())
            }
            Operation::SetAddress(key, address) => {
                let (net, deprecated, expires) = self.address(key, address)?;
                self.addresses
                    .set(&key.interface, net, deprecated, expires)
                    .map_err(|errno| (errno, None))?;
                self.tell(KernelEvent::Address(key.clone()));
                Ok(())
            }
            Operation::DeleteAddress(key, prefix_length) => {
                let promotes = self.promotes(&key.interface);
                let gone = self.addresses.delete(&key.interface, key.address, Some(*prefix_length), promotes);
                let Some(changed) = gone else { return refused(libc::EADDRNOTAVAIL) };
                self.tell_addresses(changed);
                Ok(())
            }
        }
    }

    pub(super) fn delete_link(&mut self, name: &str) {
        self.links.remove(name);
        self.addresses.remove_interface(name);
        self.routes.retain(|route| route.interface != name);
        self.sysctls.remove(&promote_secondaries(name));
        self.tell(KernelEvent::Link(name.to_owned()));
    }

    fn address(
        &self,
        key: &AddressKey,
        address: &Address,
    ) -> Result<(IpNet, bool, Option<Duration>), Refusal> {
        let net = IpNet::new(key.address, address.prefix_length).map_err(|_| (libc::EINVAL, None))?;
        let deprecated = address.role == Some(KernelAddressRole::Deprecated);
        let expires = address.lifetime.map(|seconds| self.clock + Duration::from_secs(seconds.into()));
        Ok((net, deprecated, expires))
    }

    fn check_scheduler(&self, server: &VirtualServer) -> Result<(), Refusal> {
        // The kernel loads a scheduler's module by itself where it can.
        let module = format!("ip_vs_{}", server.scheduler);
        if self.missing_modules.contains(&module) {
            return Err((libc::ENOENT, Some(format!("Scheduler module {module} not found"))));
        }
        if server.scheduler.is_empty() || server.scheduler.len() > 15 {
            return refused(libc::EINVAL);
        }
        Ok(())
    }

    fn server(&mut self, key: &VirtualServerKey) -> Result<&mut VirtualServer, Refusal> {
        self.virtual_servers.get_mut(key).ok_or((libc::ESRCH, None))
    }

    fn count_broken(&mut self, key: &VirtualServerKey, server: &RealServer) {
        if matches!(key, VirtualServerKey::Address(Protocol::TCP, ..) | VirtualServerKey::FirewallMark(..)) {
            self.counters.broken_connections += u64::from(server.active_connections);
        }
    }
}

/// Names of the sets that rules refer to.
fn sets_of(rules: &Ruleset) -> impl Iterator<Item = &str> {
    rules.chains.values().flat_map(|chains| chains.values()).flatten().flat_map(|rule| {
        let mut words = rule.split_whitespace();
        std::iter::from_fn(move || {
            words.by_ref().find(|word| matches!(*word, "--match-set" | "--map-set"))?;
            words.next()
        })
    })
}

/// Removes what the kernel takes for the same element. Only of a marked one can there be another that is: the sets of a
/// large cluster are not walked for each entry.
fn take_out(set: &mut IpSet, entry: &SetEntry) {
    if !set.entries.remove(entry) && set.kind == SetKind::HashIpPortMark {
        set.entries.retain(|there| !there.is_same_element(entry));
    }
}

fn fits(kind: SetKind, entry: &SetEntry) -> bool {
    matches!(
        (kind, entry),
        (SetKind::HashIp, SetEntry::Ip(_))
            | (SetKind::HashNet, SetEntry::Net(_))
            | (SetKind::HashIpPort, SetEntry::IpPort(..))
            | (SetKind::HashIpPortMark, SetEntry::IpPortMark(..))
            | (SetKind::HashIpPortNet, SetEntry::IpPortNet(..))
            | (SetKind::HashIpPortIp, SetEntry::IpPortIp(..))
            | (SetKind::BitmapPort, SetEntry::Port(_))
    )
}

/// Verb and object of an operation, for an error.
pub(super) fn words(operation: &Operation) -> (&'static str, String) {
    use Operation as O;
    match operation {
        O::LoadModule(name) => ("load", format!("module {name}")),
        O::SetSysctl(name, value) => ("write", format!("setting {name} = {value}")),
        O::AddLink(name) => ("add", format!("interface {name}")),
        O::DeleteLink(name) => ("delete", format!("interface {name}")),
        O::CreateSet(name, ..) => ("create", format!("set {name}")),
        O::DestroySet(name) => ("destroy", format!("set {name}")),
        O::AddEntry(name, entry) => ("add", format!("entry {entry:?} of set {name}")),
        O::DeleteEntry(name, entry) => ("delete", format!("entry {entry:?} of set {name}")),
        O::ReplaceRules(family, _) => ("replace", format!("rules of {family:?}")),
        O::RemoveKubeProxyRules(family) => ("remove", format!("rules of kube-proxy of {family:?}")),
        O::AddRoute(route) => ("add", format!("local route {}", route.range)),
        O::DeleteRoute(route) => ("delete", format!("local route {}", route.range)),
        O::AddVirtualServer(key, _) => ("add", key.to_string()),
        O::SetVirtualServer(key, _) => ("change", key.to_string()),
        O::DeleteVirtualServer(key) => ("delete", key.to_string()),
        O::AddRealServer(key, real, _) => {
            ("add", format!("real server {}:{} of {key}", real.address, real.port))
        }
        O::SetRealServer(key, real, _) => {
            ("change", format!("real server {}:{} of {key}", real.address, real.port))
        }
        O::DeleteRealServer(key, real) => {
            ("delete", format!("real server {}:{} of {key}", real.address, real.port))
        }
        O::ForgetConnections(key, _) => ("forget", format!("connections of {key}")),
        O::AddAddress(key, _) => ("add", format!("address {} on {}", key.address, key.interface)),
        O::SetAddress(key, _) => ("change", format!("address {} on {}", key.address, key.interface)),
        O::DeleteAddress(key, _) => ("delete", format!("address {} on {}", key.address, key.interface)),
    }
}
