//! A lab: control plane on the host, nodes, pods and clients in a guest kernel.
//!
//! ```no_run
//! use nodenet_e2e::lab::{Lab, LabSpec};
//! # fn main() -> Result<(), nodenet_e2e::lab::error::LabError> {
//! let lab = Lab::start(LabSpec::default())?;
//! lab.cluster().kubectl(&["get", "nodes"])?;
//! lab.place("k8s-node-1").run(&["ip", "-br", "addr"])?;
//! # Ok(())
//! # }
//! ```

pub mod api;
pub mod cache;
pub mod client_tools;
pub mod cluster;
pub mod control_plane_build;
pub mod endpoints;
pub mod error;
pub mod forwarder;
pub mod guest;
pub mod kube_proxy;
pub mod look;
pub mod nodenet;
pub mod prerequisites;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod scene;
pub mod site;
pub mod steady;
pub mod steps;
pub mod topology;
pub mod traffic;
pub mod workload;

use cluster::{Cluster, ClusterSpec};
use error::LabError;
use guest::Guest;
use prerequisites::ControlPlane;
use site::Site;
use std::time::{Duration, Instant};
use topology::{Topology, TopologySpec};
use traffic::Place;

/// What a lab consists of.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// The control plane.
    pub cluster: ClusterSpec,
    /// The nodes, pods and clients.
    pub topology: TopologySpec,
    /// Memory of the guest in MiB.
    pub memory: u32,
}

impl Default for LabSpec {
    fn default() -> Self {
        Self { cluster: ClusterSpec::default(), topology: TopologySpec::default(), memory: 2048 }
    }
}

/// How long the parts took to come up.
#[derive(Debug, Clone, Copy)]
pub struct BootTimes {
    /// etcd and API server, until objects can be created.
    pub control_plane: Duration,
    /// The guest's boot.
    pub guest: Duration,
    /// Namespaces, links and pods.
    pub topology: Duration,
    /// All of it.
    pub total: Duration,
}

/// A running lab. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Lab {
    // In the order in which they must go.
    cluster: Cluster,
    topology: Topology,
    guest: Guest,
    site: Site,
    boot: BootTimes,
}

impl Lab {
    /// Installs what is missing, then starts control plane and guest side by side.
    ///
    /// # Errors
    /// [`LabError::Missing`] with what to do about it, or what failed.
    pub fn start(spec: LabSpec) -> Result<Self, LabError> {
        prerequisites::guest()?;
        let programs = prerequisites::control_plane()?;
        let begin = Instant::now();
        let site = Site::create()?;
        for gateway in &spec.topology.gateways {
            if gateway.addr().is_ipv4() {
                site.ip(&format!("route add {} via {}\n", gateway.trunc(), Site::GUEST))?;
            }
        }
        let (cluster, guest) = std::thread::scope(|scope| {
            let guest = scope.spawn(|| start_guest(&site, &spec));
            let cluster = start_cluster(&site, programs, &spec);
            let guest = guest.join().unwrap_or_else(|_| {
                Err(LabError::Guest { operation: "boot".into(), reason: "the thread panicked".into() })
            });
            (cluster, guest)
        });
        let ((cluster, control_plane), (guest, topology, booted, laid_out)) = (cluster?, guest?);
        let boot = BootTimes { control_plane, guest: booted, topology: laid_out, total: begin.elapsed() };
        Ok(Self { cluster, topology, guest, site, boot })
    }

    /// As [`Lab::start`] for tests: prints `SKIP: <why>` and returns `None` where the machine lacks what a
    /// lab needs.
    ///
    /// # Errors
    /// When the lab fails for another reason.
    pub fn start_or_skip(spec: LabSpec) -> Result<Option<Self>, LabError> {
        match Self::start(spec) {
            Ok(lab) => Ok(Some(lab)),
            Err(error @ LabError::Missing { .. }) => {
                println!("SKIP: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The control plane.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The control plane, to stop and start parts of it.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Nodes, pods and clients.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A node, pod or client by its name.
    pub fn place(&self, name: &str) -> Place {
        self.topology.place(name)
    }

    /// The guest kernel.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Network namespace and folder on the host.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// How long the parts took to come up.
    pub fn boot_times(&self) -> BootTimes {
        self.boot
    }
}

type Started<T> = Result<T, LabError>;

fn start_guest(site: &Site, spec: &LabSpec) -> Started<(Guest, Topology, Duration, Duration)> {
    let begin = Instant::now();
    let guest = Guest::boot(site, spec.memory)?;
    let booted = begin.elapsed();
    let topology = Topology::create(&guest, spec.topology.clone())?;
    Ok((guest, topology, booted, begin.elapsed() - booted))
}

fn start_cluster(site: &Site, programs: ControlPlane, spec: &LabSpec) -> Started<(Cluster, Duration)> {
    let begin = Instant::now();
    let cluster = Cluster::start(site, programs, &spec.cluster)?;
    for node in &spec.topology.nodes {
        let addresses: Vec<String> =
            node.addresses.iter().map(|address| address.addr().to_string()).collect();
        let pod_cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        cluster.create_node(&node.name, &addresses, &pod_cidrs, &node.labels)?;
    }
    Ok((cluster, begin.elapsed()))
}
