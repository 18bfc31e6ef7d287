//! `nodenet-agent run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nodenet_client::{Access, ApiServers};
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
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
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10356")]
    pub http_address: String,
    /// Where load balancers ask whether this node may get clients, as they ask kube-proxy: /healthz and /livez. An
    /// unspecified address means all of both families. `none` for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_address: String,
    /// Time between two looks at everything (IPVS, sets and rules announce no changes), ±20 %.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = period)]
    pub verify_period: Duration,
    /// Least time between writes of the status that nobody waits for (counts, revisions).
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub status_period: Duration,
    /// How long a removed backend may keep its connections.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub drain_timeout: Duration,
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

/// Reads `30s`, `500ms`, `2m`, `1h` or a number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is no unit of time: write ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no time: write for example 30s"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

/// As [`duration`], for what happens again and again: without a pause nothing else would.
fn period(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0: write for example 30s".to_owned()),
        period => Ok(period),
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
    let http_address = address("--http-address", &arguments.http_address)?;
    let healthz_address = address("--healthz-address", &arguments.healthz_address)?;
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
        http_address,
        healthz_address,
        resolver: arguments.services.resolver()?,
        addresses: address_lane::Times {
            verify: arguments.verify_period,
            holding: holding::Times { grace: arguments.cold_start_after, ..holding::Times::default() },
            ..address_lane::Times::default()
        },
        services: service_lane::Times { verify: arguments.verify_period, ..service_lane::Times::default() },
        drain_timeout: arguments.drain_timeout,
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

/// Reads an address and port, or `none`.
fn address(option: &'static str, text: &str) -> Result<Option<SocketAddr>, CliError> {
    match text {
        "none" => Ok(None),
        text => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(CliError::Option {
                option,
                value: text.to_owned(),
                problem: "write an address and a port, as 0.0.0.0:10256 or [::1]:10256, or none".to_owned(),
            }),
        },
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("3 days").unwrap_err().contains("no unit of time"));
        assert!(duration("").is_err());
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(period("0s").unwrap_err().contains("more than 0") && period("1ms").is_ok());
    }
}
