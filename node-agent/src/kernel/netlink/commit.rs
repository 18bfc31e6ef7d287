//! A transaction, step by step.
//!
//! Neighbouring operations of one sort go to the kernel together. The batch ends where the sort or the phase changes,
//! so that what failed in it is known before anything that needs it is tried.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    NetlinkKernel, address,
    conntrack::{self, Selection},
    ipset::{self, Direction, Run},
    ipvs::Change,
    link, route,
    transport::TransportError,
};
use crate::{
    kernel::{Committed, KernelError},
    state::{AddressKey, LocalRoute, Operation, SetEntry, Transaction, VirtualServerKey},
};

/// Operations that go to the kernel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// One at a time.
    Single,
    Entries,
    Routes,
    Servers,
    Addresses,
    Connections,
}

impl Sort {
    fn of(operation: &Operation) -> Self {
        use Operation as O;
        match operation {
            O::LoadModule(_)
            | O::SetSysctl(..)
            | O::AddLink(_)
            | O::DeleteLink(_)
            | O::CreateSet(..)
            | O::DestroySet(_)
            | O::ReplaceRules(..)
            | O::RemoveKubeProxyRules(_) => Self::Single,
            O::AddEntry(..) | O::DeleteEntry(..) => Self::Entries,
            O::AddRoute(_) | O::DeleteRoute(_) => Self::Routes,
            // Real servers come in a later phase than their virtual servers.
            O::AddVirtualServer(..)
            | O::SetVirtualServer(..)
            | O::DeleteVirtualServer(_)
            | O::AddRealServer(..)
            | O::SetRealServer(..)
            | O::DeleteRealServer(..) => Self::Servers,
            O::AddAddress(..) | O::SetAddress(..) | O::DeleteAddress(..) => Self::Addresses,
            O::ForgetConnections(..) => Self::Connections,
        }
    }
}

/// What could not be made: whatever needs it is not tried.
#[derive(Default)]
struct Lacking {
    links: BTreeSet<String>,
    sets: BTreeSet<String>,
    virtual_servers: BTreeSet<VirtualServerKey>,
}

impl Lacking {
    fn add(&mut self, operation: &Operation) {
        match operation {
            Operation::AddLink(name) => {
                self.links.insert(name.clone());
            }
            Operation::CreateSet(name, ..) => {
                self.sets.insert(name.clone());
            }
            Operation::AddVirtualServer(key, _) => {
                self.virtual_servers.insert(*key);
            }
            _ => {}
        }
    }

    fn blocks(&self, operation: &Operation) -> bool {
        match operation {
            Operation::AddRoute(route) => self.links.contains(&route.interface),
            Operation::AddEntry(set, _) => self.sets.contains(set),
            Operation::AddRealServer(key, ..) => self.virtual_servers.contains(key),
            _ => false,
        }
    }
}

/// Carries a transaction out.
pub(super) fn commit(kernel: &mut NetlinkKernel, transaction: &Transaction) -> Committed {
    let before = kernel.cost();
    let mut committed = Committed::default();
    let mut lacking = Lacking::default();
    let sort_and_phase = |operation: &Operation| (Sort::of(operation), operation.phase());
    for group in transaction
        .operations()
        .chunk_by(|one, next| sort_and_phase(one) == sort_and_phase(next) && Sort::of(one) != Sort::Single)
    {
        let tried: Vec<_> = group.iter().filter(|operation| !lacking.blocks(operation)).collect();
        let Some(first) = tried.first() else { continue };
        let mut failed = match Sort::of(first) {
            Sort::Single => single(kernel, first).err().map(|error| (0, error)).into_iter().collect(),
            Sort::Entries => entries(kernel, &tried),
            Sort::Routes => routes(kernel, &tried),
            Sort::Servers => servers(kernel, &tried),
            Sort::Addresses => addresses(kernel, &tried),
            Sort::Connections => connections(kernel, &tried),
        };
        failed.sort_by_key(|(index, _)| *index);
        failed.dedup_by_key(|(index, _)| *index);
        committed.done += tried.len() - failed.len();
        for (index, error) in failed {
            if let Some(operation) = tried.get(index) {
                lacking.add(operation);
                committed.failed.push(((*operation).clone(), error));
            }
        }
    }
    let after = kernel.cost();
    let spent = (after.messages - before.messages) + (after.programs - before.programs);
    committed.messages = usize::try_from(spent).unwrap_or(usize::MAX);
    committed
}

/// Failures by the index of the operation.
type Failed = Vec<(usize, KernelError)>;

