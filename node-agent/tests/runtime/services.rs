//! Services: from slices to virtual servers, and back in the status.

use std::time::Duration;

use crate::api::Api;
use crate::node::{NODE, Node, slice, spec, until};
use crate::{VIP, synced, vip};
use nodenet_agent::agent::journal::SERVICES;
use nodenet_agent::kernel::fake::{FakeKernel, Fault};
use nodenet_agent::kernel::{Committed, Kernel, KernelError};
use nodenet_agent::state::{NodeState, Operation, Scope, Transaction, VirtualServerKey};
use std::sync::{Arc, Mutex};

#[tokio::test]
async fn from_the_api_to_the_kernel_and_back() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 7, &["10.244.1.1", "10.244.1.2"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("the address", || node.has(VIP)).await;
    until("announcements", || node.links.announced() == 2).await;
    until("status of the VIP", || vip(&api)["state"] == "Active").await;
    assert_eq!(vip(&api)["addresses"][0]["role"], "Secondary");
    assert_eq!(vip(&api)["addresses"][0]["interface"], "eth0");
    until("the revision", || api.status()["sliceRevision"] == 7).await;
    assert_eq!(api.status()["summary"]["virtualServers"], "2/2");
    assert_eq!(api.status()["summary"]["virtualIPs"], "1/1");
    assert_eq!(api.status()["observedGeneration"], 1);
    assert_eq!(api.status()["interfaces"][0]["addresses"][0], "192.168.0.11/24");
    until("an Event", || api.event_reasons().contains(&"VirtualIPActive".to_owned())).await;
    until("the Lease of a candidate", || {
        api.leases().last().is_some_and(|l| l["spec"]["leaseDurationSeconds"] == 8)
    })
    .await;
    agent.stop().await;
    assert_eq!(api.leases().last().unwrap()["spec"]["leaseDurationSeconds"], 32);
    assert!(node.has(VIP) && node.servers() == 2, "the data plane outlives the agent");
    let lifetime =
        node.kernel.state().addresses.iter().find(|(k, _)| k.address.to_string() == VIP).unwrap().1.lifetime;
    assert!(lifetime.is_some_and(|left| (28..=30).contains(&left)), "time for the successor: {lifetime:?}");
}

#[tokio::test]
async fn one_endpoint_is_one_message_for_each_virtual_server() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    for n in 1..=20 {
        api.put("nodenetslices", &format!("s{n}"), 1, slice(n, 1, &["10.244.1.1"]));
    }
    let agent = node.start(&api).await;
    synced(&api, &node, 40).await;
    until("quiet", || api.status()["summary"]["virtualServers"] == "40/40").await;
    node.kernel.take_log();
    let before = node.kernel.counters();
    api.put("nodenetslices", "s5", 2, slice(5, 2, &["10.244.1.1", "10.244.1.2"]));
    until("the endpoint", || {
        node.kernel.state().virtual_servers.values().filter(|v| v.real_servers.len() == 2).count() == 2
    })
    .await;
    until("the revision", || api.status()["sliceRevision"] == 2).await;
    let after = node.kernel.counters();
    let log = node.kernel.take_log();
    assert!(log.iter().all(|o| matches!(o, Operation::AddRealServer(..))), "{log:?}");
    assert_eq!(after.messages - before.messages, 2, "one for the ClusterIP, one for the node port");
    agent.stop().await;
}

#[tokio::test]
async fn a_slice_that_is_gone_takes_its_services_along_and_a_lost_api_does_not() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    api.put("nodenetslices", "s2", 1, slice(2, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 4).await;
    api.set_down(true);
    api.put("nodenetslices", "s3", 1, slice(3, 1, &["10.244.1.1"]));
    api.set_down(false);
    until("what was missed", || node.servers() == 6).await;
    api.delete("nodenetslices", "s1");
    until("the Service goes", || node.servers() == 4).await;
    agent.stop().await;
}

