//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use nodenet_client::Access;
use nodenet_planner::{NodePortAddresses, Settings};

/// Turns Services and VirtualIPs into the network state of nodes.
#[derive(Debug, Parser)]
#[command(name = "nodenet-operator", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch a cluster and publish NodeNetStates and NodeNetSlices
    Run(Run),
    /// Print what would be published for the manifests of a folder, without any cluster
    ///
    /// Reads Nodes, Services, EndpointSlices and VirtualIPs and prints NodeNetStates and NodeNetSlices as YAML.
    /// What is wrong with the manifests goes to standard error.
    Render(Render),
    /// Remove what the operator has published (for uninstalling); VirtualIPs stay
    ///
    /// Stop the operator first, or it publishes again. Agents keep what is in the kernel.
    Cleanup(Cleanup),
}

/// How to reach the API server.
#[derive(Debug, Args)]
pub struct Connection {
    /// Kubeconfig file; without it the pod's ServiceAccount is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Real address of an API server, may be repeated: the next one is tried when one does not answer
    ///
    /// Replaces the address of the kubeconfig or of the pod. Never name the ClusterIP of the kubernetes Service: it
    /// works by what nodenet programs.
    #[arg(long = "api-server", value_name = "HOST:PORT")]
    pub api_servers: Vec<String>,
}

impl Connection {
    /// What the client is made of.
    pub fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            endpoints: self.api_servers.clone(),
            ..Access::default()
        }
    }
}

/// `None` is `primary`.
fn node_port_address(text: &str) -> Result<Option<IpNet>, ipnet::AddrParseError> {
    if text == "primary" { Ok(None) } else { text.parse().map(Some) }
}

/// What the planner must know of the cluster.
#[derive(Debug, Args)]
pub struct Planning {
    /// Range that ClusterIPs are taken from, may be repeated
    #[arg(long = "service-cidr", value_name = "CIDR")]
    pub service_cidrs: Vec<IpNet>,
    /// Range of all pods, may be repeated; without it the Nodes' podCIDRs
    #[arg(long = "cluster-cidr", value_name = "CIDR")]
    pub cluster_cidrs: Vec<IpNet>,
    /// Range that Services may name in externalIPs, may be repeated; none by default
    ///
    /// Whoever may write a Service can then take any address of the range, other Services' and neighbours' included.
    #[arg(long = "external-ip-cidr", value_name = "CIDR")]
    pub external_ip_cidrs: Vec<IpNet>,
    /// Range of the nodes' own addresses on which node ports answer, may be repeated, or `primary`: the first internal
    /// address of each family, by the Node; without it all addresses
    #[arg(long = "node-port-addresses", value_name = "CIDR|primary", value_parser = node_port_address)]
    pub node_port_addresses: Vec<Option<IpNet>>,
    /// IPVS scheduler of all virtual servers
    #[arg(long, value_name = "NAME", default_value = "rr")]
    pub scheduler: String,
}

impl Planning {
    /// The planner's settings.
    pub fn settings(&self) -> Settings {
        let module = format!("ip_vs_{}", self.scheduler);
        let mut settings = Settings {
            service_cidrs: self.service_cidrs.clone(),
            cluster_cidrs: self.cluster_cidrs.clone(),
            external_ip_cidrs: self.external_ip_cidrs.clone(),
            node_port_addresses: match self.node_port_addresses.as_slice() {
                [] => NodePortAddresses::All,
                // Whoever writes both wants fewer than all: the narrower one is taken.
                all if all.contains(&None) => NodePortAddresses::Primary,
                all => NodePortAddresses::Within(all.iter().flatten().copied().collect()),
            },
            scheduler: Some(self.scheduler.clone()),
            ..Settings::default()
        };
        if !settings.modules.contains(&module) {
            settings.modules.push(module);
        }
        settings
    }
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// How to reach the API server.
    #[command(flatten)]
    pub connection: Connection,
    /// What the planner must know.
    #[command(flatten)]
    pub planning: Planning,
    /// Namespace of the leader's Lease
    #[arg(long, value_name = "NAME", default_value = "nodenet-system", env = "NODENET_NAMESPACE")]
    pub namespace: String,
    /// Namespace of the agents' Leases
    #[arg(long, value_name = "NAME", default_value = "nodenet-nodes")]
    pub node_namespace: String,
    /// Name of this replica, unique among those that run; by default the host's name and a random suffix
    #[arg(long, value_name = "NAME", env = "NODENET_IDENTITY")]
    pub identity: Option<String>,
    /// Where /livez, /readyz, /healthz and /metrics are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10357")]
    pub http_address: SocketAddr,
    /// What is logged: error, warn, info, debug, or filters as `info,nodenet_operator::election=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "RUST_LOG")]
    pub log: String,
    /// Milliseconds in which changes of one Service become one write
    #[arg(long, value_name = "MILLISECONDS", default_value = "5", value_parser = millis)]
    pub debounce_ms: Duration,
}

fn millis(text: &str) -> Result<Duration, String> {
    let number: u16 = text.parse().map_err(|_| "not a number from 0 to 10000".to_owned())?;
    if number > 10_000 {
        return Err("not a number from 0 to 10000".to_owned());
    }
    Ok(Duration::from_millis(number.into()))
}

/// Options of `render`.
#[derive(Debug, Args)]
pub struct Render {
    /// File or folder with manifests (YAML or JSON), or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// What the planner must know.
    #[command(flatten)]
    pub planning: Planning,
}

/// Options of `cleanup`.
#[derive(Debug, Args)]
pub struct Cleanup {
    /// How to reach the API server.
    #[command(flatten)]
    pub connection: Connection,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_scheduler_brings_its_module() {
        let cli = Cli::parse_from(["nodenet-operator", "render", "-f", "x", "--scheduler", "wlc"]);
        let Command::Render(render) = cli.command else { panic!() };
        let settings = render.planning.settings();
        assert!(settings.modules.contains(&"ip_vs_wlc".to_owned()));
        assert!(settings.check().is_ok());
    }
}
