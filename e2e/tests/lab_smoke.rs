//! The lab by itself: it boots, its nodes reach each other, the API server and IPVS.

use nodenet_e2e::lab::process::wait_for;
use nodenet_e2e::lab::scene::PATIENCE;
use nodenet_e2e::lab::traffic::{answers, longest_outage};
use nodenet_e2e::lab::{Lab, LabSpec};
use nodenet_e2e::tool::traffic::Transport;
use std::time::Duration;

#[test]
fn a_service_made_by_hand_answers_an_outside_client() {
    let Some(lab) = Lab::start_or_skip(LabSpec::default()).unwrap() else { return };
    eprintln!("boot times: {:?}", lab.boot_times());

    let nodes = lab.cluster().kubectl(&["get", "nodes", "-o", "name"]).unwrap();
    assert_eq!(nodes.lines().count(), 3);
    // A node reaches the API server by its own address.
    let api = format!("https://{}/readyz", lab.cluster().endpoint());
    let node = lab.place("k8s-node-1");
    assert_eq!(node.run(&["curl", "-sk", "--max-time", "5", &api]).unwrap(), "ok");

    // Pods answer across nodes, and see who asks.
    let seen = lab.place("web-1").ask(Transport::Udp, "10.244.5.24:80".parse().unwrap(), 1).unwrap();
    assert_eq!(seen[0].answer.as_deref(), Some("web-3"), "{seen:?}");
    assert_eq!(seen[0].source, Some("10.244.3.32".parse().unwrap()));

    // A virtual server made by hand.
    node.run_with(
        &["sh", "-e"],
        "ipvsadm -A -t 192.168.0.11:30981 -s rr\n\
         for pod in 10.244.3.32 10.244.5.23 10.244.5.24; do\n\
             ipvsadm -a -t 192.168.0.11:30981 -r $pod:80 -m\n\
         done\n\
         echo 1 > /proc/sys/net/ipv4/vs/conntrack\n\
         iptables-legacy -t nat -A POSTROUTING -s 192.168.0.100 -j MASQUERADE\n",
    )
    .unwrap();
    let client = lab.place("client");
    let attempts = client.ask(Transport::Tcp, "192.168.0.11:30981".parse().unwrap(), 9).unwrap();
    assert_eq!(
        answers(&attempts),
        [("web-1".to_owned(), 3), ("web-2".to_owned(), 3), ("web-3".to_owned(), 3)].into(),
        "{attempts:?}"
    );

    // A cable is pulled and put back.
    let prober = client.probe(Transport::Tcp, "192.168.0.11:30981".parse().unwrap(), 20).unwrap();
    prober.wait_for_answers(5, PATIENCE).unwrap();
    lab.topology().set_link("k8s-node-1", false).unwrap();
    wait_for("attempts without an answer", PATIENCE, lab.site().folder(), || {
        Ok(prober.attempts()?.iter().any(|attempt| attempt.error.is_some()).then_some(()))
    })
    .unwrap();
    assert!(node.run(&["ip", "link", "show", "ens33"]).unwrap().contains("NO-CARRIER"));
    let answered = prober.answered().unwrap();
    lab.topology().set_link("k8s-node-1", true).unwrap();
    prober.wait_for_answers(answered + 5, PATIENCE).unwrap();
    let attempts = prober.stop().unwrap();
    let failed = attempts.iter().find(|attempt| attempt.error.is_some()).unwrap();
    assert!(longest_outage(&attempts) > Duration::from_micros(failed.took_micros), "{failed:?}");
}

#[test]
fn a_lab_can_have_both_families_and_lose_its_api_server() {
    let mut spec = LabSpec::default();
    spec.cluster.service_cidrs.push("fd00:243::/112".into());
    let both = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    spec.topology.gateways.push(both("fd00:192::2/64"));
    for (number, node) in (1..).zip(&mut spec.topology.nodes) {
        node.addresses.push(both(&format!("fd00:192::1{number}/64")));
        node.pod_cidrs.push(both(&format!("fd00:244:{number}::/64")));
        for (pod_number, pod) in (1..).zip(&mut node.pods) {
            pod.addresses.push(format!("fd00:244:{number}::1{pod_number}").parse().unwrap());
        }
    }
    spec.topology.clients[0].addresses.push(both("fd00:192::100/64"));
    let Some(mut lab) = Lab::start_or_skip(spec).unwrap() else { return };

    for (transport, from, to, answer) in [
        (Transport::Tcp, "web-1", "[fd00:244:2::12]:80", "web-3"),
        (Transport::Udp, "k8s-master-1", "[fd00:244:3::11]:9090", "prometheus"),
    ] {
        let attempts = lab.place(from).ask(transport, to.parse().unwrap(), 1).unwrap();
        assert_eq!(attempts[0].answer.as_deref(), Some(answer), "{attempts:?}");
    }
    let service = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "both"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}}"#;
    lab.cluster().apply(service).unwrap();
    let service = lab.cluster().get(&["service", "both"]).unwrap();
    assert_eq!(service["spec"]["clusterIPs"].as_array().unwrap().len(), 2, "{service}");

    // Many requests at once.
    std::thread::scope(|scope| {
        for number in 0..40 {
            let place = lab.place(if number % 2 == 0 { "client" } else { "k8s-node-2" });
            scope.spawn(move || {
                let text = format!("line {number}\n").repeat(2000);
                assert_eq!(place.run_with(&["cat"], &text).unwrap(), text);
            });
        }
    });

    // The API server goes and comes back with what it had.
    lab.cluster_mut().stop_apiserver();
    lab.cluster().kubectl(&["get", "nodes", "--request-timeout=2s"]).unwrap_err();
    lab.cluster_mut().start_apiserver().unwrap();
    lab.cluster().get(&["service", "both"]).unwrap();
    lab.cluster().set_node_ready("k8s-node-1", false).unwrap();
    let node = lab.cluster().get(&["node", "k8s-node-1"]).unwrap();
    assert_eq!(node["status"]["conditions"][0]["status"], "False");
    // A ServiceAccount's token is somebody without rights.
    lab.cluster()
        .apply(r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}"#)
        .unwrap();
    assert!(lab.cluster().token("default", "nobody", None).unwrap().len() > 100);
}
