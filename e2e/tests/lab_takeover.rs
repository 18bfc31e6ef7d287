//! From the real kube-proxy to nodenet and back, under traffic: nothing is fought over, no answer is lost, and in the
//! end nothing of the other one is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nix::sys::signal::Signal;
use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::error::LabError;
use nodenet_e2e::lab::guest::Started;
use nodenet_e2e::lab::kube_proxy::KubeProxy;
use nodenet_e2e::lab::nodenet::{NAMESPACE, RUN_FOLDER};
use nodenet_e2e::lab::scene::{PATIENCE, Scene, Unmet, so};
use nodenet_e2e::lab::steady::SteadyTraffic;
use nodenet_e2e::lab::steps::Steps;
use std::collections::{BTreeMap, BTreeSet};

/// The node that kube-proxy serves. The others have no proxy.
const NODE: &str = "k8s-node-1";
/// Another tool's virtual server, at an address that kube-proxy was told to leave alone.
const FOREIGN: &str = "192.168.0.200";
/// Where clients of the LAN ask.
const NODE_PORT: &str = "192.168.0.11:39090";

#[test]
fn from_kube_proxy_to_nodenet_and_back() {
    let kube_proxy = match KubeProxy::find() {
        Err(error @ LabError::Missing { .. }) => return println!("SKIP: {error}"),
        other => other.unwrap(),
    };
    // Both families' tables, although the lab's Services are IPv4.
    let mut gates = "--feature-gates=IPv6DualStack=true".to_owned();
    if kube_proxy.reads_endpoints() {
        gates.push_str(",EndpointSliceProxying=false");
    }
    let excluded = format!("--ipvs-exclude-cidrs={FOREIGN}/32");
    let mut flags = vec![excluded.as_str()];
    if kube_proxy.minor() < 23 {
        flags.push(&gates);
    }
    let kube_proxy = kube_proxy.with_flags(&flags);
    let values = ["verifyPeriod=10s", "excludeCIDRs={192.168.0.200/32}"];
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &values, &[]).unwrap() else { return };
    println!("kube-proxy {}", kube_proxy.version());
    scene.place(NODE).run_with(&["sh", "-e"], OTHERS).unwrap();
    let others = others_of(&scene);
    let mut proxy = scene.lab().start_kube_proxy(&kube_proxy, NODE).unwrap();
    services(&scene);
    served(&scene);
    let questions = [("client", NODE_PORT, 25), ("web-2", "10.243.9.90:9090", 25)];
    let downloads = [("client", NODE_PORT), ("web-3", "10.243.9.90:9090")];
    let traffic = SteadyTraffic::start(&scene, &questions, &downloads).unwrap();
    scene.start_operator(0).unwrap();

    let mut steps = Steps::default();
    let before = settled(&scene);
    for (what, there) in &before {
        assert!(!there.is_empty(), "no {what}");
    }
    steps.run("an agent beside a kube-proxy that runs says so and writes nothing", || {
        scene.start_agent(NODE).unwrap();
        reason(&scene, "KubeProxyActive");
        looks(&scene, 3);
        assert_eq!(changes(&before, &its(&scene)), [""; 0]);
        assert_eq!(ours(&scene), [""; 0]);
        println!("{}", scene.lab().cluster().kubectl(&["get", "nns"]).unwrap());
    });
    steps.run("a kube-proxy that is stopped is not taken over without being asked to", || {
        end(&mut proxy, Signal::SIGTERM);
        reason(&scene, "KubeProxyLeftovers");
        looks(&scene, 3);
        assert_eq!(changes(&before, &its(&scene)), [""; 0]);
        assert_eq!(ours(&scene), [""; 0]);
        println!("{}", scene.condition(&["nns", NODE], "Ready").unwrap().message);
    });
    steps.run("one that starts again goes on", || {
        proxy = scene.lab().start_kube_proxy(&kube_proxy, NODE).unwrap();
        reason(&scene, "KubeProxyActive");
        traffic.goes_on(20).unwrap();
        end(&mut proxy, Signal::SIGKILL);
        reason(&scene, "KubeProxyLeftovers");
    });
    steps.run("a takeover that is asked for leaves nothing of it", || {
        takeover(&mut scene, true);
        scene
            .until("nothing of kube-proxy", || {
                let left = its(&scene);
                so(left.values().all(BTreeSet::is_empty), format!("{left:#?}"))
            })
            .unwrap();
        ready(&scene);
        traffic.goes_on(20).unwrap();
        println!("{:?}", scene.events("KubeProxyTakenOver").unwrap());
    });
    steps.run("what others have is still there", || assert_eq!(others_of(&scene), others));
    steps.run("Services are followed", || {
        scene.set_endpoints(&["10.244.3.32"]);
        scene
            .until("one web server", || {
                scene.answered("web-2", "10.243.21.14:8880", &[("web-1", 6)]).map(drop)
            })
            .unwrap();
    });
    steps.run("no answer was lost and no connection broke", || assert_eq!(traffic.end().unwrap(), [""; 0]));
    let traffic = SteadyTraffic::start(&scene, &questions, &downloads).unwrap();
    steps.run("the way back: kube-proxy is started and what is ours is cleaned up", || {
        proxy = scene.lab().start_kube_proxy(&kube_proxy, NODE).unwrap();
        reason(&scene, "KubeProxyActive");
        scene
            .until("what kube-proxy makes", || {
                let missing: Vec<String> =
                    changes(&before, &its(&scene)).into_iter().filter(|line| line.starts_with('-')).collect();
                so(missing.is_empty(), format!("{missing:#?}"))
            })
            .unwrap();
        scene.end_agent(NODE, Signal::SIGTERM).unwrap();
        let agent = scene.nodenet().agent.display().to_string();
        let place = scene.place(NODE);
        println!("{}", place.run(&[&agent, "cleanup", "--run-dir", RUN_FOLDER]).unwrap());
        assert_eq!(ours(&scene), [""; 0]);
        traffic.goes_on(50).unwrap();
        served(&scene);
    });
    steps.run("on the way back too", || assert_eq!(traffic.end().unwrap(), [""; 0]));
    steps.run("and what others have is there", || assert_eq!(others_of(&scene), others));
    end(&mut proxy, Signal::SIGKILL);
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

