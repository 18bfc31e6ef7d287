//! The whole agent, on a kernel in memory and an API server in memory. Tests wait for conditions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // What helpers of tests meet fails the test.

#[path = "runtime/api.rs"]
mod api;
#[path = "runtime/node.rs"]
mod node;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Api;
use node::{NODE, Node, slice, spec, until};
use nodenet_agent::agent::address_lane::Message;
use nodenet_agent::agent::journal::SERVICES;
use nodenet_agent::kernel::fake::{FakeKernel, Fault};
use nodenet_agent::kernel::netlink::listener::Hearing;
use nodenet_agent::kernel::netlink::owner::Says;
use nodenet_agent::kernel::netlink::probe::Question;
use nodenet_agent::kernel::{Committed, Kernel, KernelError};
use nodenet_agent::state::{NodeState, Operation, Scope, Transaction, VirtualServerKey};

const VIP: &str = "192.168.0.15";

async fn synced(api: &Api, node: &Node, servers: usize) {
    until("virtual servers", || node.servers() == servers).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
}

fn vip(api: &Api) -> serde_json::Value {
    api.status()["virtualIPs"][0].clone()
}

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
async fn an_address_that_another_hand_removes_is_put_back_and_reported() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("the address", || node.has(VIP)).await;
    until("it is reported", || vip(&api)["state"] == "Active").await;
    let announced = node.links.announced();
    assert!(node.kernel.remove_address("eth0", VIP.parse().unwrap()));
    until("it is back", || node.has(VIP)).await;
    until("it is announced again", || node.links.announced() > announced).await;
    until("an Event", || api.event_reasons().contains(&"DriftRepaired".to_owned())).await;
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
async fn backup_removes_the_address_and_says_so() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    api.put("nodenetstates", NODE, 2, spec("Backup"));
    until("Backup is reported", || vip(&api)["state"] == "Backup").await;
    assert!(!node.has(VIP), "the report comes after the deed");
    assert_eq!(api.status()["observedGeneration"], 2);
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

