//! Beside a kube-proxy that runs, after one that was stopped, and in its place.

use std::net::SocketAddr;
use std::time::Duration;

use crate::VIP;
use crate::api::{Api, Operator};
use crate::node::{Agent, NODE, Node, slice, spec, until};
use nodenet_agent::kernel::RunningSign;
use nodenet_agent::state::{
    Family, Forwarding, IpSet, NodeState, Operation, Protocol, RealServer, RealServerKey, SetEntry, SetKind,
    VirtualServer, VirtualServerKey,
};

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.168.0.11:30001";
/// Of a Service that is no more.
const STALE: &str = "10.96.0.99:80";
/// keepalived's.
const FOREIGN: &str = "192.168.0.200:8443";
/// Another hand's, in the service range.
const EXCLUDED: &str = "10.96.0.50:443";

fn key(at: &str) -> VirtualServerKey {
    let at: SocketAddr = at.parse().unwrap();
    VirtualServerKey::Address(Protocol::TCP, at.ip(), at.port())
}

fn real(at: &str) -> RealServerKey {
    let at: SocketAddr = at.parse().unwrap();
    RealServerKey { address: at.ip(), port: at.port() }
}

fn server(scheduler: &str, backends: &[&str], forwarding: Forwarding) -> VirtualServer {
    let one = RealServer { weight: 1, forwarding, active_connections: 0, inactive_connections: 0 };
    let real_servers = backends.iter().map(|at| (real(at), one)).collect();
    VirtualServer { scheduler: scheduler.into(), flags: 0, persistence: 0, drain_timeout: None, real_servers }
}

fn running() -> Option<RunningSign> {
    Some(RunningSign::Mode { at: "127.0.0.1:10249".parse().unwrap(), mode: "ipvs".into() })
}

/// A node that kube-proxy serves: it knows one backend that is wanted and one that is no more.
fn served_by_kube_proxy() -> Node {
    let node = Node::new();
    let kernel = &node.kernel;
    for address in ["10.96.0.1/32", "10.96.0.99/32", "10.96.0.50/32"] {
        kernel.kube_proxy_binds(address);
    }
    for (name, kind, entry) in [
        (
            "KUBE-CLUSTER-IP",
            SetKind::HashIpPort,
            SetEntry::IpPort("10.96.0.1".parse().unwrap(), Protocol::TCP, 80),
        ),
        ("KUBE-NODE-PORT-TCP", SetKind::BitmapPort, SetEntry::Port(30001)),
        ("KUBE-SRC-ROUTER", SetKind::HashIp, SetEntry::Ip("10.244.0.9".parse().unwrap())),
    ] {
        let set = IpSet { kind, family: Family::V4, max_entries: 65536, entries: [entry].into() };
        kernel.put_set(name, set);
    }
    let backends = ["10.244.1.1:80", "10.244.1.9:80"];
    kernel.put_virtual_server(key(CLUSTER_IP), server("rr", &backends, Forwarding::Masquerade));
    kernel.put_virtual_server(key(NODE_PORT), server("rr", &backends, Forwarding::Masquerade));
    kernel.put_virtual_server(key(STALE), server("rr", &["10.244.1.9:80"], Forwarding::Masquerade));
    kernel.put_virtual_server(key(FOREIGN), server("wlc", &["10.244.1.1:9090"], Forwarding::DirectRoute));
    kernel.put_virtual_server(key(EXCLUDED), server("sh", &["10.244.1.1:443"], Forwarding::Masquerade));
    for at in [CLUSTER_IP, NODE_PORT] {
        kernel.set_connections(&key(at), &real("10.244.1.1:80"), 3, 0);
        kernel.set_connections(&key(at), &real("10.244.1.9:80"), 2, 0);
    }
    node
}

async fn start(node: &Node, api: &Api, takeover: bool) -> Agent {
    let mut config = node.config();
    config.services.verify = Duration::from_millis(200);
    config.kube_proxy.takeover = takeover;
    config.kube_proxy.rules = Duration::from_millis(200);
    config.operator_look = Duration::from_millis(30);
    config.kube_proxy.excluded = vec!["10.96.0.50/31".parse().unwrap()];
    let kernel = || Box::new(node.kernel.clone());
    node.start_with(api, config, kernel(), kernel()).await
}

