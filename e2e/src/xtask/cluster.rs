//! `cargo xtask cluster`: a control plane to develop against.

use super::cargo;
use crate::lab::cluster::{Cluster, ClusterSpec};
use crate::lab::prerequisites;
use crate::lab::progress::step;
use crate::lab::site::Site;
use std::io::BufRead;

/// Starts etcd and kube-apiserver and says how to reach them, until Ctrl-C or the end of standard input.
#[derive(Debug, clap::Args)]
pub struct ClusterArguments {
    /// Service ranges.
    #[arg(long, value_delimiter = ',', default_value = "10.243.0.0/16")]
    service_cidr: Vec<String>,
    /// Runs this command with KUBECONFIG set, then ends with its exit code.
    #[arg(last = true)]
    argv: Vec<String>,
}

/// Starts it and waits.
///
/// # Errors
/// When it does not come up.
pub fn run(arguments: &ClusterArguments) -> anyhow::Result<i32> {
    cargo::build_lab_tool()?;
    let programs = prerequisites::control_plane()?;
    let site = Site::create()?;
    let spec = ClusterSpec { service_cidrs: arguments.service_cidr.clone(), ..ClusterSpec::default() };
    let cluster = step("starting the control plane", || Cluster::start(&site, programs, &spec))?;
    if let Some((program, rest)) = arguments.argv.split_first() {
        let status = std::process::Command::new(program)
            .args(rest)
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("KUBECTL", cluster.kubectl_program())
            .status()?;
        return Ok(status.code().unwrap_or(1));
    }
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("alias kubectl={}", cluster.kubectl_program().display());
    println!("# Kubernetes 1.{}; logs in {}", cluster.minor(), site.folder().display());
    println!(
        "# in its network namespace: ip netns exec {} env KUBECONFIG={} PROGRAM",
        site.netns(),
        cluster.inner_kubeconfig().display()
    );
    println!("# Ctrl-C ends it");
    for _ in std::io::stdin().lock().lines() {}
    Ok(0)
}
