//! Where the behaviours are looked at: three nodes in two zones, their pods, a client outside, and what works there.

use ipnet::IpNet;
use nodenet_e2e::lab::api::Api;
use nodenet_e2e::lab::cluster::ClusterSpec;
use nodenet_e2e::lab::error::LabError;
use nodenet_e2e::lab::protocol::Exec;
use nodenet_e2e::lab::scene::Scene;
use nodenet_e2e::lab::topology::{ClientSpec, NodeSpec, PodSpec, TopologySpec, net};
use nodenet_e2e::lab::{LabSpec, endpoints};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::table::{Names, Objects};

/// Ports that every pod answers on with its name.
const PORTS: [u16; 3] = [80, 8080, 53];
/// A port that every pod answers on with its name and `:admin`.
const ADMIN_PORT: u16 = 8081;
/// A port that every node answers on itself.
const NODE_PORT: u16 = 7070;

/// node-a and node-b in the zone east, node-c in the zone west; a1 and a2 are pods of node-a, and so on.
pub fn spec() -> LabSpec {
    let pod = |name: &str, network: u8, host: u8| PodSpec {
        name: name.into(),
        addresses: vec![
            IpAddr::from([10, 244, network, host]),
            IpAddr::from([0xfd00, 0x244, network.into(), 0, 0, 0, 0, host.into()]),
        ],
        // What answers is started later, when the kernel has SCTP.
        ports: Vec::new(),
    };
    let node = |name: &str, zone: &str, number: u8, pods| NodeSpec {
        name: name.into(),
        interface: "ens33".into(),
        addresses: vec![
            net([192, 168, 0, 10 + number]),
            ipv6([0xfd00, 0x192, 0, 0, 0, 0, 0, u16::from(number)]),
        ],
        pod_cidrs: vec![net([10, 244, number, 0]), ipv6([0xfd00, 0x244, number.into(), 0, 0, 0, 0, 0])],
        labels: vec![("topology.kubernetes.io/zone".into(), zone.into())],
        pods,
    };
    let mut cluster = ClusterSpec::default();
    cluster.service_cidrs.push("fd00:243::/112".into());
    LabSpec {
        topology: TopologySpec {
            gateways: vec![net([192, 168, 0, 2]), ipv6([0xfd00, 0x192, 0, 0, 0, 0, 0, 0xff])],
            nodes: vec![
                node("node-a", "east", 1, vec![pod("a1", 1, 11), pod("a2", 1, 12)]),
                node("node-b", "east", 2, vec![pod("b1", 2, 11)]),
                node("node-c", "west", 3, vec![pod("c1", 3, 11)]),
            ],
            clients: vec![ClientSpec {
                name: "client".into(),
                addresses: vec![net([192, 168, 0, 100]), ipv6([0xfd00, 0x192, 0, 0, 0, 0, 0, 0x100])],
            }],
        },
        cluster,
        ..LabSpec::default()
    }
}

fn ipv6(address: [u16; 8]) -> IpNet {
    IpNet::new_assert(IpAddr::from(address), 64)
}

/// Readies what is the same for every proxy: pods that answer, the client's way to load balancers and external
/// addresses, and a bridge whose packets the filter sees.
pub fn furnish(scene: &Scene) -> Result<(), LabError> {
    scene.lab().guest().channel().run(Exec::new(["modprobe", "-a", "sctp", "br_netfilter"]))?;
    for node in &scene.lab().topology().spec().nodes {
        let place = scene.place(&node.name);
        place.serve(&node.name, &[NODE_PORT])?;
        // As network plug-ins do it: a packet to the pod that sent it may leave by the port that it came by.
        place.run(&[
            "sh",
            "-c",
            "for port in /sys/class/net/*/brport; do echo 1 > $port/hairpin_mode; done",
        ])?;
        for pod in &node.pods {
            let place = scene.place(&pod.name);
            place.serve(&pod.name, &PORTS)?;
            place.serve(&format!("{}:admin", pod.name), &[ADMIN_PORT])?;
        }
    }
    // Short, for what waits for them to end; of one node only, for another case is about connections that last.
    scene.place("node-c").run(&["ipvsadm", "--set", "0", "0", "1"])?;
    // As routers do with what balances for all nodes, and for one node each.
    let client = scene.place("client");
    for (range, node) in [
        ("10.243.0.0/16", "192.168.0.11"),
        ("203.0.113.0/24", "192.168.0.11"),
        ("198.51.100.0/26", "192.168.0.11"),
        ("198.51.100.64/26", "192.168.0.12"),
        ("198.51.100.128/26", "192.168.0.13"),
    ] {
        client.run(&["ip", "route", "add", range, "via", node])?;
    }
    Ok(())
}

