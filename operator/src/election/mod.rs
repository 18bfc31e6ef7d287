//! Leader election on a `coordination.k8s.io/v1` Lease.
//!
//! Every write carries the resourceVersion that was read, so two candidates can never both take the Lease. Nothing is
//! concluded from another machine's clock: a Lease is free when it names no holder, or when this process has watched
//! it stay unchanged for the duration that its holder promised. A leader counts its own term from the moment *before*
//! it sent the last successful renewal and ends it at [`Timing::deadline`], which is shorter than the promise
//! ([`Timing::lease`]): it has stopped writing before another may begin.
//!
//! Why this is not a dependency: `docs/decisions/0003-leader-election.md`.

mod kube_lease;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

pub use kube_lease::KubeLease;

/// Times of the election. `retry < deadline < lease` must hold.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// What a holder promises: nobody else takes the Lease until it was seen unchanged for this long.
    pub lease: Duration,
    /// A leader that could not renew for this long stops leading.
    pub deadline: Duration,
    /// Pause between two attempts, and the longest that one request may take.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// A Lease as the election sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// resourceVersion that was read; a write with another one is refused.
    pub version: String,
    /// Who holds it; `None` after a release.
    pub holder: Option<String>,
    /// What the holder promised.
    pub duration: Duration,
    /// When it was acquired, for people.
    pub acquired: Option<Timestamp>,
    /// When it was renewed last, for people.
    pub renewed: Option<Timestamp>,
    /// How often the holder has changed.
    pub transitions: i32,
    /// What the holder says of its publications ([`nodenet_crds::PUBLISHED_ANNOTATION`]).
    pub published: Option<i64>,
}

/// All that was planned is published, up to this revision of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The term in which it was.
    pub term: u64,
    /// Highest revision of all slices.
    pub revision: i64,
    /// Nothing is said of it from then on: the loop that finds it out must have done so again.
    pub until: Instant,
}

/// Why a Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote in between, or made the object first.
    #[error("the Lease was changed by another hand")]
    Conflict,
    /// The request failed.
    #[error("{operation} Lease {name}: {}", crate::publish::explain(.source))]
    Request {
        /// `get`, `create` or `replace`.
        operation: &'static str,
        /// `namespace/name`.
        name: String,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("no answer from the API server within {0:?}")]
    Timeout(Duration),
}

/// Where the Lease lives.
pub trait LeaseStore {
    /// Reads it; `None` where it does not exist.
    fn get(&self) -> impl Future<Output = Result<Option<Record>, StoreError>>;
    /// Makes it; [`StoreError::Conflict`] where it exists.
    fn create(&self, record: &Record) -> impl Future<Output = Result<Record, StoreError>>;
    /// Replaces the version that `record` names; [`StoreError::Conflict`] where it is another.
    fn replace(&self, record: &Record) -> impl Future<Output = Result<Record, StoreError>>;
}

/// Who leads, as this process knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// This process, until [`Term::until`] unless it renews.
    Leader {
        /// Which of this process' terms it is: between two of them another one may have led.
        term: u64,
    },
    /// Another one, or nobody yet.
    Standby {
        /// The holder's identity.
        leader: Option<String>,
    },
}

/// This process' term of leadership. It is renewed silently; only a change of [`Term::role`] wakes readers.
#[derive(Clone, Debug)]
pub struct Term {
    /// Who leads.
    pub role: Role,
    /// End of the term unless it is renewed; meaningless on standby.
    pub until: Instant,
    /// When the Lease was last read or written.
    pub heard: Option<Instant>,
}

/// Reads the term: cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Term>);

impl Leadership {
    /// Whether this process may write now.
    pub fn may_write(&self) -> bool {
        let term = self.0.borrow();
        matches!(term.role, Role::Leader { .. }) && Instant::now() < term.until
    }

    /// Who leads.
    pub fn role(&self) -> Role {
        self.0.borrow().role.clone()
    }

    /// When the Lease was last read or written.
    pub fn heard(&self) -> Option<Instant> {
        self.0.borrow().heard
    }

    /// Leads for ever.
    #[cfg(test)]
    pub(crate) fn forever() -> Self {
        let until = Instant::now() + Duration::from_secs(1_000_000);
        Self(watch::channel(Term { role: Role::Leader { term: 1 }, until, heard: None }).1)
    }

