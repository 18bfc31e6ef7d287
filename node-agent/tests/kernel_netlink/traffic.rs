//! Packets through what was made: a client, a node, two backends.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nodenet_agent::{
    kernel::Kernel,
    state::{
        Forwarding, LocalRoute, Operation, Protocol, RealServer, RealServerKey, Scope, VirtualServer,
        VirtualServerKey, Which,
    },
};

use crate::support::{Neighbour, commit_all, eventually, has_dummy, has_ipvs, in_namespace, ip, kernel, run};

/// Answers every datagram with a word, until it is dropped.
struct Backend {
    neighbour: Neighbour,
    ending: Arc<AtomicBool>,
}

impl Backend {
    /// A host on a cable of its own whose gateway is the node.
    fn new(number: u8, word: &'static str) -> Self {
        let neighbour = Neighbour::new();
        neighbour.cable(&format!("b{number}"), "eth0");
        run("ip", &format!("address add 10.244.{number}.1/24 dev b{number}"));
        neighbour.run("ip", &format!("address add 10.244.{number}.2/24 dev eth0"));
        neighbour.run("ip", &format!("route add default via 10.244.{number}.1"));
        let socket = neighbour.namespace().run(|| UdpSocket::bind("0.0.0.0:5353").unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        std::thread::spawn({
            let ending = Arc::clone(&ending);
            move || {
                let mut bytes = [0; 16];
                while !ending.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(word.as_bytes(), from);
                    }
                }
            }
        });
        Self { neighbour, ending }
    }

    fn key(number: u8) -> RealServerKey {
        RealServerKey { address: ip(&format!("10.244.{number}.2")), port: 5353 }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        let _ = &self.neighbour;
    }
}

/// Asks until there is an answer.
fn ask(client: &UdpSocket) -> String {
    eventually("an answer", || {
        client.send(b"?").unwrap();
        let mut bytes = [0; 16];
        let length = client.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    })
}

#[test]
fn a_udp_client_of_a_removed_backend_is_answered_by_another_at_once() {
    in_namespace(|| {
        if !has_ipvs() || !has_dummy() {
            return;
        }
        let outside = Neighbour::new();
        outside.cable("lan0", "eth0");
        outside.run("ip", "address add 192.168.0.100/24 dev eth0");
        outside.run("ip", "route add 10.96.0.0/12 via 192.168.0.11");
        run("ip", "address add 192.168.0.11/24 dev lan0");
        let _backends = [Backend::new(1, "one"), Backend::new(2, "two")];
        let service = VirtualServerKey::Address(Protocol::UDP, ip("10.96.0.10"), 53);
        let server = VirtualServer {
            scheduler: "rr".to_owned(),
            flags: 0,
            persistence: 0,
            drain_timeout: None,
            real_servers: Default::default(),
        };
        let masquerade = RealServer {
            weight: 1,
            forwarding: Forwarding::Masquerade,
            active_connections: 0,
            inactive_connections: 0,
        };
        let setting = |name: &str| Operation::SetSysctl(name.to_owned(), "1".to_owned());
        let mut kernel = kernel();
        commit_all(
            &mut kernel,
            vec![
                setting("net.ipv4.ip_forward"),
                setting("net.ipv4.vs.conntrack"),
                setting("net.ipv4.vs.expire_nodest_conn"),
                Operation::AddLink("nodenet0".to_owned()),
                Operation::AddRoute(LocalRoute {
                    range: "10.96.0.0/12".parse().unwrap(),
                    interface: "nodenet0".to_owned(),
                }),
                Operation::AddVirtualServer(service, server),
                Operation::AddRealServer(service, Backend::key(1), masquerade),
            ],
        );
        // IPVS tells connection tracking of the server only where something tracks.
        run("iptables-legacy", "-t nat -A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE");
        let client = outside
            .namespace()
            .run(|| {
                let client = UdpSocket::bind("192.168.0.100:40000").unwrap();
                client.connect("10.96.0.10:53").unwrap();
                client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                client
            })
            .unwrap();
        assert_eq!(ask(&client), "one");
        let tracked = run("conntrack", "-L -p udp");
        assert!(tracked.contains("dst=10.96.0.10") && tracked.contains("src=10.244.1.2"), "{tracked}");
        let scope = Scope { virtual_servers: Which::All, ..Scope::default() };
        let found = kernel.observe(&scope).unwrap().virtual_servers;
        assert_eq!(found[&service].real_servers[&Backend::key(1)].inactive_connections, 1);
        let committed = commit_all(
            &mut kernel,
            vec![
                Operation::AddRealServer(service, Backend::key(2), masquerade),
                Operation::DeleteRealServer(service, Backend::key(1)),
                Operation::ForgetConnections(service, Some(Backend::key(1))),
            ],
        );
        assert_eq!(committed.messages, 4, "one of them forgets the connection that was there");
        assert_eq!(ask(&client), "two");
        let tracked = run("conntrack", "-L -p udp");
        assert!(!tracked.contains("src=10.244.1.2"), "{tracked}");
    });
}
