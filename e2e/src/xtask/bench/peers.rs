//! The two programs that are measured.

use crate::lab::nodenet::Nodenet;
use crate::lab::protocol::Exec;
use crate::lab::{Lab, error::LabError};
use std::path::Path;

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
    pub(super) program: &'a Path,
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
        let place = lab.place(&self.node);
        let path = lab.cluster().inner_kubeconfig();
        let kubeconfig = std::fs::read_to_string(&path).map_err(|source| LabError::Io {
            operation: "read",
            object: path.display().to_string(),
            source,
        })?;
        place.put("/run/lab/kubeconfig", &kubeconfig)?;
        // The guest's kernel has no nft families, so what it calls must be the legacy iptables.
        let tools = "mkdir -p /run/lab/bin; for name in iptables ip6tables; do for verb in '' -save -restore; do \
                     ln -sf /usr/sbin/xtables-legacy-multi /run/lab/bin/$name$verb; done; done";
        place.run(&["sh", "-c", tools])?;
        let argv = [
            &self.program.display().to_string(),
            "--kubeconfig=/run/lab/kubeconfig",
            "--proxy-mode=ipvs",
            "--cluster-cidr=10.64.0.0/10",
            // It reads EndpointSlices in v1beta1 only.
            "--feature-gates=EndpointSliceProxying=false",
            // Settable in the root network namespace only.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            &format!("--hostname-override={}", self.node),
        ]
        .map(str::to_owned);
        Ok(Exec::new(argv).env("PATH", "/run/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
    }

    fn legacy(&self) -> bool {
        true
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
