//! The one way to the kernel: observe, compare, write the journal, commit, look again at what was touched with the same
//! comparison. Nothing left to do means converged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failures::{Failed, Unreadable, failure};
use super::journal::JournalFile;
use super::scope::{Area, area, parts, touched};
use crate::diff::{Context, Draining, Journal, Look as Covered, Note, Others, Outcome, Prune, diff, renewal};
use crate::filter::InsideMarks;
use crate::kernel::{Class, Kernel, KernelError, RunningSign};
use crate::report::metrics::{Lane, LaneLabel, Metrics};
use crate::source::store::StoreError;
use crate::state::{KubeProxy, NodeState, Operation, Scope, Transaction, VirtualServerKey, Which};

/// Looks and commits in one synchronisation. Some changes need several: what was refused because the kernel was not as
/// thought, and what can only go when something else is seen to be there.
const ROUNDS: usize = 5;
/// How often connections of real servers on their way out are counted.
const DRAIN_LOOK: Duration = Duration::from_secs(5);

/// A kernel, its journal and what waits for a real server to drain.
pub struct Machine {
    kernel: Box<dyn Kernel>,
    journal: JournalFile,
    others: Others,
    draining: Draining,
    drain_timeout: Duration,
    inside: InsideMarks,
    metrics: Arc<Metrics>,
    lane: Lane,
    started: Instant,
    drain_look: Instant,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Look {
    /// What is there.
    pub state: NodeState,
    /// The part that could be read.
    pub scope: Scope,
    /// The parts that could not.
    pub unreadable: Vec<Unreadable>,
}

/// What became of a synchronisation.
#[derive(Debug, Default)]
pub struct Synced {
    /// All that was looked at.
    pub scope: Scope,
    /// Operations that the kernel took, where they were to be remembered.
    pub done: Vec<Operation>,
    /// Operations that it refused last.
    pub failed: Vec<Failed>,
    /// Parts that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// What the last comparison still asks for.
    pub left: Vec<Operation>,
    /// What the comparison has to say.
    pub notes: Vec<Note>,
    /// Why the journal could not be written.
    pub journal: Option<String>,
    /// Messages that changed the kernel.
    pub messages: usize,
}

impl Synced {
    /// Whether the kernel is as wanted.
    pub fn converged(&self) -> bool {
        self.left.is_empty() && self.unreadable.is_empty()
    }

    /// Whether Services are served, but for single ones that the kernel refuses: everything could be read, and the rules
    /// that all of them need are there.
    pub fn in_force(&self) -> bool {
        let for_all = |failed: &Failed| area(&failed.operation) == Area::PacketFilter;
        self.unreadable.is_empty() && !self.failed.iter().any(for_all)
    }

    /// Whether trying again soon may help.
    pub fn retry(&self) -> bool {
        let of = |class: Class| matches!(class, Class::Retry | Class::Conflict);
        let stuck = self.failed.iter().all(|f| !of(f.class)) && self.failed.len() >= self.left.len();
        self.unreadable.iter().any(|u| of(u.class)) || (!self.left.is_empty() && !stuck)
    }
}

impl Machine {
    /// The way to `kernel`.
    pub fn new(
        kernel: Box<dyn Kernel>,
        journal: JournalFile,
        drain_timeout: Duration,
        inside: InsideMarks,
        metrics: Arc<Metrics>,
        lane: Lane,
    ) -> Self {
        let (draining, started) = (Draining::default(), Instant::now());
        let others = Others::default();
        Self {
            kernel,
            journal,
            others,
            draining,
            drain_timeout,
            inside,
            metrics,
            lane,
            started,
            drain_look: started,
        }
    }

    /// Leaves the virtual servers of others alone from now on.
    pub fn beside(&mut self, others: Others) {
        self.others = others;
    }

    /// What there is of kube-proxy, its rules only where they are asked for.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn kube_proxy(&mut self, rules: bool) -> Result<KubeProxy, KernelError> {
        self.kernel.kube_proxy(rules)
    }

