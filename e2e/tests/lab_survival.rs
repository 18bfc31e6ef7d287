//! The data plane outlives agents, operators and the API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::running::{PATIENCE, Running};
use nodenet_e2e::tool::traffic::{Attempt, Transport};

const NODE: &str = "k8s-node-1";
const NODE_PORT: &str = "192.168.0.11:30981";

/// A lab in which the client reaches the three pods by the node port of [`NODE`].
fn serving(operators: u16) -> Option<Running> {
    let running = Running::start_or_skip(LabSpec::default(), operators).unwrap()?;
    running.apply_example("002-what-forwards-the-packet").unwrap();
    running
        .eventually("nine answers", || {
            let client = running.lab().place("client");
            let attempts = client.ask(Transport::Tcp, NODE_PORT.parse().unwrap(), 9)?;
            Ok(attempts.iter().all(|attempt| attempt.error.is_none()))
        })
        .unwrap();
    Some(running)
}

fn unanswered(attempts: &[Attempt]) -> Vec<&Attempt> {
    attempts.iter().filter(|attempt| attempt.error.is_some()).collect()
}

#[test]
fn a_killed_agent_costs_no_connection_and_its_successor_writes_nothing() {
    let Some(mut running) = serving(1) else { return };
    let client = running.lab().place("client");
    let download = client.download(NODE_PORT.parse().unwrap()).unwrap();
    let prober = client.probe(Transport::Tcp, NODE_PORT.parse().unwrap(), 50).unwrap();
    prober.wait_for_answers(50, PATIENCE).unwrap();

    running.kill_agent(NODE).unwrap();
    prober.wait_for_answers(150, PATIENCE).unwrap();
    running.start_agent(NODE).unwrap();
    running
        .eventually("the new agent has seen all virtual servers", || {
            let servers = running.agent_metric(NODE, "nodenet_agent_virtual_servers")?;
            Ok(servers.is_some_and(|servers| servers >= 2.0))
        })
        .unwrap();
    let answered = prober.attempts().unwrap().len();
    prober.wait_for_answers(answered + 50, PATIENCE).unwrap();

    let written = running.agent_metric(NODE, "nodenet_agent_kernel_messages_total").unwrap();
    assert_eq!(written, Some(0.0), "{}", running.lab().agent_log(NODE).unwrap());
    let attempts = prober.stop().unwrap();
    assert!(unanswered(&attempts).is_empty(), "{:?} of {}", unanswered(&attempts), attempts.len());
    let progress = download.stop().unwrap();
    assert!(progress.iter().all(|report| report.error.is_none()), "{:?}", progress.last());
}

#[test]
fn traffic_goes_on_without_the_api_server_and_status_catches_up() {
    let Some(mut running) = serving(1) else { return };
    running.apply_example("000-keepalived-vip").unwrap();
    running.wait_for_condition("Ready", &["vip/prometheus"]).unwrap();
    let prober = running
        .lab()
        .place("client")
        .probe(Transport::Tcp, "192.168.0.15:39090".parse().unwrap(), 10)
        .unwrap();
    prober.wait_for_answers(10, PATIENCE).unwrap();
    let holders = running.holders("192.168.0.15").unwrap();

    running.lab_mut().cluster_mut().stop_apiserver();
    // A minute at ten a second: longer than any lifetime of an address.
    prober.wait_for_answers(610, PATIENCE * 2).unwrap();
    assert_eq!(running.holders("192.168.0.15").unwrap(), holders, "it moved although nobody was gone");
    running.lab_mut().cluster_mut().start_apiserver().unwrap();

    let attempts = prober.stop().unwrap();
    assert!(unanswered(&attempts).is_empty(), "{:?} of {}", unanswered(&attempts), attempts.len());
    // What changes now is seen again, all the way.
    running.lab().cluster().kubectl(&["delete", "service", "lvs-svc-test"]).unwrap();
    running
        .eventually("the virtual servers of the deleted Service are gone", || {
            Ok(!running.lab().place(NODE).run(&["ipvsadm", "-Ln"])?.contains(":30981"))
        })
        .unwrap();
    running.wait_for_condition("Ready", &["nns", "--all"]).unwrap();
}

#[test]
fn slices_deleted_by_hand_cost_nothing_and_are_back() {
    let Some(running) = serving(1) else { return };
    let prober = running.lab().place("client").probe(Transport::Tcp, NODE_PORT.parse().unwrap(), 20).unwrap();
    prober.wait_for_answers(20, PATIENCE).unwrap();
    running.lab().cluster().kubectl(&["delete", "nnslice", "--all", "--wait=false"]).unwrap();
    running
        .eventually("slices that nobody deletes hold the Service", || {
            let slices = running.lab().cluster().get(&["nnslice"])?;
            let items = slices["items"].as_array().cloned().unwrap_or_default();
            let stays = items.iter().filter(|slice| slice["metadata"]["deletionTimestamp"].is_null());
            Ok(items.iter().all(|slice| slice["metadata"]["deletionTimestamp"].is_null())
                && stays.into_iter().any(|slice| slice.to_string().contains("lvs-svc-test")))
        })
        .unwrap();
    let answered = prober.attempts().unwrap().len();
    prober.wait_for_answers(answered + 40, PATIENCE).unwrap();
    let attempts = prober.stop().unwrap();
    assert!(unanswered(&attempts).is_empty(), "{:?} of {}", unanswered(&attempts), attempts.len());
}

#[test]
fn a_standby_takes_over_from_a_killed_leader_and_agents_tell_when_nobody_leads() {
    let Some(mut running) = serving(2) else { return };
    // The first to start leads.
    running.kill_operator(0);
    running.apply_example("000-keepalived-vip").unwrap();
    running.wait_for_condition("Ready", &["vip/prometheus"]).unwrap();
    // By default an agent says so after two minutes.
    running.kill_agent(NODE).unwrap();
    running.start_agent_with(NODE, &["--operator-period=2s", "--operator-timeout=10s"]).unwrap();
    running.kill_operator(0);
    running
        .eventually("OperatorSilent", || Ok(running.condition(&["nns", NODE], "OperatorSilent")?.0 == "True"))
        .unwrap();
}

#[test]
fn a_node_boots_into_the_last_good_state_without_api_server_and_operator() {
    let Some(mut running) = serving(1) else { return };
    let node = running.lab().place(NODE);
    running
        .eventually("the agent's copy on disk", || {
            Ok(node.attempt(&["sh", "-c", "grep -rq lvs-svc-test /var/lib/nodenet"])?.code == 0)
        })
        .unwrap();
    running.kill_agent(NODE).unwrap();
    running.kill_operator(0);
    running.lab_mut().cluster_mut().stop_apiserver();

    // A boot: nothing of ours is in the kernel or in /run.
    node.run(&[
        "sh",
        "-c",
        "ipvsadm -C; ip link del nodenet0; rm -rf /run/nodenet; iptables-legacy -F; iptables-legacy -t nat -F; \
         iptables-legacy -t mangle -F; iptables-legacy -X; iptables-legacy -t nat -X; iptables-legacy -t mangle -X; \
         ipset destroy; true",
    ])
    .unwrap();
    running.restart_agent_without_api(NODE).unwrap();
    running
        .eventually("answers by the restored node port", || {
            let client = running.lab().place("client");
            let attempts = client.ask(Transport::Tcp, NODE_PORT.parse().unwrap(), 3)?;
            Ok(attempts.iter().all(|attempt| attempt.error.is_none()))
        })
        .unwrap();
}
