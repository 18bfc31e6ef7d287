//! The scenarios of the documents that the project grew from, with their own addresses: virtual IPs beside a
//! node's own address, node ports on every address, and what forwards a packet.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::scene::{Scene, Unmet, so};
use nodenet_e2e::lab::steps::Steps;
use nodenet_e2e::lab::traffic::answers;
use nodenet_e2e::tool::traffic::Transport;
use std::collections::BTreeSet;
use std::net::IpAddr;

const NODE: &str = "k8s-node-1";
const OWN: &str = "192.168.0.11/24";
const VIP: &str = "192.168.0.15/24";

#[test]
fn documents_scenarios_hold() {
    // After a list of slices that was empty an agent takes nothing away until it has looked at everything twice.
    let values = ["verifyPeriod=10s"];
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &values, &[]).unwrap() else { return };
    // As on a machine whose administrator never heard of it.
    let node = scene.place(NODE);
    for interface in ["all", "default", "ens33"] {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries");
        node.run_with(&["tee", &path], "0").unwrap();
    }
    let routes = routes(&scene).unwrap();
    scene.start_all().unwrap();
    scene.apply_examples().unwrap();
    let scene = &scene;
    let mut steps = Steps::default();
    steps.run("a virtual IP is a secondary address and the node port answers on it", || secondary(scene));
    steps.run("the node's own connections keep its primary address", || own_traffic(scene));
    steps.run("nine connections hit each of three pods three times", || three_pods(scene));
    steps.run("from the host the source is masqueraded, from a pod it is preserved", || sources(scene));
    steps.run("the node port answers on every node", || node_ports(scene));
    steps.run("datagrams are forwarded like connections", || datagrams(scene));
    steps
        .run("node ports answer on an address of another hand for as long as it is there", || foreign(scene));
    steps.run("an address of another subnet is primary, and that nobody has a route to it is said", || {
        not_on_link(scene);
    });
    steps.run("load balancers learn which nodes have endpoints, and which are to get no clients", || {
        load_balancers(scene);
    });
    steps.run("an address that no subnet holds needs an interface", || no_candidate(scene));
    steps.run("a virtual IP is promoted, and goes behind the primary again", || promoted(scene, &routes));
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

