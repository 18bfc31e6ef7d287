//! Puts the agent together: two lanes on threads of their own, and everything that speaks to the API server on one.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Api;
use nodenet_crds::{NodeNetState, NodeNetStateStatus};
use tokio::sync::{mpsc, watch};

use super::address_lane::{self, AddressLane};
use super::journal::{ADDRESSES, JournalFile, SERVICES};
use super::lock::{Lock, LockError};
use super::machine::Machine;
use super::service_lane::{self, ServiceLane};
use super::wire::Wire;
use crate::kernel::Kernel;
use crate::report::events::Events;
use crate::report::facts::{AddressFacts, Notice, ServiceFacts, SourceFacts};
use crate::report::health::{ADDRESSES_LIMIT, Health, Pulse};
use crate::report::http::{self, ListenError};
use crate::report::lease::{LeaseError, NodeLease, Pace};
use crate::report::metrics::{Lane, Metrics, WriteLabel};
use crate::report::operator::OperatorWatch;
use crate::report::publisher::{self, Pending};
use crate::resolve::{Options, Resolver};
use crate::source::api_servers::ApiServers;
use crate::source::store::{self, Store};
use crate::source::watch::{Progress, Watch};
use crate::source::{Origin, Update};

/// Longest time without a look at everything that the health check takes for life.
const SERVICES_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to publish a notice while no API server takes it.
const NOTICE_AGAIN: Duration = Duration::from_secs(2);
/// Notices that wait to be published; more of them say nothing new.
const NOTICES: usize = 64;

/// How the agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// Where the last desired state is kept.
    pub state_dir: PathBuf,
    /// Where the journals are.
    pub run_dir: PathBuf,
    /// Namespace of the node's Lease.
    pub node_namespace: String,
    /// Namespace of the operator's Lease.
    pub operator_namespace: String,
    /// Where health and metrics are served; nowhere without it.
    pub http_address: Option<SocketAddr>,
    /// How services are resolved.
    pub resolver: Options,
    /// Times of the address lane.
    pub addresses: address_lane::Times,
    /// Times of the service lane.
    pub services: service_lane::Times,
    /// How long a real server on its way out may keep connections.
    pub drain_timeout: Duration,
    /// Time between writes of a status that nobody waits for.
    pub coalesce: Duration,
    /// How long changes are collected before they go to disk.
    pub collect: Duration,
    /// How long the API server may take to give the whole state before the copy on disk is put into force.
    pub grace: Duration,
    /// Time between looks at the operator's Lease.
    pub operator_look: Duration,
    /// How long the operator may be silent before it is said.
    pub operator_limit: Duration,
}

