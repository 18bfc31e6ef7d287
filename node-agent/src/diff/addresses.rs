//! Addresses of virtual IPs.
//!
//! Deleting the first IPv4 address of a subnet takes the others of the subnet with it, the node's own included, unless
//! `promote_secondaries` is 1 for the interface. An address of ours that is first therefore goes only after the setting
//! was seen to be in force.

use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::KernelAddressRole as Role;

use super::{Context, Journal, Note, Outcome};
use crate::state::{
    Address, AddressKey, NodeState, Operation, SERVICE_INTERFACE, Transaction, promote_secondaries,
};

pub(super) fn compare(
    desired: &NodeState,
    observed: &NodeState,
    context: &Context<'_>,
    operations: &mut Vec<Operation>,
    outcome: &mut Outcome,
) {
    let mut going = Going { observed, operations, outcome };
    if context.prune.addresses {
        for (key, there) in &observed.addresses {
            if !desired.addresses.contains_key(key)
                && key.interface != SERVICE_INTERFACE
                && is_ours(context.journal, key, there)
            {
                going.delete(key, there);
            }
        }
    }
    for (key, wanted) in &desired.addresses {
        if !context.journal.addresses.contains(key) {
            going.outcome.claims.addresses.insert(key.clone());
        }
        let Some(there) = observed.addresses.get(key) else {
            going.operations.push(Operation::AddAddress(key.clone(), wanted.clone()));
            continue;
        };
        if !is_ours(context.journal, key, there) {
            going.outcome.claims.addresses.remove(key);
            going.outcome.notes.push(Note::ForeignAddress(key.clone()));
            continue;
        }
        let out_of_place = wanted.role == Some(Role::Secondary)
            && there.role == Some(Role::Primary)
            && neighbours(observed, key, there).any(|(k, a)| !is_ours(context.journal, k, a));
        if wanted.prefix_length != there.prefix_length || there.unusable || out_of_place {
            if going.delete(key, there) {
                going.operations.push(Operation::AddAddress(key.clone(), wanted.clone()));
            }
        } else if wanted.lifetime.is_some() != there.lifetime.is_some()
            || (wanted.role == Some(Role::Deprecated) && there.role == Some(Role::Preferred))
        {
            going.operations.push(Operation::SetAddress(key.clone(), wanted.clone()));
        }
    }
}

struct Going<'a> {
    observed: &'a NodeState,
    operations: &'a mut Vec<Operation>,
    outcome: &'a mut Outcome,
}

impl Going<'_> {
    /// Deletes an address, or makes that safe first. Whether it was deleted.
    fn delete(&mut self, key: &AddressKey, there: &Address) -> bool {
        let takes_others =
            there.role == Some(Role::Primary) && neighbours(self.observed, key, there).next().is_some();
        if takes_others {
            let setting = promote_secondaries(&key.interface);
            if self.observed.sysctls.get(&setting).map(String::as_str) != Some("1") {
                let set = Operation::SetSysctl(setting.clone(), "1".into());
                if !self.operations.contains(&set) {
                    self.operations.push(set);
                }
                self.outcome.widen.sysctls.insert(setting);
                return false;
            }
        }
        self.operations.push(Operation::DeleteAddress(key.clone(), there.prefix_length));
        true
    }
}

/// Other IPv4 addresses of the same subnet and mask on the same interface.
fn neighbours<'a>(
    observed: &'a NodeState,
    key: &'a AddressKey,
    address: &'a Address,
) -> impl Iterator<Item = (&'a AddressKey, &'a Address)> {
    let subnet = |key: &AddressKey, address: &Address| match key.address {
        IpAddr::V4(_) => IpNet::new(key.address, address.prefix_length).ok().map(|net| net.trunc()),
        IpAddr::V6(_) => None,
    };
    let own = subnet(key, address);
    observed.addresses.iter().filter(move |(k, a)| {
        own.is_some() && k.interface == key.interface && *k != key && subnet(k, a) == own
    })
}

fn is_ours(journal: &Journal, key: &AddressKey, address: &Address) -> bool {
    address.ours || journal.addresses.contains(key)
}

/// Gives every held address of ours a new lifetime: the fence of a living agent.
pub fn renewal(
    desired: &NodeState,
    observed: &NodeState,
    journal: &Journal,
    lifetime: Option<u32>,
) -> Transaction {
    let renewed = |(key, wanted): (&AddressKey, &Address)| {
        let there = observed.addresses.get(key).filter(|there| is_ours(journal, key, there))?;
        // By the mask that it has: with another one it would be another address.
        let address = Address { lifetime, prefix_length: there.prefix_length, ..wanted.clone() };
        Some(Operation::SetAddress(key.clone(), address))
    };
    Transaction::new(desired.addresses.iter().filter_map(renewed).collect())
}