#[tokio::test]
async fn one_undecodable_slice_stops_nothing_and_is_named() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    api.put("nodenetslices", "s1", 2, serde_json::json!({"revision": "not a number"}));
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    until("the next slice", || node.servers() == 4).await;
    until("the failure is listed", || {
        api.status()["failures"]
            .as_array()
            .is_some_and(|f| f.iter().any(|f| f["object"] == "NodeNetSlice s1"))
    })
    .await;
    agent.stop().await;

    // After a restart its last good content comes from the copy on disk.
    let booted = Node { kernel: Node::new().kernel, ..node };
    let agent = booted.start(&api).await;
    until("all Services", || booted.servers() == 4).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_slice_that_was_never_readable_keeps_only_what_may_stand_in_it() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1", "10.244.1.2"]));
    api.put("nodenetslices", "s2", 1, slice(2, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 4).await;
    agent.task.abort();
    until("the end", || agent.task.is_finished()).await;

    // While no agent runs: a slice that no version of the agent can read, and one less of the others.
    api.put("nodenetslices", "garbage", 1, serde_json::json!({"revision": "latest"}));
    api.delete("nodenetslices", "s2");
    let agent = node.start(&api).await;
    until("words about it", || {
        let condition = api.condition("VirtualServersReady");
        let words = condition["message"].as_str().unwrap_or_default();
        condition["reason"] == "SliceIncomplete" && words.contains("NodeNetSlice garbage cannot be read")
    })
    .await;
    api.put("nodenetslices", "s1", 2, slice(1, 2, &["10.244.1.1"]));
    let backends = |number: u8| {
        let there = node.kernel.state().virtual_servers;
        let of_it = there.into_iter().filter(|(key, _)| {
            matches!(key, VirtualServerKey::Address(_, _, port) if *port == 30000 + u16::from(number))
        });
        of_it.map(|(_, server)| server.real_servers.len()).collect::<Vec<_>>()
    };
    until("the backend that is no more goes", || backends(1) == [1]).await;
    assert_eq!(backends(2), [1], "its Service may have moved to the slice that nobody can read");
    api.delete("nodenetslices", "garbage");
    until("now it is known not to be wanted", || node.servers() == 2).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
    agent.stop().await;
}

#[tokio::test]
async fn a_virtual_server_that_another_hand_removes_is_put_back_at_the_verify_period() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let mut config = node.config();
    config.services.verify = Duration::from_millis(200);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    synced(&api, &node, 2).await;
    let key = *node.kernel.state().virtual_servers.keys().next().unwrap();
    node.kernel.remove_virtual_server(&key);
    until("it is back", || node.servers() == 2).await;
    until("an Event", || api.event_reasons().contains(&"DriftRepaired".to_owned())).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_local_route_that_another_hand_removes_is_put_back_at_once() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let agent = node.start(&api).await;
    until("the route", || !node.kernel.state().routes.is_empty()).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
    let route = node.kernel.state().routes.first().unwrap().clone();
    node.kernel.remove_route(&route);
    until("it is back", || node.kernel.state().routes.contains(&route)).await;
    until("an Event", || api.event_reasons().contains(&"DriftRepaired".to_owned())).await;
    agent.stop().await;
}

#[tokio::test]
async fn node_ports_follow_addresses_of_another_hand() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    node.kernel.add_address("eth0", "192.168.0.77/24");
    until("a virtual server for it", || node.servers() == 3).await;
    node.kernel.remove_address("eth0", "192.168.0.77".parse().unwrap());
    until("it goes", || node.servers() == 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_spec_that_changes_nothing_for_services_is_confirmed_by_them_too() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    api.put("nodenetstates", NODE, 2, spec("Active"));
    until("Ready speaks of it", || api.condition("Ready")["observedGeneration"] == 2).await;
    agent.stop().await;
}

/// Looks into the journal before each commit.
struct Spy {
    kernel: FakeKernel,
    journal: std::path::PathBuf,
    unclaimed: Arc<Mutex<Vec<Operation>>>,
}

impl Kernel for Spy {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        self.kernel.observe(scope)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        let text = std::fs::read(&self.journal).unwrap_or_default();
        let journal: nodenet_agent::diff::Journal = serde_json::from_slice(&text).unwrap_or_default();
        for operation in transaction.operations() {
            if let Operation::AddVirtualServer(key @ VirtualServerKey::Address(..), _) = operation
                && !journal.owns_virtual_server(key)
            {
                self.unclaimed.lock().unwrap().push(operation.clone());
            }
        }
        self.kernel.commit(transaction)
    }
}

