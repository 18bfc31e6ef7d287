//! Nodes, pods and clients as namespaces of the guest.
//!
//! All nodes and outside clients hang on one bridge of the guest's root namespace (the LAN), which also
//! holds the gateway's address. A node's pods hang on the node's own bridge `cni0`; nodes have routes to
//! each other's pod networks. A program for the answering and asking of packets is [`crate::tool`].

use super::error::LabError;
use super::guest::{Channel, Guest};
use super::protocol::Exec;
use super::traffic::Place;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

/// The bridge of the LAN in the guest's root namespace.
pub const LAN_BRIDGE: &str = "lan0";
/// The bridge of the pods in a node's namespace.
pub const POD_BRIDGE: &str = "cni0";

/// What hangs on the LAN.
#[derive(Debug, Clone)]
pub struct TopologySpec {
    /// The gateway's addresses on the LAN; the guest's root namespace holds them.
    pub gateways: Vec<IpNet>,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// Hosts that are no nodes.
    pub clients: Vec<ClientSpec>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Name of Node object and namespace.
    pub name: String,
    /// Its interface on the LAN.
    pub interface: String,
    /// Its addresses there, one of each family at most.
    pub addresses: Vec<IpNet>,
    /// Its pods' ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Labels of the Node object.
    pub labels: Vec<(String, String)>,
    /// Its pods.
    pub pods: Vec<PodSpec>,
}

/// A pod: a namespace with a program that answers with the pod's name.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Name of pod and namespace.
    pub name: String,
    /// Its addresses, within the node's ranges.
    pub addresses: Vec<IpAddr>,
    /// TCP and UDP ports that it answers on.
    pub ports: Vec<u16>,
}

/// A host on the LAN.
#[derive(Debug, Clone)]
pub struct ClientSpec {
    /// Name of the namespace.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

impl Default for TopologySpec {
    /// Three nodes with the pods of the examples, and one outside client.
    fn default() -> Self {
        let pod = |name: &str, address: [u8; 4], port| PodSpec {
            name: name.into(),
            addresses: vec![IpAddr::from(address)],
            ports: vec![port],
        };
        let node = |name: &str, host: u8, pods_network: [u8; 4], pods| NodeSpec {
            name: name.into(),
            interface: "ens33".into(),
            addresses: vec![net([192, 168, 0, host])],
            pod_cidrs: vec![net(pods_network)],
            labels: Vec::new(),
            pods,
        };
        Self {
            gateways: vec![net([192, 168, 0, 2])],
            nodes: vec![
                node("k8s-master-1", 10, [10, 244, 3, 0], vec![pod("web-1", [10, 244, 3, 32], 80)]),
                node(
                    "k8s-node-1",
                    11,
                    [10, 244, 5, 0],
                    vec![pod("web-2", [10, 244, 5, 23], 80), pod("web-3", [10, 244, 5, 24], 80)],
                ),
                node("k8s-node-2", 12, [10, 70, 0, 0], vec![pod("prometheus", [10, 70, 0, 159], 9090)]),
            ],
            clients: vec![ClientSpec { name: "client".into(), addresses: vec![net([192, 168, 0, 100])] }],
        }
    }
}

/// An address or network with the prefix length 24, as all of the default topology.
pub fn net(address: [u8; 4]) -> IpNet {
    IpNet::new_assert(IpAddr::from(address), 24)
}

/// The laid out network.
#[derive(Debug)]
pub struct Topology {
    channel: Channel,
    spec: TopologySpec,
    /// The bridge's side of each node's and client's link to the LAN.
    ports: BTreeMap<String, String>,
}

impl Topology {
    /// Makes the namespaces, links, addresses and routes, and starts the pods' programs.
    ///
    /// # Errors
    /// What the guest says.
    pub fn create(guest: &Guest, spec: TopologySpec) -> Result<Self, LabError> {
        let channel = guest.channel().clone();
        let mut topology = Self { channel, spec, ports: BTreeMap::new() };
        topology.lan()?;
        for node in &topology.spec.nodes {
            topology.node_network(node)?;
        }
        for node in &topology.spec.nodes {
            for pod in &node.pods {
                topology.pod(node, pod)?;
            }
        }
        Ok(topology)
    }

    /// What it was made from.
    pub fn spec(&self) -> &TopologySpec {
        &self.spec
    }

    /// A namespace by its name: a node, a pod or a client.
    pub fn place(&self, name: &str) -> Place {
        Place::new(self.channel.clone(), name)
    }

    /// Takes a node's (or client's) link to the LAN down or up from the far side, as an unplugged cable
    /// does: the interface loses its carrier and keeps its addresses.
    ///
    /// # Errors
    /// What the guest says; a name that is not on the LAN.
    pub fn set_link(&self, name: &str, up: bool) -> Result<(), LabError> {
        let Some(port) = self.ports.get(name) else {
            return Err(LabError::Guest {
                operation: "set link".into(),
                reason: format!("no host {name} on the LAN"),
            });
        };
        let state = if up { "up" } else { "down" };
        self.channel.run(Exec::new(["ip", "link", "set", port, state])).map(drop)
    }

