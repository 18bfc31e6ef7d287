//! The two programs that are measured.

use crate::lab::kube_proxy;
use crate::lab::nodenet::Nodenet;
use crate::lab::protocol::Exec;
use crate::lab::{Lab, error::LabError};

/// A program that makes a node's IPVS table.
pub(super) trait Peer {
    fn name(&self) -> &'static str;
    fn node(&self) -> &str;
    /// Puts what it needs in its place and says how it is started.
    fn prepare(&self, lab: &Lab) -> Result<Exec, LabError>;
    /// Whether it reads Endpoints.
    fn legacy(&self) -> bool;
    /// Whether it, or what works for it, writes to the API.
    fn writes(&self) -> bool;
    /// The set that holds every service address when it has finished.
    fn cluster_ip_set(&self) -> &'static str;
    /// How many changes of one endpoint can be asked of it.
    fn changes(&self, wanted: usize) -> usize;
}

/// nodenet's agent.
pub(super) struct Agent<'a> {
    pub(super) nodenet: &'a Nodenet,
    pub(super) node: String,
}

impl Peer for Agent<'_> {
    fn name(&self) -> &'static str {
        "nodenet"
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn prepare(&self, lab: &Lab) -> Result<Exec, LabError> {
        lab.prepare_agent(self.nodenet, &self.node)
    }

    fn legacy(&self) -> bool {
        false
    }

    fn writes(&self) -> bool {
        true
    }

    fn cluster_ip_set(&self) -> &'static str {
        "NODENET-CLUSTER-IP"
    }

    fn changes(&self, wanted: usize) -> usize {
        wanted
    }
}

/// kube-proxy in ipvs mode.
pub(super) struct KubeProxy<'a> {
    pub(super) program: &'a kube_proxy::KubeProxy,
    pub(super) node: String,
}

impl Peer for KubeProxy<'_> {
    fn name(&self) -> &'static str {
        "kube-proxy"
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn prepare(&self, lab: &Lab) -> Result<Exec, LabError> {
        lab.prepare_kube_proxy(self.program, &self.node)
    }

    fn legacy(&self) -> bool {
        self.program.reads_endpoints()
    }

    fn writes(&self) -> bool {
        false
    }

    fn cluster_ip_set(&self) -> &'static str {
        "KUBE-CLUSTER-IP"
    }

    /// Each takes a minute with 2,000 Services.
    fn changes(&self, wanted: usize) -> usize {
        wanted.div_ceil(12)
    }
}