fn single(kernel: &mut NetlinkKernel, operation: &Operation) -> Result<(), KernelError> {
    match operation {
        Operation::LoadModule(name) => {
            kernel.written += 1;
            kernel.modules.load(name)
        }
        Operation::SetSysctl(name, value) => {
            let written = kernel.set(name, value)?;
            kernel.written += u64::from(written);
            Ok(())
        }
        Operation::AddLink(name) => link::add(&mut kernel.route, name),
        Operation::DeleteLink(name) => link::delete(&mut kernel.route, name),
        Operation::CreateSet(name, kind, family, max_entries) => {
            ipset::create(kernel.netfilter()?, name, *kind, *family, *max_entries)
        }
        Operation::DestroySet(name) => ipset::destroy(kernel.netfilter()?, name),
        Operation::ReplaceRules(family, ruleset) => kernel.rules.replace(*family, ruleset).map(|_| ()),
        Operation::RemoveKubeProxyRules(family) => kernel.rules.remove_kube_proxys(*family),
        // Sorted out before.
        _ => Ok(()),
    }
}

/// The socket cannot be opened: each object says so itself.
fn without_socket(tried: &[&Operation], kernel: &mut NetlinkKernel) -> Failed {
    let errors = std::iter::from_fn(|| kernel.netfilter().err());
    errors.take(tried.len()).enumerate().collect()
}

fn entries(kernel: &mut NetlinkKernel, tried: &[&Operation]) -> Failed {
    let changes: Vec<(&str, Direction, SetEntry)> = tried
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddEntry(set, entry) => Some((set.as_str(), Direction::Add, *entry)),
            Operation::DeleteEntry(set, entry) => Some((set.as_str(), Direction::Delete, *entry)),
            _ => None,
        })
        .collect();
    let Ok(netfilter) = kernel.netfilter() else { return without_socket(tried, kernel) };
    let mut runs = Vec::new();
    let mut starts = Vec::new();
    let mut start = 0;
    for run in changes.chunk_by(|one, next| (one.0, one.1) == (next.0, next.1)) {
        if let Some((set, direction, _)) = run.first() {
            let entries = run.iter().map(|(_, _, entry)| *entry).collect();
            runs.push(Run { set, direction: *direction, entries });
            starts.push(start);
        }
        start += run.len();
    }
    ipset::change(netfilter, &runs)
        .into_iter()
        .filter_map(|(run, entry, error)| Some((starts.get(run)? + entry, error)))
        .collect()
}

/// Numbers of interfaces by name, each asked once.
#[derive(Default)]
struct Indices(BTreeMap<String, Option<u32>>);

impl Indices {
    fn find(
        &mut self,
        kernel: &mut NetlinkKernel,
        name: &str,
        operation: &'static str,
        object: impl Fn() -> String,
    ) -> Result<u32, KernelError> {
        let index = match self.0.get(name) {
            Some(index) => *index,
            None => {
                let found = link::find(&mut kernel.route, name)
                    .map_err(|error| error.about("read", format!("interface {name}")))?
                    .map(|it| it.index);
                *self.0.entry(name.to_owned()).or_insert(found)
            }
        };
        index.ok_or_else(|| KernelError::Refused {
            operation,
            object: object(),
            errno: libc::ENODEV,
            message: Some(format!("there is no interface {name}")),
        })
    }
}

/// Operations whose interface was found, with its number and their own index.
fn with_indices<'o, T>(
    kernel: &mut NetlinkKernel,
    tried: &[&'o Operation],
    failed: &mut Failed,
    of: impl Fn(&'o Operation) -> Option<(&'static str, &'o str, T)>,
    words: impl Fn(&T) -> String,
) -> Vec<(usize, u32, &'o Operation, T)> {
    let mut indices = Indices::default();
    let mut ready = Vec::new();
    for (position, operation) in tried.iter().enumerate() {
        let Some((verb, interface, subject)) = of(operation) else { continue };
        match indices.find(kernel, interface, verb, || words(&subject)) {
            Ok(index) => ready.push((position, index, *operation, subject)),
            Err(error) => failed.push((position, error)),
        }
    }
    ready
}

fn verb(operation: &Operation) -> &'static str {
    match operation {
        Operation::SetAddress(..) => "change",
        Operation::DeleteAddress(..) | Operation::DeleteRoute(_) => "remove",
        _ => "add",
    }
}

fn routes(kernel: &mut NetlinkKernel, tried: &[&Operation]) -> Failed {
    let words = |route: &&LocalRoute| format!("local route {} on interface {}", route.range, route.interface);
    let mut failed = Failed::new();
    let ready = with_indices(
        kernel,
        tried,
        &mut failed,
        |operation| match operation {
            Operation::AddRoute(route) | Operation::DeleteRoute(route) => {
                Some((verb(operation), route.interface.as_str(), route))
            }
            _ => None,
        },
        words,
    );
    let mut batch = kernel.route.batch();
    for (_, index, operation, subject) in &ready {
        match operation {
            Operation::AddRoute(_) => route::add(&mut batch, *index, subject),
            _ => route::delete(&mut batch, *index, subject),
        }
    }
    for (index, error) in batch.finish() {
        if let Some((position, _, operation, subject)) = ready.get(index) {
            failed.push((*position, error.about(verb(operation), words(subject))));
        }
    }
    failed
}

