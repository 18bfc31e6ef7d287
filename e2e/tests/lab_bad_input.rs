//! Bad input of every kind: refused at admission where the schema can, otherwise told in words; what works
//! goes on, over a restart of the operators too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nix::sys::signal::Signal;
use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::look::Condition;
use nodenet_e2e::lab::scene::{Scene, so};
use nodenet_e2e::lab::steady::SteadyTraffic;
use nodenet_e2e::lab::steps::Steps;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const NODE: &str = "k8s-node-1";
const VIP: &str = "192.168.0.15/24";

#[test]
fn bad_input_changes_nothing_that_works() {
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &[], &[]).unwrap() else { return };
    scene.start_all().unwrap();
    scene.apply_examples().unwrap();
    // Not between pods of one bridge: their answers pass by the node's packet filter.
    let questions = [("client", "192.168.0.15:39090", 10), ("prometheus", "10.243.21.14:8880", 5)];
    let traffic = SteadyTraffic::start(&scene, &questions, &[]).unwrap();
    let mut steps = Steps::default();
    steps.run("what the schema can tell is refused at admission", || refused(&scene));
    steps.run("what rules between fields can tell is refused too, by one side or the other", || {
        against_rules(&scene);
    });
    steps.run("what only the cluster can tell is not accepted, in words", || not_accepted(&scene));
    steps.run("what another host of the LAN has is not taken from it", || taken(&scene));
    steps.run("a bad edit leaves in force what was", || bad_edit(&mut scene));
    steps.run("objects that cannot be read stop nothing", || undecodable(&mut scene));
    steps.run("nothing of it was noticed", || assert_eq!(traffic.end().unwrap(), [""; 0]));
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

