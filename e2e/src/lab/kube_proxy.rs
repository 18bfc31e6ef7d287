//! The real kube-proxy in ipvs mode on the lab's nodes: the peer that nodenet is compared with, measured against
//! and takes nodes over from.

use super::Lab;
use super::error::{During, LabError};
use super::guest::Started;
use super::prerequisites;
use super::process::output;
use super::protocol::Exec;
use ipnet::IpNet;
use std::path::PathBuf;
use std::process::Command;

/// Where a node finds iptables: the guest's kernel has no nft families, so what kube-proxy calls must be legacy.
const TOOLS: &str = "/run/lab/bin";
const KUBECONFIG: &str = "/run/lab/kubeconfig-kube-proxy";

/// kube-proxy as it will be started on nodes.
#[derive(Debug, Clone)]
pub struct KubeProxy {
    program: PathBuf,
    version: String,
    minor: u32,
    flags: Vec<String>,
}

impl KubeProxy {
    /// That of the folder `KUBEBUILDER_ASSETS` where it holds one, otherwise that of the release that the lab
    /// builds.
    ///
    /// # Errors
    /// [`LabError::Missing`] says what to do.
    pub fn find() -> Result<Self, LabError> {
        let program = prerequisites::kube_proxy()?;
        let text = output(Command::new(&program).arg("--version"), "")?;
        let version = text.trim().rsplit(['v', ' ']).next().unwrap_or_default().to_owned();
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
        Ok(Self { program, version, minor, flags: Vec::new() })
    }

    /// With further flags; they come last and win over the lab's own.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Its release, as `1.20.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its minor version (20 for 1.20).
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Whether it reads Endpoints and no EndpointSlices: those that it knows are v1beta1, and the lab's API
    /// server serves v1 only.
    pub fn reads_endpoints(&self) -> bool {
        self.minor < 21
    }
}

impl Lab {
    /// Starts kube-proxy on a node. Its log is `kube-proxy-<node>.log` in the shared folder.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_kube_proxy(&self, kube_proxy: &KubeProxy, node: &str) -> Result<Started, LabError> {
        let log = format!("kube-proxy-{node}.log");
        self.place(node).spawn(self.prepare_kube_proxy(kube_proxy, node)?, &log)
    }

    /// Puts what kube-proxy needs in its place and says how it is started.
    ///
    /// # Errors
    /// When the guest refuses.
    pub fn prepare_kube_proxy(&self, kube_proxy: &KubeProxy, node: &str) -> Result<Exec, LabError> {
        let place = self.place(node);
        let path = self.cluster().inner_kubeconfig();
        let kubeconfig = std::fs::read_to_string(&path).during("read", path.display())?;
        place.put(KUBECONFIG, &kubeconfig)?;
        let tools = format!(
            "mkdir -p {TOOLS}; for name in iptables ip6tables; do for verb in '' -save -restore; do \
             ln -sf /usr/sbin/xtables-legacy-multi {TOOLS}/$name$verb; done; done"
        );
        place.run(&["sh", "-c", &tools])?;
        let mut argv = vec![
            kube_proxy.program.display().to_string(),
            format!("--kubeconfig={KUBECONFIG}"),
            "--proxy-mode=ipvs".into(),
            format!("--hostname-override={node}"),
            // Settable in the root network namespace only.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-tcp-timeout-established=0".into(),
            "--conntrack-tcp-timeout-close-wait=0".into(),
        ];
        // The older one knows one family only.
        let families: &[bool] = if kube_proxy.reads_endpoints() { &[false] } else { &[false, true] };
        let pods: Vec<IpNet> =
            self.topology().spec().nodes.iter().flat_map(|node| &node.pod_cidrs).copied().collect();
        let cidrs: Vec<String> = families
            .iter()
            .filter_map(|v6| holding_all(pods.iter().copied().filter(|cidr| cidr.addr().is_ipv6() == *v6)))
            .map(|cidr| cidr.to_string())
            .collect();
        if !cidrs.is_empty() {
            argv.push(format!("--cluster-cidr={}", cidrs.join(",")));
        }
        if kube_proxy.reads_endpoints() {
            argv.push("--feature-gates=EndpointSliceProxying=false".into());
        } else if self.cluster().minor() < 21 {
            // There EndpointSlice v1 is a custom resource, which is served as JSON only.
            argv.push("--kube-api-content-type=application/json".into());
        }
        argv.extend(kube_proxy.flags.iter().cloned());
        Ok(Exec::new(argv).env("PATH", &format!("{TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin")))
    }
}

/// The smallest network that holds all of them.
fn holding_all(mut networks: impl Iterator<Item = IpNet>) -> Option<IpNet> {
    let first = networks.next()?;
    networks.try_fold(first.trunc(), |mut held, network| {
        while !held.contains(&network) {
            held = held.supernet()?;
        }
        Some(held)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_holds_the_pods_of_all_nodes() {
        let holding = |texts: &[&str]| {
            holding_all(texts.iter().map(|text| text.parse().unwrap())).map(|net| net.to_string())
        };
        assert_eq!(holding(&["10.244.3.0/24"]).as_deref(), Some("10.244.3.0/24"));
        assert_eq!(holding(&["10.244.3.0/24", "10.244.5.0/24"]).as_deref(), Some("10.244.0.0/21"));
        assert_eq!(holding(&["10.244.3.0/24", "10.70.0.0/24"]).as_deref(), Some("10.0.0.0/8"));
        assert_eq!(holding(&[]), None);
    }
}