#[tokio::test]
async fn the_journal_is_written_before_the_commit() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let unclaimed = Arc::new(Mutex::new(Vec::new()));
    let spy = Spy {
        kernel: node.kernel.clone(),
        journal: node.path().join("run").join(SERVICES),
        unclaimed: unclaimed.clone(),
    };
    let agent = node.start_with(&api, node.config(), Box::new(node.kernel.clone()), Box::new(spy)).await;
    synced(&api, &node, 2).await;
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    until("the second", || node.servers() == 4).await;
    assert_eq!(*unclaimed.lock().unwrap(), []);
    agent.stop().await;
}

/// A kernel that refuses virtual servers at one port.
struct Refusing {
    kernel: FakeKernel,
    port: u16,
}

impl Kernel for Refusing {
    fn observe(&mut self, scope: &Scope) -> Result<NodeState, KernelError> {
        self.kernel.observe(scope)
    }

    fn commit(&mut self, transaction: &Transaction) -> Committed {
        let refused = |o: &Operation| match o {
            Operation::AddVirtualServer(VirtualServerKey::Address(_, _, port), _)
            | Operation::AddRealServer(VirtualServerKey::Address(_, _, port), ..) => *port == self.port,
            _ => false,
        };
        let (no, yes): (Vec<_>, Vec<_>) = transaction.operations().iter().cloned().partition(refused);
        let mut committed = self.kernel.commit(&Transaction::new(yes));
        for operation in no {
            if matches!(operation, Operation::AddVirtualServer(..)) {
                let error = KernelError::Refused {
                    operation: "add",
                    object: "virtual server".into(),
                    errno: libc::EINVAL,
                    message: Some("no such luck".into()),
                };
                committed.failed.push((operation, error));
            }
        }
        committed
    }
}

#[tokio::test]
async fn what_the_kernel_refuses_is_reported_and_stops_nothing_else() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    api.put("nodenetslices", "s2", 1, slice(2, 1, &["10.244.1.1"]));
    let refusing = Refusing { kernel: node.kernel.clone(), port: 30001 };
    let agent = node.start_with(&api, node.config(), Box::new(node.kernel.clone()), Box::new(refusing)).await;
    until("the others", || node.servers() == 3).await;
    until("the condition", || api.condition("VirtualServersReady")["reason"] == "KernelRefused").await;
    let words = api.condition("VirtualServersReady")["message"].to_string();
    assert!(words.contains("no such luck"), "{words}");
    assert_eq!(api.condition("PacketFilterReady")["status"], "True");
    until("the count", || api.status()["summary"]["virtualServers"] == "3/4").await;
    assert_eq!(api.status()["virtualServers"]["failed"], 1);
    assert!(api.status()["failures"][0]["message"].as_str().unwrap().contains("no such luck"));
    agent.stop().await;
}

#[tokio::test]
async fn a_busy_kernel_is_tried_again_until_all_is_done() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    for n in 1..=5 {
        api.put("nodenetslices", &format!("s{n}"), 1, slice(n, 1, &["10.244.1.1", "10.244.1.2"]));
    }
    for nth in [0, 3, 8, 20, 25, 30, 41, 42, 43, 50] {
        let fault = if nth % 2 == 0 { Fault::Refused(libc::EBUSY) } else { Fault::AnswerLost };
        node.kernel.fail_nth(nth, fault);
    }
    for nth in [1, 2, 3, 7] {
        node.kernel.fail_nth_observation(nth, libc::EINTR);
    }
    let agent = node.start(&api).await;
    synced(&api, &node, 10).await;
    until("real servers", || node.kernel.state().virtual_servers.values().all(|v| v.real_servers.len() == 2))
        .await;
    until("the address", || node.has(VIP)).await;
    until("no failure is left", || api.status()["failures"].is_null()).await;
    agent.stop().await;
}

#[tokio::test]
async fn changes_that_come_too_soon_wait() {
    let (api, node) = (Api::start().await, Node::new());
    let mut config = node.config();
    config.services.least = Duration::from_secs(2);
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent =
        node.start_with(&api, config, Box::new(node.kernel.clone()), Box::new(node.kernel.clone())).await;
    synced(&api, &node, 2).await;
    let begun = std::time::Instant::now();
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    until("the first change goes at once", || node.servers() == 4).await;
    api.put("nodenetslices", "s3", 1, slice(3, 3, &["10.244.1.1"]));
    api.put("nodenetslices", "s4", 1, slice(4, 4, &["10.244.1.1"]));
    until("the others", || node.servers() == 8).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    until("what is said", || api.status()["sliceRevision"] == 4).await;
    agent.stop().await;
}
