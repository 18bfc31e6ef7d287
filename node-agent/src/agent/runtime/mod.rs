//! Puts the agent together: two lanes on threads of their own, and everything that speaks to the API server on one.

mod desired;
mod reporting;
mod tasks;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kube::Api;
use nodenet_client::ApiServers;
use tokio::sync::{mpsc, oneshot, watch};

use self::desired::{Arrived, Seen, cold_start, sink};
use self::reporting::{Leasing, Publishing, Sources, leave_dead_connections, publish_events, watch_source};
use self::tasks::Tasks;
use super::address_lane::{self, AddressLane};
use super::journal::{ADDRESSES, JournalFile, SERVICES};
use super::kube_proxy::{self, Neighbour};
use super::lock::{Lock, LockError};
use super::machine::Machine;
use super::service_lane::{self, ServiceLane};
use super::wire::Wire;
use crate::health_server::{self, Listen, proxy};
use crate::kernel::Kernel;
use crate::report::events::Events;
use crate::report::facts::{AddressFacts, ServiceFacts, SourceFacts};
use crate::report::health::{Health, Pulse};
use crate::report::http::{self, ListenError};
use crate::report::lease::{self, NodeLease, Pace};
use crate::report::metrics::{Lane, Metrics};
use crate::report::publisher::Pending;
use crate::resolve::{HealthChecks, Options, Resolver};
use crate::source::Origin;
use crate::source::store::Store;
use crate::source::watch::Watch;

/// Longest time without a look at everything that the health check takes for life.
const SERVICES_LIMIT: Duration = Duration::from_secs(60);

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
    /// Where load balancers ask for the health of the proxy (kube-proxy's port is 10256); nowhere without it.
    pub healthz_address: Option<SocketAddr>,
    /// How services are resolved.
    pub resolver: Options,
    /// Times of the address lane.
    pub addresses: address_lane::Times,
    /// Times of the service lane.
    pub services: service_lane::Times,
    /// What is done where kube-proxy is, or was.
    pub kube_proxy: kube_proxy::Settings,
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
    /// Listens for load balancers on the node's addresses. Without it nobody does.
    pub listen: Option<Listen>,
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
    /// A part of the agent ended although nobody told it to. What is in the kernel stays in force; a new process starts
    /// with all parts.
    #[error("the agent cannot go on without the part that {part}: it {}", if *panicked { "panicked" } else { "ended" })]
    Ended {
        /// What it does.
        part: &'static str,
        /// Whether it was a panic; its words are in the log.
        panicked: bool,
    },
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
    let at_first = HealthChecks { elsewhere: !config.kube_proxy.serve, ..HealthChecks::default() };
    let (health_checks, asked) = watch::channel(at_first);
    let (notices, noticed) = mpsc::unbounded_channel();
    let contact = Arc::new(Pulse::default());

    let machine = |kernel, name, lane| {
        let (journal, problem) = JournalFile::open(&config.run_dir, name);
        if let Some(problem) = problem {
            tracing::error!("{problem}; what only the journal knew to be ours stays in the kernel");
        }
        Machine::new(kernel, journal, config.drain_timeout, config.resolver.inside, metrics.clone(), lane)
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
        Neighbour::new(config.kube_proxy.clone(), &config.state_dir),
        service_inbox,
        service_facts,
        health_checks,
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
    let mut tasks = Tasks::default();
    let mut spawn = |name: &'static str, part: &'static str, work: Box<dyn FnOnce() + Send>| {
        let builder = std::thread::Builder::new().name(format!("{name}-lane"));
        let (alive, ended) = oneshot::channel::<()>();
        let thread = builder.spawn(move || {
            // Dropped at the end, by a panic too.
            let _alive = alive;
            work();
        });
        tasks.spawn(part, async move { drop(ended.await) });
        thread.map_err(|source| RunError::Thread { lane: name, source })
    };
    let address_thread = spawn("address", "holds addresses", Box::new(move || address_lane.run()))?;
    let service_thread = spawn("service", "programs services", Box::new(move || service_lane.run()))?;

    if let Some(listener) = listener {
        let serving = http::serve(listener, health.clone(), metrics.registry());
        tasks.spawn("serves health and metrics", serving);
    }

    if let Some(listen) = machinery.listen {
        let to_services = to_services.clone();
        // The lane goes only when the agent stops.
        let tell = move |hearing| drop(to_services.send(service_lane::Message::Hearing(hearing)));
        let place = config.healthz_address.map(|address| Arc::new(proxy::Place::new(address)));
        let serving = health_server::serve(asked, place, health.clone(), listen, tell);
        tasks.spawn("answers load balancers", serving);
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
        tasks.spawn("watches the API", async move { watching.run(&servers).await });
    }
    tasks.spawn_finite(
        "starts without an API server",
        cold_start(config.clone(), store, stored, arrived, complete, to_services.clone()),
    );

    let own_lease = Arc::new(NodeLease::new(servers.client(), &config.node_namespace, &config.node));
    let (quit, quitting) = oneshot::channel();
    let (answered, last_answer) = oneshot::channel();
    {
        let leasing = Leasing {
            lease: own_lease.clone(),
            servers: servers.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            contact,
        };
        let leasing = leasing.keep(addresses.clone(), quitting);
        // Who waits for the answer may have stopped waiting.
        tasks.spawn_finite("renews the Lease", async move {
            let _ = answered.send(leasing.await);
        });
    }
    let (source_sender, source) = watch::channel(SourceFacts::default());
    let sources = Sources {
        progress,
        problems,
        services: services.clone(),
        to_services: to_services.clone(),
        facts: source_sender,
    };
    tasks.spawn_finite(
        "watches the sources",
        watch_source(config.clone(), servers.clone(), metrics.clone(), sources),
    );
    let publishing = Publishing {
        node: config.node.clone(),
        uid: None,
        pending: Pending::new(config.coalesce),
        api: Api::all(servers.client()),
        metrics: metrics.clone(),
    };
    tasks.spawn_finite("leaves dead connections", leave_dead_connections(servers.clone(), addresses.clone()));
    let events = Events::new(servers.client(), &config.node);
    tasks.spawn_finite("publishes Events", publish_events(events, seen.clone(), noticed));
    tasks.spawn_finite("publishes the status", publishing.run(addresses, services, source, seen));

    tokio::select! {
        () = stop => {}
        (part, panicked) = tasks.ended() => return Err(RunError::Ended { part, panicked }),
    }
    tracing::info!("stopping; what is in the kernel stays in force");
    // A renewal that is on its way ends first: the server could take it after the one that says "for longer".
    drop(quit);
    let in_order =
        tokio::time::timeout(lease::TIMEOUT * 2, last_answer).await.is_ok_and(|ended| ended == Ok(true));
    // First the word, then the deed: addresses may live longer only when the operator knows it, and from then on.
    let asked = Instant::now();
    let longer = own_lease.renew(Pace::Restart).await.map_err(|error| tracing::warn!("{error}")).is_ok();
    let until = (longer && in_order).then(|| asked + config.addresses.restart_lifetime);
    let (done, address_done) = std::sync::mpsc::channel();
    let asked = to_addresses.send(address_lane::Message::Stop(until, done)).is_ok();
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
