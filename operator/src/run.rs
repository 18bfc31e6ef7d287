//! `nodenet-operator run`: puts the parts together and takes them apart in order.

use std::net::SocketAddr;

use nodenet_client::ApiServers;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tracing::{info, warn};

use crate::cli::Run;
use crate::control::Control;
use crate::election::{Election, KubeLease, Timing};
use crate::health::Health;
use crate::http;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::watch;

/// Name of the leader's Lease.
const LEASE: &str = "nodenet-operator";

/// Why the operator does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client.
    #[error(transparent)]
    ApiServer(#[from] nodenet_client::AccessError),
    /// Nothing can be served.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The options make no sense.
    #[error(transparent)]
    Settings(#[from] nodenet_planner::SettingsError),
    /// Signals cannot be received.
    #[error("signals: {0}")]
    Signal(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What prevents the start; afterwards everything is retried.
pub async fn run(options: Run) -> Result<(), Error> {
    let mut settings = options.planning.settings();
    settings.api_servers = options
        .connection
        .api_servers
        .iter()
        .filter_map(|s| s.parse::<SocketAddr>().ok())
        .map(|a| a.ip())
        .collect();
    settings.check()?;
    let identity = options.identity.unwrap_or_else(identity);
    let client = ApiServers::new(&options.connection.access()).await?.client();
    let listener = http::bind(options.http_address).await?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    info!("nodenet-operator {} starts as {identity:?}", env!("CARGO_PKG_VERSION"));

    let metrics = Metrics::new();
    let health = Health::new();
    let lease = KubeLease::new(client.clone(), &options.namespace, LEASE);
    let (election, leadership) = Election::new(lease, identity.clone(), Timing::default());
    let (published, announced) = flag::channel(None);
    let election = election.announcing(announced);
    let publisher = Publisher::new(&client, &identity, &metrics);
    let source = watch::Source {
        client,
        node_namespace: options.node_namespace,
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let control = Control::new(
        settings,
        options.debounce_ms,
        publisher,
        leadership.clone(),
        metrics.clone(),
        health.clone(),
    )
    .announcing(published);

    let (stop_control, control_stops) = flag::channel(false);
    let (stop_election, election_stops) = flag::channel(false);
    let election = tokio::spawn(election.run(raised(election_stops)));
    let control = tokio::spawn(control.run(source, raised(control_stops)));
    let server = tokio::spawn(http::serve(listener, health, leadership, metrics));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    // First the writes end, then another replica may begin.
    stop_control.send_replace(true);
    if let Err(error) = control.await {
        warn!("the loop ended badly: {error}");
    }
    stop_election.send_replace(true);
    if let Err(error) = election.await {
        warn!("the election ended badly: {error}");
    }
    server.abort();
    Ok(())
}

async fn raised(mut stop: flag::Receiver<bool>) {
    // A sender that is gone stops us as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The host's name and a suffix that no other process has.
fn identity() -> String {
    use std::hash::{BuildHasher, Hasher};
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    // Seeded from the kernel's random numbers for each process.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{}_{:08x}", if host.is_empty() { "operator" } else { host }, random as u32)
}
