//! Which part of the state an operation touches: what is looked at again after a commit.

use crate::state::{Operation, Scope, Transaction, Which};

/// Named objects beyond which a whole look is cheaper than single ones.
const MANY: usize = 256;

/// What is judged together: a condition each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Modules and settings.
    Kernel,
    /// Interfaces, addresses, local routes.
    Addresses,
    /// Sets and rules.
    PacketFilter,
    /// Virtual and real servers.
    VirtualServers,
}

/// The area of an operation.
pub fn area(operation: &Operation) -> Area {
    match operation {
        Operation::LoadModule(_) | Operation::SetSysctl(..) => Area::Kernel,
        Operation::AddLink(_)
        | Operation::DeleteLink(_)
        | Operation::AddRoute(_)
        | Operation::DeleteRoute(_)
        | Operation::AddAddress(..)
        | Operation::SetAddress(..)
        | Operation::DeleteAddress(..) => Area::Addresses,
        Operation::CreateSet(..)
        | Operation::DestroySet(_)
        | Operation::AddEntry(..)
        | Operation::DeleteEntry(..)
        | Operation::ReplaceRules(..)
        | Operation::RemoveKubeProxyRules(_) => Area::PacketFilter,
        Operation::AddVirtualServer(..)
        | Operation::SetVirtualServer(..)
        | Operation::DeleteVirtualServer(_)
        | Operation::AddRealServer(..)
        | Operation::SetRealServer(..)
        | Operation::DeleteRealServer(..)
        | Operation::ForgetConnections(..) => Area::VirtualServers,
    }
}

/// What `transaction` touches. Where it touches very many objects of a sort, all of them.
pub fn touched(transaction: &Transaction) -> Scope {
    let mut scope = Scope::default();
    for operation in transaction.operations() {
        touch(&mut scope, operation);
    }
    if matches!(&scope.virtual_servers, Which::Only(keys) if keys.len() > MANY) {
        scope.virtual_servers = Which::All;
    }
    let many: Vec<String> =
        scope.set_entries.iter().filter(|(_, e)| e.len() > MANY).map(|(name, _)| name.clone()).collect();
    let mut whole = Scope::default();
    whole.sets.merge(Which::Only(many.into_iter().collect()));
    scope.merge(whole);
    scope
}

fn touch(scope: &mut Scope, operation: &Operation) {
    match operation {
        Operation::LoadModule(name) => {
            scope.modules.insert(name.clone());
        }
        Operation::SetSysctl(name, _) => {
            scope.sysctls.insert(name.clone());
        }
        Operation::AddLink(_) | Operation::DeleteLink(_) => scope.links = true,
        Operation::CreateSet(name, ..) | Operation::DestroySet(name) => {
            scope.sets.merge(Which::Only([name.clone()].into()));
        }
        Operation::AddEntry(name, entry) | Operation::DeleteEntry(name, entry) => {
            scope.set_entries.entry(name.clone()).or_default().insert(*entry);
        }
        Operation::ReplaceRules(..) => scope.rules = true,
        Operation::AddRoute(_) | Operation::DeleteRoute(_) => scope.routes = true,
        Operation::AddVirtualServer(key, _)
        | Operation::SetVirtualServer(key, _)
        | Operation::DeleteVirtualServer(key)
        | Operation::AddRealServer(key, ..)
        | Operation::SetRealServer(key, ..)
        | Operation::DeleteRealServer(key, _) => {
            scope.virtual_servers.merge(Which::Only([*key].into()));
        }
        // Nothing shows what was forgotten; what is kube-proxy's is in no state.
        Operation::ForgetConnections(..) | Operation::RemoveKubeProxyRules(_) => {}
        Operation::AddAddress(..) | Operation::SetAddress(..) | Operation::DeleteAddress(..) => {
            scope.addresses = true;
        }
    }
}

/// Whether a look at `scope` would show what became of `operation`.
pub fn covers(scope: &Scope, operation: &Operation) -> bool {
    match operation {
        Operation::LoadModule(name) => scope.modules.contains(name),
        Operation::SetSysctl(name, _) => scope.sysctls.contains(name),
        Operation::AddLink(_) | Operation::DeleteLink(_) => scope.links || scope.addresses,
        Operation::CreateSet(name, ..) | Operation::DestroySet(name) => {
            scope.sets.contains(name) || scope.set_entries.contains_key(name)
        }
        Operation::AddEntry(name, entry) | Operation::DeleteEntry(name, entry) => {
            scope.sets.contains(name) || scope.set_entries.get(name).is_some_and(|e| e.contains(entry))
        }
        Operation::ReplaceRules(..) | Operation::RemoveKubeProxyRules(_) => scope.rules,
        Operation::AddRoute(_) | Operation::DeleteRoute(_) => scope.routes,
        Operation::AddVirtualServer(key, _)
        | Operation::SetVirtualServer(key, _)
        | Operation::DeleteVirtualServer(key)
        | Operation::AddRealServer(key, ..)
        | Operation::SetRealServer(key, ..)
        | Operation::DeleteRealServer(key, _)
        | Operation::ForgetConnections(key, _) => scope.virtual_servers.contains(key),
        Operation::AddAddress(..) | Operation::SetAddress(..) | Operation::DeleteAddress(..) => {
            scope.addresses
        }
    }
}

/// The scope cut into parts that can be read one without the other, each with its area.
pub fn parts(scope: &Scope) -> Vec<(Area, Scope)> {
    let empty = Scope::default;
    let all = [
        (Area::Kernel, Scope { modules: scope.modules.clone(), sysctls: scope.sysctls.clone(), ..empty() }),
        (Area::Addresses, Scope { links: scope.links, addresses: scope.addresses, ..empty() }),
        (Area::Addresses, Scope { routes: scope.routes, ..empty() }),
        (
            Area::PacketFilter,
            Scope { sets: scope.sets.clone(), set_entries: scope.set_entries.clone(), ..empty() },
        ),
        (Area::PacketFilter, Scope { rules: scope.rules, ..empty() }),
        (Area::VirtualServers, Scope { virtual_servers: scope.virtual_servers.clone(), ..empty() }),
    ];
    all.into_iter().filter(|(_, part)| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::state::{Protocol, SetEntry, VirtualServerKey};

    fn server(n: u16) -> Operation {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        Operation::DeleteVirtualServer(VirtualServerKey::Address(Protocol::TCP, address, n))
    }

    #[test]
    fn a_look_follows_what_was_touched() {
        let one = Transaction::new(vec![server(1), Operation::AddEntry("S".into(), SetEntry::Port(1))]);
        let scope = touched(&one);
        assert!(covers(&scope, &server(1)) && !covers(&scope, &server(2)));
        assert!(scope.set_entries["S"].contains(&SetEntry::Port(1)) && !scope.rules && scope.sets.is_none());
    }

    #[test]
    fn very_many_single_looks_become_one() {
        let entries = (0..1000).map(|n| Operation::AddEntry("S".into(), SetEntry::Port(n)));
        let many = Transaction::new((0..1000).map(server).chain(entries).collect());
        let scope = touched(&many);
        assert_eq!(scope.virtual_servers, Which::All);
        assert!(scope.sets.contains("S") && scope.set_entries.is_empty());
    }

    #[test]
    fn parts_make_the_whole() {
        let mut whole = Scope { links: true, routes: true, rules: true, ..Scope::default() };
        whole.sysctls.insert("a".into());
        whole.virtual_servers = Which::All;
        let mut again = Scope::default();
        for (_, part) in parts(&whole) {
            again.merge(part);
        }
        assert_eq!(again, whole);
    }
}
