//! Changes of more than one endpoint: a Service that is new, and one whose endpoints are all replaced.

use super::change::{PATIENCE, watched};
use super::load::{self, TARGET};
use super::peers::Peer;
use super::{Bench, metrics};
use crate::lab::process::lab_tool;
use anyhow::Context;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Endpoints of the Service that is updated.
const PODS: usize = 250;
/// So many are replaced at once.
const STEP: usize = 10;
/// Endpoints of an EndpointSlice, as Kubernetes' own controller makes them.
const SLICE: usize = 100;

/// Milliseconds from the API server's answer until the node serves a Service that was not there before, with all its
/// endpoints. It is gone afterwards.
pub(super) fn new_service(bench: &Bench, peer: &dyn Peer) -> anyhow::Result<f64> {
    let load = &bench.plan.load;
    let number = load.services;
    let argv = [
        lab_tool()?.display().to_string(),
        "await-range".into(),
        "--timeout-seconds".into(),
        PATIENCE.as_secs().to_string(),
        load.server(number).to_string(),
        "1".into(),
        load.endpoints.to_string(),
    ];
    let seen = watched(bench, peer, argv.to_vec(), || load.add_service(&bench.api, number))?;
    load.remove_service(&bench.api, number)?;
    let (millis, _) = seen.context("the new Service does not come")?;
    Ok(millis)
}

/// A rolling update that reached the kernel.
pub(super) struct Rolled {
    /// From the API server's last answer.
    pub(super) millis: f64,
    /// Writes of slices that it caused.
    pub(super) writes: f64,
    /// Writes of EndpointSlices that it consisted of.
    pub(super) steps: f64,
}

/// Replaces all endpoints of a Service of [`PODS`], [`STEP`] at a time, as fast as the API server takes it.
pub(super) fn rolling_update(
    bench: &Bench,
    peer: &dyn Peer,
    settle: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Rolled> {
    let number = bench.plan.load.services + 1;
    let name = load::name(number);
    let slices = PODS.div_ceil(SLICE);
    let part = |part: usize| format!("{name}-{part}");
    let mut objects: Vec<(String, Value)> = (0..slices)
        .map(|index| (load::slices_path(), load::slice(&part(index), &name, &endpoints(index, 0))))
        .collect();
    objects.push(load::legacy(&name, subsets(0)));
    objects.push(load::service(number));
    bench.api.create(&objects)?;
    let server = bench.plan.load.server(number);
    let tool = lab_tool()?.display().to_string();
    let patience = PATIENCE.as_secs().to_string();
    let wait = |pod: usize, updated: usize| {
        let last = SocketAddr::new(address(pod, updated), TARGET);
        let argv = [tool.as_str(), "await-destination", "--timeout-seconds", &patience];
        argv.into_iter().map(str::to_owned).chain([server.to_string(), last.to_string()]).collect::<Vec<_>>()
    };
    watched(bench, peer, wait(PODS - 1, 0), || Ok(()))?.context("the Service to update does not come")?;
    settle()?;
    let writes = metrics::writes(&bench.lab)?.planned;
    let seen = watched(bench, peer, wait(PODS - 1, PODS), || {
        for updated in (STEP..=PODS).step_by(STEP) {
            if peer.legacy() {
                let path = format!("{}/{name}", load::path("endpoints"));
                bench.api.merge(&path, &json!({"subsets": subsets(updated)}))?;
            } else {
                let index = (updated - 1) / SLICE;
                let path = format!("{}/{}", load::slices_path(), part(index));
                bench.api.merge(&path, &json!({"endpoints": endpoints(index, updated)}))?;
            }
        }
        Ok(())
    })?;
    let (millis, _) = seen.context("the updated Service does not come")?;
    settle()?;
    let writes = metrics::writes(&bench.lab)?.planned - writes;
    bench.api.delete(&format!("{}/{name}", load::path("services")))?;
    for index in 0..slices {
        bench.api.delete(&format!("{}/{}", load::slices_path(), part(index)))?;
    }
    Ok(Rolled { millis, writes, steps: (PODS / STEP) as f64 })
}

/// The first `updated` pods have their new address. Away from those of the load.
fn address(pod: usize, updated: usize) -> IpAddr {
    let [.., high, low] = u32::try_from(pod).unwrap_or(0).to_be_bytes();
    Ipv4Addr::new(10, if pod < updated { 127 } else { 126 }, high, low + 1).into()
}

fn endpoints(slice: usize, updated: usize) -> Vec<Value> {
    (slice * SLICE..PODS.min((slice + 1) * SLICE))
        .map(|pod| {
            json!({"addresses": [address(pod, updated)],
                   "conditions": {"ready": true, "serving": true, "terminating": false}})
        })
        .collect()
}

fn subsets(updated: usize) -> Value {
    let addresses: Vec<Value> = (0..PODS).map(|pod| json!({"ip": address(pod, updated)})).collect();
    json!([{"addresses": addresses, "ports": [{"port": TARGET, "protocol": "TCP"}]}])
}
