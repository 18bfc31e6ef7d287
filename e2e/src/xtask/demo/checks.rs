//! Addresses and traffic of the examples.

use super::{Demo, READY};
use crate::lab::Lab;
use crate::lab::traffic::answers;
use crate::tool::traffic::{Attempt, Transport};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The virtual IP of the example.
pub(super) const VIRTUAL_IP: &str = "192.168.0.15";
/// The node that the example prefers.
pub(super) const PREFERRED: &str = "k8s-node-1";
/// Where the Service answers on it.
pub(super) const NODE_PORT: u16 = 39090;

/// The nodes that hold the virtual IP, and whether it is a secondary address there.
pub(super) fn holders(lab: &Lab) -> anyhow::Result<BTreeMap<String, bool>> {
    let mut holders = BTreeMap::new();
    for node in &lab.topology().spec().nodes {
        let text = lab.place(&node.name).run(&["ip", "-json", "addr", "show"])?;
        let links: Vec<Value> = serde_json::from_str(&text)?;
        for address in links.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten()) {
            if address["local"] == VIRTUAL_IP {
                holders.insert(node.name.clone(), address["secondary"] == true);
            }
        }
    }
    Ok(holders)
}

/// The virtual IP is where it should be.
pub(super) fn addresses(demo: &mut Demo, lab: &Lab) -> anyhow::Result<()> {
    // The agent that was there first may have got it first: then it moves once, to the preferred node.
    let on_preferred = || Ok(holders(lab)?.into_keys().eq([PREFERRED.to_owned()]));
    let only = super::failover::wait(on_preferred)?;
    let holders = holders(lab)?;
    demo.check("the virtual IP is on the preferred node and on no other", only, format!("on {holders:?}"));
    demo.check(
        "it is a secondary address",
        holders.values().all(|secondary| *secondary) && !holders.is_empty(),
        lab.place(PREFERRED).run(&["ip", "-br", "-4", "addr", "show", "dev", "ens33"])?.trim().to_owned(),
    );
    lab.cluster().kubectl(&["wait", "--for=condition=Ready", READY, "vip/prometheus"])?;
    let role = lab.cluster().kubectl(&[
        "get",
        "nns",
        PREFERRED,
        "-o",
        "jsonpath={.status.virtualIPs[*].addresses[*].role}{.status.virtualIPs[*].role}",
    ])?;
    demo.check("its NodeNetState says so", role.contains("Secondary"), role);
    Ok(())
}

/// All ways to the Services of the examples.
pub(super) fn traffic(demo: &mut Demo, lab: &Lab) -> anyhow::Result<()> {
    let virtual_ip: IpAddr = VIRTUAL_IP.parse()?;
    let nodes: Vec<(String, IpAddr)> = lab
        .topology()
        .spec()
        .nodes
        .iter()
        .filter_map(|node| Some((node.name.clone(), node.addresses.first()?.addr())))
        .collect();
    let only = |count: usize| BTreeMap::from([("prometheus".to_owned(), count)]);
    let each = |count: usize| ["web-1", "web-2", "web-3"].map(|pod| (pod.to_owned(), count)).into();

    for (what, port) in [("port", 9090), ("node port", NODE_PORT)] {
        let name = format!("outside client to the virtual IP's {what}");
        expect(demo, lab, &name, "client", (virtual_ip, port), 3, &only(3))?;
    }
    for (node, address) in &nodes {
        let name = format!("outside client to the node port on {node}");
        expect(demo, lab, &name, "client", (*address, NODE_PORT), 3, &only(3))?;
        let name = format!("outside client to the node port on {node}, three pods");
        expect(demo, lab, &name, "client", (*address, 30981), 9, &each(3))?;
    }
    let cluster_ip: IpAddr = "10.243.21.14".parse()?;
    for (node, _) in &nodes {
        let name = format!("host {node} to the ClusterIP");
        let attempts = expect(demo, lab, &name, node, (cluster_ip, 8880), 9, &each(3))?;
        // A host's own address on the way to the pod: never the service's.
        let masqueraded =
            attempts.iter().filter_map(|attempt| attempt.source).all(|source| source != cluster_ip);
        demo.check(&format!("{name}: pods see an address of the node"), masqueraded, sources(&attempts));
    }
    let name = "pod web-1 to the ClusterIP";
    let attempts = expect(demo, lab, name, "web-1", (cluster_ip, 8880), 9, &each(3))?;
    let own: IpAddr = "10.244.3.32".parse()?;
    let kept = attempts
        .iter()
        .filter(|attempt| attempt.answer.as_deref() != Some("web-1"))
        .all(|attempt| attempt.source == Some(own));
    demo.check("pods on other nodes see the asking pod's own address", kept, sources(&attempts));
    Ok(())
}

/// Asks and compares who answered how often.
fn expect(
    demo: &mut Demo,
    lab: &Lab,
    name: &str,
    from: &str,
    to: (IpAddr, u16),
    count: u32,
    expected: &BTreeMap<String, usize>,
) -> anyhow::Result<Vec<Attempt>> {
    // Ready speaks of the latest plan that arrived: the one of what was applied last may be on its way.
    let mut attempts = Vec::new();
    super::failover::wait(|| {
        attempts = lab.place(from).ask(Transport::Tcp, to.into(), count)?;
        Ok(answers(&attempts) == *expected)
    })?;
    let seen = answers(&attempts);
    let mut detail: Vec<String> = seen.iter().map(|(pod, times)| format!("{pod} {times}")).collect();
    if let Some(error) = attempts.iter().find_map(|attempt| attempt.error.as_deref()) {
        detail.push(error.to_owned());
    }
    demo.check(name, seen == *expected, detail.join(", "));
    Ok(attempts)
}

fn sources(attempts: &[Attempt]) -> String {
    let mut seen: Vec<String> = attempts
        .iter()
        .filter_map(|attempt| Some(format!("{} saw {}", attempt.answer.as_deref()?, attempt.source?)))
        .collect();
    seen.sort();
    seen.dedup();
    seen.join(", ")
}