fn addresses(kernel: &mut NetlinkKernel, tried: &[&Operation]) -> Failed {
    let words = |(key, prefix): &(&AddressKey, u8)| {
        format!("address {}/{prefix} on interface {}", key.address, key.interface)
    };
    let mut failed = Failed::new();
    let ready = with_indices(
        kernel,
        tried,
        &mut failed,
        |operation| {
            let (key, prefix) = match operation {
                Operation::AddAddress(key, address) | Operation::SetAddress(key, address) => {
                    (key, address.prefix_length)
                }
                Operation::DeleteAddress(key, prefix) => (key, *prefix),
                _ => return None,
            };
            Some((verb(operation), key.interface.as_str(), (key, prefix)))
        },
        words,
    );
    let mut batch = kernel.route.batch();
    for (_, index, operation, _) in &ready {
        match operation {
            Operation::AddAddress(key, address) => address::add(&mut batch, *index, key, address),
            Operation::SetAddress(key, address) => address::set(&mut batch, *index, key, address),
            Operation::DeleteAddress(key, prefix) => address::delete(&mut batch, *index, key, *prefix),
            _ => {}
        }
    }
    for (index, error) in batch.finish() {
        if let Some((position, _, operation, subject)) = ready.get(index) {
            failed.push((*position, error.about(verb(operation), words(subject))));
        }
    }
    failed
}

fn servers(kernel: &mut NetlinkKernel, tried: &[&Operation]) -> Failed {
    let changes: Vec<Change<'_>> = tried
        .iter()
        .filter_map(|operation| {
            Some(match operation {
                Operation::AddVirtualServer(key, server) => Change::Add(*key, server),
                Operation::SetVirtualServer(key, server) => Change::Set(*key, server),
                Operation::DeleteVirtualServer(key) => Change::Delete(*key),
                Operation::AddRealServer(key, real, how) => Change::AddReal(*key, *real, how),
                Operation::SetRealServer(key, real, how) => Change::SetReal(*key, *real, how),
                Operation::DeleteRealServer(key, real) => Change::DeleteReal(*key, *real),
                _ => return None,
            })
        })
        .collect();
    let (generic, family) = match kernel.ipvs() {
        Ok(ipvs) => ipvs,
        Err(error) => return ipvs_missing(&changes, error),
    };
    let mut failed = Failed::new();
    let mut positions = Vec::with_capacity(changes.len());
    let mut batch = generic.batch();
    for (position, change) in changes.iter().enumerate() {
        match change.push(&mut batch, family) {
            Ok(()) => positions.push(position),
            Err(error) => failed.push((position, error)),
        }
    }
    for (index, error) in batch.finish() {
        if let Some(position) = positions.get(index)
            && let Some(change) = changes.get(*position)
        {
            failed.push((*position, refusal(change, error)));
        }
    }
    failed
}

/// A refusal of IPVS, which says more in errors than their numbers do.
fn refusal(change: &Change<'_>, error: TransportError) -> KernelError {
    let (operation, object) = change.words();
    match (change, error) {
        (Change::Add(_, server) | Change::Set(_, server), error) if error.errno() == Some(libc::ENOENT) => {
            KernelError::Refused {
                operation,
                object,
                errno: libc::EINVAL,
                message: Some(format!(
                    "the kernel has no scheduler {0}; load it with `modprobe ip_vs_{0}`",
                    server.scheduler
                )),
            }
        }
        (_, error) => error.about(operation, object),
    }
}

/// Each object says itself that the kernel has no IPVS.
fn ipvs_missing(changes: &[Change<'_>], error: KernelError) -> Failed {
    let KernelError::Missing { feature, module, .. } = error else {
        return vec![(0, error)];
    };
    changes
        .iter()
        .map(|change| {
            let (operation, object) = change.words();
            KernelError::Missing { operation, object, feature, module }
        })
        .enumerate()
        .collect()
}

fn connections(kernel: &mut NetlinkKernel, tried: &[&Operation]) -> Failed {
    let selections: Vec<_> = tried
        .iter()
        .filter_map(|operation| match operation {
            Operation::ForgetConnections(server, backend) => {
                Some(Selection { server: *server, backend: *backend })
            }
            _ => None,
        })
        .collect();
    let Ok(netfilter) = kernel.netfilter() else { return without_socket(tried, kernel) };
    conntrack::forget(netfilter, &selections)
}
