//! Virtual servers and their real servers.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use super::{Context, Note, Outcome};
use crate::filter::InsideMarks;
use crate::state::{
    NodeState, Operation, Protocol, RealServer, RealServerKey, Scope, VirtualServer, VirtualServerKey, Which,
};

pub(super) fn compare(
    desired: &NodeState,
    observed: &NodeState,
    scope: &Scope,
    context: &mut Context<'_>,
    operations: &mut Vec<Operation>,
    outcome: &mut Outcome,
) {
    // A range of this very comparison is in no journal yet, but will be with the same claims.
    let ranges: Vec<IpNet> = desired.routes.iter().filter(|r| r.is_range()).map(|r| r.range).collect();
    match &scope.virtual_servers {
        Which::All => {
            for key in context.draining.servers() {
                if !observed.virtual_servers.contains_key(&key) {
                    context.draining.keep(key, |_| false);
                }
            }
            for (key, wanted) in &desired.virtual_servers {
                let there = observed.virtual_servers.get(key);
                if !foreign(key, wanted, there, &ranges, context, outcome) {
                    one(*key, Some(wanted), there, context, operations, outcome);
                }
            }
            for (key, there) in &observed.virtual_servers {
                if !desired.virtual_servers.contains_key(key) {
                    one(*key, None, Some(there), context, operations, outcome);
                }
            }
        }
        Which::Only(keys) => {
            for key in keys {
                let wanted = desired.virtual_servers.get(key);
                let there = observed.virtual_servers.get(key);
                if !wanted.is_some_and(|wanted| foreign(key, wanted, there, &ranges, context, outcome)) {
                    one(*key, wanted, there, context, operations, outcome);
                }
            }
        }
    }
}

/// Whether another hand's virtual server stands where one of ours should. In the service ranges all are ours, elsewhere
/// those in the journal. One that does what ours would do already is taken over: the journal was lost.
fn foreign(
    key: &VirtualServerKey,
    wanted: &VirtualServer,
    there: Option<&VirtualServer>,
    ranges: &[IpNet],
    context: &mut Context<'_>,
    outcome: &mut Outcome,
) -> bool {
    let Some(there) = there else { return false };
    let in_range = matches!(key, VirtualServerKey::Address(_, address, _)
        if ranges.iter().any(|range| range.contains(address)));
    let ours = context.owns(key) || (!context.others.excludes(key) && (in_range || adoptable(wanted, there)));
    if ours {
        return false;
    }
    context.draining.keep(*key, |_| false);
    outcome.notes.push(Note::ForeignVirtualServer(*key));
    true
}

fn adoptable(wanted: &VirtualServer, there: &VirtualServer) -> bool {
    wanted.scheduler == there.scheduler
        && there.real_servers.keys().all(|real| wanted.real_servers.contains_key(real))
}

fn one(
    key: VirtualServerKey,
    wanted: Option<&VirtualServer>,
    there: Option<&VirtualServer>,
    context: &mut Context<'_>,
    operations: &mut Vec<Operation>,
    outcome: &mut Outcome,
) {
    match (wanted, there) {
        (Some(wanted), there) => {
            // An address in a route of this very comparison is in no journal yet, but will be with the same claims.
            if !context.owns(&key) {
                outcome.claims.virtual_servers.insert(key);
            }
            match there {
                None => {
                    context.draining.keep(key, |_| false);
                    operations.push(Operation::AddVirtualServer(key, without_real_servers(wanted)));
                    // A client that sent before there was a virtual server has a tracked connection that went through no
                    // translation, and would never be masqueraded as long as it keeps sending.
                    if !ends_by_itself(&key, context.inside) {
                        operations.push(Operation::ForgetConnections(key, None));
                    }
                }
                Some(there) if !same(wanted, there) => {
                    operations.push(Operation::SetVirtualServer(key, without_real_servers(wanted)));
                }
                Some(_) => {}
            }
            let none = BTreeMap::new();
            let there = there.map_or(&none, |server| &server.real_servers);
            real_servers(key, wanted, there, context, operations);
        }
        (None, Some(there)) => {
            if context.prune.services && context.owns(&key) && !context.others.have(&key, there) {
                // Nobody marks packets for it any more, so it gets no new connections, while its address goes on: what
                // comes there is not to be cut off by a change of policy.
                if matches!(key, VirtualServerKey::FirewallMark(..)) && ends_by_itself(&key, context.inside) {
                    context.draining.keep(key, |real| there.real_servers.contains_key(real));
                    let mut waits = false;
                    for (real, server) in &there.real_servers {
                        waits |= leaves(key, real, server, context.drain_timeout, context, operations);
                    }
                    if waits {
                        return;
                    }
                }
                context.draining.keep(key, |_| false);
                operations.push(Operation::DeleteVirtualServer(key));
                if !ends_by_itself(&key, context.inside) {
                    operations.push(Operation::ForgetConnections(key, None));
                }
            }
        }
        (None, None) => context.draining.keep(key, |_| false),
    }
}

