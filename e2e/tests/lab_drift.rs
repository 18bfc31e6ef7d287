//! Other hands on a node: what they have of their own stays through the whole life of nodenet, and what they
//! change of nodenet's is put back and reported, while Services answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nix::sys::signal::Signal;
use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::nodenet::{RUN_FOLDER, uninstall_chart};
use nodenet_e2e::lab::protocol::Exec;
use nodenet_e2e::lab::scene::{Scene, Unmet, so};
use nodenet_e2e::lab::steady::SteadyTraffic;
use nodenet_e2e::lab::steps::Steps;
use nodenet_e2e::tool::init::SHARED;
use std::collections::{BTreeMap, BTreeSet};

/// Where the other hands are.
const NODE: &str = "k8s-node-1";
const VIP: &str = "192.168.0.15/24";
/// A Service by a node that nobody disturbs.
const ELSEWHERE: &str = "192.168.0.12:39090";

#[test]
fn other_hands_lose_nothing_and_take_nothing() {
    // IPVS, sets and rules announce nothing: what becomes of them is seen at the next look.
    let values = ["verifyPeriod=10s"];
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &values, &[]).unwrap() else { return };
    scene.place(NODE).run_with(&["sh", "-e"], OTHERS).unwrap();
    let before = others(&scene);
    for (what, there) in &before {
        assert!(!there.is_empty(), "no {what}");
    }
    scene.start_all().unwrap();
    scene.apply_examples().unwrap();
    let elsewhere = SteadyTraffic::start(&scene, &[("client", ELSEWHERE, 50)], &[]).unwrap();
    let mut steps = Steps::default();
    steps.run("what others made is beside ours", || assert_eq!(others(&scene), before));
    steps.run("it stays when ours changes", || {
        changes(&scene);
        assert_eq!(others(&scene), before);
    });
    steps.run("it stays over a crash and an ordinary restart of the agent", || {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            restart(&mut scene, signal);
            assert_eq!(others(&scene), before);
        }
    });
    steps.run("a status and a whole state that another hand deletes are back", || deleted(&scene));
    steps.run("what another hand takes or changes of ours is put back and reported", || drift(&scene));
    steps.run("what others made stays when ours is put back", || assert_eq!(others(&scene), before));
    steps.run("nothing of it was noticed elsewhere", || assert_eq!(elsewhere.end().unwrap(), [""; 0]));
    steps.run("an uninstall breaks no connection, and leaves nothing that cannot be deleted", || {
        uninstall(&mut scene);
        assert_eq!(others(&scene), before);
    });
    steps.run("cleanup takes away what is ours and nothing else", || cleanup(&scene, &before));
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

/// What others have on the node, of every sort that nodenet deals with.
const OTHERS: &str = "
    ip addr add 192.168.0.200/24 dev ens33
    ip link add others type dummy
    ip addr add 172.31.0.1/24 dev others
    ip addr add fd00:31::1/64 dev others nodad
    ip link set others up
    ip route add local 10.99.0.0/16 dev others
    ip route add 10.98.0.0/16 via 192.168.0.12
    ipvsadm -A -t 192.168.0.200:8443 -s wlc -p 300
    ipvsadm -a -t 192.168.0.200:8443 -r 10.70.0.159:9090 -m -w 7
    ipvsadm -A -f 77 -s sh
    ipvsadm -a -f 77 -r 10.244.5.23:80 -m
    ipset create others hash:ip,port
    ipset add others 10.0.0.1,tcp:80
    ipset create KUBE-SRC-OTHERS hash:ip,port
    iptables-legacy -t nat -N OTHERS
    iptables-legacy -t nat -A OTHERS -s 10.9.9.0/24 -j MASQUERADE
    iptables-legacy -t nat -A POSTROUTING -j OTHERS
    iptables-legacy -A FORWARD -m set --match-set others dst,dst -j ACCEPT
    iptables-legacy -t mangle -A PREROUTING -p tcp --dport 4444 -j MARK --set-mark 0x99
    ip6tables-legacy -t nat -N OTHERS
    ip6tables-legacy -t nat -A POSTROUTING -j OTHERS
";

