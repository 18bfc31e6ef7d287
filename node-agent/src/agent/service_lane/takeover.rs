//! Taking over what a kube-proxy that is stopped left.
//!
//! 1. Its virtual servers that a Service wants are adopted: completed in place, so that connections go on.
//! 2. Once all that is wanted is in the kernel and the list of Services is known to be whole, the others of its virtual
//!    servers are taken over too, which removes them.
//! 3. Its chains and jumps go, then its sets, then its interface with all addresses: by now the local routes answer for
//!    them, and a route of ours stays when the kernel takes its own one for a bound address away.
//!
//! Nothing of it is lost for good: a kube-proxy that starts again makes all of it anew.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use nodenet_crds::conditions::{Status, reason};

use super::ServiceLane;
use crate::agent::kube_proxy::Stance;
use crate::diff::Prune;
use crate::report::facts::{Notice, Verdict};
use crate::state::{
    Family, KubeProxy, Operation, Scope, Transaction, VirtualServerKey, kube_proxy::INTERFACE,
};

/// So many verify periods after it began, a takeover no longer waits for new Services to stop coming.
const PATIENCE: u32 = 10;

/// How far a takeover is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// When it began.
    since: Option<Instant>,
    /// The most virtual servers that were wanted, and since when.
    wanted: (usize, Option<Instant>),
    /// The list of Services is known to be whole: what is not wanted may go.
    complete: bool,
}

impl ServiceLane {
    /// Looks at kube-proxy. What may be written after that is looked at as a whole.
    pub(super) fn look_at_kube_proxy(&mut self) {
        if self.neighbour.look(&mut self.machine) {
            self.converged = false;
            self.failures = Default::default();
            self.takeover = Progress::default();
            if self.neighbour.stands_back() {
                self.machine.forget_draining();
            }
            self.pending.merge(Scope::all(self.resolver.desired()).lanes().1);
        }
        self.metrics.kube_proxy_looks.inc();
        self.metrics.beside_kube_proxy.set(i64::from(self.neighbour.stands_back()));
        self.neighbour_at = self.neighbour.period().map(|period| Instant::now() + period);
        self.unpublished = true;
    }

    /// What may be removed now.
    pub(super) fn prune(&self) -> Prune {
        match self.neighbour.stance() {
            // Some of the Services that kube-proxy serves may not be known yet.
            Stance::Taking(_) if !self.takeover.complete => Prune::default(),
            // It is in force until another proxy serves, which only a person knows.
            Stance::Off if !self.neighbour.removes() => Prune::default(),
            _ => self.resolver.prune(),
        }
    }

    /// Where Services are not served: nothing that was removed is ours any more. kube-proxy may have made it anew.
    pub(super) fn give_away(&mut self) {
        if *self.neighbour.stance() == Stance::Off
            && self.neighbour.removes()
            && self.converged
            && self.resolver.prune().services
            && let Err(error) = self.machine.disown()
        {
            tracing::warn!("{error}");
        }
    }

    /// What is to be said of Services where they are not served.
    pub(super) fn off(&self) -> Option<Verdict> {
        if *self.neighbour.stance() != Stance::Off {
            return None;
        }
        let mut words = vec!["Services are left to another proxy (serviceProxy: false)".to_owned()];
        let unserved = self.resolver.unserved();
        if !unserved.is_empty() {
            let first: Vec<&str> = unserved.iter().take(8).map(String::as_str).collect();
            let more = match unserved.len() - first.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            words.push(format!(
                "of virtual IPs nobody serves {}{more}; node ports answer there if that proxy serves them on all addresses",
                first.join(", ")
            ));
        }
        let ours = self.neighbour.works_beside();
        if ours {
            words.push(
                "what nodenet made for Services before is still in force: when the other proxy serves, set                  removeServices: true to have it removed"
                    .to_owned(),
            );
        }
        let reason = if ours || !unserved.is_empty() { reason::SERVICE_PROXY_OFF } else { reason::READY };
        Some(Verdict { status: Status::True, reason, message: words.join("; ") })
    }

    /// Goes on with a takeover, if there is one.
    pub(super) fn take_over(&mut self) {
        let left = match self.neighbour.stance() {
            Stance::Taking(left) => left.clone(),
            Stance::Alone(left) if self.neighbour.takes_over() && !left.is_empty() => left.clone(),
            _ => return,
        };
        let problem = self.try_to_take_over(&left).err();
        if let Some(problem) = &problem {
            tracing::info!("kube-proxy is not taken over yet: {problem}");
        }
        self.neighbour.set_problem(problem);
        self.unpublished = true;
    }

