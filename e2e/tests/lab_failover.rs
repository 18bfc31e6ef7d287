//! The holder of a virtual IP is cut off, from its link or from the API server alone, dies, returns and is
//! cordoned: the virtual IP moves, and at no moment do two nodes have it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use nix::sys::signal::Signal;
use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::protocol::Exec;
use nodenet_e2e::lab::scene::{PATIENCE, Scene, Unmet, so};
use nodenet_e2e::lab::site::Site;
use nodenet_e2e::lab::steps::Steps;
use nodenet_e2e::lab::traffic::longest_outage;
use nodenet_e2e::tool::init::SHARED;
use nodenet_e2e::tool::traffic::Transport;
use std::collections::BTreeSet;

const PREFERRED: &str = "k8s-node-1";
/// The first by name of those that are equal.
const NEXT: &str = "k8s-master-1";
const VIP: &str = "192.168.0.15/24";

#[test]
fn at_no_moment_do_two_nodes_have_it() {
    let Some(mut scene) = Scene::install_or_skip(LabSpec::default(), &[], &[]).unwrap() else { return };
    for node in scene.nodes() {
        let monitor = Exec::new(["ip", "-ts", "-o", "-4", "monitor", "address"]);
        scene.place(&node).spawn(monitor, &format!("addresses-{node}.log")).unwrap();
    }
    scene.start_all().unwrap();
    scene.apply_examples().unwrap();
    let mut steps = Steps::default();
    steps.run("the holder loses its link and gets it back", || link_lost(&scene));
    steps.run("the holder's agent is killed: its address runs out before another node has it", || {
        agent_killed(&mut scene);
    });
    steps.run("the holder returns and takes it back", || returns(&mut scene));
    steps
        .run("a holder that loses the API server alone lets go when another asks for it", || cut_off(&scene));
    steps
        .run("without preemption the holder returns and does not take it back", || no_preemption(&mut scene));
    steps.run("a cordoned holder hands it over", || cordoned(&scene));
    steps.run("never did two nodes have it", || never_two(&scene));
    assert!(steps.failed().is_empty(), "failed: {:#?}", steps.failed());
}

/// Waits until one node has it, and all say so.
fn held_by(scene: &Scene, node: &str) {
    scene
        .until(&format!("{node} holds it"), || {
            let holders = scene.holders(VIP)?;
            so(holders == BTreeSet::from([node.to_owned()]), format!("{holders:?}"))?;
            let held = scene.condition(&["vip", "prometheus"], "Held")?;
            so(held.status == "True" && held.message.contains(node), format!("{held:?}"))?;
            scene.answered("client", "192.168.0.15:39090", &[("prometheus", 1)]).map(drop)
        })
        .unwrap();
}