/// The routes of the interface that somebody else made.
fn routes(scene: &Scene) -> Result<BTreeSet<String>, Unmet> {
    let text = scene.place(NODE).run(&["ip", "-4", "route", "show", "dev", "ens33"])?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

fn secondary(scene: &Scene) {
    let addresses = scene.addresses(NODE).unwrap();
    assert_eq!((addresses.get(OWN), addresses.get(VIP)), (Some(&false), Some(&true)), "{addresses:?}");
    assert_eq!(scene.holders(VIP).unwrap(), BTreeSet::from([NODE.to_owned()]));
    let servers = scene.servers(NODE).unwrap();
    for server in [
        "TCP 192.168.0.11:39090 rr",
        "TCP 192.168.0.15:39090 rr",
        "TCP 192.168.0.15:9090 rr",
        "TCP 10.243.9.90:9090 rr",
    ] {
        let real = servers.get(server).unwrap_or_else(|| panic!("no {server} in {servers:#?}"));
        assert_eq!(real.iter().collect::<Vec<_>>(), [(&"10.70.0.159:9090".to_owned(), &1)], "{server}");
    }
    for target in ["192.168.0.11:39090", "192.168.0.15:39090", "192.168.0.15:9090"] {
        scene.answered("client", target, &[("prometheus", 3)]).unwrap();
    }
    let on_node = scene.on_node(NODE, "prometheus").unwrap();
    assert_eq!(on_node["state"], "Active", "{on_node}");
    assert_eq!(
        on_node["addresses"],
        serde_json::json!([{"address": VIP, "interface": "ens33", "role": "Secondary"}])
    );
    for other in ["k8s-master-1", "k8s-node-2"] {
        let on_node = scene.on_node(other, "prometheus").unwrap();
        assert_eq!(on_node["state"], "Backup", "{other}: {on_node}");
        assert!(on_node["addresses"][0]["role"].is_null(), "{other}: {on_node}");
    }
    let vip = scene.lab().cluster().get(&["vip", "prometheus"]).unwrap();
    let held = &vip["status"]["addresses"];
    assert_eq!(held.as_array().unwrap().len(), 1, "{held}");
    assert_eq!((held[0]["address"].as_str(), held[0]["node"].as_str()), (Some(VIP), Some(NODE)), "{held}");
    // "highest priority (200) of 3 candidates", or where another agent was there first "its priority 200 is higher …".
    let reason = held[0]["reason"].as_str().unwrap();
    assert!(reason.contains("priority 200 is higher") || reason.contains("priority (200)"), "{held}");
}

fn own_traffic(scene: &Scene) {
    let listener = scene.place("client").serve("client", &[7777]).unwrap();
    let attempts = scene
        .until("an answer of the client", || scene.answered(NODE, "192.168.0.100:7777", &[("client", 2)]))
        .unwrap();
    listener.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    let own: IpAddr = "192.168.0.11".parse().unwrap();
    assert!(attempts.iter().all(|attempt| attempt.source == Some(own)), "{attempts:?}");
    let attempts = scene.answered(NODE, "10.70.0.159:9090", &[("prometheus", 2)]).unwrap();
    assert!(attempts.iter().all(|attempt| attempt.source == Some(own)), "{attempts:?}");
}

/// What a load balancer gets to hear: the status of an HTTP request from outside, 000 where nobody listens.
fn load_balancers(scene: &Scene) {
    const NAMES: [&str; 2] = ["k8s-node-1", "k8s-node-2"];
    let cluster = scene.lab().cluster();
    let service = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32222,
                 "ports": [{"port": 80}]}});
    let endpoints = serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "balanced", "labels": {"kubernetes.io/service-name": "balanced"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.5.23"], "conditions": {"ready": true}, "nodeName": NAMES[0]}]});
    let hear = |place: &str, wanted: [&str; 2]| {
        scene
            .until(&format!("{wanted:?} of {place}"), || {
                let mut heard = Vec::new();
                for address in ["192.168.0.11", "192.168.0.12"] {
                    let url = format!("http://{address}:{place}");
                    let command = format!("curl -s -m 5 -o /dev/null -w '%{{http_code}}' {url} || true");
                    heard.push(scene.place("client").run(&["sh", "-c", &command])?.trim().to_owned());
                }
                so(heard == wanted, format!("{heard:?}"))
            })
            .unwrap();
    };
    hear("10256/healthz", ["200", "200"]);
    cluster.apply(&format!("{service}\n---\n{endpoints}")).unwrap();
    hear("32222", ["200", "503"]);
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    cluster.kubectl(&["taint", "node", NAMES[1], taint]).unwrap();
    hear("10256/healthz", ["200", "503"]);
    hear("10256/livez", ["200", "200"]);
    cluster.kubectl(&["taint", "node", NAMES[1], &format!("{taint}-")]).unwrap();
    hear("10256/healthz", ["200", "200"]);
    cluster.kubectl(&["delete", "service,endpointslice", "balanced"]).unwrap();
    hear("32222", ["000", "000"]);
}

const EACH_THREE_TIMES: [(&str, usize); 3] = [("web-1", 3), ("web-2", 3), ("web-3", 3)];

fn three_pods(scene: &Scene) {
    for node in scene.nodes() {
        let servers = scene.servers(&node).unwrap();
        let real: Vec<&str> = servers["TCP 10.243.21.14:8880 rr"].keys().map(String::as_str).collect();
        assert_eq!(real, ["10.244.3.32:80", "10.244.5.23:80", "10.244.5.24:80"], "{node}");
        scene.answered(&node, "10.243.21.14:8880", &EACH_THREE_TIMES).unwrap();
    }
}