/// What there is of it now, in the words of the field's tools.
fn others(scene: &Scene) -> BTreeMap<&'static str, Vec<String>> {
    let node = scene.place(NODE);
    let kept = |command: &str, ours: &[&str]| -> Vec<String> {
        let text = node.run(&["sh", "-ec", command]).unwrap();
        let foreign = |line: &&str| !line.trim().is_empty() && !ours.iter().any(|word| line.contains(word));
        text.lines().filter(foreign).map(|line| line.trim().to_owned()).collect()
    };
    // Tables that a reader brings into being, and counters, are nobody's.
    let rules = |program: &str| -> Vec<String> {
        let lines = kept(program, &["NODENET"]).into_iter();
        let chain = |line: String| line.split_once(" [").map_or(line.clone(), |(chain, _)| chain.to_owned());
        lines.filter(|line| line.starts_with("-A") || line.starts_with(":OTHERS")).map(chain).collect()
    };
    let addresses =
        "for link in ens33 others; do ip -o -4 addr show dev $link; done; ip -o -6 addr show scope global";
    let servers = scene.servers(NODE).unwrap();
    let foreign =
        servers.iter().filter(|(server, _)| server.contains(":8443") || server.starts_with("FWM 77 "));
    BTreeMap::from([
        ("addresses", kept(addresses, &[" 192.168.0.15/"])),
        ("routes", kept("ip -4 route show table all", &["nodenet0", " 192.168.0.15 "])),
        ("virtual servers", foreign.map(|entry| format!("{entry:?}")).collect()),
        ("sets", kept("ipset save", &["NODENET"])),
        ("rules", rules("iptables-legacy-save")),
        ("rules of IPv6", rules("ip6tables-legacy-save")),
    ])
}

/// A backend goes and comes back; a virtual IP comes and goes.
fn changes(scene: &Scene) {
    let cluster = scene.lab().cluster();
    let second = serde_json::json!({"apiVersion": "nodenet.dev/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "second"},
        "spec": {"addresses": ["192.168.0.16/24"],
                 "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": NODE}},
                 "services": [{"namespace": "default", "name": "prometheus", "nodePorts": true}]}});
    for there in [true, false] {
        if there {
            cluster.apply(&second.to_string()).unwrap();
        } else {
            cluster.kubectl(&["delete", "vip", "second"]).unwrap();
        }
        scene.set_third_web_server(!there).unwrap();
        scene
            .until("the second virtual IP come or gone", || {
                let servers = scene.servers(NODE)?;
                let held = scene.addresses(NODE)?.contains_key("192.168.0.16/24");
                let served = servers.contains_key("TCP 192.168.0.16:39090 rr");
                so(held == there && served == there, format!("address {held}, {servers:?}"))
            })
            .unwrap();
    }
}

/// Ends the agent by a signal and starts it again, until it has looked at everything twice.
fn restart(scene: &mut Scene, signal: Signal) {
    scene.end_agent(NODE, signal).unwrap();
    scene.start_agent(NODE).unwrap();
    let full = r#"nodenet_agent_sync_duration_seconds_count{lane="Service",scope="full"}"#;
    scene
        .until("two looks at everything", || {
            let looks = scene.metric(NODE, full)?;
            so(looks >= 2.0, format!("{looks} looks"))
        })
        .unwrap();
    scene.all_ready().unwrap();
}

/// What another hand does, and what an Event must name because of it. An Event names three changes at most.
type Deeds = &'static [(&'static str, &'static str)];

