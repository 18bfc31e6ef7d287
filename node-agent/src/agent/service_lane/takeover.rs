//! Taking over what a kube-proxy that is stopped left.
//!
//! 1. Nothing is written before the operator says that all that follows from the Services is published, and all of it is
//!    here. This holds at each of the next steps, too.
//! 2. Its virtual servers that a Service wants are adopted: completed in place, so that connections go on.
//! 3. Once a look at everything finds all in the kernel that is wanted, those of its virtual servers that nobody wanted
//!    for a while are taken over too, which removes them.
//! 4. After another such look its chains and jumps go, then its sets, then its interface with all addresses: by now the
//!    local routes answer for them, and a route of ours stays when the kernel takes its own one for a bound address away.
//!
//! Nothing of it is lost for good: a kube-proxy that starts again makes all of it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nodenet_crds::conditions::{Status, reason};

use super::ServiceLane;
use crate::agent::kube_proxy::Stance;
use crate::diff::Prune;
use crate::kernel::KernelError;
use crate::report::facts::{Notice, Verdict};
use crate::report::operator::Publication;
use crate::source::store::StoreError;
use crate::state::{
    Family, KubeProxy, Operation, Scope, Transaction, VirtualServerKey, kube_proxy::INTERFACE,
};

/// For so long after the operator said so, what is published counts as whole.
const PUBLISHED: Duration = Duration::from_secs(20);

/// How far a takeover is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Virtual servers that nobody wants, and since when that is known.
    unwanted: BTreeMap<VirtualServerKey, Instant>,
    /// What is not wanted may go.
    complete: bool,
    /// Why it does not go on.
    waits: Option<String>,
}