async fn api() -> Api {
    let api = Api::start().await;
    api.set_operator(Operator::Lives { published: Some(1) });
    api.put("nodenetstates", NODE, 1, spec("Active"));
    api.put("nodenetslices", "s1", 1, slice(1, 1, &["10.244.1.1", "10.244.1.2"]));
    api
}

fn reason_of_servers(api: &Api) -> String {
    api.condition("VirtualServersReady")["reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_kube_proxy_made_is_left_alone_while_it_runs_and_after_it_stopped() {
    let (api, node) = (api().await, served_by_kube_proxy());
    node.kernel.set_kube_proxy_runs(running());
    let before = node.kernel.state();
    let agent = start(&node, &api, false).await;
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    until("the virtual IP", || node.has(VIP)).await;
    let ready = api.condition("Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"KubeProxyActive".into()));
    assert!(ready["message"].to_string().contains("ipvs mode"), "{ready}");
    assert_eq!(api.condition("PacketFilterReady")["status"], "True");
    assert_eq!(api.status()["summary"]["virtualServers"], "0/2");

    node.kernel.set_kube_proxy_runs(None);
    until("words about what is left", || reason_of_servers(&api) == "KubeProxyLeftovers").await;
    let words = api.condition("VirtualServersReady")["message"].to_string();
    assert!(words.contains("kube-ipvs0 with 3 addresses") && words.contains("takeover: true"), "{words}");
    // A Service comes meanwhile: it is not for us.
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    until("it is counted", || api.status()["summary"]["virtualServers"] == "0/4").await;
    let after = node.kernel.state();
    assert_eq!(after.virtual_servers, before.virtual_servers);
    assert_eq!(after.sets, before.sets);
    assert_eq!(after.rules, before.rules);
    assert!(!after.links.contains_key("nodenet0") && after.routes.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn what_a_stopped_kube_proxy_left_is_taken_over_without_breaking_a_connection() {
    let (api, node) = (api().await, served_by_kube_proxy());
    node.kernel.set_kube_proxy_runs(running());
    let agent = start(&node, &api, true).await;
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    node.kernel.set_kube_proxy_runs(None);
    until("its interface gone", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    until("Ready", || api.condition("Ready")["reason"] == "Ready").await;
    until("an Event", || api.event_reasons().contains(&"KubeProxyTakenOver".to_owned())).await;

    let after = node.kernel.state();
    let mut sets: Vec<&String> = after.sets.keys().filter(|name| name.starts_with("KUBE")).collect();
    assert_eq!(sets.pop().map(String::as_str), Some("KUBE-SRC-ROUTER"), "another tool's stays");
    assert!(sets.is_empty(), "{sets:?}");
    let weights = |at: &str| -> Vec<(String, u32)> {
        let servers = &after.virtual_servers[&key(at)].real_servers;
        servers.iter().map(|(real, how)| (real.address.to_string(), how.weight)).collect()
    };
    for at in [CLUSTER_IP, NODE_PORT] {
        let expected = [("10.244.1.1", 1), ("10.244.1.2", 1), ("10.244.1.9", 0)];
        assert_eq!(
            weights(at),
            expected.map(|(at, weight)| (at.to_owned(), weight)),
            "{at} drains what is no more"
        );
    }
    assert_eq!(node.kernel.counters().broken_connections, 0);
    assert!(!after.virtual_servers.contains_key(&key(STALE)), "no Service wants it");
    for (at, scheduler) in [(FOREIGN, "wlc"), (EXCLUDED, "sh")] {
        assert_eq!(after.virtual_servers[&key(at)].scheduler, scheduler, "{at} is none of kube-proxy's");
    }
    assert_eq!(api.status()["summary"]["virtualServers"], "2/2");

    // It comes back without showing itself: it is not fought.
    node.kernel.kube_proxy_binds("10.96.0.1/32");
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    let message = api.condition("VirtualServersReady")["message"].to_string();
    assert!(message.contains("by another hand"), "{message}");
    // Nor later: while it runs unseen, nothing comes that was not there.
    let looks = agent.metrics.kube_proxy_looks.get();
    until("more looks", || agent.metrics.kube_proxy_looks.get() > looks + 20).await;
    assert_eq!(reason_of_servers(&api), "KubeProxyActive");
    assert!(node.kernel.state().links.contains_key("kube-ipvs0"));
    agent.stop().await;
    let agent = start(&node, &api, true).await;
    until("its interface gone", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_masquerading_virtual_server_at_a_node_port_is_kube_proxys_only_with_its_address_and_scheduler() {
    let (api, node) = (api().await, served_by_kube_proxy());
    // keepalived's: at an address that this node has not, and with a scheduler that kube-proxy does not use.
    let (elsewhere, other) = ("192.168.0.201:30001", "127.0.0.1:30001");
    node.kernel.put_virtual_server(key(elsewhere), server("rr", &["10.244.1.9:80"], Forwarding::Masquerade));
    node.kernel.put_virtual_server(key(other), server("wlc", &["10.244.1.9:80"], Forwarding::Masquerade));
    let agent = start(&node, &api, true).await;
    until("its interface gone", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    let after = node.kernel.state().virtual_servers;
    assert!(after.contains_key(&key(elsewhere)) && after.contains_key(&key(other)), "{after:?}");
    assert!(!after.contains_key(&key(STALE)) && after[&key(NODE_PORT)].real_servers.len() == 3);
    agent.stop().await;
}

#[tokio::test]
async fn addresses_that_nothing_else_answers_for_stay() {
    let (api, node) = (api().await, served_by_kube_proxy());
    let mut narrow = spec("Backup");
    narrow["serviceAddresses"]["cidrs"] = serde_json::json!(["10.97.0.0/16"]);
    api.put("nodenetstates", NODE, 2, narrow);
    let agent = start(&node, &api, true).await;
    until("words about it", || {
        let message = api.condition("VirtualServersReady")["message"].to_string();
        message.contains("10.96.0.1") && message.contains("serviceCIDRs")
    })
    .await;
    assert!(node.kernel.state().links.contains_key("kube-ipvs0"));
    assert!(node.kernel.state().virtual_servers.contains_key(&key(CLUSTER_IP)));
    agent.stop().await;
}

fn message_of_servers(api: &Api) -> String {
    api.condition("VirtualServersReady")["message"].as_str().unwrap_or_default().to_owned()
}

/// Waits for so many more looks at what there is of kube-proxy.
async fn looks(agent: &Agent, count: u64) {
    let before = agent.metrics.kube_proxy_looks.get();
    until("more looks", || agent.metrics.kube_proxy_looks.get() >= before + count).await;
}

/// That nobody has taken anything of kube-proxy's, nor written beside it.
fn assert_untouched(node: &Node, before: &NodeState) {
    let now = node.kernel.state();
    assert_eq!(now.virtual_servers, before.virtual_servers);
    assert_eq!(now.sets, before.sets);
    assert_eq!(now.rules, before.rules);
    assert!(now.links.contains_key("kube-ipvs0") && !now.links.contains_key("nodenet0"));
}

#[tokio::test]
async fn nothing_of_kube_proxys_is_touched_while_services_may_be_missing() {
    let (api, node) = (api().await, served_by_kube_proxy());
    let before = node.kernel.state();
    // A slice that cannot be read: any Service may stand in it.
    api.put("nodenetslices", "garbage", 1, serde_json::json!({"revision": "latest"}));
    let agent = start(&node, &api, true).await;
    until("words about it", || message_of_servers(&api).contains("until all Services are known")).await;
    assert_eq!(api.condition("Ready")["reason"], "KubeProxyLeftovers");
    looks(&agent, 5).await;
    assert_untouched(&node, &before);
    api.delete("nodenetslices", "garbage");
    until("now it goes", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    assert!(!node.kernel.state().virtual_servers.contains_key(&key(STALE)));
    agent.stop().await;
}

#[tokio::test]
async fn nothing_of_kube_proxys_is_touched_while_the_operator_is_silent() {
    let (api, node) = (api().await, served_by_kube_proxy());
    let before = node.kernel.state();
    for operator in [Operator::Never, Operator::Silent { published: 1 }] {
        api.set_operator(operator);
        let agent = start(&node, &api, true).await;
        until("words about it", || message_of_servers(&api).contains("whether the operator runs")).await;
        looks(&agent, 5).await;
        assert_untouched(&node, &before);
        agent.stop().await;
    }
    let agent = start(&node, &api, true).await;
    looks(&agent, 5).await;
    assert_untouched(&node, &before);
    api.set_operator(Operator::Lives { published: Some(1) });
    until("now it goes", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_an_operator_publishes_late_is_waited_for() {
    let (api, node) = (api().await, served_by_kube_proxy());
    let before = node.kernel.state();
    api.set_operator(Operator::Lives { published: None });
    let agent = start(&node, &api, true).await;
    until("words about it", || message_of_servers(&api).contains("does not say that all Services")).await;
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    until("the second Service is known", || api.status()["summary"]["virtualServers"] == "0/4").await;
    looks(&agent, 5).await;
    assert_untouched(&node, &before);
    // It has published all, and the last of it is on its way.
    api.set_operator(Operator::Lives { published: Some(3) });
    until("words about the slice", || message_of_servers(&api).contains("slices of revision 3")).await;
    looks(&agent, 5).await;
    assert_untouched(&node, &before);
    // The Service of which nobody knew until now.
    api.put("nodenetslices", "s99", 1, slice(99, 3, &["10.244.1.9"]));
    until("now it goes", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    assert!(node.kernel.state().virtual_servers.contains_key(&key(STALE)), "it is wanted");
    assert_eq!(node.kernel.counters().broken_connections, 0);
    agent.stop().await;
}

#[tokio::test]
async fn nothing_of_kube_proxys_goes_before_all_of_ours_is_in_the_kernel() {
    let (api, node) = (api().await, served_by_kube_proxy());
    node.kernel.refuse(Some(|operation| matches!(operation, Operation::ReplaceRules(..))));
    let agent = start(&node, &api, true).await;
    let backend =
        |at: &str| node.kernel.state().virtual_servers[&key(CLUSTER_IP)].real_servers.contains_key(&real(at));
    until("what can be there is", || backend("10.244.1.2:80")).await;
    // A look at one Service finds all of it as wanted: the rules are missing all the same.
    for (revision, address) in [(2, "10.244.1.3"), (3, "10.244.1.4"), (4, "10.244.1.5")] {
        api.put("nodenetslices", "s1", 1, slice(1, revision, &["10.244.1.1", address]));
        until("the change is in the kernel", || backend(&format!("{address}:80"))).await;
        looks(&agent, 3).await;
        let there = node.kernel.state();
        assert!(there.links.contains_key("kube-ipvs0") && there.virtual_servers.contains_key(&key(STALE)));
        assert!(there.sets.contains_key("KUBE-CLUSTER-IP"));
    }
    until("words about it", || api.condition("PacketFilterReady")["status"] == "False").await;
    node.kernel.refuse(None);
    until("now it goes", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    agent.stop().await;
}

#[tokio::test]
async fn nothing_of_kube_proxys_goes_while_it_cannot_be_looked_at() {
    let (api, node) = (api().await, served_by_kube_proxy());
    api.set_operator(Operator::Lives { published: None });
    let agent = start(&node, &api, true).await;
    until("words about it", || message_of_servers(&api).contains("does not say that all Services")).await;
    node.kernel.set_kube_proxy_unreadable(true);
    looks(&agent, 2).await;
    api.set_operator(Operator::Lives { published: Some(1) });
    looks(&agent, 10).await;
    assert!(node.kernel.state().links.contains_key("kube-ipvs0"));
    node.kernel.set_kube_proxy_unreadable(false);
    until("now it goes", || !node.kernel.state().links.contains_key("kube-ipvs0")).await;
    agent.stop().await;
}

#[tokio::test]
async fn in_excluded_ranges_another_hands_virtual_server_stays_although_a_service_wants_its_place() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    // A Service at an excluded address of the service range, where somebody has a virtual server; one beside, where nobody has.
    let mut there = slice(50, 1, &["10.244.1.1"]);
    there["services"][0]["ports"][0]["frontends"][0]["port"] = 443.into();
    api.put("nodenetslices", "s1", 1, there);
    api.put("nodenetslices", "s2", 1, slice(51, 2, &["10.244.1.1"]));
    node.kernel.put_virtual_server(key(EXCLUDED), server("sh", &["10.244.1.1:443"], Forwarding::Masquerade));
    let agent = start(&node, &api, true).await;
    until("words about it", || reason_of_servers(&api) == "AddressInUse").await;
    assert_eq!(node.kernel.state().virtual_servers[&key(EXCLUDED)].scheduler, "sh");
    assert!(node.kernel.state().virtual_servers.contains_key(&key("10.96.0.51:80")), "ours, by the journal");
    for name in ["s1", "s2"] {
        api.delete("nodenetslices", name);
    }
    api.put("nodenetslices", "s3", 1, slice(3, 3, &["10.244.1.1"]));
    until("ours gone", || !node.kernel.state().virtual_servers.contains_key(&key("10.96.0.51:80"))).await;
    assert!(node.kernel.state().virtual_servers.contains_key(&key(EXCLUDED)));
    agent.stop().await;
}

#[tokio::test]
async fn somebody_who_says_nothing_is_kube_proxy_only_where_there_is_something_of_it() {
    let (api, node) = (api().await, Node::new());
    let mute = || Some(RunningSign::Mute { at: "127.0.0.1:10256".parse().unwrap() });
    node.kernel.set_kube_proxy_runs(mute());
    let agent = start(&node, &api, true).await;
    until("served", || api.status()["summary"]["virtualServers"] == "2/2").await;
    // It begins: this is nothing that was left.
    node.kernel.add_link("kube-ipvs0", "dummy");
    let looks = agent.metrics.kube_proxy_looks.get();
    until("more looks", || agent.metrics.kube_proxy_looks.get() > looks + 5).await;
    assert!(node.kernel.state().links.contains_key("kube-ipvs0"));
    node.kernel.kube_proxy_binds("10.96.0.1/32");
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    agent.stop().await;
}

#[tokio::test]
async fn a_kube_proxy_that_comes_later_is_given_the_virtual_servers() {
    let (api, node) = (api().await, Node::new());
    let agent = start(&node, &api, false).await;
    until("served", || api.status()["summary"]["virtualServers"] == "2/2").await;
    node.kernel.set_kube_proxy_runs(running());
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    node.kernel.remove_virtual_server(&key(NODE_PORT));
    api.put("nodenetslices", "s2", 1, slice(2, 2, &["10.244.1.1"]));
    // Packets still go through our sets and rules: they follow.
    until("the new Service's entry", || {
        let sets = node.kernel.state().sets;
        sets["NODENET-CLUSTER-IP"].entries.len() == 2
    })
    .await;
    assert_eq!(node.servers(), 1, "neither put back nor added");
    node.kernel.set_kube_proxy_runs(None);
    until("served again", || api.status()["summary"]["virtualServers"] == "4/4").await;
    assert_eq!(node.servers(), 4);
    agent.stop().await;
}

#[tokio::test]
async fn beside_a_kube_proxy_that_came_later_firewall_marks_follow_and_nothing_else() {
    let (api, node) = (Api::start().await, Node::new());
    api.put("nodenetstates", NODE, 1, spec("Backup"));
    let local = |revision, endpoints: &[&str]| {
        let mut slice = slice(1, revision, endpoints);
        let port = &mut slice["services"][0]["ports"][0];
        port["externalTrafficPolicy"] = "Local".into();
        port["insideNumber"] = 5.into();
        slice
    };
    api.put("nodenetslices", "s1", 1, local(1, &["10.244.1.1"]));
    let agent = start(&node, &api, false).await;
    let backends = |of_mark: bool| -> Vec<usize> {
        let servers = node.kernel.state().virtual_servers.into_iter();
        servers
            .filter(|(key, _)| matches!(key, VirtualServerKey::FirewallMark(..)) == of_mark)
            .map(|(_, server)| server.real_servers.len())
            .collect()
    };
    until("served", || !backends(true).is_empty() && backends(false).len() == 2).await;
    let at_addresses = backends(false);
    node.kernel.set_kube_proxy_runs(running());
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    // By a change of one Service, and by a look at everything.
    api.put("nodenetslices", "s1", 2, local(2, &["10.244.1.1", "10.244.1.2"]));
    until("it follows", || backends(true).iter().all(|count| *count == 2)).await;
    for key in node.kernel.state().virtual_servers.into_keys() {
        if matches!(key, VirtualServerKey::FirewallMark(..)) {
            node.kernel.remove_virtual_server(&key);
        }
    }
    until("it is put back", || backends(true).contains(&2)).await;
    assert_eq!(backends(false), at_addresses, "kube-proxy's own by now");
    api.put("nodenetslices", "s1", 3, slice(1, 3, &["10.244.1.1"]));
    until("nobody marks for it", || backends(true).is_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_node_that_starts_again_waits_for_its_kube_proxy() {
    let (api, node) = (api().await, served_by_kube_proxy());
    node.kernel.set_kube_proxy_runs(running());
    let agent = start(&node, &api, false).await;
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    agent.stop().await;
    // The agent is there before kube-proxy.
    node.kernel.restart();
    std::fs::remove_dir_all(node.path().join("run")).unwrap();
    let agent = start(&node, &api, false).await;
    until("words about it", || reason_of_servers(&api) == "KubeProxyAwaited").await;
    let words = api.condition("VirtualServersReady")["message"].to_string();
    assert!(words.contains("takeover: true"), "{words}");
    assert_eq!((node.servers(), ours(&node)), (0, vec![]));
    node.kernel.set_kube_proxy_runs(running());
    until("words about it", || reason_of_servers(&api) == "KubeProxyActive").await;
    assert_eq!((node.servers(), ours(&node)), (0, vec![]));
    // It goes, and nothing of it is there: it may be one of another mode that is started again.
    node.kernel.set_kube_proxy_runs(None);
    until("words about it", || reason_of_servers(&api) == "KubeProxyAwaited").await;
    agent.stop().await;

    let agent = start(&node, &api, true).await;
    until("served", || api.status()["summary"]["virtualServers"] == "2/2").await;
    agent.stop().await;
    // From now on the node is nodenet's, after it was started again too.
    node.kernel.restart();
    let agent = start(&node, &api, false).await;
    until("served again", || node.servers() == 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_its_iptables_mode_left_is_not_taken_over() {
    let (api, node) = (api().await, Node::new());
    node.kernel.set_kube_proxy_iptables(true);
    let agent = start(&node, &api, true).await;
    until("words about it", || reason_of_servers(&api) == "KubeProxyLeftovers").await;
    let words = api.condition("VirtualServersReady")["message"].to_string();
    assert!(words.contains("iptables mode") && words.contains("--cleanup"), "{words}");
    assert_eq!((node.servers(), ours(&node)), (0, vec![]));
    node.kernel.set_kube_proxy_iptables(false);
    until("served", || api.status()["summary"]["virtualServers"] == "2/2").await;
    agent.stop().await;
}

#[tokio::test]
async fn rules_are_not_read_at_each_look() {
    let (api, node) = (api().await, served_by_kube_proxy());
    let mut config = node.config();
    config.kube_proxy.look = Duration::from_millis(5);
    config.kube_proxy.rules = Duration::from_secs(3600);
    let kernel = || Box::new(node.kernel.clone());
    let agent = node.start_with(&api, config, kernel(), kernel()).await;
    until("many looks", || agent.metrics.kube_proxy_looks.get() > 20).await;
    let read = node.kernel.counters().kube_proxy_rules_read;
    assert!(read <= 2, "{read} readings");
    agent.stop().await;
}

async fn start_without_services(node: &Node, api: &Api, remove: bool) -> Agent {
    let mut config = node.config();
    config.services.verify = Duration::from_millis(200);
    config.resolver.service_proxy = false;
    (config.kube_proxy.serve, config.kube_proxy.remove) = (false, remove);
    let kernel = || Box::new(node.kernel.clone());
    node.start_with(api, config, kernel(), kernel()).await
}

/// What is ours for Services.
fn ours(node: &Node) -> Vec<String> {
    let state = node.kernel.state();
    let sets = state.sets.into_keys().filter(|name| name.starts_with("NODENET"));
    let rules = state.rules.keys().map(|family| format!("{family:?} rules"));
    let links = state.links.into_keys().filter(|name| name == "nodenet0");
    sets.chain(rules).chain(links).chain(state.routes.iter().map(|route| route.range.to_string())).collect()
}

#[tokio::test]
async fn without_services_there_are_virtual_ips_and_nothing_else() {
    let (api, node) = (api().await, served_by_kube_proxy());
    node.kernel.set_kube_proxy_runs(running());
    let mut on_vip = slice(2, 2, &["10.244.1.1"]);
    let frontends = on_vip["services"][0]["ports"][0]["frontends"].as_array_mut().unwrap();
    for kind in ["VirtualIP", "VirtualIPNodePort"] {
        frontends.push(serde_json::json!({"kind": kind, "address": VIP, "port": 8080}));
    }
    api.put("nodenetslices", "s2", 1, on_vip);
    let before = node.kernel.state();
    let agent = start_without_services(&node, &api, false).await;
    until("the virtual IP", || node.has(VIP)).await;
    until("Ready", || api.condition("Ready")["status"] == "True").await;
    let message = api.condition("VirtualServersReady")["message"].to_string();
    assert!(message.contains("nobody serves default/web-2 at TCP 192.168.0.15:8080;"), "{message}");
    assert_eq!(api.condition("Ready")["reason"], "ServiceProxyOff");
    assert_eq!(api.status()["summary"]["virtualServers"], "0/0");
    let after = node.kernel.state();
    assert_eq!(ours(&node), [""; 0]);
    assert_eq!(after.virtual_servers, before.virtual_servers);
    assert_eq!(after.modules, before.modules);
    assert_eq!(
        after.sysctls.get("net.ipv4.conf.all.arp_ignore"),
        before.sysctls.get("net.ipv4.conf.all.arp_ignore")
    );
    agent.stop().await;
}

#[tokio::test]
async fn what_was_served_stays_until_its_removal_is_asked_for() {
    let (api, node) = (api().await, Node::new());
    let agent = start(&node, &api, false).await;
    until("served", || api.status()["summary"]["virtualServers"] == "2/2").await;
    agent.stop().await;
    let served = node.kernel.state();

    let agent = start_without_services(&node, &api, false).await;
    until("words about it", || {
        api.condition("VirtualServersReady")["message"].to_string().contains("removeServices: true")
    })
    .await;
    let after = node.kernel.state();
    assert_eq!((after.sets, after.rules, after.routes), (served.sets, served.rules, served.routes));
    assert_eq!(node.servers(), 2);
    agent.stop().await;

    // kube-proxy serves again: it has bound the ClusterIP, and has the node port in its set.
    node.kernel.kube_proxy_binds("10.96.0.1/32");
    node.kernel.set_kube_proxy_runs(running());
    let agent = start_without_services(&node, &api, true).await;
    until("ours is gone", || ours(&node).is_empty()).await;
    let left: Vec<VirtualServerKey> = node.kernel.state().virtual_servers.into_keys().collect();
    assert_eq!(left, [key(CLUSTER_IP)], "kube-proxy's own by now");
    until("Ready", || api.condition("Ready")["reason"] == "Ready").await;
    agent.stop().await;
}
