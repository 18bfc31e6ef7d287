//! The scenarios that the project grew from, with their own addresses and real traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nodenet_e2e::lab::LabSpec;
use nodenet_e2e::lab::running::Running;
use nodenet_e2e::lab::traffic::answers;
use nodenet_e2e::tool::traffic::{Attempt, Transport};
use std::net::IpAddr;

const HOLDER: &str = "k8s-node-1";
const VIRTUAL_IP: &str = "192.168.0.15";

fn ask(running: &Running, from: &str, to: &str, count: u32) -> Vec<Attempt> {
    running.lab().place(from).ask(Transport::Tcp, to.parse().unwrap(), count).unwrap()
}

/// Asks until the one pod answers.
fn answered_by(running: &Running, from: &str, to: &str, pod: &str) {
    let what = format!("an answer of {pod} to {from} at {to}");
    running
        .eventually(&what, || {
            let attempts = running.lab().place(from).ask(Transport::Tcp, to.parse().unwrap(), 1)?;
            Ok(attempts[0].answer.as_deref() == Some(pod))
        })
        .unwrap();
}

/// Scenario 000: a Service with a node port answers on a virtual IP that is a secondary address, and goes on
/// answering when the node's own address goes and comes back.
#[test]
fn a_virtual_ip_beside_the_nodes_own_address() {
    let Some(running) = Running::start_or_skip(LabSpec::default(), 1).unwrap() else { return };
    let holder = running.lab().place(HOLDER);
    running.apply_example("000-keepalived-vip").unwrap();
    running.wait_for_condition("Ready", &["vip/prometheus"]).unwrap();
    running
        .eventually("the address on the preferred node alone", || {
            Ok(running.holders(VIRTUAL_IP)? == [(HOLDER.to_owned(), true)].into())
        })
        .unwrap();

    // 1: secondary in the kernel and in the report; virtual servers on both addresses; a client reaches both.
    let role = || {
        let path = "jsonpath={.status.virtualIPs[*].addresses[*].role}";
        running.lab().cluster().kubectl(&["get", "nns", HOLDER, "-o", path])
    };
    running.eventually("the role in the NodeNetState", || Ok(role()? == "Secondary")).unwrap();
    for address in ["192.168.0.11", VIRTUAL_IP] {
        answered_by(&running, "client", &format!("{address}:39090"), "prometheus");
        let table = holder.run(&["ipvsadm", "-Ln"]).unwrap();
        assert!(table.contains(&format!("TCP  {address}:39090 rr")), "{table}");
    }

    // 5: the node's own connections come from its own address.
    running.lab().place("client").serve("outside", &[7777]).unwrap();
    answered_by(&running, HOLDER, "192.168.0.100:7777", "outside");
    let own: IpAddr = "192.168.0.11".parse().unwrap();
    assert_eq!(ask(&running, HOLDER, "192.168.0.100:7777", 1)[0].source, Some(own));

    // 3: the primary goes; its secondary is promoted and goes on answering, and everybody is told.
    let promote = "/proc/sys/net/ipv4/conf/ens33/promote_secondaries";
    assert_eq!(holder.run(&["cat", promote]).unwrap().trim(), "1");
    holder.run(&["ip", "addr", "del", "192.168.0.11/24", "dev", "ens33"]).unwrap();
    assert_eq!(running.holders(VIRTUAL_IP).unwrap().get(HOLDER), Some(&false), "it is not promoted");
    answered_by(&running, "client", &format!("{VIRTUAL_IP}:39090"), "prometheus");
    running.eventually("the new role in the NodeNetState", || Ok(role()? == "Primary")).unwrap();
    running
        .eventually("an Event about the role", || {
            let events = running.lab().cluster().kubectl(&["get", "events", "--all-namespaces"])?;
            Ok(events.contains("AddressRoleChanged"))
        })
        .unwrap();

    // The primary comes back: the virtual IP goes behind it, and the interface keeps its routes when it leaves.
    holder.run(&["ip", "addr", "add", "192.168.0.11/24", "dev", "ens33"]).unwrap();
    running
        .eventually("the virtual IP behind the primary again", || {
            Ok(running.holders(VIRTUAL_IP)?.get(HOLDER) == Some(&true) && role()? == "Secondary")
        })
        .unwrap();
    answered_by(&running, "client", &format!("{VIRTUAL_IP}:39090"), "prometheus");
    running.lab().cluster().kubectl(&["delete", "vip", "prometheus"]).unwrap();
    running.eventually("the address is gone", || Ok(running.holders(VIRTUAL_IP)?.is_empty())).unwrap();
    let routes = holder.run(&["ip", "route", "show", "dev", "ens33"]).unwrap();
    assert!(routes.contains("192.168.0.0/24"), "the subnet's route went with the virtual IP: {routes}");
    assert!(
        routes.contains("default via 192.168.0.2"),
        "the default route went with the virtual IP: {routes}"
    );
    assert_eq!(ask(&running, HOLDER, "192.168.0.100:7777", 1)[0].source, Some(own));
}