    /// Stands by for ever.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        let role = Role::Standby { leader: None };
        Self(watch::channel(Term { role, until: Instant::now(), heard: None }).1)
    }

    /// Stands by for a while, then leads for ever.
    #[cfg(test)]
    pub(crate) fn after(wait: Duration) -> Self {
        let until = Instant::now() + Duration::from_secs(1_000_000);
        let standby = Term { role: Role::Standby { leader: None }, until, heard: None };
        let (term, leadership) = watch::channel(standby);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            term.send_modify(|term| term.role = Role::Leader { term: 1 });
            std::future::pending::<()>().await;
        });
        Self(leadership)
    }

    /// Waits for the next change of the role. Pends for ever once the election is over.
    pub async fn changed(&mut self) -> Role {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().role.clone()
    }
}

/// Own renewals that are remembered: more than can be under way at once.
const SENT_KEPT: usize = 8;

/// A candidate.
pub struct Election<S> {
    store: S,
    identity: String,
    timing: Timing,
    term: watch::Sender<Term>,
    /// Terms of this process so far.
    terms: u64,
    /// What is said with each renewal.
    published: watch::Receiver<Option<Published>>,
    /// The Lease as last seen, and when this process first saw it so.
    seen: Option<(Record, Instant)>,
    /// Renewal times that this process sent, answered or not: a Lease in our name with another one is somebody else's.
    sent: VecDeque<Timestamp>,
    /// Gist of the last error that was logged: the same one is not said again.
    complained: Option<String>,
}

impl<S> fmt::Debug for Election<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<S: LeaseStore> Election<S> {
    /// A candidate of this identity, which must be unique among all running replicas.
    pub fn new(store: S, identity: String, timing: Timing) -> (Self, Leadership) {
        let (term, leadership) =
            watch::channel(Term { role: Role::Standby { leader: None }, until: Instant::now(), heard: None });
        let election = Self {
            store,
            identity,
            timing,
            term,
            terms: 0,
            published: watch::channel(None).1,
            seen: None,
            sent: VecDeque::new(),
            complained: None,
        };
        (election, Leadership(leadership))
    }

    /// Says with each renewal what is published.
    pub fn announcing(self, published: watch::Receiver<Option<Published>>) -> Self {
        Self { published, ..self }
    }