/// Why it is where it is.
fn reason(scene: &Scene) -> String {
    let vip = scene.lab().cluster().get(&["vip", "prometheus"]).unwrap();
    vip["status"]["addresses"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

fn link_lost(scene: &Scene) {
    held_by(scene, PREFERRED);
    let target = "192.168.0.15:39090".parse().unwrap();
    let prober = scene.place("client").probe(Transport::Tcp, target, 20).unwrap();
    prober.wait_for_answers(1, PATIENCE).unwrap();
    scene.lab().topology().set_link(PREFERRED, false).unwrap();
    scene
        .until("another holder", || {
            let holders = scene.holders(VIP)?;
            so(holders == BTreeSet::from([NEXT.to_owned()]), format!("{holders:?}"))?;
            scene.answered("client", "192.168.0.15:39090", &[("prometheus", 1)]).map(drop)
        })
        .unwrap();
    prober.wait_for_answers(prober.answered().unwrap() + 1, PATIENCE).unwrap();
    println!("    moved: {}", reason(scene));
    println!(
        "    {:.1} s without an answer at the cut",
        longest_outage(&prober.attempts().unwrap()).as_secs_f64()
    );
    scene.lab().topology().set_link(PREFERRED, true).unwrap();
    held_by(scene, PREFERRED);
    prober.stop().unwrap();
}

/// What a node had when: the times at which the address came and went, in the guest's one clock.
fn times(scene: &Scene, node: &str) -> Result<Vec<(String, Option<String>)>, Unmet> {
    let text = scene.place(node).run(&["cat", &format!("{SHARED}/addresses-{node}.log")])?;
    let mut times: Vec<(String, Option<String>)> = Vec::new();
    for line in text.lines().filter(|line| line.contains(&format!("inet {VIP} "))) {
        let (time, rest) = line.split_once(' ').ok_or_else(|| Unmet(format!("`{line}`")))?;
        so(time.starts_with('['), format!("no time: `{line}`"))?;
        let open = times.last_mut().filter(|(_, end)| end.is_none());
        match (open, rest.trim_start().starts_with("Deleted")) {
            (Some((_, end)), true) => *end = Some(time.to_owned()),
            (None, false) => times.push((time.to_owned(), None)),
            _ => {}
        }
    }
    Ok(times)
}

fn agent_killed(scene: &mut Scene) {
    let before = times(scene, PREFERRED).unwrap().len();
    scene.end_agent(PREFERRED, Signal::SIGKILL).unwrap();
    held_by(scene, NEXT);
    let reason = reason(scene);
    assert!(reason.contains(PREFERRED) && reason.contains("has not renewed its Lease"), "{reason}");
    // Nobody took it off the dead agent's node: the kernel did, and before the other node had it.
    let (lost, taken) = (times(scene, PREFERRED).unwrap(), times(scene, NEXT).unwrap());
    assert_eq!(lost.len(), before, "{lost:?}");
    let (ended, begun) = (lost.last().unwrap().1.as_ref().unwrap(), &taken.last().unwrap().0);
    println!("    ran out at {ended}, taken at {begun}");
    assert!(ended < begun, "gone from {PREFERRED} at {ended}, on {NEXT} since {begun}");
    // The dead agent's node forwards as before.
    scene.answered("client", "192.168.0.11:39090", &[("prometheus", 2)]).unwrap();
}

fn returns(scene: &mut Scene) {
    scene.start_agent(PREFERRED).unwrap();
    held_by(scene, PREFERRED);
    let reason = reason(scene);
    assert!(reason.contains("priority 200 is higher than 100"), "{reason}");
}

/// The holder lives and answers, and cannot be told that another node is to have it.
fn cut_off(scene: &Scene) {
    let target = "192.168.0.15:39090".parse().unwrap();
    let prober = scene.place("client").probe(Transport::Tcp, target, 20).unwrap();
    let api = format!("{}/32", Site::HOST);
    scene.place(PREFERRED).run(&["ip", "route", "add", "blackhole", &api]).unwrap();
    held_by(scene, NEXT);
    scene.place(PREFERRED).run(&["ip", "route", "delete", "blackhole", &api]).unwrap();
    held_by(scene, PREFERRED);
    let outage = longest_outage(&prober.stop().unwrap());
    println!("    {:.2} s without an answer", outage.as_secs_f64());
}

fn no_preemption(scene: &mut Scene) {
    let patch = r#"{"spec": {"failover": {"preempt": false, "preemptDelaySeconds": null}}}"#;
    scene.lab().cluster().kubectl(&["patch", "vip", "prometheus", "--type=merge", "--patch", patch]).unwrap();
    scene
        .until("the edit in force", || {
            let accepted = scene.condition(&["vip", "prometheus"], "Accepted")?;
            so(accepted.status == "True", format!("{accepted:?}"))
        })
        .unwrap();
    scene.end_agent(PREFERRED, Signal::SIGKILL).unwrap();
    held_by(scene, NEXT);
    let moves = times(scene, NEXT).unwrap().len();
    scene.start_agent(PREFERRED).unwrap();
    let lease = || -> Result<String, Unmet> {
        let lease = scene.lab().cluster().get(&["lease", PREFERRED, "-n", "nodenet-nodes"])?;
        Ok(lease["spec"]["renewTime"].to_string())
    };
    // Well for longer than the delay after which it would take it back.
    let mut renewals = BTreeSet::new();
    scene
        .until("eight renewals of the Lease and a Backup", || {
            renewals.insert(lease()?);
            let on_node = scene.on_node(PREFERRED, "prometheus")?;
            so(on_node["state"] == "Backup", &on_node)?;
            so(renewals.len() > 8, format!("{} renewals", renewals.len()))
        })
        .unwrap();
    held_by(scene, NEXT);
    assert_eq!(times(scene, NEXT).unwrap().len(), moves, "it stayed where it was");
}

fn cordoned(scene: &Scene) {
    let target = "192.168.0.15:39090".parse().unwrap();
    let prober = scene.place("client").probe(Transport::Tcp, target, 20).unwrap();
    prober.wait_for_answers(1, PATIENCE).unwrap();
    scene.lab().cluster().kubectl(&["cordon", NEXT]).unwrap();
    held_by(scene, PREFERRED);
    let reason = reason(scene);
    assert!(reason.contains(NEXT) && reason.contains("cordoned"), "{reason}");
    scene.lab().cluster().kubectl(&["uncordon", NEXT]).unwrap();
    prober.wait_for_answers(prober.answered().unwrap() + 1, PATIENCE).unwrap();
    let outage = longest_outage(&prober.stop().unwrap());
    println!("    {:.2} s without an answer at the hand-over", outage.as_secs_f64());
}

fn never_two(scene: &Scene) {
    let mut all: Vec<(String, Option<String>, String)> = Vec::new();
    for node in scene.nodes() {
        for (begin, end) in times(scene, &node).unwrap() {
            all.push((begin, end, node.clone()));
        }
    }
    all.sort();
    assert!(all.len() >= 7, "the moves of all parts: {all:#?}");
    for pair in all.windows(2) {
        let gone = pair[0].1.as_ref().is_some_and(|end| *end <= pair[1].0);
        assert!(gone, "two at once: {pair:#?}");
    }
}
