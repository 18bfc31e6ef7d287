//! Virtual IPs: taken, held, yielded, given back.

use std::time::Duration;

use crate::api::Api;
use crate::node::{NODE, Node, slice, spec, until};
use crate::{VIP, vip};
use nodenet_agent::agent::address_lane::Message;
use nodenet_agent::kernel::KernelError;
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::kernel::netlink::listener::Hearing;
use nodenet_agent::kernel::netlink::owner::Says;
use nodenet_agent::kernel::netlink::probe::Question;
use nodenet_agent::state::Operation;

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
    // Three renewals: on a busy machine one that is late is no loss of contact.
    config.addresses.contact = Duration::from_secs(6);
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
