//! The operator against a real API server.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Cluster, Value2, published};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use nodenet_crds::{AssignedState, NodeNetSlice, NodeNetState, NodeNetStateSpec, VirtualIP};
use nodenet_operator::metrics::Metrics;
use nodenet_operator::publish::{Class, Publisher};
use nodenet_planner::{Output, Precondition};
use serde_json::json;
use tokio::task::JoinHandle;

fn address(service: usize, endpoint: usize) -> String {
    format!("10.244.{}.{}", service % 250, endpoint + 1)
}

async fn services(cluster: &Cluster, count: usize, endpoints: usize) {
    for s in 0..count {
        let name = format!("s{s}");
        cluster.service(&name).await;
        let addresses: Vec<_> = (0..endpoints).map(|e| address(s, e)).collect();
        cluster.endpoints(&name, &addresses).await;
    }
}

fn condition<'a>(vip: &'a VirtualIP, type_: &str) -> Option<&'a Condition> {
    nodenet_crds::conditions::get(&vip.status.as_ref()?.conditions, type_)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_change_is_one_write() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 60, 5).await;
    let operator = cluster.operator("a");
    cluster
        .until("all Services are published", async || {
            let slices = cluster.slices().await;
            (0..60).all(|s| published(&slices, &format!("s{s}")).is_some_and(|p| p.len() == 5))
        })
        .await;
    operator.settled().await;
    let slices = cluster.slices().await.len();
    assert!((2..60).contains(&slices), "{slices} slices for 60 Services");
    for round in 0..5 {
        let before = operator.writes();
        cluster.endpoints("s7", &[format!("10.244.99.{}", round + 1)]).await;
        let took = cluster
            .until("the change is published", async || {
                cluster.published("s7").await == Some(vec![format!("10.244.99.{}", round + 1)])
            })
            .await;
        operator.settled().await;
        assert_eq!(operator.writes() - before, 1, "writes for one change\n{}", operator.log());
        println!("change to slice: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_of_a_large_service_rewrites_only_the_parts_that_it_touches() {
    const SLICES: usize = 10;
    const EACH: usize = 500;
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    cluster.service("large").await;
    let address = |n: usize| format!("10.{}.{}.{}", 10 + n / 62_500, n / 250 % 250, n % 250 + 1);
    let mut slices: Vec<Vec<String>> =
        (0..SLICES).map(|s| (0..EACH).map(|e| address(s * EACH + e)).collect()).collect();
    for (s, addresses) in slices.iter().enumerate() {
        cluster.endpoint_slice("large", s, addresses).await;
    }
    let all = |slices: &[Vec<String>]| {
        let mut all: Vec<String> = slices.concat();
        all.sort();
        Some(all)
    };
    let operator = cluster.operator("a");
    cluster.until("published", async || cluster.published("large").await == all(&slices)).await;
    operator.settled().await;
    let parts = cluster.slices().await.len();
    assert!(parts > 10, "{parts} parts");
    let mut next = 100_000;
    let mut replace = |addresses: &mut [String]| {
        for address_ in addresses {
            *address_ = address(next);
            next += 1;
        }
    };
    for (round, count) in [1, 1, 25, 25, 25, 25].into_iter().enumerate() {
        let before = operator.writes();
        replace(&mut slices[round][..count]);
        cluster.endpoint_slice("large", round, &slices[round]).await;
        let took =
            cluster.until("published", async || cluster.published("large").await == all(&slices)).await;
        operator.settled().await;
        let writes = operator.writes() - before;
        println!("{count} of {} endpoints: {writes} writes of {parts} parts, {took:?}", SLICES * EACH);
        // Those of one EndpointSlice stand side by side in the first layout.
        assert!(writes <= if count == 1 { 1 } else { 2 }, "{writes} writes\n{}", operator.log());
    }
    let operator = {
        operator.terminate().await;
        cluster.operator("b")
    };
    cluster.until("it leads", async || operator.leads()).await;
    operator.settled().await;
    assert_eq!(operator.writes(), 0, "{}", operator.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_wrong_is_one_event_whoever_leads() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    cluster.service("web").await;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let wrong = json!({ "metadata": { "annotations": { "nodenet.dev/scheduler": "fastest" } } });
    services.patch("web", &PatchParams::default(), &Patch::Merge(&wrong)).await.unwrap();
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let told = async || {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.items.into_iter().filter(|e| e.reason.as_deref() == Some("AnnotationIgnored")).count()
    };
    for name in ["a", "b"] {
        let operator = cluster.operator(name);
        cluster.until("it leads", async || operator.leads()).await;
        cluster.until("it is told", async || told().await == 1).await;
        operator.settled().await;
        assert_eq!(told().await, 1, "{}", operator.log());
        operator.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_status_change_write_nothing() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 20, 3).await;
    let operator = cluster.operator("a");
    cluster.until("published", async || cluster.published("s19").await.is_some()).await;
    operator.settled().await;
    assert!(operator.writes() > 0);
    let log = operator.terminate().await;
    assert!(log.contains("released the Lease"), "{log}");

    let before = cluster.slices().await;
    let again = cluster.operator("b");
    cluster.until("it leads", async || again.leads()).await;
    again.settled().await;
    assert_eq!(again.writes(), 0, "{}", again.log());
    // A kubelet's heartbeat: the Node changes, nothing of what is published does.
    cluster.node("n1", "192.168.0.11").await;
    again.settled().await;
    assert_eq!(again.writes(), 0, "{}", again.log());
    let versions = |slices: &[NodeNetSlice]| {
        slices.iter().map(|s| s.metadata.resource_version.clone()).collect::<Vec<_>>()
    };
    assert_eq!(versions(&before), versions(&cluster.slices().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_slices_deleted_by_hand_cost_nothing_and_are_back() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 60, 5).await;
    let operator = cluster.operator("a");
    cluster.until("published", async || cluster.published("s59").await.is_some()).await;
    operator.settled().await;
    let api: Api<NodeNetSlice> = Api::all(cluster.client.clone());
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let took = cluster
        .until("nothing terminates and everything is there", async || {
            let slices = cluster.slices().await;
            for s in 0..60 {
                let name = format!("s{s}");
                assert!(published(&slices, &name).is_some(), "{name} was lost");
            }
            slices.iter().all(|s| s.metadata.deletion_timestamp.is_none())
        })
        .await;
    println!("back after {took:?}");
    operator.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_a_standby_writes_nothing() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 5, 2).await;
    let first = cluster.operator("a");
    cluster.until("a leads", async || first.leads()).await;
    let second = cluster.operator("b");
    cluster.until("published", async || cluster.published("s4").await.is_some()).await;
    first.settled().await;
    second.settled().await;
    assert!(first.leads() && !second.leads());
    assert_eq!(second.writes(), 0, "{}", second.log());
    first.kill();
    cluster.endpoints("s1", &["10.244.9.9".into()]).await;
    let took = cluster
        .until("the other one publishes", async || {
            cluster.published("s1").await == Some(vec!["10.244.9.9".into()])
        })
        .await;
    println!("taken over after {took:?}");
    assert!(took < Duration::from_secs(25));
    second.settled().await;
    assert_eq!(second.writes(), 1, "only what changed\n{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_away_returns_to_what_another_left() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 5, 2).await;
    let first = cluster.operator("a");
    cluster.until("a leads", async || first.leads()).await;
    let second = cluster.operator("b");
    cluster.until("published", async || cluster.published("s4").await.is_some()).await;
    first.settled().await;
    second.settled().await;
    let written = first.writes();
    first.signal("STOP");
    cluster.until("the other one leads", async || second.leads()).await;
    cluster.endpoints("s1", &["10.244.9.9".into()]).await;
    cluster
        .until("it publishes", async || cluster.published("s1").await == Some(vec!["10.244.9.9".into()]))
        .await;
    second.settled().await;
    first.signal("CONT");
    cluster.until("the first stands by", async || !first.leads()).await;
    let left = cluster.slices().await;
    second.kill();
    cluster.until("the first leads again", async || first.leads()).await;
    first.settled().await;
    assert_eq!(first.writes(), written, "nothing was left to do\n{}", first.log());
    assert_eq!(cluster.slices().await, left);
    cluster.endpoints("s2", &["10.244.9.7".into()]).await;
    cluster
        .until("and works", async || cluster.published("s2").await == Some(vec!["10.244.9.7".into()]))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_object_stops_nothing_and_its_last_good_state_stays() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 3, 2).await;
    let operator = cluster.operator("a");
    cluster.until("published", async || cluster.published("s2").await.is_some()).await;
    operator.settled().await;
    let endpoints: Api<Value2<EndpointSlice>> = Api::namespaced(cluster.client.clone(), "default");
    let garbage = json!({ "endpoints": "none", "addressType": 4 });
    let patched =
        endpoints.patch("s1-1", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(garbage)).await;
    if matches!(&patched, Err(kube::Error::Api(status)) if status.code == 422) {
        println!("SKIP: this API server refuses garbage in EndpointSlices itself");
        return;
    }
    patched.unwrap();
    cluster
        .until("the garbage is seen", async || {
            operator.metric("nodenet_operator_undecodable_objects", "EndpointSlice") == 1.0
        })
        .await;
    cluster.endpoints("s0", &["10.244.9.8".into()]).await;
    cluster
        .until("others go on", async || cluster.published("s0").await == Some(vec!["10.244.9.8".into()]))
        .await;
    assert_eq!(cluster.published("s1").await, Some(vec![address(1, 0), address(1, 1)]));
    assert_eq!(operator.log().matches("s1-1 cannot be decoded").count(), 1, "{}", operator.log());
    // A restart must not lose it either: what is published is all that is known of it.
    operator.kill();
    let again = cluster.operator("a");
    cluster.until("it leads", async || again.leads()).await;
    again.settled().await;
    assert_eq!(cluster.published("s1").await, Some(vec![address(1, 0), address(1, 1)]));
    endpoints.delete("s1-1", &DeleteParams::default()).await.unwrap();
    cluster.until("repaired by deletion", async || cluster.published("s1").await == Some(vec![])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_service_leaves_the_slices_and_a_deleted_node_its_state() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    cluster.node("n2", "192.168.0.12").await;
    services(&cluster, 2, 1).await;
    let operator = cluster.operator("a");
    let states: Api<NodeNetState> = Api::all(cluster.client.clone());
    cluster
        .until("published", async || {
            cluster.published("s1").await.is_some() && states.get_opt("n2").await.unwrap().is_some()
        })
        .await;
    let state = states.get("n1").await.unwrap();
    let owners = state.metadata.owner_references.unwrap();
    assert_eq!((owners[0].kind.as_str(), owners[0].name.as_str()), ("Node", "n1"));
    let service: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    service.delete("s0", &DeleteParams::default()).await.unwrap();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    nodes.delete("n2", &DeleteParams::default()).await.unwrap();
    cluster
        .until("gone", async || {
            cluster.published("s0").await.is_none() && states.get_opt("n2").await.unwrap().is_none()
        })
        .await;
    assert!(cluster.published("s1").await.is_some());
    operator.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_claimed_twice_is_refused_in_words_and_the_first_is_unaffected() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    let operator = cluster.operator("a");
    let states: Api<NodeNetState> = Api::all(cluster.client.clone());
    cluster.until("n1 has a state", async || states.get_opt("n1").await.unwrap().is_some()).await;
    let interface = json!({ "name": "ens33", "up": true, "addresses": ["192.168.0.11/24"] });
    cluster.report("n1", json!({ "interfaces": [interface] })).await;
    let vips: Api<VirtualIP> = Api::all(cluster.client.clone());
    let vip = |name: &str, address: &str| json!({ "metadata": { "name": name }, "spec": { "addresses": [address], "interface": "ens33" } });
    let _: VirtualIP = cluster.put_cluster(vip("b-first", "192.168.0.15/24")).await;
    cluster
        .until("it has conditions", async || {
            condition(&vips.get("b-first").await.unwrap(), "Accepted").is_some_and(|c| c.status == "True")
        })
        .await;
    // Creation times have seconds: the younger one must be of another second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let _: VirtualIP = cluster.put_cluster(vip("a-second", "192.168.0.15/24")).await;
    let _: VirtualIP = cluster.put_cluster(vip("c-own", "192.168.0.11/24")).await;
    cluster
        .until("both are refused", async || {
            let (second, own) = (vips.get("a-second").await.unwrap(), vips.get("c-own").await.unwrap());
            condition(&second, "Accepted")
                .is_some_and(|c| c.status == "False" && c.message.contains("b-first"))
                && condition(&own, "Accepted")
                    .is_some_and(|c| c.status == "False" && c.message.contains("n1"))
        })
        .await;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    cluster
        .until("an Event says so too", async || {
            let about = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some("a-second");
            let all = events.list(&ListParams::default()).await.unwrap().items;
            all.iter().any(|e| about(e) && e.note.as_deref().is_some_and(|n| n.contains("b-first")))
        })
        .await;
    let first = vips.get("b-first").await.unwrap();
    assert_eq!(condition(&first, "Accepted").unwrap().status, "True");
    operator.settled().await;
    let before = operator.writes();
    operator.settled().await;
    assert_eq!(operator.writes(), before, "nothing in steady state\n{}", operator.log());
    vips.delete("b-first", &DeleteParams::default()).await.unwrap();
    cluster
        .until("the second gets it", async || {
            condition(&vips.get("a-second").await.unwrap(), "Accepted").is_some_and(|c| c.status == "True")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_removes_what_was_published_and_nothing_else() {
    let Some(cluster) = Cluster::empty().await else { return };
    cluster.node("n1", "192.168.0.11").await;
    services(&cluster, 3, 1).await;
    let operator = cluster.operator("a");
    cluster.until("published", async || cluster.published("s2").await.is_some()).await;
    operator.kill();
    nodenet_operator::cleanup::cleanup(&cluster.client, Duration::ZERO).await.unwrap();
    assert!(cluster.slices().await.is_empty());
    let states: Api<NodeNetState> = Api::all(cluster.client.clone());
    assert!(states.list(&ListParams::default()).await.unwrap().items.is_empty());
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    assert!(services.get("s2").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_written_over_the_version_that_was_read_and_over_no_other() {
    let Some(cluster) = Cluster::empty().await else { return };
    let publisher = Publisher::new(&cluster.client, "test", &Metrics::new());
    let states: Api<NodeNetState> = Api::all(cluster.client.clone());
    let range = "10.244.7.0/24".to_owned();
    let spec = NodeNetStateSpec { pod_cidrs: vec![range], ..NodeNetStateSpec::default() };
    let put = |spec: &NodeNetStateSpec, version: Option<String>| {
        let replaces = version.map(|v| Precondition { uid: None, resource_version: Some(v) });
        let (node, node_uid) = ("n1".to_owned(), Some("of-the-node".to_owned()));
        Output::PutState { node, node_uid, spec: spec.clone(), replaces }
    };
    let version = async || states.get("n1").await.unwrap().metadata.resource_version;
    let refused = async |output: Output| {
        let error = publisher.write(&output).await.unwrap_err();
        assert_eq!(error.class(), Class::Conflict, "{error}");
    };
    publisher.write(&put(&spec, None)).await.unwrap();
    refused(put(&spec, None)).await;

    let first = version().await;
    cluster.report("n1", json!({ "observedGeneration": 1, "sliceRevision": 1 })).await;
    refused(put(&NodeNetStateSpec::default(), first)).await;
    let label = json!({ "metadata": { "labels": { "whose": "another-hands" } } });
    states.patch("n1", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    publisher.write(&put(&NodeNetStateSpec::default(), version().await)).await.unwrap();

    let after = states.get("n1").await.unwrap();
    assert_eq!(after.spec, NodeNetStateSpec::default(), "what a spec lacks is gone");
    assert_eq!(after.metadata.labels.unwrap()["whose"], "another-hands");
    assert_eq!(after.metadata.owner_references.unwrap()[0].uid, "of-the-node");
    assert_eq!(after.status.unwrap().slice_revision, Some(1));
}

/// What an agent does to be alive, and what it says of virtual IPs.
struct FakeAgent {
    cluster: Arc<Cluster>,
    node: &'static str,
    address: &'static str,
    revision: i64,
}

impl FakeAgent {
    /// Reports the spec as done. Each report differs from the one before.
    async fn report(&mut self) {
        let states: Api<NodeNetState> = Api::all(self.cluster.client.clone());
        let Some(state) = states.get_opt(self.node).await.unwrap() else { return };
        self.revision += 1;
        let virtual_ips: Vec<_> = state
            .spec
            .virtual_ips
            .iter()
            .map(|v| {
                let held = v.addresses.iter().filter(|_| v.state == AssignedState::Active);
                let addresses: Vec<_> = held
                    .map(|a| json!({ "address": a, "interface": "ens33", "role": "Secondary" }))
                    .collect();
                json!({ "name": v.name, "state": v.state, "addresses": addresses })
            })
            .collect();
        let interface = json!({ "name": "ens33", "up": true, "addresses": [self.address] });
        let status = json!({
            "observedGeneration": state.metadata.generation,
            "sliceRevision": self.revision,
            "interfaces": [interface],
            "virtualIPs": virtual_ips,
        });
        self.cluster.report(self.node, status).await;
    }

    /// Lives until it is aborted, and reports at every `pause`.
    fn live(mut self, pause: Duration) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut renewed = None;
            loop {
                if renewed.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(1)) {
                    renewed = Some(Instant::now());
                    self.cluster.renew_lease(self.node).await;
                }
                self.report().await;
                tokio::time::sleep(pause).await;
            }
        })
    }
}

/// Changes the status of a NodeNetState as fast as the API server takes it.
async fn write_without_end(states: Api<NodeNetState>, node: &'static str) {
    for version in 0.. {
        let status = json!({ "status": { "agentVersion": version.to_string() } });
        let _ = states.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_not_held_up_by_an_agent_that_writes_its_status_all_the_time() {
    let Some(cluster) = Cluster::empty().await else { return };
    let cluster = Arc::new(cluster);
    let nodes = [("n1", "192.168.0.11"), ("n2", "192.168.0.12")];
    for (node, address) in nodes {
        cluster.node(node, address).await;
    }
    let operator = cluster.operator("a");
    let states: Api<NodeNetState> = Api::all(cluster.client.clone());
    let holder = async || {
        let all = states.list(&ListParams::default()).await.unwrap().items;
        let active = |s: &NodeNetState| s.spec.virtual_ips.iter().any(|v| v.state == AssignedState::Active);
        let mut names = all.iter().filter(|s| active(s)).filter_map(|s| s.metadata.name.clone());
        let first = names.next();
        assert_eq!(names.next(), None, "two nodes are told to hold it");
        first
    };
    let agent = |(node, address): (&'static str, &'static str), pause: Duration| {
        let address = if address.ends_with("11") { "192.168.0.11/24" } else { "192.168.0.12/24" };
        FakeAgent { cluster: cluster.clone(), node, address, revision: 0 }.live(pause)
    };
    let calm = Duration::from_millis(500);
    let mut agents = nodes.map(|node| agent(node, calm));
    let _: VirtualIP = cluster
        .put_cluster(json!({ "metadata": { "name": "web" }, "spec": { "addresses": ["192.168.0.15/24"] } }))
        .await;
    cluster.until("somebody holds it", async || holder().await.is_some()).await;
    let mut from = usize::from(holder().await.as_deref() == Some("n2"));
    for (pause, more) in [(calm, 0), (Duration::from_millis(20), 0), (calm, 1)] {
        let to = 1 - from;
        agents[to].abort();
        agents[to] = agent(nodes[to], pause);
        let noise: Vec<_> =
            (0..more).map(|_| tokio::spawn(write_without_end(states.clone(), nodes[to].0))).collect();
        agents[from].abort();
        let before = operator.metric("nodenet_operator_api_writes_total", "onflict");
        cluster
            .until("the old holder is told", async || holder().await.as_deref() != Some(nodes[from].0))
            .await;
        let took = cluster
            .until("the other holds it", async || holder().await.as_deref() == Some(nodes[to].0))
            .await;
        let conflicts = operator.metric("nodenet_operator_api_writes_total", "onflict") - before;
        noise.iter().for_each(JoinHandle::abort);
        println!(
            "status every {pause:?} and {more} writers without a pause: taken {took:?} after it was taken away, {conflicts} conflicts"
        );
        // No agent writes that often; but then, too, it is only a matter of time.
        assert!(more > 0 || took < Duration::from_secs(2), "{took:?}");
        agents[from] = agent(nodes[from], calm);
        from = to;
    }
}