fn sources(scene: &Scene) {
    // The document's host: two of the pods are its own, the third is behind the other node.
    let attempts = scene.answered(NODE, "10.243.21.14:8880", &EACH_THREE_TIMES).unwrap();
    for attempt in attempts {
        let expected = if attempt.answer.as_deref() == Some("web-1") { "192.168.0.11" } else { "10.244.5.1" };
        assert_eq!(attempt.source, Some(expected.parse().unwrap()), "{attempt:?}");
    }
    // A pod of one node, and the pods of the other.
    let attempts = scene.answered("web-1", "10.243.21.14:8880", &EACH_THREE_TIMES).unwrap();
    for attempt in attempts {
        let own = attempt.source == Some("10.244.3.32".parse().unwrap());
        // To itself it is masqueraded: it would not take an answer from itself.
        assert_eq!(own, attempt.answer.as_deref() != Some("web-1"), "{attempt:?}");
    }
    // A pod without a part in it.
    let attempts = scene.answered("prometheus", "10.243.21.14:8880", &EACH_THREE_TIMES).unwrap();
    assert!(attempts.iter().all(|a| a.source == Some("10.70.0.159".parse().unwrap())), "{attempts:?}");
}

fn node_ports(scene: &Scene) {
    for address in ["192.168.0.10", "192.168.0.11", "192.168.0.12"] {
        scene.answered("client", &format!("{address}:30981"), &EACH_THREE_TIMES).unwrap();
        scene.answered("client", &format!("{address}:39090"), &[("prometheus", 2)]).unwrap();
        // From a node to another's, and to its own.
        scene.answered(NODE, &format!("{address}:30981"), &EACH_THREE_TIMES).unwrap();
    }
    // A port that is no node port answers nowhere.
    let attempts = scene.ask("client", "192.168.0.11:30982", 1).unwrap();
    assert!(attempts[0].error.is_some(), "{attempts:?}");
}

fn datagrams(scene: &Scene) {
    let service = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "datagrams", "namespace": "default"},
         "spec": {"type": "NodePort", "clusterIP": "10.243.21.15",
                  "ports": [{"protocol": "UDP", "port": 5353, "targetPort": 80, "nodePort": 30982}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "datagrams-1", "namespace": "default",
                      "labels": {"kubernetes.io/service-name": "datagrams"}},
         "ports": [{"name": "", "protocol": "UDP", "port": 80}],
         "endpoints": [{"addresses": ["10.244.3.32"], "nodeName": "k8s-master-1", "conditions": {"ready": true}},
                       {"addresses": ["10.244.5.23"], "nodeName": "k8s-node-1", "conditions": {"ready": true}}]},
    ]});
    scene.lab().cluster().apply(&service.to_string()).unwrap();
    for (from, to) in [
        ("client", "192.168.0.10:30982"),
        ("k8s-node-2", "10.243.21.15:5353"),
        ("prometheus", "10.243.21.15:5353"),
    ] {
        scene
            .until("answers to datagrams", || {
                let attempts = scene.place(from).ask(Transport::Udp, to.parse()?, 4)?;
                let wanted = [("web-1".to_owned(), 2), ("web-2".to_owned(), 2)].into();
                so(answers(&attempts) == wanted, format!("{from} to {to}: {attempts:?}"))
            })
            .unwrap();
    }
    scene
        .lab()
        .cluster()
        .kubectl(&["delete", "service,endpointslice", "datagrams", "datagrams-1", "--ignore-not-found"])
        .unwrap();
    scene
        .until("no virtual server of the deleted Service", || {
            let servers = scene.servers("k8s-master-1")?;
            so(
                !servers.keys().any(|server| server.contains(":30982") || server.contains(":5353")),
                format!("{servers:?}"),
            )
        })
        .unwrap();
}

