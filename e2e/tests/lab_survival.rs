//! The data plane outlives agents, operators and the API server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nix::sys::signal::Signal;
use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::scene::{Scene, so};
use nodenet_e2e::lab::steady::SteadyTraffic;
use nodenet_e2e::lab::steps::Steps;

const NODE: &str = "k8s-node-1";
const VIP: &str = "192.168.0.15/24";
const NODE_PORT: &str = "192.168.0.11:30981";

#[test]
fn the_data_plane_outlives_what_plans_it() {
    // By default an agent says after two minutes that nobody leads.
    let flags = ["--operator-period=2s", "--operator-timeout=15s"];
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &[], &flags).unwrap() else { return };
    scene.start_all().unwrap();
    scene.apply_examples().unwrap();
    let mut steps = Steps::default();
    steps.run("a killed agent costs no connection, and its successor writes nothing", || {
        agent_killed(&mut scene);
    });
    steps.run("slices deleted by hand cost nothing and are back", || slices_deleted(&scene));
    steps.run("another operator takes over, and agents tell when nobody leads", || {
        operators_killed(&mut scene);
    });
    steps.run("traffic goes on without the API server, and what changes then arrives", || {
        api_server_away(&mut scene);
    });
    steps.run("a node boots into the last good state with nobody to ask", || cold_boot(&mut scene));
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

/// An outside client asks the three pods by a node port, and reads from one of them.
fn traffic(scene: &Scene, node_port: &str, per_second: u32) -> SteadyTraffic {
    let questions = [("client", node_port, per_second)];
    SteadyTraffic::start(scene, &questions, &[("client", node_port)]).unwrap()
}