/// The kernel and the links, as the lanes see them.
pub struct Machinery {
    /// Kernel of the address lane.
    pub addresses: Box<dyn Kernel>,
    /// Kernel of the service lane.
    pub services: Box<dyn Kernel>,
    /// Makes the links and whatever tells of changes. Gets the address lane's inbox.
    #[allow(clippy::type_complexity)]
    pub links: Box<dyn FnOnce(Sender<address_lane::Message>) -> Box<dyn Wire> + Send>,
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder cannot be made.
    #[error("create {path}: {source}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Another agent runs, or the lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A thread cannot be started.
    #[error("start the {lane} lane: {source}")]
    Thread {
        /// Which.
        lane: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

/// What the sink of the watch and the cold start share.
#[derive(Default)]
struct Arrived {
    state: bool,
    slices: BTreeSet<String>,
    any: Option<Instant>,
}

/// Runs until `stop` is ready. What is in the kernel stays there.
pub async fn run(
    config: Config,
    servers: ApiServers,
    machinery: Machinery,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    fs::create_dir_all(&config.run_dir)
        .map_err(|source| RunError::Folder { path: config.run_dir.clone(), source })?;
    let _lock = Lock::take(&config.run_dir)?;
    let health = Arc::new(Health {
        services_limit: (config.services.verify * 2).max(SERVICES_LIMIT),
        ..Health::default()
    });
    let listener = match config.http_address {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };

    let (to_addresses, address_inbox) = std::sync::mpsc::channel();
    let (to_services, service_inbox) = std::sync::mpsc::channel();
    let (address_facts, addresses) = watch::channel(AddressFacts::default());
    let (service_facts, services) = watch::channel(ServiceFacts::default());
    let (notices, noticed) = mpsc::unbounded_channel();
    let contact = Arc::new(Pulse::default());

    let machine = |kernel, name, lane| {
        let (journal, problem) = JournalFile::open(&config.run_dir, name);
        if let Some(problem) = problem {
            tracing::error!("{problem}; what only the journal knew to be ours stays in the kernel");
        }
        Machine::new(kernel, journal, config.drain_timeout, metrics.clone(), lane)
    };
    let address_machine = machine(machinery.addresses, ADDRESSES, Lane::Address);
    let service_machine = machine(machinery.services, SERVICES, Lane::Service);
    let lifetime = u32::try_from(config.addresses.lifetime.as_secs().max(1)).unwrap_or(u32::MAX);
    let of_addresses = Options { address_lifetime: Some(lifetime), ..config.resolver.clone() };
    let ends = address_lane::Ends {
        inbox: address_inbox,
        own: to_addresses.clone(),
        services: to_services.clone(),
        facts: address_facts,
        notices: notices.clone(),
        health: health.clone(),
        contact: contact.clone(),
        metrics: metrics.clone(),
    };
    let wire = (machinery.links)(to_addresses.clone());
    let address_lane =
        AddressLane::new(address_machine, Resolver::new(of_addresses), wire, ends, config.addresses);
    let service_lane = ServiceLane::new(
        service_machine,
        Resolver::new(config.resolver.clone()),
        service_inbox,
        service_facts,
        notices,
        health.clone(),
        metrics.clone(),
        config.services,
    );

    // Before all else: what is held must not run out while the API server is asked.
    let store = Store::new(&config.state_dir);
    let stored = store.state(&config.node).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    if let Some(state) = &stored {
        let state = Box::new(state.clone());
        // Its receiver is about to start.
        let _ = to_addresses.send(address_lane::Message::State(state, Origin::Disk));
    }
    let spawn = |name: &'static str, work: Box<dyn FnOnce() + Send>| {
        let builder = std::thread::Builder::new().name(format!("{name}-lane"));
        builder.spawn(work).map_err(|source| RunError::Thread { lane: name, source })
    };
    let address_thread = spawn("address", Box::new(move || address_lane.run()))?;
    let service_thread = spawn("service", Box::new(move || service_lane.run()))?;

    let mut tasks = tokio::task::JoinSet::new();
    if let Some(listener) = listener {
        tasks.spawn(http::serve(listener, health.clone(), metrics.registry()));
    }

    let arrived = Arc::new(Mutex::new(Arrived::default()));
    let complete = Arc::new(AtomicBool::new(false));
    let (seen_sender, seen) = watch::channel(Seen::Nothing);
    let sink =
        sink(to_addresses.clone(), to_services.clone(), arrived.clone(), complete.clone(), seen_sender);
    let (progress_sender, progress) = mpsc::unbounded_channel();
    let writer = store.writer(config.collect);
    let problems = writer.problems();
    let watching = Watch::new(&config.node, store.clone(), writer, progress_sender, sink);
    {
        let servers = servers.clone();
        tasks.spawn(async move { watching.run(&servers).await });
    }
    tasks.spawn(cold_start(config.clone(), store, stored, arrived, complete, to_services.clone()));

    let pace = {
        let addresses = addresses.clone();
        move || if addresses.borrow().candidate { Pace::Candidate } else { Pace::Idle }
    };
    let lease = Arc::new(NodeLease::new(servers.client(), &config.node_namespace, &config.node));
    let leasing = {
        let (servers, health, metrics) = (servers.clone(), health.clone(), metrics.clone());
        let (lease, contact, addresses) = (lease.clone(), contact.clone(), addresses.clone());
        tokio::spawn(keep_lease(lease, servers, health, metrics, contact, addresses, pace))
    };
    let (source_sender, source) = watch::channel(SourceFacts::default());
    tasks.spawn(watch_source(
        config.clone(),
        servers.clone(),
        progress,
        problems,
        metrics.clone(),
        source_sender,
    ));
    let publishing = Publishing {
        node: config.node.clone(),
        pending: Pending::new(config.coalesce),
        api: Api::all(servers.client()),
        metrics: metrics.clone(),
    };
    tasks.spawn(publish_events(Events::new(servers.client(), &config.node), seen.clone(), noticed));
    tasks.spawn(publishing.run(addresses, services, source, seen));

    stop.await;
    tracing::info!("stopping; what is in the kernel stays in force");
    leasing.abort();
    // First the word, then the deed: addresses may live longer only when the operator knows it.
    let longer = lease.renew(Pace::Restart).await.map_err(|error| tracing::warn!("{error}")).is_ok();
    let (done, address_done) = std::sync::mpsc::channel();
    let asked = to_addresses.send(address_lane::Message::Stop(longer, done)).is_ok();
    let (done, service_done) = std::sync::mpsc::channel();
    let asked_too = to_services.send(service_lane::Message::Stop(done)).is_ok();
    let wait = Duration::from_secs(5);
    if asked && address_done.recv_timeout(wait).is_ok() && address_thread.join().is_err() {
        tracing::error!("the address lane ended in a panic");
    }
    if asked_too && service_done.recv_timeout(wait).is_ok() && service_thread.join().is_err() {
        tracing::error!("the service lane ended in a panic");
    }
    // Dropping the watch writes what is not on disk yet.
    tasks.shutdown().await;
    Ok(())
}

/// What the API server has of the node's own object.
#[derive(Clone, Debug)]
enum Seen {
    Nothing,
    Gone,
    Status { uid: Option<String>, status: Option<Box<NodeNetStateStatus>> },
}

fn sink(
    to_addresses: Sender<address_lane::Message>,
    to_services: Sender<service_lane::Message>,
    arrived: Arc<Mutex<Arrived>>,
    complete: Arc<AtomicBool>,
    seen: watch::Sender<Seen>,
) -> impl FnMut(Update) {
    let mut spec = None;
    move |update| {
        {
            let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            // The start of a list says nothing: each attempt begins with it.
            if matches!(update, Update::State(..) | Update::Slice(_)) {
                arrived.any = Some(Instant::now());
            }
            match &update {
                Update::State(..) => arrived.state = true,
                Update::Slice(slice) if !complete.load(Ordering::Acquire) => {
                    arrived.slices.extend(slice.metadata.name.clone());
                }
                Update::Listed(_) => {
                    complete.store(true, Ordering::Release);
                    arrived.slices.clear();
                }
                _ => {}
            }
        }
        match &update {
            Update::State(state, origin) => {
                let status = state.status.clone().map(Box::new);
                seen.send_replace(Seen::Status { uid: state.metadata.uid.clone(), status });
                // The own writes of the status come back here too: they change nothing.
                let now = (state.metadata.uid.clone(), state.metadata.generation, state.spec.clone());
                if spec.as_ref() == Some(&now) {
                    return;
                }
                spec = Some(now);
                // The lanes go only when the agent stops; so for all that follow.
                let _ = to_addresses.send(address_lane::Message::State(state.clone(), *origin));
            }
            Update::StateGone => {
                spec = None;
                seen.send_replace(Seen::Gone);
            }
            _ => {}
        }
        let _ = to_services.send(service_lane::Message::Update(update, Instant::now()));
    }
}

/// Puts the copy on disk into force when the API server does not give the whole state in time. What it gave already is
/// newer than the copy.
async fn cold_start(
    config: Config,
    store: Store,
    stored: Option<NodeNetState>,
    arrived: Arc<Mutex<Arrived>>,
    complete: Arc<AtomicBool>,
    to_services: Sender<service_lane::Message>,
) {
    loop {
        tokio::time::sleep(config.grace).await;
        if complete.load(Ordering::Acquire) {
            return;
        }
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        // A long list that is still arriving is better than the copy; without any state there is nothing to put into
        // force.
        let arriving = arrived.any.is_some_and(|last| last.elapsed() < config.grace);
        if !arriving && (arrived.state || stored.is_some()) {
            break;
        }
    }
    let send = |update| drop(to_services.send(service_lane::Message::Update(update, Instant::now())));
    let (state, slices) = {
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        (arrived.state, arrived.slices.clone())
    };
    if let Some(stored) = stored.filter(|_| !state) {
        send(Update::State(Box::new(stored), Origin::Disk));
    }
    let mut count = 0;
    for name in store.slice_names().difference(&slices) {
        match store.slice(name) {
            Ok(Some(slice)) => {
                count += 1;
                send(Update::Slice(Box::new(slice)));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    tracing::warn!(
        "no API server gave the whole state within {} s: what is known ({count} slices from the copy on disk) is put \
         into force, nothing is removed",
        config.grace.as_secs()
    );
    send(Update::Cold);
}

async fn keep_lease(
    lease: Arc<NodeLease>,
    servers: ApiServers,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    contact: Arc<Pulse>,
    mut addresses: watch::Receiver<AddressFacts>,
    pace: impl Fn() -> Pace,
) {
    let mut failing = false;
    loop {
        let now = pace();
        let alive = health.addresses.ever() && health.addresses.age() <= ADDRESSES_LIMIT;
        let mut wait = super::clock::jitter(now.period(), 0.05);
        if alive {
            let result = lease.renew(now).await;
            match &result {
                Ok(()) => {
                    contact.beat();
                    metrics.lease_renewals.get_or_create(&WriteLabel { result: "ok" }).inc();
                    if std::mem::take(&mut failing) {
                        tracing::info!("the API server {} answers again", servers.in_use());
                    }
                }
                Err(error) => {
                    metrics.lease_renewals.get_or_create(&WriteLabel { result: "error" }).inc();
                    match error {
                        // It answered: it is in reach, whatever it says.
                        LeaseError::Api { source, .. } if matches!(&**source, kube::Error::Api(s) if s.code < 500) =>
                        {
                            contact.beat();
                        }
                        LeaseError::Timeout { .. } => servers.give_up(),
                        LeaseError::Api { .. } => {}
                    }
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!("{error}");
                    }
                    wait = wait.min(Duration::from_secs(1));
                }
            }
            metrics.api_server_reachable.set(i64::from(result.is_ok()));
        } else {
            // Looked at again soon: the lane may only be busy.
            wait = wait.min(Duration::from_millis(200));
        }
        let until = tokio::time::Instant::now() + wait;
        // A node that becomes a candidate says so at once.
        while let Ok(changed) = tokio::time::timeout_at(until, addresses.changed()).await {
            if changed.is_err() {
                return;
            }
            if pace() != now {
                break;
            }
        }
    }
}

async fn watch_source(
    config: Config,
    servers: ApiServers,
    mut progress: mpsc::UnboundedReceiver<Progress>,
    problems: store::Problems,
    metrics: Arc<Metrics>,
    facts: watch::Sender<SourceFacts>,
) {
    let mut operator = OperatorWatch::new(&config.operator_namespace, config.operator_limit, Instant::now());
    let client = servers.client();
    let mut now = SourceFacts::default();
    let mut look = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = progress.recv() => match news {
                Some(news) => now.undecodable = news.undecodable,
                None => return,
            },
            _ = tick.tick() => {}
        }
        if look <= tokio::time::Instant::now() {
            let reading = operator.look(&client);
            match tokio::time::timeout(crate::report::lease::TIMEOUT, reading).await {
                Ok(Ok(())) => now.operator_silent = operator.silent(Instant::now()),
                // Who does not reach the API server cannot say anything about the operator.
                Ok(Err(error)) => tracing::debug!("read the operator's Lease: {error}"),
                Err(_) => tracing::debug!("read the operator's Lease: no answer"),
            }
            look = tokio::time::Instant::now() + super::clock::jitter(config.operator_look, 0.2);
        }
        now.store = problems.now();
        metrics.store_failing.set(i64::from(now.store.is_some()));
        facts.send_if_modified(|old| {
            let news = *old != now;
            old.clone_from(&now);
            news
        });
    }
}

/// Publishes Events while the node's object exists. While it does not, or no API server is in reach, the latest wait.
async fn publish_events(
    mut events: Events,
    mut seen: watch::Receiver<Seen>,
    mut notices: mpsc::UnboundedReceiver<Notice>,
) {
    let mut waiting: VecDeque<Notice> = VecDeque::new();
    loop {
        let known = match &*seen.borrow_and_update() {
            Seen::Status { uid, .. } => {
                events.set_uid(uid.clone());
                true
            }
            Seen::Nothing | Seen::Gone => false,
        };
        let mut again = false;
        if known && let Some(notice) = waiting.front() {
            if events.publish(notice).await {
                waiting.pop_front();
                continue;
            }
            again = true;
        }
        tokio::select! {
            () = tokio::time::sleep(NOTICE_AGAIN), if again => {}
            changed = seen.changed() => if changed.is_err() { return },
            notice = notices.recv() => match notice {
                Some(notice) => {
                    waiting.push_back(notice);
                    if waiting.len() > NOTICES {
                        waiting.pop_front();
                    }
                }
                None => return,
            },
        }
    }
}

struct Publishing {
    node: String,
    pending: Pending,
    api: Api<NodeNetState>,
    metrics: Arc<Metrics>,
}

impl Publishing {
    async fn run(
        mut self,
        mut addresses: watch::Receiver<AddressFacts>,
        mut services: watch::Receiver<ServiceFacts>,
        mut source: watch::Receiver<SourceFacts>,
        mut seen: watch::Receiver<Seen>,
    ) {
        loop {
            let due = self.pending.due(tokio::time::Instant::now());
            let write = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = seen.changed() => {
                    if changed.is_err() { return }
                    match seen.borrow_and_update().clone() {
                        Seen::Nothing => {}
                        Seen::Gone => self.pending.gone(),
                        Seen::Status { status, .. } => self.pending.seen(status.map(|s| *s)),
                    }
                }
                changed = addresses.changed() => if changed.is_err() { return },
                changed = services.changed() => if changed.is_err() { return },
                changed = source.changed() => if changed.is_err() { return },
                () = write => self.write().await,
            }
            let facts = (addresses.borrow_and_update().clone(), services.borrow_and_update().clone());
            let of_source = source.borrow_and_update().clone();
            self.pending.facts(&facts.0, &facts.1, &of_source);
        }
    }

    async fn write(&mut self) {
        let Some(status) = self.pending.take() else { return };
        let result = publisher::write(&self.api, &self.node, &status).await;
        let now = tokio::time::Instant::now();
        match result {
            Ok(()) => {
                self.metrics.status_writes.get_or_create(&WriteLabel { result: "ok" }).inc();
                self.pending.done(status, now);
            }
            Err(error) => {
                self.metrics.status_writes.get_or_create(&WriteLabel { result: "error" }).inc();
                tracing::debug!("{error}");
                self.pending.failed(now);
            }
        }
    }
}