fn virtual_ip(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "nodenet.dev/v1alpha1", "kind": "VirtualIP", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn refused(scene: &Scene) {
    let addresses = json!(["192.168.0.40/24"]);
    let with = |field: &str, value: Value| {
        let mut spec = json!({"addresses": addresses});
        spec[field] = value;
        spec
    };
    let service = |extra: Value| {
        let mut binding = json!({"namespace": "default", "name": "prometheus"});
        binding.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with("services", json!([binding]))
    };
    let selector = json!({"matchLabels": {"a": "b"}});
    let table: Vec<(Value, &str)> = vec![
        (json!({}), "spec.addresses"),
        (json!({"addresses": []}), "spec.addresses"),
        (json!({"addresses": "192.168.0.40/24"}), "spec.addresses"),
        (json!({"addresses": [40]}), "spec.addresses"),
        (json!({"addresses": ["garbage"]}), "spec.addresses"),
        (json!({"addresses": ["192.168.0.40"]}), "spec.addresses"),
        (json!({"addresses": vec!["192.168.0.40/24"; 17]}), "spec.addresses"),
        (with("interface", json!("")), "spec.interface"),
        (with("interface", json!("sixteen-letters-")), "spec.interface"),
        (with("interface", json!("a/b")), "spec.interface"),
        (with("interface", json!(5)), "spec.interface"),
        (with("nodeSelector", json!("a=b")), "spec.nodeSelector"),
        (with("priorities", json!([{"nodeSelector": selector, "priority": 0}])), "spec.priorities"),
        (with("priorities", json!([{"nodeSelector": selector, "priority": 255}])), "spec.priorities"),
        (with("priorities", json!([{"priority": 5}])), "spec.priorities"),
        (with("priorities", json!([{"nodeSelector": selector, "priority": "high"}])), "spec.priorities"),
        (with("addressRole", json!("Sometimes")), "spec.addressRole"),
        (with("failover", json!({"protocol": "Carrier"})), "spec.failover.protocol"),
        (with("failover", json!({"preempt": "no"})), "spec.failover.preempt"),
        (with("failover", json!({"preemptDelaySeconds": -1})), "spec.failover.preemptDelaySeconds"),
        (with("failover", json!({"preemptDelaySeconds": 3601})), "spec.failover.preemptDelaySeconds"),
        (with("announce", json!({"count": -1})), "spec.announce.count"),
        (with("announce", json!({"count": 101})), "spec.announce.count"),
        (with("announce", json!({"intervalMillis": 9})), "spec.announce.intervalMillis"),
        (with("announce", json!({"refreshSeconds": 3601})), "spec.announce.refreshSeconds"),
        (service(json!({"namespace": "UPPER"})), "spec.services"),
        (service(json!({"name": "a b"})), "spec.services"),
        (service(json!({"ports": []})), "spec.services"),
        (service(json!({"ports": [0]})), "spec.services"),
        (service(json!({"ports": [65536]})), "spec.services"),
        (service(json!({"nodePorts": "all"})), "spec.services"),
        (with("services", json!([{"name": "prometheus"}])), "spec.services"),
    ];
    for (spec, field) in table {
        let result = scene
            .lab()
            .cluster()
            .kubectl_with(&["create", "--validate=false", "-f", "-"], &virtual_ip("garbage", &spec));
        let said = result.expect_err(&spec.to_string()).to_string();
        assert!(said.contains(field), "{spec}: {said}");
    }
}

/// READY and REASON as `kubectl get vip` prints them.
fn columns(scene: &Scene, name: &str) -> Vec<String> {
    let said = scene.lab().cluster().kubectl(&["get", "vip", name]).unwrap();
    let mut lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (titles, row) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!(titles.len(), row.len(), "an empty column: {said}");
    let column = |title: &str| titles.iter().position(|found| *found == title).map(|at| row[at].to_owned());
    ["READY", "REASON"].iter().map(|title| column(title).unwrap_or_else(|| panic!("{said}"))).collect()
}

/// The verdict on a VirtualIP, once there is one.
fn verdict(scene: &Scene, name: &str) -> Condition {
    scene
        .until(&format!("a verdict on VirtualIP {name}"), || {
            let accepted = scene.condition(&["vip", name], "Accepted")?;
            so(accepted.status != "Unknown", format!("{accepted:?}"))?;
            Ok(accepted)
        })
        .unwrap()
}

/// API servers before 1.25 do not know such rules and let everything through: then the operator refuses it, in the
/// same words.
fn against_rules(scene: &Scene) {
    let cluster = scene.lab().cluster();
    let table = [
        (
            "delay",
            json!({"addresses": ["192.168.0.44/24"], "failover": {"preempt": false, "preemptDelaySeconds": 5}}),
            "preemptDelaySeconds does nothing without preempt",
        ),
        (
            "role",
            json!({"addresses": ["192.168.0.45/32"], "interface": "ens33", "addressRole": "Secondary"}),
            "a /32 is never a secondary address",
        ),
    ];
    for (name, spec, words) in table {
        let create = ["create", "--validate=false", "-f", "-"];
        match cluster.kubectl_with(&create, &virtual_ip(name, &spec)) {
            Err(error) => assert!(error.to_string().contains(words), "{error}"),
            Ok(_) => {
                assert!(cluster.minor() < 25, "VirtualIP {name} was let through");
                let accepted = verdict(scene, name);
                let word = (accepted.status.as_str(), accepted.reason.as_str());
                assert_eq!(word, ("False", "Invalid"), "{accepted:?}");
                assert!(accepted.message.contains(words), "{accepted:?}");
                assert_eq!(columns(scene, name), ["False", "Invalid"]);
                cluster.kubectl(&["delete", "vip", name]).unwrap();
            }
        }
    }
}

fn not_accepted(scene: &Scene) {
    let at = |address: &str| json!({"addresses": [address]});
    let with = |address: &str, field: &str, value: Value| {
        let mut spec = at(address);
        spec[field] = value;
        spec
    };
    let nobody = json!({"matchLabels": {"kubernetes.io/hostname": "nobody"}});
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Resembles", "values": ["b"]}]});
    let missing = json!([{"namespace": "default", "name": "nothing"}]);
    let table: Vec<(&str, Value, &str, &[&str])> = vec![
        (
            "twice",
            at(VIP),
            "AddressConflict",
            &["spec.addresses[0]", "192.168.0.15", "prometheus", "use another"],
        ),
        (
            "own",
            at("192.168.0.12/24"),
            "AddressInUse",
            &["spec.addresses[0]", "192.168.0.12", "k8s-node-2", "use"],
        ),
        (
            "api",
            at("10.255.0.1/30"),
            "AddressInUse",
            &["spec.addresses[0]", "10.255.0.1", "API server", "use"],
        ),
        ("pods", at("10.244.3.77/24"), "AddressInUse", &["spec.addresses[0]", "10.244.3.0/24", "use"]),
        ("services", at("10.243.0.77/16"), "AddressInUse", &["spec.addresses[0]", "10.243.0.0/16", "use"]),
        (
            "interface",
            with("192.168.0.41/24", "interface", json!("eth99")),
            "NoCandidate",
            &["spec.interface", "eth99", "ens33", "name another"],
        ),
        (
            "selector",
            with("192.168.0.42/24", "nodeSelector", nobody),
            "NoMatchingNodes",
            &["spec.nodeSelector", "change it"],
        ),
        (
            "operator",
            with("192.168.0.43/24", "nodeSelector", odd),
            "Invalid",
            &["spec.nodeSelector", "Resembles"],
        ),
        (
            "service",
            with("192.168.0.40/24", "services", missing),
            "ServiceNotFound",
            &["spec.services[0]", "default/nothing", "create it"],
        ),
        (
            "octets",
            at("999.1.1.1/24"),
            "Invalid",
            &["spec.addresses[0]", "999.1.1.1/24", "write for example"],
        ),
        ("length", at("192.168.0.40/33"), "Invalid", &["spec.addresses[0]", "192.168.0.40/33"]),
        ("network", at("192.168.0.0/24"), "Invalid", &["spec.addresses[0]", "use a unicast address"]),
        ("broadcast", at("192.168.0.255/24"), "Invalid", &["spec.addresses[0]", "broadcast"]),
        ("multicast", at("224.0.0.18/24"), "Invalid", &["spec.addresses[0]", "multicast"]),
        ("loopback", at("127.0.0.1/8"), "Invalid", &["spec.addresses[0]", "loopback"]),
    ];
    let cluster = scene.lab().cluster();
    // Of a node whose agent was never heard of nobody knows what it has, and nothing is hoped.
    cluster.create_node("silent", &["192.168.0.13".into()], &[], &[]).unwrap();
    for (name, spec, _, _) in &table {
        cluster.apply(&virtual_ip(name, spec)).unwrap();
    }
    for (name, spec, reason, words) in &table {
        let accepted = verdict(scene, name);
        assert_eq!(
            (accepted.status.as_str(), accepted.reason.as_str()),
            ("False", *reason),
            "{spec}: {accepted:?}"
        );
        for word in *words {
            assert!(accepted.message.contains(word), "`{word}` is not in: {accepted:?}");
        }
        assert_eq!(columns(scene, name), ["False", *reason]);
    }
    // Of one only a Service is at fault: the rest of it is in force.
    scene
        .until("the address of the one whose Service is missing", || {
            let holders = scene.holders("192.168.0.40/24")?;
            so(holders.len() == 1, format!("{holders:?}"))
        })
        .unwrap();
    assert_eq!(scene.holders(VIP).unwrap(), BTreeSet::from([NODE.to_owned()]));
    for (address, nodes) in [("192.168.0.12/24", 1), ("192.168.0.255/24", 0), ("192.168.0.0/24", 0)] {
        assert_eq!(scene.holders(address).unwrap().len(), nodes, "{address}");
    }
    cluster.kubectl(&["delete", "node", "silent"]).unwrap();
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).collect();
    cluster.kubectl(&[&["delete", "vip"], names.as_slice()].concat()).unwrap();
    scene
        .until("only the good one left", || {
            let holders = scene.holders("192.168.0.40/24")?;
            so(holders.is_empty(), format!("{holders:?}"))
        })
        .unwrap();
    scene.all_ready().unwrap();
}