#[tokio::test]
async fn another_owner_is_yielded_to_only_without_api() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let mut config = node.config();
    config.addresses.contact = Duration::from_millis(2500);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    until("it is listened for", || !node.links.inner.lock().unwrap().watched.is_empty()).await;
    until("the Lease", || !api.leases().is_empty()).await;
    let announced = node.links.announced();
    node.links.claim("eth0", VIP);
    until("it is defended", || node.links.announced() > announced).await;
    until("it is reported", || api.condition("AddressesReady")["reason"] == "AddressTaken").await;
    assert!(node.has(VIP));

    api.set_down(true);
    until("it yields", || {
        node.links.claim("eth0", VIP);
        !node.has(VIP)
    })
    .await;
    // The API server is back and says nothing new; the other host is gone.
    api.set_down(false);
    until("an Event", || api.event_reasons().contains(&"AddressTaken".to_owned())).await;
    until("it is taken again", || node.has(VIP)).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_holder_whose_lease_is_refused_yields_to_another_owner() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let mut config = node.config();
    config.addresses.contact = Duration::from_millis(2500);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("it is listened for", || !node.links.inner.lock().unwrap().watched.is_empty()).await;
    until("the Lease", || !api.leases().is_empty() && node.has(VIP)).await;
    // The operator sees no Lease and moves the addresses, whatever else the API server still answers.
    api.refuse_leases(true);
    until("it yields", || {
        node.links.claim("eth0", VIP);
        !node.has(VIP)
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn an_address_that_another_host_has_is_not_taken_before_it_is_free() {
    let (api, node) = (Api::start().await, Node::new());
    node.links.inner.lock().unwrap().owner = Some("02:00:00:00:00:09".into());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    until("the fault", || vip(&api)["state"] == "Fault").await;
    let words = vip(&api)["message"].to_string();
    assert!(words.contains("02:00:00:00:00:09") && words.contains("192.168.0.15 on eth0"), "{words}");
    assert_eq!(api.condition("AddressesReady")["reason"], "AddressTaken");
    assert!(!node.has(VIP) && node.links.announced() == 0);
    until("services go on", || node.servers() == 2).await;
    node.links.inner.lock().unwrap().owner = None;
    until("it is taken", || vip(&api)["state"] == "Active" && node.has(VIP)).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
    let last = node.links.inner.lock().unwrap().probed.last().unwrap().1;
    assert_eq!(last, Question::WillTake, "the operator gave it to this node");
    agent.stop().await;
}

#[tokio::test]
async fn an_address_that_is_added_to_a_held_virtual_ip_leaves_the_others_where_they_are() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    node.links.inner.lock().unwrap().owner = Some("02:00:00:00:00:09".into());
    node.kernel.take_log();
    let mut two = spec("Active");
    two["virtualIPs"][0]["addresses"] = serde_json::json!(["192.168.0.15/24", "192.168.0.16/24"]);
    api.put("nodenetstates", NODE, 2, two);
    until("words about it", || api.condition("AddressesReady")["reason"] == "AddressTaken").await;
    assert_eq!(vip(&api)["state"], "Active", "{}", vip(&api));
    node.links.inner.lock().unwrap().owner = None;
    until("it is taken", || node.has("192.168.0.16")).await;
    let log = node.kernel.take_log();
    assert!(!log.iter().any(|o| matches!(o, Operation::DeleteAddress(..))), "{log:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_holder_without_api_lets_go_for_a_moment_when_another_host_will_take_the_address() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let mut config = node.config();
    config.addresses.contact = Duration::from_millis(2500);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("it is listened for", || !node.links.inner.lock().unwrap().watched.is_empty()).await;
    until("the Lease", || !api.leases().is_empty() && node.has(VIP)).await;
    node.links.say(Says::WillTake, "eth0", VIP);
    api.refuse_leases(true);
    until("it lets go", || {
        node.links.say(Says::WillTake, "eth0", VIP);
        !node.has(VIP)
    })
    .await;
    until("nobody took it", || node.has(VIP)).await;
    let last = node.links.inner.lock().unwrap().probed.last().unwrap().1;
    assert_eq!(last, Question::WhoHas, "who doubts its own right presses nobody");
    agent.stop().await;
}

#[tokio::test]
async fn a_state_that_is_deleted_is_known_and_takes_nothing_away() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    api.delete("nodenetstates", NODE);
    until("it is known", || agent.metrics.state_gone.get() == 1).await;
    let renewals = agent.metrics.fence_renewals.get();
    until("renewals go on", || agent.metrics.fence_renewals.get() > renewals + 1).await;
    assert!(node.has(VIP));
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    until("the next one counts", || !node.has(VIP) && agent.metrics.state_gone.get() == 0).await;
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

#[tokio::test]
async fn a_listener_that_fails_is_said_and_takes_nothing_away() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    let tell = |lost| {
        let inner = node.links.inner.lock().unwrap();
        let hearing = Hearing { listener: "owners-arp", lost };
        inner.inbox.as_ref().unwrap().send(Message::Hearing(hearing)).unwrap();
    };
    let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
    tell(Some(KernelError::Io { operation: "read", object: "packet socket".into(), source }));
    until("words about it", || api.condition("AddressesReady")["reason"] == "ListenerFailing").await;
    assert_eq!(api.condition("AddressesReady")["status"], "True");
    assert!(node.has(VIP));
    tell(None);
    until("Ready", || api.condition("AddressesReady")["reason"] == "Ready").await;
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

#[tokio::test]
async fn a_link_without_carrier_is_a_fault_with_words_and_comes_back() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    let agent = node.start(&api).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    node.kernel.set_link("eth0", false);
    until("the fault", || vip(&api)["state"] == "Fault").await;
    assert!(vip(&api)["message"].as_str().unwrap().contains("eth0 is down"), "{}", vip(&api));
    assert_eq!(api.condition("AddressesReady")["reason"], "InterfaceMissing");
    assert!(!node.has(VIP));
    node.kernel.set_link("eth0", true);
    until("it is back", || vip(&api)["state"] == "Active" && node.has(VIP)).await;
    assert!(!node.links.inner.lock().unwrap().probed.is_empty(), "a probe came first");
    agent.stop().await;
}

#[tokio::test]
async fn a_failover_does_not_wait_for_services() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    for n in 1..=100 {
        api.put("nodenetslices", &format!("s{n}"), 1, slice(n, 1, &["10.244.1.1"]));
    }
    // The services' kernel is so slow that its first synchronisation takes minutes.
    let slow = FakeKernel::new();
    slow.add_link("eth0", "");
    slow.set_latency(Duration::from_millis(500));
    let agent =
        node.start_with(&api, node.config(), Box::new(node.kernel.clone()), Box::new(slow.clone())).await;
    until("services are on their way", || slow.counters().messages > 0).await;
    api.put("nodenetstates", NODE, 2, spec("Active"));
    until("the address", || node.has(VIP)).await;
    until("it is reported", || vip(&api)["state"] == "Active").await;
    assert!(slow.state().virtual_servers.len() < 200, "services were done before: the test shows nothing");
    agent.task.abort();
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

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_is_reported_and_stops_nothing() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    std::fs::write(node.path().join("state"), b"a file where the folder should be").unwrap();
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("the failure is listed", || {
        api.status()["failures"].as_array().is_some_and(|f| {
            f.iter().any(|f| f["object"].as_str().unwrap_or_default().contains("copy of the desired state"))
        })
    })
    .await;
    agent.stop().await;
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
async fn a_status_that_says_nothing_new_is_not_written() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    let agent = node.start(&api).await;
    synced(&api, &node, 2).await;
    until("Active", || vip(&api)["state"] == "Active").await;
    let leases = api.leases().len();
    until("a renewal", || api.leases().len() > leases).await;
    let (writes, leases) = (api.status_writes(), api.leases().len());
    // Ten times the coalescing time, and many renewals of the address.
    until("more renewals", || api.leases().len() > leases + 1).await;
    assert_eq!(api.status_writes(), writes);
    agent.stop().await;
}

#[tokio::test]
async fn an_operator_that_is_silent_is_said_to_be() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let mut config = node.config();
    (config.operator_look, config.operator_limit) = (Duration::from_millis(100), Duration::from_millis(500));
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("OperatorSilent", || api.condition("OperatorSilent")["status"] == "True").await;
    let words = api.condition("OperatorSilent")["message"].to_string();
    assert!(words.contains("nodenet-system/nodenet-operator"), "{words}");
    until("Ready stays", || api.condition("Ready")["status"] == "True").await;
    assert_eq!(api.condition("Ready")["reason"], "OperatorSilent");
    agent.stop().await;
}

/// What `path` answers.
async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let (api, node) = (Api::start().await, Node::new());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = node.config();
    config.http_address = Some(port);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("the port", || std::net::TcpStream::connect(port).is_ok()).await;
    let answer = get(port, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("nothing is synchronised yet"), "{answer}");
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1"]));
    synced(&api, &node, 2).await;
    for path in ["/readyz", "/livez", "/healthz"] {
        let answer = get(port, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let metrics = get(port, "/metrics").await;
    for name in [
        "nodenet_agent_kernel_operations_total{operation=\"add_virtual_server\"} 2",
        "nodenet_agent_network_programming_duration_seconds_count 1",
        "nodenet_agent_addresses_held 1",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
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
