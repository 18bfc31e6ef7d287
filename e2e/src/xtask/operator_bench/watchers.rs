//! Those who read: plain watchers of EndpointSlices, and agents with their kernel in memory.

use super::load;
use crate::lab::cluster::Cluster;
use crate::lab::error::During;
use crate::lab::process::{Process, wait_for};
use crate::lab::site::Site;
use anyhow::Context;
use std::fs;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(300);
/// Started at once: each reads everything, and the API server has two processors to itself at most.
const AT_ONCE: usize = 20;

/// Watchers of all EndpointSlices, each on a connection of its own, as so many kube-proxies: JSON, which is also what the
/// agents of the other half read.
pub(super) fn plain(site: &Site, cluster: &Cluster, count: usize) -> anyhow::Result<Vec<Process>> {
    let text = fs::read_to_string(cluster.inner_kubeconfig())?;
    let config: serde_json::Value = serde_json::from_str(&text)?;
    let token = config["users"][0]["user"]["token"].as_str().context("a token in the kubeconfig")?;
    let header = format!("Authorization: Bearer {token}");
    // kubectl's own lists have no version, and a watch without one begins with all there is, for each watcher.
    let list = cluster.kubectl(&["get", "--raw", "/apis/discovery.k8s.io/v1/endpointslices?limit=1"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("the version of the list")?.to_owned();
    let url = format!(
        "https://{}/apis/discovery.k8s.io/v1/endpointslices?watch=1&timeoutSeconds=3600&resourceVersion={version}",
        cluster.endpoint()
    );
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let log = site.log(&format!("watcher-{number}"));
        let argv = ["curl", "-sS", "-k", "-N", "-o", "/dev/null", "-H", &header, &url];
        all.push(Process::start(Some(site.netns()), &log, &argv)?);
    }
    // A connection each, and its TLS.
    std::thread::sleep(Duration::from_secs(5));
    Ok(all)
}

/// Agents of the first nodes, until each has what is published.
pub(super) fn agents(
    site: &Site,
    cluster: &Cluster,
    programs: &Path,
    count: usize,
) -> anyhow::Result<Vec<Process>> {
    let kubeconfig = cluster.inner_kubeconfig().display().to_string();
    let mut all: Vec<Process> = Vec::with_capacity(count);
    for number in 0..count {
        let name = load::node(number);
        let folder = site.folder().join(&name);
        let mut argv = vec![programs.join("nodenet-agent").display().to_string(), "run".into()];
        argv.extend(["--node".into(), name.clone(), "--kernel=fake".into(), "--log=warn".into()]);
        argv.extend(["--http-address=none".into(), "--healthz-address=none".into()]);
        argv.extend(["--kubeconfig".into(), kubeconfig.clone()]);
        for (flag, part) in [("--state-dir", "state"), ("--run-dir", "run")] {
            let folder = folder.join(part);
            fs::create_dir_all(&folder).during("make", folder.display())?;
            argv.extend([flag.into(), folder.display().to_string()]);
        }
        all.push(Process::start(Some(site.netns()), &site.log(&format!("agent-{name}")), &argv)?);
        if (number + 1).is_multiple_of(AT_ONCE) || number + 1 == count {
            reported(site, cluster, number + 1)?;
        }
    }
    Ok(all)
}

/// Waits until so many agents say that their virtual servers are there.
fn reported(site: &Site, cluster: &Cluster, count: usize) -> anyhow::Result<()> {
    wait_for("the agents to be ready", PATIENCE, &site.log("agent-node-00000"), || {
        let states = cluster.get(&["nodenetstates", "--chunk-size=500"])?;
        let ready = states["items"].as_array().into_iter().flatten().filter(|state| {
            let conditions = state["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "VirtualServersReady" && c["status"] == "True")
        });
        Ok((ready.count() >= count).then_some(()))
    })?;
    Ok(())
}