fn foreign(scene: &Scene) {
    let node = scene.place("k8s-node-2");
    node.run(&["ip", "addr", "add", "192.168.0.77/24", "dev", "ens33"]).unwrap();
    scene
        .until("the node ports on an address of another hand", || {
            scene.answered("client", "192.168.0.77:39090", &[("prometheus", 1)])?;
            scene.answered("client", "192.168.0.77:30981", &EACH_THREE_TIMES)
        })
        .unwrap();
    let servers = scene.servers("k8s-node-2").unwrap();
    assert!(servers.contains_key("TCP 192.168.0.77:39090 rr"), "{servers:#?}");
    scene
        .until("the address in the NodeNetState", || {
            let state = scene.state("k8s-node-2")?;
            so(state["status"]["interfaces"].to_string().contains("192.168.0.77/24"), &state["status"])
        })
        .unwrap();
    assert!(scene.addresses("k8s-node-2").unwrap().contains_key("192.168.0.77/24"));

    node.run(&["ip", "addr", "del", "192.168.0.77/24", "dev", "ens33"]).unwrap();
    scene
        .until("no node port on an address that is gone", || {
            let servers = scene.servers("k8s-node-2")?;
            so(!servers.keys().any(|server| server.contains("192.168.0.77")), format!("{servers:?}"))
        })
        .unwrap();
    assert!(scene.ask("client", "192.168.0.77:39090", 1).unwrap()[0].error.is_some());
    scene.answered("client", "192.168.0.12:39090", &[("prometheus", 1)]).unwrap();
}

fn not_on_link(scene: &Scene) {
    let far = serde_json::json!({"apiVersion": "nodenet.dev/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "far"},
        "spec": {"addresses": ["192.168.2.10/24"], "interface": "ens33",
                 "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": NODE}},
                 "services": [{"namespace": "default", "name": "prometheus", "nodePorts": true}]}});
    scene.lab().cluster().apply(&far.to_string()).unwrap();
    let ready = scene
        .until("the far virtual IP", || {
            let ready = scene.condition(&["vip", "far"], "Ready")?;
            so(ready.status == "True", format!("{ready:?}"))?;
            Ok(ready)
        })
        .unwrap();
    assert_eq!(ready.reason, "AddressNotOnLink", "{ready:?}");
    assert!(ready.message.contains("192.168.2.10") && ready.message.contains("route"), "{ready:?}");
    let addresses = scene.condition(&["nns", NODE], "AddressesReady").unwrap();
    assert_eq!((addresses.status.as_str(), addresses.reason.as_str()), ("True", "AddressNotOnLink"));
    assert!(
        addresses.message.contains("192.168.2.10") && addresses.message.contains("no route"),
        "{addresses:?}"
    );
    let on_node = scene.on_node(NODE, "far").unwrap();
    assert_eq!(
        on_node["addresses"],
        serde_json::json!([{"address": "192.168.2.10/24", "interface": "ens33", "role": "Primary"}])
    );
    assert_eq!(scene.addresses(NODE).unwrap().get("192.168.2.10/24"), Some(&false));
    // It answers on the node itself, and to who has a route to it.
    assert!(scene.servers(NODE).unwrap().contains_key("TCP 192.168.2.10:39090 rr"));
    scene.answered(NODE, "192.168.2.10:39090", &[("prometheus", 2)]).unwrap();
    scene.answered(NODE, "192.168.2.10:9090", &[("prometheus", 2)]).unwrap();
    let unreachable = scene.ask("client", "192.168.2.10:39090", 1).unwrap();
    assert!(unreachable[0].error.is_some(), "{unreachable:?}");
    scene.place("client").run(&["ip", "route", "add", "192.168.2.10", "via", "192.168.0.11"]).unwrap();
    scene.answered("client", "192.168.2.10:39090", &[("prometheus", 2)]).unwrap();
    scene.place("client").run(&["ip", "route", "del", "192.168.2.10"]).unwrap();

    scene.lab().cluster().kubectl(&["delete", "vip", "far"]).unwrap();
    scene
        .until("nothing left of the far virtual IP", || {
            let (addresses, servers) = (scene.addresses(NODE)?, scene.servers(NODE)?);
            so(!addresses.contains_key("192.168.2.10/24"), format!("{addresses:?}"))?;
            so(!servers.keys().any(|server| server.contains("192.168.2.10")), format!("{servers:?}"))?;
            let ready = scene.condition(&["nns", NODE], "Ready")?;
            so(ready.reason == "Ready", format!("{ready:?}"))
        })
        .unwrap();
}

