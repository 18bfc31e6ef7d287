//! `nodenet-agent run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nodenet_client::{Access, ApiServers};
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use super::configuration::{self, Configuration, Place, Time, duration, period};
use super::options::{KernelKind, KernelOptions, ServiceOptions, fake};
use crate::agent::address_lane::{self, Message};
use crate::agent::memory;
use crate::agent::runtime::{self, Config, Machinery};
use crate::agent::wire::{Links, NoLinks};
use crate::agent::{holding, service_lane};
use crate::health_server;
use crate::kernel::netlink::events;
use crate::report::metrics::Metrics;
use crate::source::store;

/// Follows the NodeNetState of the node and all NodeNetSlices, makes the kernel so, keeps it so, and reports. Traffic
/// does not need it: what is in the kernel stays in force when the agent stops.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    services: ServiceOptions,
    /// Kubeconfig; without it the service account of the pod.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder with the token and ca.crt of the service account.
    #[arg(long, value_name = "DIR", default_value = nodenet_client::SERVICE_ACCOUNT)]
    pub service_account: PathBuf,
    /// Real endpoint of an API server; may be repeated: the next is used when one fails. Never the ClusterIP: that is
    /// what this agent programs.
    #[arg(long = "api-server", value_name = "HOST:PORT", env = "NODENET_API_SERVERS", value_delimiter = ',')]
    pub api_servers: Vec<String>,
    /// Name to expect in the API servers' certificates. With --api-server and the service account it is
    /// kubernetes.default.svc.
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Where the last desired state is kept for a start without API server.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nodenet")]
    pub state_dir: PathBuf,
    /// Namespace of the node's Lease.
    #[arg(long, value_name = "NAME", default_value = "nodenet-nodes")]
    pub node_namespace: String,
    /// Namespace of the operator's Lease.
    #[arg(long, value_name = "NAME", default_value = "nodenet-system", env = "NODENET_OPERATOR_NAMESPACE")]
    pub operator_namespace: String,
    /// Where /livez, /readyz, /healthz and /metrics are served; `none` for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10356", value_parser = configuration::place)]
    pub http_address: Place,
    /// Where load balancers ask whether this node may get clients, as they ask kube-proxy: /healthz and /livez. An
    /// unspecified address means all of both families. `none` for nowhere [default: 0.0.0.0:10256].
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = configuration::place)]
    pub healthz_address: Option<Place>,
    /// Time between two looks at everything (IPVS, sets and rules announce no changes), ±20 % [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub verify_period: Option<Duration>,
    /// Least time between writes of the status that nobody waits for (counts, revisions).
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub status_period: Duration,
    /// How long a removed backend may keep its connections [default: 15m].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub drain_timeout: Option<Duration>,
    /// How long the API server may take at the start before the copy on disk is put into force.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = period)]
    pub cold_start_after: Duration,
    /// Time between two looks at the operator's Lease, ±20 %.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = period)]
    pub operator_period: Duration,
    /// How long the operator may be silent before the status says so.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    pub operator_timeout: Duration,
    /// What is logged: error, warn, info, debug, trace, or a filter as `info,kube=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "RUST_LOG")]
    pub log: String,
    #[command(flatten)]
    kernel: KernelOptions,
}

impl Arguments {
    /// What the file and the flags say.
    fn configuration(&self) -> Result<Configuration, CliError> {
        let mut read = self.services.configuration()?;
        let set = |field: &mut Time, flag: Option<Duration>| {
            if let Some(time) = flag {
                *field = Time(time);
            }
        };
        set(&mut read.verify_period, self.verify_period);
        set(&mut read.drain_timeout, self.drain_timeout);
        if let Some(place) = self.healthz_address {
            read.healthz_address = place;
        }
        Ok(read)
    }
}

/// Runs it until SIGTERM or SIGINT.
pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    memory::tune();
    // Failed requests are told by who made them, with what they mean; the client would tell each a second time.
    let filter = format!("kube_client=off,{}", arguments.log);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| CliError::Option {
        option: "--log",
        value: arguments.log.clone(),
        problem: error.to_string(),
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let configuration = arguments.configuration()?;
    let verify = configuration.verify_period.0;
    let access = Access {
        kubeconfig: arguments.kubeconfig.clone(),
        service_account: Some(arguments.service_account.clone()),
        endpoints: arguments.api_servers.clone(),
        tls_server_name: arguments.tls_server_name.clone(),
    };
    let config = Config {
        node: arguments.services.node.clone(),
        state_dir: arguments.state_dir.clone(),
        run_dir: arguments.kernel.run_dir(),
        node_namespace: arguments.node_namespace.clone(),
        operator_namespace: arguments.operator_namespace.clone(),
        http_address: arguments.http_address.0,
        healthz_address: configuration.healthz_address.0,
        resolver: configuration.resolver(&arguments.services.node, &arguments.kernel),
        addresses: address_lane::Times {
            verify,
            holding: holding::Times { grace: arguments.cold_start_after, ..holding::Times::default() },
            ..address_lane::Times::default()
        },
        services: service_lane::Times {
            verify,
            least: configuration.min_sync_period.0,
            ..service_lane::Times::default()
        },
        drain_timeout: configuration.drain_timeout.0,
        kube_proxy: configuration.kube_proxy(),
        coalesce: arguments.status_period,
        collect: store::COLLECT,
        grace: arguments.cold_start_after,
        operator_look: arguments.operator_period,
        operator_limit: arguments.operator_timeout,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Start)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Start)?;
        let servers = ApiServers::new(&access).await?;
        tracing::info!(
            "nodenet-agent {} for node {}, API server {}",
            crate::report::status::VERSION,
            config.node,
            servers.in_use()
        );
        let metrics = Arc::new(Metrics::default());
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        runtime::run(config, servers, machinery(&arguments.kernel)?, metrics, stop).await?;
        Ok(())
    })
}

fn machinery(options: &KernelOptions) -> Result<Machinery, CliError> {
    if options.kernel == KernelKind::Fake {
        let kernel = fake();
        return Ok(Machinery {
            addresses: Box::new(kernel.clone()),
            services: Box::new(kernel),
            links: Box::new(|_| Box::new(NoLinks)),
            listen: None,
        });
    }
    let namespace = options.namespace();
    let of_sockets = options.namespace();
    Ok(Machinery {
        listen: Some(Arc::new(move |address| {
            of_sockets.run(|| health_server::listen(address)).map_err(std::io::Error::other)?
        })),
        addresses: Box::new(options.netlink()?),
        services: Box::new(options.netlink()?),
        links: Box::new(move |inbox| {
            let to = inbox.clone();
            // The lane goes only when the agent stops: then nobody listens any more.
            let lane = inbox.clone();
            let hearing = move |hearing| drop(lane.send(Message::Hearing(hearing)));
            let heard = move |event| to.send(Message::Kernel(event)).is_ok();
            match events::listen(&namespace, heard, hearing.clone()) {
                Ok(listener) => std::mem::forget(listener),
                Err(error) => {
                    tracing::error!("{error}; changes of another hand are only seen at the verify period");
                }
            }
            let (links, error) =
                Links::open(namespace, move |other| inbox.send(Message::Heard(other)).is_ok(), hearing);
            if let Some(error) = error {
                tracing::error!("{error}; other owners of an address are not heard");
            }
            Box::new(links)
        }),
    })
}