/// A typo may name the gateway, which agents know and tell, or any other host of the LAN, which they ask for.
fn taken(scene: &Scene) {
    let cluster = scene.lab().cluster();
    let apply = |name: &str, address: &str| {
        let spec = json!({"addresses": [format!("{address}/24")], "interface": "ens33",
                          "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": NODE}}});
        cluster.apply(&virtual_ip(name, &spec)).unwrap();
    };
    let (gateway, neighbour) = ("192.168.0.2", "192.168.0.100");
    apply("gateway", gateway);
    scene
        .until("words about an address that the gateway has", || {
            let accepted = scene.condition(&["vip", "gateway"], "Accepted")?;
            let told = accepted.reason == "AddressInUse" && accepted.message.contains(gateway);
            so(accepted.status == "False" && told, format!("{accepted:?}"))
        })
        .unwrap();
    apply("neighbour", neighbour);
    scene
        .until("words about an address that another host has", || {
            let ready = scene.condition(&["nns", NODE], "AddressesReady")?;
            let told = ready.reason == "AddressTaken" && ready.message.contains(neighbour);
            so(ready.status == "False" && told, format!("{ready:?}"))?;
            let held = scene.condition(&["vip", "neighbour"], "Held")?;
            so(held.status != "True", format!("{held:?}"))
        })
        .unwrap();
    for (name, address) in [("gateway", gateway), ("neighbour", neighbour)] {
        assert!(scene.holders(&format!("{address}/24")).unwrap().is_empty(), "{name}");
        cluster.kubectl(&["delete", "vip", name]).unwrap();
    }
    scene.all_ready().unwrap();
}

/// Kills both operators and starts them anew.
fn restart_operators(scene: &mut Scene) {
    let before = scene.until("a leader", || scene.terms()).unwrap();
    for number in [0, 1] {
        scene.kill_operator(number);
    }
    for number in [0, 1] {
        scene.start_operator(number).unwrap();
    }
    scene
        .until("a leader of the new ones", || {
            let terms = scene.terms()?;
            so(terms > before, format!("{terms} terms, {before} before"))
        })
        .unwrap();
}