/// What a kubelet, another tool's IPVS and a network policy controller have.
const OTHERS: &str = "
    ip addr add 192.168.0.200/24 dev ens33
    ipvsadm -A -t 192.168.0.200:8443 -s wlc -p 300
    ipvsadm -a -t 192.168.0.200:8443 -r 10.70.0.159:9090 -m -w 7
    ipvsadm -A -f 77 -s sh
    ipset create KUBE-SRC-POLICY hash:ip
    for family in iptables ip6tables; do
        for table in mangle nat filter; do $family-legacy -t $table -N KUBE-KUBELET-CANARY; done
        $family-legacy -t mangle -N KUBE-IPTABLES-HINT
        $family-legacy -t filter -N KUBE-FIREWALL
        $family-legacy -t filter -A INPUT -j KUBE-FIREWALL
        $family-legacy -t filter -A OUTPUT -j KUBE-FIREWALL
        $family-legacy -t filter -N KUBE-ROUTER-INPUT
        $family-legacy -t filter -A INPUT -j KUBE-ROUTER-INPUT
    done
    iptables-legacy -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment 'block incoming localnet' -j DROP
    iptables-legacy -A KUBE-ROUTER-INPUT -m set --match-set KUBE-SRC-POLICY src -j RETURN
";

fn is_others(line: &str) -> bool {
    // Kubelet's chain of the name is in the table filter; an older kube-proxy has one in the table nat.
    if line.contains("KUBE-FIREWALL") && line.contains(" nat ") {
        return false;
    }
    ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-ROUTER", "KUBE-SRC-POLICY"]
        .iter()
        .any(|name| line.contains(name))
}

fn rules(scene: &Scene, family: &str) -> Vec<String> {
    let text = scene.place(NODE).run(&[&format!("{family}-legacy-save")]).unwrap();
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
        } else if line.starts_with(':') || line.starts_with("-A") {
            // Counters move.
            lines.push(format!("{family} {table} {}", line.split(" [").next().unwrap()));
        }
    }
    lines
}