    fn lan(&mut self) -> Result<(), LabError> {
        let mut batch =
            format!("link add {LAN_BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n");
        for gateway in &self.spec.gateways {
            let _ = writeln!(batch, "addr add {gateway} dev {LAN_BRIDGE}{}", no_dad(gateway));
        }
        let _ = writeln!(batch, "link set {LAN_BRIDGE} up");
        let nodes = self.spec.nodes.iter().map(|node| (node.name.clone(), node.interface.clone()));
        let clients = self.spec.clients.iter().map(|client| (client.name.clone(), "eth0".to_owned()));
        for (number, (name, interface)) in nodes.chain(clients).enumerate() {
            self.channel.namespace(&name)?;
            let port = format!("lan0p{number}");
            let _ = writeln!(batch, "link add {port} type veth peer name {interface} netns {name}");
            let _ = writeln!(batch, "link set {port} master {LAN_BRIDGE} up");
            self.ports.insert(name, port);
        }
        self.batch(None, &batch)?;
        for client in &self.spec.clients {
            let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
            for address in &client.addresses {
                let _ = writeln!(batch, "addr add {address} dev eth0{}", no_dad(address));
            }
            self.default_routes(&mut batch);
            self.batch(Some(&client.name), &batch)?;
        }
        Ok(())
    }

    fn node_network(&self, node: &NodeSpec) -> Result<(), LabError> {
        let interface = &node.interface;
        let mut batch = format!("link set lo up\nlink set {interface} up\n");
        for address in &node.addresses {
            let _ = writeln!(batch, "addr add {address} dev {interface}{}", no_dad(address));
        }
        self.default_routes(&mut batch);
        let _ =
            writeln!(batch, "link add {POD_BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0");
        let _ = writeln!(batch, "link set {POD_BRIDGE} up");
        for cidr in &node.pod_cidrs {
            if let Some(first) = first_host(cidr) {
                let _ = writeln!(batch, "addr add {first} dev {POD_BRIDGE}{}", no_dad(&first));
            }
        }
        for other in self.spec.nodes.iter().filter(|other| other.name != node.name) {
            for cidr in &other.pod_cidrs {
                if let Some(via) = other.addresses.iter().find(|via| same_family(via, cidr)) {
                    let _ = writeln!(batch, "route add {} via {}", cidr.trunc(), via.addr());
                }
            }
        }
        self.batch(Some(&node.name), &batch)?;
        let forward =
            "for file in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$file; done";
        self.channel.run(Exec::new(["sh", "-c", forward]).within(&node.name)).map(drop)
    }

    fn pod(&self, node: &NodeSpec, pod: &PodSpec) -> Result<(), LabError> {
        self.channel.namespace(&pod.name)?;
        let port: String = format!("v{}", pod.name).chars().take(15).collect();
        let batch = format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master {POD_BRIDGE} up\n",
            pod.name
        );
        self.batch(Some(&node.name), &batch)?;
        let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in &pod.addresses {
            let Some(cidr) = node.pod_cidrs.iter().find(|cidr| cidr.contains(address)) else {
                return Err(LabError::Guest {
                    operation: format!("make pod {}", pod.name),
                    reason: format!("{address} is in no range of {}", node.name),
                });
            };
            let own = IpNet::new_assert(*address, cidr.prefix_len());
            let _ = writeln!(batch, "addr add {own} dev eth0{}", no_dad(&own));
            if let Some(first) = first_host(cidr) {
                let _ = writeln!(batch, "route add default via {}", first.addr());
            }
        }
        self.batch(Some(&pod.name), &batch)?;
        if !pod.ports.is_empty() {
            self.place(&pod.name).serve(&pod.name, &pod.ports)?;
        }
        Ok(())
    }

    fn default_routes(&self, batch: &mut String) {
        for gateway in &self.spec.gateways {
            let _ = writeln!(batch, "route add default via {}", gateway.addr());
        }
    }

    fn batch(&self, namespace: Option<&str>, batch: &str) -> Result<(), LabError> {
        // `ip -n` rather than the namespace's own mounts: these do not show the other namespaces.
        let mut argv = vec!["ip"];
        if let Some(namespace) = namespace {
            argv.extend(["-n", namespace]);
        }
        argv.extend(["-batch", "-"]);
        self.channel.run(Exec::new(argv).stdin(batch)).map(drop)
    }
}

/// The first address of a range, where its gateway is.
fn first_host(cidr: &IpNet) -> Option<IpNet> {
    let first = cidr.hosts().find(|host| *host != cidr.network())?;
    IpNet::new(first, cidr.prefix_len()).ok()
}

fn same_family(one: &IpNet, other: &IpNet) -> bool {
    one.addr().is_ipv4() == other.addr().is_ipv4()
}

/// Duplicate address detection only delays a lab whose addresses are known to differ.
fn no_dad(address: &IpNet) -> &'static str {
    if address.addr().is_ipv6() { " nodad" } else { "" }
}