fn no_candidate(scene: &Scene) {
    let far = serde_json::json!({"apiVersion": "nodenet.dev/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "nowhere"}, "spec": {"addresses": ["192.168.2.10/24"]}});
    scene.lab().cluster().apply(&far.to_string()).unwrap();
    let accepted = scene.until("a verdict", || scene.condition(&["vip", "nowhere"], "Accepted")).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.reason.as_str()),
        ("False", "NoCandidate"),
        "{accepted:?}"
    );
    for words in ["spec.addresses", "192.168.2.10", "spec.interface"] {
        assert!(accepted.message.contains(words), "{accepted:?}");
    }
    scene.lab().cluster().kubectl(&["delete", "vip", "nowhere"]).unwrap();
}

fn promoted(scene: &Scene, before: &BTreeSet<String>) {
    let node = scene.place(NODE);
    let setting = node.run(&["cat", "/proc/sys/net/ipv4/conf/ens33/promote_secondaries"]).unwrap();
    assert_eq!(setting.trim(), "1", "the agent sets it for the interface that carries a virtual IP");
    node.run(&["ip", "addr", "del", OWN, "dev", "ens33"]).unwrap();
    let addresses = scene.addresses(NODE).unwrap();
    assert_eq!(addresses.get(VIP), Some(&false), "promoted at once: {addresses:?}");
    scene.answered("client", "192.168.0.15:39090", &[("prometheus", 3)]).unwrap();
    scene
        .until("the role in the NodeNetState and an Event", || {
            let on_node = scene.on_node(NODE, "prometheus")?;
            so(on_node["addresses"][0]["role"] == "Primary", &on_node)?;
            let events = scene.events("AddressRoleChanged")?;
            let told = |event: &String| event.contains("192.168.0.15") && event.contains("Primary now");
            so(events.iter().any(told), format!("{events:?}"))
        })
        .unwrap();
    scene.answered("client", "192.168.0.15:39090", &[("prometheus", 3)]).unwrap();

    node.run(&["ip", "addr", "add", OWN, "dev", "ens33"]).unwrap();
    scene
        .until("the virtual IP behind the primary", || {
            let addresses = scene.addresses(NODE)?;
            let roles = (addresses.get(OWN), addresses.get(VIP));
            so(roles == (Some(&false), Some(&true)), format!("{addresses:?}"))?;
            let on_node = scene.on_node(NODE, "prometheus")?;
            so(on_node["addresses"][0]["role"] == "Secondary", &on_node)?;
            let events = scene.events("AddressRoleChanged")?;
            so(events.iter().any(|event| event.contains("Secondary now")), format!("{events:?}"))
        })
        .unwrap();
    scene.answered("client", "192.168.0.15:39090", &[("prometheus", 3)]).unwrap();
    scene.answered("client", "192.168.0.11:39090", &[("prometheus", 3)]).unwrap();
    own_traffic(scene);

    scene.lab().cluster().kubectl(&["delete", "vip", "prometheus"]).unwrap();
    scene
        .until("the virtual IP gone", || {
            let holders = scene.holders(VIP)?;
            so(holders.is_empty(), format!("{holders:?}"))
        })
        .unwrap();
    assert_eq!(&routes(scene).unwrap(), before, "routes of the interface");
    scene.answered("client", "192.168.0.11:39090", &[("prometheus", 3)]).unwrap();
}