const DRIFT: &[Deeds] = &[
    // What the kernel announces.
    &[("ip addr del 192.168.0.15/24 dev ens33", "address 192.168.0.15/24 dev ens33")],
    &[("ip route del local 10.243.0.0/16 dev nodenet0", "local route 10.243.0.0/16 dev nodenet0")],
    &[("ip link del nodenet0", "interface nodenet0")],
    // What NetworkManager and networkd do to interfaces and routes that they were not told of.
    &[("ip addr flush dev ens33 to 192.168.0.15/32", "address 192.168.0.15/24 dev ens33")],
    &[(
        "ip addr flush dev nodenet0; ip route flush table local proto 110",
        "local route 10.243.0.0/16 dev nodenet0",
    )],
    // What it does not.
    &[
        ("ipset del NODENET-CLUSTER-IP 10.243.9.90,tcp:9090", "+ entry 10.243.9.90"),
        ("iptables-legacy -t nat -F NODENET-POSTROUTING", "packet filter rules (IPv4)"),
        ("ipvsadm -D -t 192.168.0.11:39090", "+ virtual server TCP 192.168.0.11:39090"),
    ],
    &[
        (
            "ipvsadm -d -t 10.243.21.14:8880 -r 10.244.3.32:80",
            "+ real server 10.244.3.32:80 of TCP 10.243.21.14:8880",
        ),
        (
            "ipvsadm -e -t 10.243.21.14:8880 -r 10.244.5.23:80 -m -w 9",
            "~ real server 10.244.5.23:80 of TCP 10.243.21.14:8880",
        ),
        ("ipset add NODENET-CLUSTER-IP 10.243.200.200,tcp:99", "- entry 10.243.200.200"),
    ],
    &[
        ("echo 0 > /proc/sys/net/ipv4/vs/conntrack", "sysctl net.ipv4.vs.conntrack = 1"),
        ("echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore", "sysctl net.ipv4.conf.all.arp_ignore = 1"),
        ("ipset flush NODENET-CLUSTER-IP", " in NODENET-CLUSTER-IP"),
    ],
    &[
        ("ipvsadm -E -t 10.243.21.14:8880 -s wlc", "~ virtual server TCP 10.243.21.14:8880"),
        // Within the ranges of Services every virtual server is nodenet's.
        ("ipvsadm -A -t 10.243.200.1:80 -s rr", "- virtual server TCP 10.243.200.1:80"),
        (
            "iptables-legacy-save -t nat | sed -n 's/^-A \\(.*-j NODENET-.*\\)$/-D \\1/p' | grep -v '^-D NODENET' \
             | xargs -L 1 iptables-legacy -t nat",
            "packet filter rules (IPv4)",
        ),
    ],
];

/// All of ours that another hand may have changed.
fn ours(scene: &Scene) -> Result<String, Unmet> {
    let (node, mut lines) = (scene.place(NODE), BTreeSet::new());
    let look = "
        ipset save | grep NODENET
        iptables-legacy-save | grep -e '-A .*NODENET'
        ip -4 route show table all dev nodenet0
        ip -o link show dev nodenet0 | grep -o '<.*>'
        cd /proc/sys/net/ipv4; grep . vs/conntrack conf/all/arp_ignore
    ";
    lines.extend(node.run(&["sh", "-c", look])?.lines().map(str::to_owned));
    let addresses = scene.addresses(NODE)?;
    Ok(format!("{addresses:#?}\n{:#?}\n{lines:#?}", scene.servers(NODE)?))
}

fn drift(scene: &Scene) {
    let node = scene.place(NODE);
    let wanted = ours(scene).unwrap();
    let questions = [("client", "192.168.0.15:39090", 5), ("prometheus", "10.243.21.14:8880", 2)];
    let disturbed = SteadyTraffic::start(scene, &questions, &[]).unwrap();
    let monitor = Exec::new(["ip", "-ts", "-o", "-4", "monitor", "address"]);
    node.spawn(monitor, "drift.log").unwrap();
    for deeds in DRIFT {
        let repaired = || scene.metric(NODE, "nodenet_agent_drift_repaired_total");
        let before = repaired().unwrap();
        let commands: Vec<&str> = deeds.iter().map(|(command, _)| *command).collect();
        node.run(&["sh", "-ec", &commands.join("\n")]).unwrap();
        scene
            .until(&format!("what was before {commands:?}, and Events about it"), || {
                let repaired = repaired()? - before;
                so(repaired >= deeds.len() as f64, format!("{repaired} changes put back"))?;
                let seen = ours(scene)?;
                so(seen == wanted, format!("{seen}\ninstead of\n{wanted}"))?;
                let events = scene.events("DriftRepaired")?;
                for (_, name) in *deeds {
                    let named = events.iter().any(|event| event.starts_with(NODE) && event.contains(name));
                    so(named, format!("no Event names {name}: {events:#?}"))?;
                }
                Ok(())
            })
            .unwrap();
        disturbed.goes_on(2).unwrap();
    }
    assert_eq!(scene.holders(VIP).unwrap(), BTreeSet::from([NODE.to_owned()]));
    scene.answered("client", "192.168.0.11:39090", &[("prometheus", 3)]).unwrap();
    scene.answered("client", "192.168.0.11:30981", &[("web-1", 2), ("web-2", 2), ("web-3", 2)]).unwrap();
    // For people: when the address was back, and what the node's own clients noticed of it all until the next look.
    let log = node.run(&["cat", &format!("{SHARED}/drift.log")]).unwrap();
    let gone = log.lines().position(|line| line.contains("Deleted") && line.contains(" 192.168.0.15/"));
    log.lines().skip(gone.unwrap_or(0)).take(4).for_each(|line| println!("    {line}"));
    println!("    {:#?}", disturbed.end().unwrap());
}