    /// Whether a kube-proxy that runs shows itself.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn kube_proxy_runs(&mut self) -> Result<Option<RunningSign>, KernelError> {
        self.kernel.kube_proxy_runs()
    }

    /// The virtual servers that kube-proxy made and that may be taken over.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn servers_of(&mut self, kube_proxy: &KubeProxy) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let scope = Scope { addresses: true, virtual_servers: Which::All, ..Scope::default() };
        let observed = self.kernel.observe(&scope)?;
        let mut its = kube_proxy.surely_serves(&observed);
        its.retain(|key| !self.others.excludes(key));
        Ok(its)
    }

    /// Takes virtual servers of another hand into the journal: from now on they are ours, to complete and to remove.
    ///
    /// # Errors
    /// When the journal cannot be written: they may not be touched then.
    pub fn adopt(&mut self, virtual_servers: BTreeSet<VirtualServerKey>) -> Result<(), StoreError> {
        self.journal.claim(Journal { virtual_servers, ..Journal::default() })
    }

    /// Real servers that no longer matter: they are left to others.
    pub fn forget_draining(&mut self) {
        self.draining = Draining::default();
    }

    /// Forgets that any virtual server is ours: they were given up or given away.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn disown(&mut self) -> Result<(), StoreError> {
        self.journal.change(|journal| {
            let any = !journal.virtual_servers.is_empty() || !journal.ranges.is_empty();
            journal.virtual_servers.clear();
            journal.ranges.clear();
            any
        })
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        self.journal.journal()
    }

    /// What waits to drain, and when it must be looked at: at the next deadline, or earlier, because nothing announces
    /// that a connection ended.
    pub fn draining(&self) -> Option<(Scope, Instant)> {
        let due = self.started + self.draining.next_deadline()?;
        Some((self.draining.scope(), due.min(self.drain_look + DRAIN_LOOK)))
    }

    /// Forgets what the journal knows, the kernel no longer has and nobody wants. Takes a look of its own.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn tidy(&mut self, desired: &NodeState, covered: Covered) -> Result<(), StoreError> {
        if self.journal.journal().is_empty() {
            return Ok(());
        }
        let scope = match covered {
            Covered::Addresses => Scope { addresses: true, ..Scope::default() },
            Covered::Services => Scope { routes: true, virtual_servers: Which::All, ..Scope::default() },
        };
        let look = self.look(&scope);
        if !look.unreadable.is_empty() {
            return Ok(());
        }
        self.journal.change(|journal| journal.tidy(desired, &look.state, covered))
    }

    /// Reads `scope`; where that fails as a whole, each part that can be read.
    pub fn look(&mut self, scope: &Scope) -> Look {
        let mut look = match self.observe(scope) {
            Ok(state) => Look { state, scope: scope.clone(), unreadable: Vec::new() },
            Err(error) => {
                let parts = parts(scope);
                match parts.as_slice() {
                    [(area, _)] => {
                        let unreadable = vec![unreadable(*area, &error)];
                        Look { unreadable, ..Look::default() }
                    }
                    _ => {
                        let mut look = Look::default();
                        for (area, part) in parts {
                            match self.observe(&part) {
                                Ok(state) => {
                                    merge(&mut look.state, state);
                                    look.scope.merge(part);
                                }
                                Err(error) => look.unreadable.push(unreadable(area, &error)),
                            }
                        }
                        look
                    }
                }
            }
        };
        self.journal.journal().mark(&mut look.state);
        look
    }

    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        let mut attempt = 0;
        loop {
            match self.kernel.observe(scope) {
                Ok(state) => return Ok(state),
                Err(error) => {
                    self.metrics.unseen(&error);
                    // A dump that was interrupted is begun anew at once; what stays busy waits for the lane's backoff.
                    attempt += 1;
                    if error.class() != Class::Retry || attempt == 3 {
                        tracing::debug!("{error}");
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Gives the held addresses of `desired` a new lifetime.
    pub fn renew(
        &mut self,
        desired: &NodeState,
        observed: &NodeState,
        lifetime: Option<u32>,
    ) -> (usize, Vec<Failed>) {
        let transaction = renewal(desired, observed, self.journal.journal(), lifetime);
        if transaction.is_empty() { (0, Vec::new()) } else { self.commit(&transaction) }
    }

    /// Commits outside of a comparison: renewals and removals that must not wait for one.
    pub fn commit(&mut self, transaction: &Transaction) -> (usize, Vec<Failed>) {
        let committed = self.kernel.commit(transaction);
        self.count(transaction, &committed.failed);
        let lane = LaneLabel { lane: self.lane };
        self.metrics.messages.get_or_create(&lane).inc_by(committed.messages as u64);
        (committed.done, committed.failed.into_iter().map(failed).collect())
    }

    fn count(&self, transaction: &Transaction, failed: &[(Operation, KernelError)]) {
        for operation in transaction.operations() {
            if failed.is_empty() || !failed.iter().any(|(refused, _)| refused == operation) {
                self.metrics.done(operation);
            }
        }
        for (operation, error) in failed {
            self.metrics.refused(operation, error);
            tracing::warn!("{error}");
        }
    }

    /// What [`Self::sync`] would begin with, and what could be read.
    pub fn preview(
        &mut self,
        desired: &NodeState,
        scope: &Scope,
        prune: Prune,
    ) -> (Outcome, Vec<Unreadable>) {
        let look = self.look(scope);
        let mut draining = self.draining.clone();
        let mut context = Context {
            journal: self.journal.journal(),
            prune,
            others: &self.others,
            draining: &mut draining,
            now: self.started.elapsed(),
            drain_timeout: self.drain_timeout,
            inside: self.inside,
        };
        // What could not be read is compared as if it were empty: its module is not loaded yet.
        (diff(desired, &look.state, scope, &mut context), look.unreadable)
    }

    /// Makes what `scope` names of `desired` so. `remember` keeps what was done for the caller: a first synchronisation is
    /// large. `alive` is called between the steps.
    pub fn sync(
        &mut self,
        desired: &NodeState,
        scope: Scope,
        remember: bool,
        prune: Prune,
        alive: &dyn Fn(),
    ) -> Synced {
        let begun = Instant::now();
        self.drain_look = begun;
        let full = scope.virtual_servers == Which::All || self.lane == Lane::Address;
        let mut synced = Synced { scope: scope.clone(), ..Synced::default() };
        let mut asked = scope.clone();
        let mut look = self.look(&asked);
        for round in 0..ROUNDS {
            alive();
            let mut outcome = {
                let mut context = Context {
                    journal: self.journal.journal(),
                    prune,
                    others: &self.others,
                    draining: &mut self.draining,
                    now: self.started.elapsed(),
                    drain_timeout: self.drain_timeout,
                    inside: self.inside,
                };
                diff(desired, &look.state, &look.scope, &mut context)
            };
            let areas: BTreeSet<Area> = parts(&asked).into_iter().map(|(area, _)| area).collect();
            synced.unreadable.retain(|u| !areas.contains(&u.area));
            synced.unreadable.append(&mut look.unreadable);
            // A later look is at less: what it does not cover is still so.
            synced.notes.retain(|note| match note {
                Note::ForeignVirtualServer(key) => !look.scope.virtual_servers.contains(key),
                Note::ForeignAddress(_) | Note::ForeignLink { .. } => false,
            });
            synced.notes.append(&mut outcome.notes);
            // Before the commit, and without one too: what is as wanted already is ours from now on. Without a journal the
            // kernel is still made right: traffic counts more than knowing later what was ours.
            synced.journal =
                self.journal.claim(std::mem::take(&mut outcome.claims)).err().map(|e| e.to_string());
            if let Some(problem) = &synced.journal {
                tracing::error!("{problem}");
            }
            synced.left.clear();
            synced.failed.clear();
            // Something can only be decided when more was seen: the same look again, and what it asks for.
            let mut wider = Scope::default();
            if !outcome.widen.is_empty() {
                wider.merge(look.scope.clone());
                wider.merge(outcome.widen);
            }
            if outcome.transaction.is_empty() {
                if wider.is_empty() || round + 1 == ROUNDS {
                    break;
                }
                synced.scope.merge(wider.clone());
                asked = wider;
                look = self.look(&asked);
                continue;
            }
            let transaction = outcome.transaction;
            let committed = self.kernel.commit(&transaction);
            alive();
            self.count(&transaction, &committed.failed);
            synced.messages += committed.messages;
            let nothing_helps = committed.done == 0
                && committed.failed.iter().all(|(_, e)| matches!(e.class(), Class::Invalid | Class::Fatal));
            synced.failed = committed.failed.into_iter().map(failed).collect();
            if remember {
                let taken = |o: &&Operation| !synced.failed.iter().any(|f| f.operation == **o);
                synced.done.extend(transaction.operations().iter().filter(taken).cloned());
            }
            if nothing_helps || round + 1 == ROUNDS {
                synced.left = transaction.operations().to_vec();
                break;
            }
            let mut again = touched(&transaction);
            again.merge(wider);
            synced.scope.merge(again.clone());
            // What could not be read before may be readable now: its module was loaded.
            for area in synced.unreadable.iter().map(|u| u.area).collect::<Vec<_>>() {
                for (_, part) in parts(&scope).into_iter().filter(|(of, _)| *of == area) {
                    again.merge(part);
                }
            }
            // One state and no transaction at a time: they are as large as the node is.
            drop((transaction, std::mem::take(&mut look)));
            asked = again;
            look = self.look(&asked);
        }
        // What is wanted no longer, or was made right by a later round, did not fail.
        let Synced { failed, left, .. } = &mut synced;
        if left.is_empty() {
            failed.clear();
        }
        self.metrics.synced(self.lane, full, begun.elapsed(), synced.messages);
        synced
    }
}

fn failed((operation, error): (Operation, KernelError)) -> Failed {
    Failed { operation, class: error.class(), failure: failure(&error) }
}

fn unreadable(area: Area, error: &KernelError) -> Unreadable {
    let missing = matches!(error, KernelError::Missing { .. });
    Unreadable { area, class: error.class(), failure: failure(error), missing }
}

fn merge(into: &mut NodeState, from: NodeState) {
    into.modules.extend(from.modules);
    into.sysctls.extend(from.sysctls);
    into.links.extend(from.links);
    into.addresses.extend(from.addresses);
    into.routes.extend(from.routes);
    into.gateways = from.gateways.or(into.gateways.take());
    into.sets.extend(from.sets);
    into.rules.extend(from.rules);
    into.virtual_servers.extend(from.virtual_servers);
}
