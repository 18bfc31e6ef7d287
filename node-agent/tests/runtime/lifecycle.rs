//! Starts, restarts and ends, and the Lease over them.

use std::time::Duration;

use crate::api::Api;
use crate::node::{NODE, Node, slice, spec, until};
use crate::{VIP, synced, vip};
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::kernel::{Committed, Kernel, KernelError};
use nodenet_agent::state::{NodeState, Operation, Scope, Transaction};
use std::sync::{Arc, Mutex};

#[tokio::test]
async fn a_restart_writes_nothing_but_lifetimes() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("the address", || node.has(VIP)).await;
    // As `kill -9`: nothing is said, nothing is stored at the end.
    agent.task.abort();
    node.links.inner.lock().unwrap().inbox = None;
    until("the end", || agent.task.is_finished()).await;
    node.kernel.take_log();
    let writes = api.status_writes();
    let announced = node.links.announced();
    let again = node.start(&api).await;
    until("the successor's status", || api.status_writes() > writes || node.servers() == 2).await;
    until("a renewal", || again.metrics.fence_renewals.get() > 1).await;
    let log = node.kernel.take_log();
    assert!(!log.is_empty() && log.iter().all(|o| matches!(o, Operation::SetAddress(..))), "{log:?}");
    assert_eq!(node.links.announced(), announced, "what is held is not taken again");
    again.stop().await;
}

#[tokio::test]
async fn a_cold_start_without_api_uses_the_copy_and_removes_nothing() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    agent.stop().await;

    // The node boots: its kernel is new, its disk is not. An earlier agent left a route of ours that nobody wants.
    api.set_down(true);
    let booted = Node { kernel: Node::new().kernel, ..node };
    std::fs::remove_dir_all(booted.path().join("run")).unwrap();
    let stale = nodenet_agent::state::LocalRoute {
        range: "172.20.0.0/16".parse().unwrap(),
        interface: "nodenet0".into(),
    };
    booted.kernel.put_route(stale.clone());
    let agent = booted.start(&api).await;
    until("virtual servers from the copy", || booted.servers() == 2).await;
    until("the address, after a probe", || booted.has(VIP)).await;
    assert!(!booted.links.inner.lock().unwrap().probed.is_empty());
    assert!(booted.kernel.state().routes.contains(&stale), "nothing is removed for the copy's sake");
    api.set_down(false);
    until("the API server's list prunes", || !booted.kernel.state().routes.contains(&stale)).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_state_that_the_api_server_lacks_at_a_boot_comes_from_the_copy() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    agent.stop().await;

    // The slices can all be read; the node's own object is gone, and nobody makes it anew.
    api.delete("nodenetstates", NODE);
    api.put("nodenetslices", "s2", 1, slice(2, 1, &["10.244.1.1"]));
    let booted = Node { kernel: Node::new().kernel, ..node };
    let agent = booted.start(&api).await;
    until("the Services of both slices", || booted.servers() == 4).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_cold_start_takes_no_address_that_another_host_has() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("the address", || node.has(VIP)).await;
    agent.stop().await;
    api.set_down(true);
    let booted = Node { kernel: Node::new().kernel, ..node };
    booted.links.inner.lock().unwrap().owner = Some("02:00:00:00:00:09".into());
    let agent = booted.start(&api).await;
    until("two probes", || booted.links.inner.lock().unwrap().probed.len() > 1).await;
    assert!(!booted.has(VIP));
    agent.stop().await;
}

#[tokio::test]
async fn a_renewal_on_its_way_does_not_overtake_the_last_one() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    api.set_lease_latency(Duration::from_millis(500));
    until("a renewal on its way", || api.lease_requests().1 == 1).await;
    agent.stop().await;
    until("all are taken", || api.lease_requests().1 == 0).await;
    assert_eq!(api.leases().last().unwrap()["spec"]["leaseDurationSeconds"], 32);
}

#[tokio::test]
async fn the_lease_covers_what_an_earlier_agent_left() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    agent.stop().await;
    // Nothing tells the next one what to hold, on disk or by the API.
    std::fs::remove_dir_all(node.path().join("state")).unwrap();
    api.delete("nodenetstates", NODE);
    let before = api.leases().len();
    let agent = node.start(&api).await;
    until("Leases", || api.leases().len() > before + 1).await;
    let durations = |from: usize| -> Vec<i64> {
        let leases = api.leases();
        leases[from..].iter().map(|l| l["spec"]["leaseDurationSeconds"].as_i64().unwrap()).collect()
    };
    assert!(durations(before).iter().all(|seconds| *seconds == 32), "{:?}", durations(before));
    api.put("nodenetstates", NODE, 1, spec("Active"));
    until("what is renewed lives no longer than the Lease says", || durations(0).last() == Some(&8)).await;
    agent.stop().await;
}

/// A kernel that is the end of whoever looks at virtual servers.
struct Deadly(FakeKernel);

impl Kernel for Deadly {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        assert!(scope.virtual_servers.is_none(), "on purpose");
        self.0.observe(scope)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        self.0.commit(transaction)
    }
}

#[tokio::test]
async fn an_agent_of_which_a_part_ended_ends() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let deadly = Box::new(Deadly(node.kernel.clone()));
    let agent = node.start_with(&api, node.config(), Box::new(node.kernel.clone()), deadly).await;
    let error = agent.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("without the part that programs services"), "{error}");
}

/// A kernel that hangs when told to.
struct Stuck {
    kernel: FakeKernel,
    stuck: Arc<Mutex<()>>,
}

impl Kernel for Stuck {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        let _free = self.stuck.lock();
        self.kernel.observe(scope)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        let _free = self.stuck.lock();
        self.kernel.commit(transaction)
    }
}

#[tokio::test]
async fn a_stuck_address_lane_stops_the_lease() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let stuck = Arc::new(Mutex::new(()));
    let kernel = Stuck { kernel: node.kernel.clone(), stuck: stuck.clone() };
    let agent = node.start_with(&api, node.config(), Box::new(kernel), Box::new(node.kernel.clone())).await;
    until("Leases", || api.leases().len() > 1).await;
    let hold = Arc::new(std::sync::Barrier::new(2));
    let held = hold.clone();
    let thread = std::thread::spawn(move || {
        let _stuck = stuck.lock();
        held.wait();
    });
    let mut last = (api.leases().len(), std::time::Instant::now());
    until("no renewal for longer than two periods", || {
        let now = api.leases().len();
        if now != last.0 {
            last = (now, std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(5)
    })
    .await;
    let before = api.leases().len();
    hold.wait();
    until("renewals go on", || api.leases().len() > before).await;
    thread.join().unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let agent = node.start(&api).await;
    until("the first runs", || node.path().join("run/agent.lock").exists()).await;
    let second = node.start(&api).await;
    let error = second.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("another nodenet-agent works on this node"), "{error}");
    agent.stop().await;
}