/// Of a node that holds no virtual IP: there not even the lifetime of an address is renewed.
fn agent_killed(scene: &mut Scene) {
    let node = "k8s-node-2";
    let traffic = traffic(scene, "192.168.0.12:30981", 50);
    scene.end_agent(node, Signal::SIGKILL).unwrap();
    traffic.goes_on(100).unwrap();
    scene.start_agent(node).unwrap();
    scene
        .until("the new agent has looked at everything", || {
            let looks = r#"nodenet_agent_sync_duration_seconds_count{lane="Service",scope="full"}"#;
            let looks = scene.metric(node, looks)?;
            let servers = scene.metric(node, r#"nodenet_agent_virtual_servers{state="programmed"}"#)?;
            so(looks >= 1.0 && servers >= 8.0, format!("{looks} looks, {servers} servers"))
        })
        .unwrap();
    traffic.goes_on(50).unwrap();
    let messages = scene.metric(node, "nodenet_agent_kernel_messages_total").unwrap();
    let operations = scene.metric(node, "nodenet_agent_kernel_operations_total").unwrap();
    assert_eq!((messages, operations), (0.0, 0.0), "{}", scene.lab().agent_log(node).unwrap());
    assert_eq!(traffic.end().unwrap(), [""; 0]);
}

fn slices_deleted(scene: &Scene) {
    let traffic = traffic(scene, NODE_PORT, 20);
    scene.lab().cluster().kubectl(&["delete", "nnslice", "--all", "--wait=false"]).unwrap();
    scene
        .until("slices that nobody deletes hold the Service", || {
            let slices = scene.lab().cluster().get(&["nnslice"])?;
            let items = slices["items"].as_array().cloned().unwrap_or_default();
            let stay = items.iter().all(|slice| slice["metadata"]["deletionTimestamp"].is_null());
            let hold = items.iter().any(|slice| slice.to_string().contains("lvs-svc-test"));
            so(stay && hold, &slices)
        })
        .unwrap();
    traffic.goes_on(40).unwrap();
    assert_eq!(traffic.end().unwrap(), [""; 0]);
}

fn operators_killed(scene: &mut Scene) {
    let leader = scene.until("a leader", || scene.leader()).unwrap();
    // Before and after its death, so that one or the other takes the news along.
    scene.change_third_web_server(false).unwrap();
    scene.kill_operator(leader);
    scene.change_third_web_server(true).unwrap();
    scene.set_third_web_server(false).unwrap();
    scene.set_third_web_server(true).unwrap();
    scene
        .until("the other one leads", || {
            let next = scene.leader()?;
            so(next != leader, format!("{next} leads"))
        })
        .unwrap();
    scene.kill_operator(1 - leader);
    for node in scene.nodes() {
        scene
            .until("words about the silent operator", || {
                let silent = scene.condition(&["nns", &node], "OperatorSilent")?;
                so(silent.status == "True", format!("{silent:?}"))?;
                let ready = scene.condition(&["nns", &node], "Ready")?;
                let word = (ready.status.as_str(), ready.reason.as_str());
                so(word == ("True", "OperatorSilent"), format!("{ready:?}"))
            })
            .unwrap();
    }
    scene.answered("client", "192.168.0.15:39090", &[("prometheus", 3)]).unwrap();
    for number in [0, 1] {
        scene.start_operator(number).unwrap();
    }
    scene.all_ready().unwrap();
}

fn api_server_away(scene: &mut Scene) {
    let questions = [("client", "192.168.0.15:39090", 10)];
    let traffic = SteadyTraffic::start(scene, &questions, &[]).unwrap();
    let holders = scene.holders(VIP).unwrap();
    scene.lab_mut().cluster_mut().stop_apiserver();
    // A minute: longer than any lifetime of an address.
    traffic.goes_on(600).unwrap();
    assert_eq!(scene.holders(VIP).unwrap(), holders, "it moved although nobody was gone");
    scene.lab_mut().cluster_mut().start_apiserver().unwrap();
    // What changes now is seen again, all the way and back.
    scene.set_third_web_server(false).unwrap();
    scene.set_third_web_server(true).unwrap();
    scene.all_ready().unwrap();
    assert_eq!(scene.holders(VIP).unwrap(), holders);
    assert_eq!(traffic.end().unwrap(), [""; 0]);
}

/// What a reboot leaves of ours in the kernel and in /run: nothing.
const REBOOT: &str = "
    ipvsadm -C
    for tables in iptables-legacy ip6tables-legacy; do
        for table in nat filter mangle; do $tables -t $table -F; $tables -t $table -X; done
    done
    ipset destroy
    ip link del nodenet0
    ip addr del 192.168.0.15/24 dev ens33 || echo it has run out already
    rm -rf /run/nodenet
";

fn cold_boot(scene: &mut Scene) {
    let node = scene.place(NODE);
    scene
        .until("all three web servers in the agent's copy on disk", || {
            // What was changed a moment ago may not be there yet: writes of it are collected.
            so(node.attempt(&["grep", "-rq", "10.244.5.24", "/var/lib/nodenet"])?.code == 0, "not there")
        })
        .unwrap();
    let exec = scene.prepare_agent(NODE).unwrap();
    scene.end_agent(NODE, Signal::SIGKILL).unwrap();
    for number in [0, 1] {
        scene.kill_operator(number);
    }
    scene.lab_mut().cluster_mut().stop_apiserver();
    node.run(&["sh", "-ec", REBOOT]).unwrap();
    assert!(scene.servers(NODE).unwrap().is_empty());

    scene.start_prepared_agent(NODE, exec).unwrap();
    let each = [("web-1", 2), ("web-2", 2), ("web-3", 2)];
    scene.until("the node port from the disk", || scene.answered("client", NODE_PORT, &each)).unwrap();
    // Nobody else answers for the virtual IP, and nobody can be asked: it is taken again.
    scene
        .until("the virtual IP from the disk", || {
            scene.answered("client", "192.168.0.15:39090", &[("prometheus", 2)])
        })
        .unwrap();
    assert_eq!(scene.addresses(NODE).unwrap().get(VIP), Some(&true));
}
