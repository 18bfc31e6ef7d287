//! Forgetting connections to backends that went.

use nodenet_agent::state::{Operation, Protocol, RealServerKey, VirtualServerKey};

use crate::support::{available, commit_all, in_namespace, ip, kernel, run};

/// A UDP connection of a client to a service, translated to a backend.
fn track(protocol: &str, client: &str, service: &str, port: u16, backend: &str) {
    run(
        "conntrack",
        &format!(
            "-I -p {protocol} -s {client} -d {service} --sport 40000 --dport {port} --reply-src {backend} --reply-dst \
             {client} --reply-port-src 5353 --reply-port-dst 40000 -t 600"
        ),
    );
}

fn tracked() -> String {
    run("conntrack", "-L") + &run("conntrack", "-L -f ipv6")
}

fn udp(address: &str, port: u16) -> VirtualServerKey {
    VirtualServerKey::Address(Protocol::UDP, ip(address), port)
}

#[test]
fn connections_to_one_backend_or_to_all_of_a_virtual_server_are_forgotten_and_no_others() {
    in_namespace(|| {
        if !available("conntrack", "-L", "no conntrack") {
            return;
        }
        track("udp", "10.0.0.1", "10.96.0.10", 53, "10.1.0.3");
        track("udp", "10.0.0.2", "10.96.0.10", 53, "10.1.0.4");
        track("udp", "10.0.0.3", "10.96.0.11", 53, "10.1.0.3");
        track("udp", "10.0.0.4", "10.96.0.12", 53, "10.1.0.3");
        track("udp", "10.0.0.5", "10.96.0.12", 54, "10.1.0.3");
        track("udp", "fd00::6", "fd00:96::a", 53, "fd00:1::3");
        let backend = RealServerKey { address: ip("10.1.0.3"), port: 5353 };
        let committed = commit_all(
            &mut kernel(),
            vec![
                Operation::ForgetConnections(udp("10.96.0.10", 53), Some(backend)),
                Operation::ForgetConnections(udp("10.96.0.12", 53), None),
                Operation::ForgetConnections(udp("fd00:96::a", 53), None),
                Operation::ForgetConnections(udp("10.96.0.99", 53), None),
            ],
        );
        let left = tracked();
        for (client, stays) in [
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.0.3", true),
            ("10.0.0.4", false),
            ("10.0.0.5", true),
            ("fd00::6", false),
        ] {
            assert_eq!(left.contains(&format!("src={client} ")), stays, "{client} in\n{left}");
        }
        assert_eq!(committed.messages, 5, "one reading for each family and one message for each connection");
    });
}

#[test]
fn connections_of_another_protocol_are_left_alone() {
    in_namespace(|| {
        if !available("conntrack", "-L", "no conntrack") {
            return;
        }
        run(
            "conntrack",
            "-I -p tcp -s 10.0.0.1 -d 10.96.0.10 --sport 40000 --dport 53 --reply-src 10.1.0.3 --reply-dst 10.0.0.1 \
             --reply-port-src 5353 --reply-port-dst 40000 -t 600 --state ESTABLISHED",
        );
        commit_all(&mut kernel(), vec![Operation::ForgetConnections(udp("10.96.0.10", 53), None)]);
        assert!(tracked().contains("src=10.0.0.1 "));
    });
}
