//! The lab by itself: it boots, its nodes reach each other, the API server and IPVS.

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
    prober.wait_for_answers(5, Duration::from_secs(10)).unwrap();
    lab.topology().set_link("k8s-node-1", false).unwrap();
    assert!(node.run(&["ip", "link", "show", "ens33"]).unwrap().contains("NO-CARRIER"));
    let answered = prober.attempts().unwrap().iter().filter(|attempt| attempt.error.is_none()).count();
    lab.topology().set_link("k8s-node-1", true).unwrap();
    prober.wait_for_answers(answered + 5, Duration::from_secs(10)).unwrap();
    let outage = longest_outage(&prober.stop().unwrap());
    assert!(outage > Duration::from_millis(20), "no outage was seen: {outage:?}");
}