/// What others than the proxies have on the node.
fn others_of(scene: &Scene) -> BTreeMap<&'static str, Vec<String>> {
    let node = scene.place(NODE);
    let mut all = BTreeMap::new();
    for family in ["iptables", "ip6tables"] {
        let lines = rules(scene, family).into_iter();
        let mut lines: Vec<String> = lines.filter(|line| is_others(line)).collect();
        lines.sort();
        all.insert(family, lines);
    }
    let servers = scene.servers(NODE).unwrap();
    let foreign = servers.iter().filter(|(name, _)| name.contains(":8443 ") || name.starts_with("FWM 77"));
    all.insert("virtual servers", foreign.map(|entry| format!("{entry:?}")).collect());
    let sets = node.run(&["ipset", "save", "KUBE-SRC-POLICY"]).unwrap();
    all.insert("sets", sets.lines().map(str::to_owned).collect());
    let addresses = node.run(&["ip", "-o", "-4", "addr", "show", "dev", "ens33"]).unwrap();
    all.insert("addresses", addresses.lines().map(|line| line.trim().to_owned()).collect());
    all
}

/// What is kube-proxy's on the node, virtual servers aside: both proxies have these.
fn its(scene: &Scene) -> BTreeMap<&'static str, BTreeSet<String>> {
    let node = scene.place(NODE);
    let chains = |family| -> BTreeSet<String> {
        let lines = rules(scene, family).into_iter();
        lines.filter(|line| line.contains("KUBE") && !is_others(line)).collect()
    };
    let lines = |command: &str| -> BTreeSet<String> {
        node.run(&["sh", "-c", &format!("{command}; true")])
            .unwrap()
            .lines()
            .map(|line| line.trim().to_owned())
            .collect()
    };
    BTreeMap::from([
        ("rules", chains("iptables")),
        ("rules of IPv6", chains("ip6tables")),
        ("sets", lines("ipset save | grep KUBE | grep -v KUBE-SRC-POLICY | sed 's/ initval.*//'")),
        ("interface", lines("ip -o link show dev kube-ipvs0 2>/dev/null | cut -d' ' -f2")),
        ("addresses", lines("ip -o addr show dev kube-ipvs0 scope global 2>/dev/null | awk '{print $4}'")),
    ])
}

/// The same, once kube-proxy has done all that it does.
fn settled(scene: &Scene) -> BTreeMap<&'static str, BTreeSet<String>> {
    let (mut last, mut same) = (its(scene), 0);
    scene
        .until("a kube-proxy that changes nothing any more", || {
            let now = its(scene);
            same = if now == last { same + 1 } else { 0 };
            let news = changes(&last, &now);
            last = now;
            so(same >= 10, format!("{news:#?}"))
        })
        .unwrap();
    last
}

/// What went (`-`) and what came (`+`).
fn changes(before: &BTreeMap<&str, BTreeSet<String>>, now: &BTreeMap<&str, BTreeSet<String>>) -> Vec<String> {
    let mut changes = Vec::new();
    for (what, there) in before {
        changes.extend(there.difference(&now[what]).map(|line| format!("- {what}: {line}")));
        changes.extend(now[what].difference(there).map(|line| format!("+ {what}: {line}")));
    }
    changes
}

/// What is nodenet's on the node.
fn ours(scene: &Scene) -> Vec<String> {
    let look = "ip -o link; for family in -4 -6; do ip $family route show table all; done; ipset save; \
                iptables-legacy-save; ip6tables-legacy-save";
    let text = scene.place(NODE).run(&["sh", "-c", look]).unwrap();
    let ours = |line: &&str| ["NODENET", "nodenet0"].iter().any(|word| line.contains(word));
    text.lines().filter(ours).map(str::to_owned).collect()
}

trait Endpoints {
    fn set_endpoints(&self, addresses: &[&str]);
}