/// Scenario 000, end: an address in a foreign subnet answers locally, and the report says that the LAN has no
/// route to it.
#[test]
fn a_virtual_ip_in_a_foreign_subnet_says_that_nobody_has_a_route_to_it() {
    let Some(running) = Running::start_or_skip(LabSpec::default(), 1).unwrap() else { return };
    running.apply_example("000-keepalived-vip").unwrap();
    let virtual_ip = r#"{"apiVersion": "nodenet.dev/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "foreign"}, "spec": {"addresses": ["192.168.2.10/24"], "interface": "ens33",
        "services": [{"namespace": "default", "name": "prometheus", "nodePorts": true}]}}"#;
    running.lab().cluster().apply(virtual_ip).unwrap();
    let mut holder = String::new();
    running
        .eventually("a holder", || {
            let holders = running.holders("192.168.2.10")?;
            holder = holders.keys().next().cloned().unwrap_or_default();
            Ok(holders.len() == 1 && !holders[&holder])
        })
        .unwrap();
    answered_by(&running, &holder, "192.168.2.10:39090", "prometheus");
    running
        .eventually("AddressNotOnLink in the conditions", || {
            let objects = running.lab().cluster().get(&["vip", "foreign"])?.to_string()
                + &running.lab().cluster().get(&["nns", &holder])?.to_string();
            Ok(objects.contains("AddressNotOnLink"))
        })
        .unwrap();
}

/// Scenario 002: three pods on two nodes take turns; who asks is masked for hosts and seen for pods.
#[test]
fn three_pods_behind_a_cluster_ip_and_a_node_port() {
    let Some(running) = Running::start_or_skip(LabSpec::default(), 1).unwrap() else { return };
    running.apply_example("002-what-forwards-the-packet").unwrap();
    let nodes = [("k8s-master-1", "192.168.0.10"), (HOLDER, "192.168.0.11"), ("k8s-node-2", "192.168.0.12")];
    let even = ["web-1", "web-2", "web-3"].map(|pod| (pod.to_owned(), 3)).into();
    for (node, address) in nodes {
        running
            .eventually(&format!("the virtual server on {node}"), || {
                let table = running.lab().place(node).run(&["ipvsadm", "-Ln"])?;
                Ok(table.contains("TCP  10.243.21.14:8880 rr")
                    && table.contains(&format!("TCP  {address}:30981 rr")))
            })
            .unwrap();
        answered_by(&running, "client", &format!("{address}:30981"), "web-1");
    }
    for (node, address) in nodes {
        let from_host = ask(&running, node, "10.243.21.14:8880", 9);
        assert_eq!(answers(&from_host), even, "{from_host:?}");
        let node_port = ask(&running, "client", &format!("{address}:30981"), 9);
        assert_eq!(answers(&node_port), even, "{node_port:?}");
        // The client's own address would make the pods answer past the node that masks them.
        let client: IpAddr = "192.168.0.100".parse().unwrap();
        assert!(node_port.iter().all(|attempt| attempt.source != Some(client)), "{node_port:?}");
    }
    let own: IpAddr = "10.70.0.159".parse().unwrap();
    let from_pod = ask(&running, "prometheus", "10.243.21.14:8880", 9);
    assert_eq!(answers(&from_pod), even, "{from_pod:?}");
    assert!(from_pod.iter().all(|attempt| attempt.source == Some(own)), "{from_pod:?}");
}
