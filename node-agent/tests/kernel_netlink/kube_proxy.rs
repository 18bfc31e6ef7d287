//! What kube-proxy left: seeing it, and taking it away.

use nodenet_agent::{
    kernel::{Kernel, RunningSign},
    state::{Family, LocalRoute, Operation, Protocol},
};

use crate::support::{attempt, available, commit_all, has_dummy, in_namespace, ip, kernel, run};

/// Rules as kube-proxy 1.20 leaves them, shortened, beside a kubelet's and another tool's.
const RULES: &str = "\
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:OTHERS - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j OTHERS
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -m set --match-set SET dst,dst -j KUBE-MARK-MASQ
COMMIT
";

#[test]
fn what_it_left_is_seen_and_goes_and_local_routes_answer_on() {
    in_namespace(|| {
        if !has_dummy()
            || !available("ipset", "create KUBE-CLUSTER-IP hash:ip,port", "there are no sets")
            || !available("iptables-legacy", "-t nat -L -n", "there is no legacy iptables")
        {
            return;
        }
        let mut kernel = kernel();
        run("ip", "link add kube-ipvs0 type dummy");
        for address in ["10.96.0.1/32", "203.0.113.9/32", "fd00:96::1/128"] {
            run("ip", &format!("address add {address} dev kube-ipvs0"));
        }
        // Other than kube-proxy would: what the kernel does when it goes is the harder case.
        run("ip", "link set kube-ipvs0 up");
        run("ipset", "create KUBE-6-CLUSTER-IP hash:ip,port family inet6");
        run("ipset", "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535");
        run("ipset", "add KUBE-NODE-PORT-TCP 30080");
        run("ipset", "create KUBE-NODE-PORT-SCTP-HASH hash:ip,port");
        run("ipset", "add KUBE-NODE-PORT-SCTP-HASH 192.168.0.11,sctp:30081");
        run("ipset", "create KUBE-SRC-ROUTER hash:ip");
        for (program, set) in [("iptables", "KUBE-CLUSTER-IP"), ("ip6tables", "KUBE-6-CLUSTER-IP")] {
            let restore = format!("{program}-legacy-restore");
            attempt(&restore, "--noflush", &RULES.replace("SET", set)).unwrap();
        }

        let seen = kernel.kube_proxy(true).unwrap();
        assert_eq!(seen.addresses, [ip("10.96.0.1"), ip("203.0.113.9"), ip("fd00:96::1")].into());
        assert_eq!(seen.sets.len(), 4, "{:?}", seen.sets);
        assert_eq!(seen.node_ports, [(Protocol::TCP, 30080), (Protocol::SCTP, 30081)].into());
        let chains = ["filter KUBE-FORWARD", "nat KUBE-MARK-MASQ", "nat KUBE-SERVICES"];
        for family in [Family::V4, Family::V6] {
            assert_eq!(seen.chains[&family], chains.map(str::to_owned).into());
        }
        assert!(seen.in_force());
        assert_eq!(kernel.kube_proxy_runs().unwrap(), None);

        let route = |range: &str| LocalRoute { range: range.parse().unwrap(), interface: "nodenet0".into() };
        let routes = ["10.96.0.0/12", "203.0.113.9/32", "fd00:96::/108"].map(route).map(Operation::AddRoute);
        commit_all(&mut kernel, [vec![Operation::AddLink("nodenet0".into())], routes.to_vec()].concat());
        let mut removal = vec![Operation::DeleteLink("kube-ipvs0".into())];
        removal.extend(seen.sets.iter().cloned().map(Operation::DestroySet));
        removal.extend([Family::V4, Family::V6].map(Operation::RemoveKubeProxyRules));
        commit_all(&mut kernel, removal);

        assert!(kernel.kube_proxy(true).unwrap().is_empty());
        for (family, address) in [("-4", "10.96.0.1"), ("-4", "203.0.113.9"), ("-6", "fd00:96::1")] {
            let answer = run("ip", &format!("{family} route get {address}"));
            assert!(answer.starts_with(&format!("local {address}")), "{answer}");
        }
        assert_eq!(run("ipset", "list -n").trim(), "KUBE-SRC-ROUTER");
        for program in ["iptables", "ip6tables"] {
            let rules = run(&format!("{program}-legacy-save"), "");
            for there in ["-A INPUT -j KUBE-FIREWALL", ":KUBE-KUBELET-CANARY", "-A PREROUTING -j OTHERS"] {
                assert!(rules.contains(there), "{there}: {rules}");
            }
            assert!(!rules.contains("KUBE-SERVICES") && !rules.contains("KUBE-FORWARD"), "{rules}");
        }
    });
}

#[test]
fn what_listens_on_its_ports_is_asked_what_it_is() {
    in_namespace(|| {
        if !available("python3", "-c 0", "nothing can be made to listen") {
            return;
        }
        let mut kernel = kernel();
        let cases = [
            (10249, "ipvs", Some("Mode")),
            (10256, r#"{"lastUpdated": "a"}"#, Some("Health")),
            (10256, "ok", None),
        ];
        for (port, body, expected) in cases {
            // The agent's own sockets do not count, so another process listens.
            let answers = format!(
                "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n  def do_GET(self):\n    self.send_response(200); self.end_headers(); self.wfile.write(b'{body}')\ns=h.HTTPServer(('0.0.0.0',{port}),H)\nprint('up',flush=True)\ns.serve_forever()"
            );
            let mut server = std::process::Command::new("python3")
                .args(["-c", &answers])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let mut up = [0; 3];
            std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut up).unwrap();
            let sign = kernel.kube_proxy_runs().unwrap();
            let found = sign.as_ref().map(|sign| match sign {
                RunningSign::Mode { .. } => "Mode",
                RunningSign::Health { .. } => "Health",
                RunningSign::Mute { .. } => "Mute",
            });
            assert_eq!(found, expected, "{port} {body}: {sign:?}");
            server.kill().unwrap();
            server.wait().unwrap();
        }
        // One that does not answer.
        let own = std::net::TcpListener::bind("127.0.0.1:10249").unwrap();
        assert_eq!(kernel.kube_proxy_runs().unwrap(), None, "{own:?} is this process's own");
    });
}