    fn try_to_take_over(&mut self, left: &KubeProxy) -> Result<(), String> {
        let now = Instant::now();
        let since = *self.takeover.since.get_or_insert(now);
        let count = self.resolver.desired().virtual_servers.len();
        if count > self.takeover.wanted.0 || self.takeover.wanted.1.is_none() {
            self.takeover.wanted = (count, Some(now));
        }
        let its = self.machine.servers_of(left).map_err(|error| error.to_string())?;
        let desired = &self.resolver.desired().virtual_servers;
        let (wanted, unwanted): (BTreeSet<_>, BTreeSet<_>) =
            its.into_iter().partition(|key| desired.contains_key(key));
        self.adopt(wanted)?;
        if !self.converged {
            return Err("waits until what Services need is in the kernel".to_owned());
        }
        if !self.resolver.prune().services || !self.resolver.incomplete().is_empty() {
            return Err("waits until all Services are known".to_owned());
        }
        if !unwanted.is_empty() {
            // An operator that has just started may not have published all of them.
            let quiet = self.takeover.wanted.1.is_some_and(|at| at.elapsed() >= self.times.verify);
            if !quiet && since.elapsed() < self.times.verify * PATIENCE {
                return Err(format!("waits whether a Service comes that wants {}", some(&unwanted)));
            }
        }
        self.takeover.complete = true;
        let removed = unwanted.len();
        if removed > 0 {
            tracing::info!(
                "virtual servers of kube-proxy that no Service wants are removed: {}",
                some(&unwanted)
            );
        }
        self.adopt(unwanted)?;
        if !self.converged {
            return Err("waits until virtual servers that no Service wants are gone".to_owned());
        }
        let unanswered = self.unanswered(left);
        if !unanswered.is_empty() {
            return Err(format!(
                "its interface must stay: nothing else answers for {} (is a range missing in serviceCIDRs?)",
                unanswered.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ));
        }
        let (_, failed) = self.machine.commit(&removal(left));
        if let Some(first) = failed.first() {
            let failure = &first.failure;
            return Err(format!("{} {}: {}", failure.operation, failure.object, failure.message));
        }
        let note = format!(
            "took over from kube-proxy and removed {left}, and {removed} virtual servers that no Service wants"
        );
        tracing::info!("{note}");
        let notice = Notice {
            warning: false,
            reason: reason::KUBE_PROXY_TAKEN_OVER,
            action: "TakeOverFromKubeProxy",
            note,
            virtual_ip: None,
        };
        // The reporter goes only when the agent stops.
        let _ = self.notices.send(notice);
        self.look_at_kube_proxy();
        Ok(())
    }

    /// Makes virtual servers of kube-proxy ours, and as they must be.
    fn adopt(&mut self, servers: BTreeSet<VirtualServerKey>) -> Result<(), String> {
        let journal = &self.machine.journal().virtual_servers;
        let news = servers.iter().any(|key| !journal.contains(key));
        if news {
            self.machine.adopt(servers).map_err(|error| error.to_string())?;
        }
        if news || !self.pending.is_empty() || !self.converged {
            self.pending = Scope::default();
            self.synchronise(Scope::all(self.resolver.desired()).lanes().1, false);
        }
        Ok(())
    }

    /// Addresses on kube-proxy's interface that a Service needs and that nothing else makes local.
    fn unanswered(&self, left: &KubeProxy) -> Vec<IpAddr> {
        let needed: BTreeSet<IpAddr> = self
            .resolver
            .desired()
            .virtual_servers
            .keys()
            .filter_map(|key| match key {
                VirtualServerKey::Address(_, address, _) => Some(*address),
                VirtualServerKey::FirewallMark(..) => None,
            })
            .collect();
        left.addresses.intersection(&needed).copied().filter(|at| !self.resolver.answers_at(*at)).collect()
    }
}

/// What takes away all that is left.
fn removal(left: &KubeProxy) -> Transaction {
    let families = [Family::V4, Family::V6].into_iter().filter(|family| left.chains.contains_key(family));
    let mut operations: Vec<Operation> = families.map(Operation::RemoveKubeProxyRules).collect();
    operations.extend(left.sets.iter().cloned().map(Operation::DestroySet));
    if left.interface {
        operations.push(Operation::DeleteLink(INTERFACE.into()));
    }
    Transaction::new(operations)
}

fn some(servers: &BTreeSet<VirtualServerKey>) -> String {
    let first: Vec<String> = servers.iter().take(3).map(crate::agent::words::virtual_server).collect();
    match servers.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