/// What the table calls the places: their own addresses.
pub fn names(topology: &TopologySpec) -> Names {
    let mut names = Names::default();
    for node in &topology.nodes {
        let mut own: Vec<IpAddr> = node.addresses.iter().map(IpNet::addr).collect();
        // Towards its pods it has the first address of their range.
        own.extend(
            node.pod_cidrs.iter().filter_map(|cidr| cidr.hosts().find(|host| *host != cidr.network())),
        );
        names.0.insert(node.name.clone(), own);
        names.0.extend(node.pods.iter().map(|pod| (pod.name.clone(), pod.addresses.clone())));
    }
    for client in &topology.clients {
        names.0.insert(client.name.clone(), client.addresses.iter().map(IpNet::addr).collect());
    }
    names
}

/// The objects of the table, in the API server.
pub struct Store<'a> {
    scene: &'a Scene,
    api: &'a Api,
    names: &'a Names,
    /// What each Service looks like by now.
    services: BTreeMap<String, Objects>,
    /// How many EndpointSlices each had at most.
    slices: BTreeMap<String, usize>,
}

impl<'a> Store<'a> {
    pub fn new(scene: &'a Scene, api: &'a Api, names: &'a Names) -> Self {
        Self { scene, api, names, services: BTreeMap::new(), slices: BTreeMap::new() }
    }

    /// Deletes, then applies what changes, all in one `kubectl apply`, then writes what controllers write.
    pub fn change(&mut self, changed: &[(&String, &Objects)], deleted: &[&String]) -> Result<(), LabError> {
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        let mut gone: Vec<String> = Vec::new();
        for (name, change) in changed {
            let now = self.services.entry((*name).clone()).or_default();
            let Objects { labels, spec, slices, ingress } = (*change).clone();
            now.labels = labels.or(now.labels.take());
            now.spec = spec.or(now.spec.take());
            now.slices = slices.or(now.slices.take());
            now.ingress = ingress.or(now.ingress.take());
            let (service, written) = objects(name, now, self.names);
            let count = written.iter().filter(|object| object["kind"] == "EndpointSlice").count();
            services.push(service);
            endpoints.extend(written);
            let before = self.slices.insert((*name).clone(), count).unwrap_or(0);
            gone.extend((count..before).map(|number| format!("endpointslice/{name}-{number}")));
        }
        for name in deleted {
            self.services.remove(*name);
            let before = self.slices.remove(*name).unwrap_or(0);
            gone.extend((0..before).map(|number| format!("endpointslice/{name}-{number}")));
            gone.extend([format!("service/{name}"), format!("endpoints/{name}")]);
        }
        let cluster = self.scene.lab().cluster();
        if !gone.is_empty() {
            let mut arguments = vec!["delete", "--ignore-not-found", "--wait=false"];
            arguments.extend(gone.iter().map(String::as_str));
            cluster.kubectl(&arguments)?;
        }
        let list = |items: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        if !services.is_empty() {
            cluster.apply(&list(&services))?;
        }
        if !endpoints.is_empty() {
            // An EndpointSlice that is a custom resource cannot be merged as kubectl would merge the real one.
            let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
            cluster.kubectl_with(&apply, &list(&endpoints))?;
        }
        for (name, change) in changed {
            if let Some(ingress) = &change.ingress {
                let path = format!("/api/v1/namespaces/default/services/{name}/status");
                self.api.merge(&path, &json!({"status": {"loadBalancer": {"ingress": ingress}}}))?;
            }
        }
        Ok(())
    }

    /// Deletes everything.
    pub fn clear(&mut self) -> Result<(), LabError> {
        let all: Vec<String> = self.services.keys().cloned().collect();
        self.change(&[], &all.iter().collect::<Vec<_>>())
    }
}

/// A Service, and what controllers write for it.
fn objects(name: &str, of: &Objects, names: &Names) -> (Value, Vec<Value>) {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": of.labels},
        "spec": of.spec});
    let publish = service["spec"]["publishNotReadyAddresses"] == true;
    let slices: Vec<Value> = of
        .slices
        .iter()
        .flatten()
        .enumerate()
        .map(|(number, slice)| slice.object(name, number, publish, names))
        .collect();
    // Both releases find what they read; who reads the one takes no notice of the other.
    // These have one family.
    let first: Vec<Value> =
        slices.iter().filter(|slice| slice["addressType"] == slices[0]["addressType"]).cloned().collect();
    let older = endpoints::of_slices(&service, &first);
    (service, [vec![older], slices].concat())
}

/// Takes everything from the nodes that a proxy has put there, as a reboot would.
pub fn wipe(scene: &Scene) -> Result<(), LabError> {
    for node in scene.nodes() {
        scene.place(&node).run_with(
            &["sh"],
            "for link in nodenet0 kube-ipvs0; do ip link del $link 2>/dev/null; done\n\
             for family in iptables ip6tables; do for table in raw mangle nat filter; do\n\
                 $family-legacy -t $table -F; $family-legacy -t $table -X\n\
             done; done\n\
             ipvsadm -C\n\
             ipset destroy\n\
             conntrack -F 2>/dev/null\n\
             exit 0\n",
        )?;
    }
    Ok(())
}
