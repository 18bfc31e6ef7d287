//! Health check node ports: reached from outside whatever else the packet filter lets in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use nodenet_agent::health_server::{self, Listen, listen};
use nodenet_agent::kernel::netlink::Namespace;
use nodenet_agent::report::health::Health;
use nodenet_agent::resolve::HealthChecks;
use nodenet_crds::{FrontendKind, PortPlan, Protocol, ServicePlan, TrafficPolicy};
use tokio::sync::watch;

use crate::plans::{NODE, endpoint, frontend, plan, port, slice};
use crate::support::{in_namespace, run};
use crate::world::{PATIENCE, Plan, V4, V6, World, able, at, connect, node, refused, world};

const PORT: u16 = 32_000;

/// Answers in the node's namespace until the process ends.
fn serve(here: &Namespace) -> watch::Sender<HealthChecks> {
    let (ask, asked) = watch::channel(HealthChecks::default());
    let inside = here.clone();
    let listen: Listen =
        Arc::new(move |address| inside.run(|| listen(address)).map_err(std::io::Error::other)?);
    let health = Health { services_limit: PATIENCE * 1000, ..Health::default() };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(health_server::serve(asked, None, Arc::new(health), listen, |hearing| {
            assert!(hearing.failures.is_empty(), "{hearing:?}");
        }));
    });
    ask
}

/// First line of the answer to an HTTP request, or why there is none.
fn status(from: &Namespace, address: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at(address, PORT), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    from.run(ask).unwrap().unwrap_or_else(|error| format!("{:?}", error.kind()))
}

/// Waits for an answer: sockets come and go a moment after they are asked for.
fn answers(who: &str, from: &Namespace, address: &str, wanted: &str) {
    let mut seen = String::new();
    for _ in 0..100 {
        seen = status(from, address);
        if seen == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(seen, wanted, "{who} at {address}");
}

fn health_checks(p: &Plan) {
    const HERE: &str = "HTTP/1.1 200 OK";
    const ELSEWHERE: &str = "HTTP/1.1 503 Service Unavailable";
    let World { client, far: _far, a, b: _b, here } = world(p);
    let mut node = node(p);
    let (balanced, length, iptables) =
        if p.v6 { ("fd00:51::9", 128, "ip6tables-legacy") } else { ("198.51.100.9", 32, "iptables-legacy") };
    client.run("ip", &format!("route add {balanced}/{length} via {}", p.node));
    // A host firewall that lets nothing in, as it stands behind ours.
    run(iptables, &format!("-A INPUT -p tcp --dport {PORT} -j DROP"));
    let ask = serve(&here);
    let web = |revision, health_check_node_port, endpoints: &[(&str, &str)]| {
        let endpoints = endpoints.iter().map(|(address, node)| endpoint(address, 8080, node)).collect();
        let frontends = vec![
            frontend(FrontendKind::ClusterIP, Some(p.cluster_ip), 80),
            frontend(FrontendKind::LoadBalancer, Some(balanced), 80),
        ];
        let port = PortPlan {
            external_traffic_policy: TrafficPolicy::Local,
            inside_number: Some(9),
            ..port(Protocol::TCP, frontends, endpoints)
        };
        ServicePlan { health_check_node_port, ..plan("web", revision, vec![port]) }
    };
    let mut put = |plan: ServicePlan| {
        node.resolver.put_slice("a", &slice(plan.revision, vec![plan]));
        assert!(node.settle() > 0);
        assert_eq!(node.settle(), 0, "all is right already");
        ask.send_replace(node.resolver.take_health_checks().unwrap());
    };

    put(web(1, Some(PORT.into()), &[(p.a, NODE), (p.far, "node-2")]));
    // A load balancer that sends packets on as they are asks by its own address.
    for address in [p.node, balanced] {
        answers("a load balancer", &client.namespace(), address, HERE);
    }
    answers("a pod", &a.namespace(), p.node, HERE);
    assert_eq!(connect(&client.namespace(), at(balanced, 9999), 1), refused(), "other ports are as before");
    put(web(2, Some(PORT.into()), &[(p.far, "node-2")]));
    answers("a load balancer", &client.namespace(), p.node, ELSEWHERE);
    put(web(3, None, &[(p.a, NODE)]));
    answers("nobody listens, nothing is let in", &client.namespace(), p.node, "TimedOut");
}

#[test]
fn load_balancers_reach_the_health_check_in_ipv4() {
    if able() {
        in_namespace(|| health_checks(&V4));
    }
}

#[test]
fn load_balancers_reach_the_health_check_in_ipv6() {
    if able() {
        in_namespace(|| health_checks(&V6));
    }
}