    /// Takes part until `stop` resolves, then releases the Lease if this process holds it.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let begun = Instant::now();
            let attempt = self.attempt();
            tokio::select! {
                () = &mut stop => break,
                () = attempt => {}
            }
            let mut next = begun + self.timing.retry;
            if self.leads() {
                // Between two attempts the term may end: say so at that moment, not at the next attempt.
                next = next.min(self.term.borrow().until);
            }
            tokio::select! {
                () = &mut stop => break,
                () = sleep_until(next) => {}
            }
        }
        self.release().await;
    }

    fn leads(&self) -> bool {
        matches!(self.term.borrow().role, Role::Leader { .. })
    }

    async fn attempt(&mut self) {
        if self.leads() && Instant::now() >= self.term.borrow().until {
            warn!(
                "could not renew the Lease for {:?}: leadership given up; nothing is written until it is back",
                self.timing.deadline
            );
            self.stand_by(None);
        }
        let limit = self.timing.retry;
        let result = match timeout(limit, self.take_or_renew()).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Timeout(limit)),
        };
        match result {
            Ok(()) => self.complained = None,
            // The next attempt reads again; whoever won is seen then.
            Err(StoreError::Conflict) => debug!("another candidate wrote the Lease first"),
            Err(error) => {
                let text = error.to_string();
                // What a failing connection says changes with every attempt.
                let gist = match &error {
                    StoreError::Timeout(_) => String::new(),
                    StoreError::Request { source, .. } if nodenet_client::unanswered(source) => String::new(),
                    _ => text.clone(),
                };
                if self.complained.as_ref() != Some(&gist) {
                    warn!("leader election: {text}");
                    self.complained = Some(gist);
                }
            }
        }
    }

    async fn take_or_renew(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        let Some(current) = self.store.get().await? else {
            let record = self.mine(None, true);
            let made = self.store.create(&record).await?;
            self.won(made, begun, "there was no Lease");
            return Ok(());
        };
        self.observe(&current);
        let ours = current.holder.as_deref() == Some(self.identity.as_str());
        if ours && self.leads() {
            if !self.sent_by_us(&current) {
                warn!(
                    "another replica renews the Lease as {:?}: identities must be unique; standing by",
                    self.identity
                );
                self.stand_by(current.holder);
                return Ok(());
            }
            let record = self.mine(Some(&current), false);
            let written = self.store.replace(&record).await?;
            self.won(written, begun, "renewed");
            return Ok(());
        }
        let Some(why) = self.free(&current, ours) else {
            self.stand_by(current.holder);
            return Ok(());
        };
        if self.leads() {
            // Released or taken over by another hand while we led.
            self.stand_by(current.holder.clone());
        }
        let record = self.mine(Some(&current), true);
        let written = self.store.replace(&record).await?;
        self.won(written, begun, why);
        Ok(())
    }

    /// Why the Lease may be taken, or `None` where it may not.
    fn free(&self, current: &Record, ours: bool) -> Option<&'static str> {
        if ours && self.sent.is_empty() {
            // Who wrote it had our identity and is gone: identities are unique among running replicas.
            return Some("it was held by this replica's predecessor");
        }
        if ours && self.sent_by_us(current) {
            return Some("a request that was given up had arrived");
        }
        if current.holder.is_none() {
            return Some("it was free");
        }
        let (_, since) = self.seen.as_ref()?;
        (since.elapsed() >= current.duration).then_some("its holder went silent")
    }

    /// Notes the Lease and when this process first saw it so.
    fn observe(&mut self, current: &Record) {
        let now = Instant::now();
        self.term.send_if_modified(|term| {
            term.heard = Some(now);
            false
        });
        let unchanged = self.seen.as_ref().is_some_and(|(seen, _)| {
            // Not the version: a label put on the Lease is no renewal.
            (&seen.holder, seen.renewed, seen.duration, seen.transitions)
                == (&current.holder, current.renewed, current.duration, current.transitions)
        });
        // A leader compares with what it wrote itself (`won`).
        let own = self.leads() && current.holder.as_deref() == Some(self.identity.as_str());
        if !unchanged && !own {
            self.seen = Some((current.clone(), now));
        }
    }

    fn sent_by_us(&self, current: &Record) -> bool {
        current.renewed.is_some_and(|renewed| self.sent.contains(&renewed))
    }

    /// The record to write over `current`, noted as sent.
    fn mine(&mut self, current: Option<&Record>, acquire: bool) -> Record {
        // The API keeps microseconds: what comes back must compare equal.
        let now = Timestamp::now();
        let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        if self.sent.len() == SENT_KEPT {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
        let transitions = current.map_or(0, |c| c.transitions);
        Record {
            version: current.map(|c| c.version.clone()).unwrap_or_default(),
            holder: Some(self.identity.clone()),
            duration: self.timing.lease,
            acquired: if acquire { Some(now) } else { current.and_then(|c| c.acquired) },
            renewed: Some(now),
            transitions: if acquire && current.is_some() {
                transitions.saturating_add(1)
            } else {
                transitions
            },
            // Who only just begins to lead has published nothing yet.
            published: if acquire { None } else { self.announced() },
        }
    }

    fn announced(&self) -> Option<i64> {
        let published = (*self.published.borrow())?;
        (published.term == self.terms && Instant::now() < published.until).then_some(published.revision)
    }

    fn won(&mut self, written: Record, begun: Instant, why: &str) {
        let until = begun + self.timing.deadline;
        self.seen = Some((written, Instant::now()));
        let (identity, terms) = (&self.identity, &mut self.terms);
        self.term.send_if_modified(|term| {
            term.until = until;
            term.heard = Some(Instant::now());
            if matches!(term.role, Role::Leader { .. }) {
                return false;
            }
            info!("leading as {identity:?}: {why}");
            *terms += 1;
            term.role = Role::Leader { term: *terms };
            true
        });
    }

    fn stand_by(&mut self, leader: Option<String>) {
        self.term.send_if_modified(|term| {
            let role = Role::Standby { leader };
            if term.role == role {
                return false;
            }
            if let Role::Standby { leader: Some(leader) } = &role {
                info!("standing by: the leader is {leader:?}");
            }
            term.role = role;
            true
        });
    }

    async fn release(mut self) {
        if !self.leads() {
            return;
        }
        // Stop writing first, then let the next one begin.
        self.stand_by(None);
        let Some((seen, _)) = self.seen.take() else { return };
        let record = Record { holder: None, duration: Duration::from_secs(1), published: None, ..seen };
        match timeout(self.timing.retry, self.store.replace(&record)).await {
            Ok(Ok(_)) => info!("released the Lease"),
            Ok(Err(error)) => warn!("could not release the Lease: {error}"),
            Err(_) => warn!("could not release the Lease: no answer within {:?}", self.timing.retry),
        }
    }
}

#[cfg(test)]
mod tests;