impl Endpoints for Scene {
    /// The web servers, as a controller would write them.
    fn set_endpoints(&self, addresses: &[&str]) {
        let ready = |n: usize, name: &str| {
            let value = addresses.contains(&name);
            format!(
                r#"{{"op": "replace", "path": "/endpoints/{n}/conditions", "value": {{"ready": {value}}}}}"#
            )
        };
        let all: Vec<String> = ["10.244.3.32", "10.244.5.23", "10.244.5.24"]
            .iter()
            .enumerate()
            .map(|(n, name)| ready(n, name))
            .collect();
        let patch = format!("[{}]", all.join(", "));
        let change = ["patch", "endpointslice", "lvs-svc-test-1", "--type=json", "--patch", &patch];
        self.lab().cluster().kubectl(&change).unwrap();
    }
}

/// The examples' Services, for a proxy of any age.
fn services(scene: &Scene) {
    let cluster = scene.lab().cluster();
    let examples = nodenet_e2e::lab::nodenet::workspace().join("examples");
    for example in ["000-keepalived-vip", "002-what-forwards-the-packet"] {
        for file in ["service.yaml", "cluster/endpointslice.yaml"] {
            let file = examples.join(example).join(file).display().to_string();
            cluster.kubectl(&["apply", "-f", &file]).unwrap();
        }
    }
    for (name, port, port_name, addresses) in [
        ("prometheus", 9090, Some("web"), &["10.70.0.159"][..]),
        ("lvs-svc-test", 80, None, &["10.244.3.32", "10.244.5.23", "10.244.5.24"]),
    ] {
        let addresses: Vec<_> = addresses.iter().map(|ip| serde_json::json!({"ip": ip})).collect();
        let ports = serde_json::json!([{"name": port_name, "port": port, "protocol": "TCP"}]);
        let endpoints = serde_json::json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": name, "namespace": "default"},
            "subsets": [{"addresses": addresses, "ports": ports}]});
        cluster.apply(&endpoints.to_string()).unwrap();
    }
}

/// Waits until the Services answer by the node.
fn served(scene: &Scene) {
    scene
        .until("Services that answer", || {
            scene.answered("client", NODE_PORT, &[("prometheus", 3)])?;
            scene.answered("client", "192.168.0.11:30981", &[("web-1", 1), ("web-2", 1), ("web-3", 1)])?;
            scene.answered("web-2", "10.243.9.90:9090", &[("prometheus", 3)])?;
            Ok(())
        })
        .unwrap();
}

fn reason(scene: &Scene, wanted: &str) {
    scene
        .until(wanted, || {
            let ready = scene.condition(&["nns", NODE], "Ready")?;
            so(ready.reason == wanted && ready.status == "False", format!("{ready:?}"))
        })
        .unwrap();
}

fn ready(scene: &Scene) {
    scene
        .until("Ready", || {
            let ready = scene.condition(&["nns", NODE], "Ready")?;
            so(ready.status == "True" && ready.reason == "Ready", format!("{ready:?}"))
        })
        .unwrap();
}

/// Waits for so many more looks at what there is.
fn looks(scene: &Scene, count: usize) {
    let seen = |scene: &Scene| -> Result<f64, Unmet> {
        Ok(scene.metric(NODE, "nodenet_agent_kube_proxy_looks_total")?)
    };
    let before = seen(scene).unwrap();
    scene
        .until("more looks", || {
            let now = seen(scene)?;
            so(now >= before + count as f64, now)
        })
        .unwrap();
}

/// What a user does by `helm upgrade`; the DaemonSet's controller would then start another agent.
fn takeover(scene: &mut Scene, value: bool) {
    let chart = scene.nodenet().chart.display().to_string();
    let set = format!("takeover={value}");
    let mut upgrade =
        vec!["upgrade", "nodenet", &chart, "--namespace", NAMESPACE, "--reuse-values", "--set", &set];
    if scene.lab().cluster().minor() < 25 {
        upgrade.push("--server-side=false");
    }
    scene.lab().cluster().helm(&upgrade).unwrap();
    scene.end_agent(NODE, Signal::SIGTERM).unwrap();
    scene.start_agent(NODE).unwrap();
}

fn end(proxy: &mut Started, signal: Signal) {
    proxy.signal(signal).unwrap();
    assert!(proxy.wait(PATIENCE).unwrap().is_some(), "kube-proxy runs on");
}