fn bad_edit(scene: &mut Scene) {
    let edit = |scene: &Scene, addresses: &str| {
        let patch = format!(r#"{{"spec": {{"addresses": ["{addresses}"]}}}}"#);
        scene
            .lab()
            .cluster()
            .kubectl(&["patch", "vip", "prometheus", "--type=merge", "--patch", &patch])
            .unwrap();
    };
    edit(scene, "999.1.1.1/24");
    for restarted in [false, true] {
        if restarted {
            restart_operators(scene);
        }
        let scene = &*scene;
        scene
            .until("what was accepted before stays in force", || {
                let accepted = scene.condition(&["vip", "prometheus"], "Accepted")?;
                so(
                    accepted.reason == "Invalid" && accepted.message.contains("stays in force"),
                    format!("{accepted:?}"),
                )?;
                let held = scene.condition(&["vip", "prometheus"], "Held")?;
                so(held.status == "True", format!("{held:?}"))?;
                let holders = scene.holders(VIP)?;
                so(holders == BTreeSet::from([NODE.to_owned()]), format!("{holders:?}"))
            })
            .unwrap();
        scene.answered("client", "192.168.0.15:39090", &[("prometheus", 2)]).unwrap();
    }
    edit(scene, VIP);
    scene.all_ready().unwrap();
}

/// Takes the schema off a kind, as a cluster with another version's definition has it.
fn without_schema(scene: &Scene, plural: &str) {
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
    }}]);
    let name = format!("{plural}.nodenet.dev");
    scene
        .lab()
        .cluster()
        .kubectl(&["patch", "crd", &name, "--type=json", "--patch", &patch.to_string()])
        .unwrap();
}

fn undecodable(scene: &mut Scene) {
    for plural in ["virtualips", "nodenetslices", "nodenetstates"] {
        without_schema(scene, plural);
    }
    let slice = |name: &str, of: &str, extra: Value| {
        let mut slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4", "endpoints": [], "ports": []});
        slice.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        slice
    };
    let own = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "nodenet.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let mut objects = vec![
        own("VirtualIP", "garbage", json!({"addresses": 7, "services": "all"})),
        own("NodeNetSlice", "garbage", json!({"revision": "latest", "services": {"a": "b"}})),
        own("NodeNetState", "garbage", json!({"virtualIPs": "all", "kernel": 6.1})),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "garbage"},
               "status": {"addresses": [{"type": "InternalIP", "address": "not an address"}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "garbage", "namespace": "default"},
               "spec": {"ports": [{"port": 80, "targetPort": "no-such-name"}]}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
               "metadata": {"name": "garbage", "namespace": "nodenet-nodes"}}),
    ];
    // The built-in kind takes no garbage.
    if scene.lab().cluster().minor() < 21 {
        objects.extend([
            slice("garbage-1", "prometheus", json!({"endpoints": 7})),
            slice(
                "garbage-2",
                "prometheus",
                json!({"endpoints": [{"addresses": ["not an address", "10.70.0.999"]}]}),
            ),
            slice("garbage-3", "nothing", json!({"ports": "http", "addressType": 4})),
            slice("garbage-4", "nothing", json!({"ports": [{"port": 99_999_999, "protocol": "PIGEON"}]})),
        ]);
    }
    for object in &objects {
        scene
            .until("the object created", || {
                // The API server takes a new schema up after a moment.
                let create = ["create", "--validate=false", "-f", "-"];
                Ok(scene.lab().cluster().kubectl_with(&create, &object.to_string()).map(drop).or_else(
                    |error| {
                        if error.to_string().contains("AlreadyExists") { Ok(()) } else { Err(error) }
                    },
                )?)
            })
            .unwrap();
    }
    goes_on(scene);
    restart_operators(scene);
    scene.end_agent(NODE, Signal::SIGKILL).unwrap();
    scene.start_agent(NODE).unwrap();
    goes_on(scene);
}

/// While objects that cannot be read are there: others are planned as before, and there are words about them.
fn goes_on(scene: &Scene) {
    for ready in [false, true] {
        scene.set_third_web_server(ready).unwrap();
    }
    // The Service that the garbage says it is about keeps what it had.
    scene.answered("client", "192.168.0.15:39090", &[("prometheus", 2)]).unwrap();
    scene.answered("web-2", "10.243.9.90:9090", &[("prometheus", 2)]).unwrap();
    assert_eq!(scene.holders(VIP).unwrap(), BTreeSet::from([NODE.to_owned()]));
    scene
        .until("words about the virtual IP that cannot be read", || {
            let accepted = scene.condition(&["vip", "garbage"], "Accepted")?;
            let told = accepted.status == "False" && accepted.message.contains("cannot be read");
            so(told, format!("{accepted:?}"))
        })
        .unwrap();
    for node in scene.nodes() {
        scene
            .until("words about the slice that cannot be read", || {
                let failures = scene.state(&node)?["status"]["failures"].clone();
                so(failures.to_string().contains("garbage"), failures)
            })
            .unwrap();
    }
}