/// Why a takeover does not go on.
#[derive(Debug, thiserror::Error)]
enum Waits {
    #[error("whether the operator runs is not known yet")]
    Unknown,
    #[error("the operator does not renew its Lease, so its plans may be old; see whether it runs")]
    Silent,
    #[error(
        "the operator does not say that all Services are published; its log names what it cannot read or write. One \
         that is older than this agent never says so"
    )]
    Unpublished,
    #[error("waits for slices of revision {wanted}, which the operator has published; here is {here}")]
    Behind { wanted: i64, here: i64 },
    #[error("waits until all Services are known")]
    Incomplete,
    #[error("waits until what Services need is in the kernel")]
    Kernel,
    #[error("waits whether a Service comes that wants {0}")]
    Unwanted(String),
    #[error("its interface must stay: nothing else answers for {0} (is a range missing in serviceCIDRs?)")]
    Unanswered(String),
    #[error("{operation} {object}: {message}")]
    Refused { operation: String, object: String, message: String },
    #[error(transparent)]
    Unreadable(#[from] KernelError),
    #[error(transparent)]
    Journal(#[from] StoreError),
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
            self.pending.merge(self.everything());
        }
        self.metrics.kube_proxy_looks.inc();
        self.metrics.beside_kube_proxy.set(i64::from(self.neighbour.stands_back()));
        self.neighbour_at = self.neighbour.period().map(|period| Instant::now() + period);
        self.unpublished = true;
    }

    /// What there is of kube-proxy that is to be taken over.
    pub(super) fn left(&self) -> Option<&KubeProxy> {
        match self.neighbour.stance() {
            Stance::Taking(left) => Some(left),
            Stance::Alone(left) if self.neighbour.takes_over() && !left.is_empty() => Some(left),
            _ => None,
        }
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
                "what nodenet made for Services before is still in force: when the other proxy serves, set \
                 removeServices: true to have it removed"
                    .to_owned(),
            );
        }
        let reason = if ours || !unserved.is_empty() { reason::SERVICE_PROXY_OFF } else { reason::READY };
        Some(Verdict { status: Status::True, reason, message: words.join("; ") })
    }

    /// Goes on with a takeover, if there is one.
    pub(super) fn take_over(&mut self) {
        // What is there now may be another thing than at the last look that found it out.
        let Some(left) = self.left().filter(|_| self.neighbour.is_sure()).cloned() else { return };
        let waits = self.try_to_take_over(&left).err().map(|waits| waits.to_string());
        if let Some(words) = waits.as_ref().filter(|_| waits != self.takeover.waits) {
            tracing::info!("kube-proxy is not taken over yet: {words}");
        }
        self.neighbour.set_problem(waits.clone());
        self.takeover.waits = waits;
        self.unpublished = true;
    }

    /// Whether all that follows from the Services that there are now is known here.
    fn plan_is_whole(&self) -> Result<(), Waits> {
        match self.publication {
            Publication::Unknown => return Err(Waits::Unknown),
            Publication::Silent => return Err(Waits::Silent),
            Publication::Incomplete => return Err(Waits::Unpublished),
            Publication::Whole { at, .. } if at.elapsed() > PUBLISHED => return Err(Waits::Silent),
            Publication::Whole { revision: wanted, .. } => {
                let here = self.resolver.slice_revision().unwrap_or(0);
                if here < wanted {
                    return Err(Waits::Behind { wanted, here });
                }
            }
        }
        if !self.resolver.prune().services || !self.resolver.incomplete().is_empty() {
            return Err(Waits::Incomplete);
        }
        Ok(())
    }

    /// Looks at everything, makes it so, and says whether it is.
    fn in_place(&mut self) -> Result<(), Waits> {
        self.pending = Scope::default();
        self.synchronise(self.everything(), false);
        if self.converged && !self.failures.any_of_ours() { Ok(()) } else { Err(Waits::Kernel) }
    }

    fn try_to_take_over(&mut self, left: &KubeProxy) -> Result<(), Waits> {
        let whole = self.plan_is_whole();
        if whole.is_err() {
            self.takeover.unwanted.clear();
        }
        whole?;
        if self.neighbour.begin() {
            self.converged = false;
            self.pending.merge(self.everything());
        }
        let its = self.machine.servers_of(left)?;
        let desired = &self.resolver.desired().virtual_servers;
        let (wanted, unwanted): (BTreeSet<_>, BTreeSet<_>) =
            its.into_iter().partition(|key| desired.contains_key(key));
        if self.adopt(wanted)? {
            self.in_place()?;
        }
        let unanswered = self.unanswered(left);
        if !unanswered.is_empty() {
            let first: Vec<String> = unanswered.iter().take(3).map(ToString::to_string).collect();
            return Err(Waits::Unanswered(first.join(", ")));
        }
        self.takeover.unwanted.retain(|key, _| unwanted.contains(key));
        for key in &unwanted {
            self.takeover.unwanted.entry(*key).or_insert_with(Instant::now);
        }
        if self.takeover.unwanted.values().any(|since| since.elapsed() < self.times.unwanted) {
            return Err(Waits::Unwanted(some(&unwanted)));
        }
        self.in_place()?;
        self.plan_is_whole()?;
        self.takeover.complete = true;
        let removed = unwanted.len();
        if removed > 0 {
            tracing::info!(
                "virtual servers of kube-proxy that no Service wants are removed: {}",
                some(&unwanted)
            );
            self.adopt(unwanted)?;
            self.in_place()?;
            self.plan_is_whole()?;
        }
        let (_, failed) = self.machine.commit(&removal(left));
        if let Some(first) = failed.into_iter().next() {
            let nodenet_crds::Failure { operation, object, message } = first.failure;
            return Err(Waits::Refused { operation, object, message });
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

    /// Makes virtual servers of kube-proxy ours: from the next look at them on they are as they must be. Whether any was
    /// not before.
    fn adopt(&mut self, servers: BTreeSet<VirtualServerKey>) -> Result<bool, StoreError> {
        let journal = &self.machine.journal().virtual_servers;
        let news = servers.iter().any(|key| !journal.contains(key));
        if news {
            self.machine.adopt(servers)?;
        }
        Ok(news)
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