fn deleted(scene: &Scene) {
    let cluster = scene.lab().cluster();
    let traffic = SteadyTraffic::start(scene, &[("client", "192.168.0.15:39090", 5)], &[]).unwrap();
    let uid = |scene: &Scene| -> Result<String, Unmet> {
        Ok(scene.state(NODE)?["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
    };
    let before = uid(scene).unwrap();
    let none = r#"{"status": null}"#;
    cluster
        .kubectl(&["patch", "nns", NODE, "--subresource=status", "--type=merge", "--patch", none])
        .unwrap();
    scene.all_ready().unwrap();
    assert_eq!(scene.on_node(NODE, "prometheus").unwrap()["state"], "Active");

    cluster.kubectl(&["delete", "nns", NODE]).unwrap();
    scene
        .until("another NodeNetState", || {
            let now = uid(scene)?;
            so(now != before, now)
        })
        .unwrap();
    scene.all_ready().unwrap();
    assert_eq!(scene.holders(VIP).unwrap(), BTreeSet::from([NODE.to_owned()]));
    assert_eq!(traffic.end().unwrap(), [""; 0]);
}

fn uninstall(scene: &mut Scene) {
    let questions = [("client", ELSEWHERE, 50), ("prometheus", "10.243.21.14:8880", 2)];
    let traffic = SteadyTraffic::start(scene, &questions, &[("client", ELSEWHERE)]).unwrap();
    // All run on for a while: kubelets learn of it later than the hook, some much later.
    let cluster = scene.lab().cluster();
    uninstall_chart(cluster, scene.nodenet()).unwrap();
    assert_eq!(cluster.kubectl(&["get", "nnslice,nns", "-o", "name"]).unwrap(), "");
    traffic.goes_on(20).unwrap();
    for number in [0, 1] {
        scene.kill_operator(number);
    }
    for node in scene.nodes() {
        scene.end_agent(&node, Signal::SIGTERM).unwrap();
    }
    let cluster = scene.lab().cluster();
    let kinds = ["virtualips", "nodenetstates", "nodenetslices"].map(|kind| format!("{kind}.nodenet.dev"));
    let delete = ["delete", "crd", "--timeout=120s", &kinds[0], &kinds[1], &kinds[2]];
    cluster.kubectl(&delete).unwrap();
    scene
        .until("the virtual IP run out", || {
            let holders = scene.holders(VIP)?;
            so(holders.is_empty(), format!("{holders:?}"))
        })
        .unwrap();
    assert_eq!(traffic.end().unwrap(), [""; 0]);
}

fn cleanup(scene: &Scene, before: &BTreeMap<&str, Vec<String>>) {
    let agent = scene.nodenet().agent.display().to_string();
    for node in scene.nodes() {
        let place = scene.place(&node);
        place.run(&[&agent, "cleanup", "--run-dir", RUN_FOLDER]).unwrap();
        let look = "for family in -4 -6; do ip $family route show table all; done; ip addr; ipset save; \
                    iptables-legacy-save; ip6tables-legacy-save";
        let left = place.run(&["sh", "-ec", look]).unwrap();
        let ours =
            |line: &&str| ["NODENET", "nodenet0", "192.168.0.15"].iter().any(|word| line.contains(word));
        let ours: Vec<&str> = left.lines().filter(ours).collect();
        assert!(ours.is_empty(), "{node}: {ours:#?}");
        let servers = scene.servers(&node).unwrap();
        assert_eq!(servers.len(), if node == NODE { 2 } else { 0 }, "{node}: {servers:#?}");
        let again = place.run(&[&agent, "cleanup", "--run-dir", RUN_FOLDER]).unwrap();
        assert!(again.contains("Nothing to do"), "a second time: {again}");
    }
    assert_eq!(&others(scene), before);
    let attempts = scene.ask("client", ELSEWHERE, 1).unwrap();
    assert!(attempts[0].error.is_some(), "{attempts:?}");
}