fn real_servers(
    key: VirtualServerKey,
    server: &VirtualServer,
    there: &BTreeMap<RealServerKey, RealServer>,
    context: &mut Context<'_>,
    operations: &mut Vec<Operation>,
) {
    let wanted = &server.real_servers;
    let timeout =
        server.drain_timeout.map_or(context.drain_timeout, |seconds| Duration::from_secs(seconds.into()));
    for (real, server) in wanted {
        match there.get(real) {
            None => operations.push(Operation::AddRealServer(key, *real, *server)),
            // In place, weight 0 included: one that is removed and added again resets its connections.
            Some(old) if !old.same(server) => operations.push(Operation::SetRealServer(key, *real, *server)),
            Some(_) => {}
        }
    }
    context.draining.keep(key, |real| there.contains_key(real) && !wanted.contains_key(real));
    if !context.prune.real_servers {
        return;
    }
    for (real, server) in there.iter().filter(|(real, _)| !wanted.contains_key(real)) {
        if !ends_by_itself(&key, context.inside) {
            operations.push(Operation::DeleteRealServer(key, *real));
            operations.push(Operation::ForgetConnections(key, Some(*real)));
            continue;
        }
        if !leaves(key, real, server, timeout, context, operations) {
            operations.push(Operation::DeleteRealServer(key, *real));
        }
    }
}

/// Lets a real server that nobody wants end its connections, at most for `timeout` from the first call; whether it still
/// has some.
fn leaves(
    key: VirtualServerKey,
    real: &RealServerKey,
    server: &RealServer,
    timeout: Duration,
    context: &mut Context<'_>,
    operations: &mut Vec<Operation>,
) -> bool {
    let connections = server.active_connections.saturating_add(server.inactive_connections);
    let deadline = context.now.saturating_add(timeout);
    if connections == 0 || context.draining.deadline(key, *real, deadline) <= context.now {
        context.draining.end(key, *real);
        return false;
    }
    if server.weight != 0 {
        let quiet = RealServer { weight: 0, active_connections: 0, inactive_connections: 0, ..*server };
        operations.push(Operation::SetRealServer(key, *real, quiet));
    }
    true
}

/// Whether connections have an end that the kernel sees (TCP). Others would go to a backend that is no more for as long
/// as the client keeps sending.
fn ends_by_itself(key: &VirtualServerKey, inside: InsideMarks) -> bool {
    match key {
        VirtualServerKey::Address(protocol, ..) => *protocol == Protocol::TCP,
        VirtualServerKey::FirewallMark(_, mark) => !inside.is_datagram(*mark),
    }
}

fn same(wanted: &VirtualServer, there: &VirtualServer) -> bool {
    wanted.scheduler == there.scheduler
        && wanted.flags == there.flags
        && wanted.persistence == there.persistence
}

fn without_real_servers(server: &VirtualServer) -> VirtualServer {
    VirtualServer {
        scheduler: server.scheduler.clone(),
        flags: server.flags,
        persistence: server.persistence,
        drain_timeout: None,
        real_servers: BTreeMap::new(),
    }
}
