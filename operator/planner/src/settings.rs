//! What an administrator configures for the whole cluster.

use std::net::IpAddr;

use ipnet::IpNet;
use nodenet_crds::{ALLOWED_MODULES, ALLOWED_SYSCTLS, Sysctl};

/// Cluster-wide configuration of the planner. [`Settings::default`] is right for a cluster of IPVS nodes once the
/// ranges are filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ranges that ClusterIPs are taken from (at most 16).
    pub service_cidrs: Vec<IpNet>,
    /// Pod networks of the whole cluster (at most 16). Where empty, agents know the pods of their
    /// own node only, and addresses of virtual IPs are checked against the Nodes' `podCIDRs`.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of API servers that operator and agents are told of; those of the Service `default/kubernetes` are
    /// known besides. None of them can become a virtual IP.
    pub api_servers: Vec<IpAddr>,
    /// Ranges that Services may name in `externalIPs`; none by default. Whoever may write a Service may take any
    /// address of them.
    pub external_ip_cidrs: Vec<IpNet>,
    /// On which of a node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// IPVS scheduler of all virtual servers, for example `rr`; `None` leaves the choice to the agents.
    pub scheduler: Option<String>,
    /// Kernel modules that every node needs; each must stand in [`ALLOWED_MODULES`].
    pub modules: Vec<String>,
    /// Kernel settings that every node needs; each must stand in [`ALLOWED_SYSCTLS`].
    pub sysctls: Vec<Sysctl>,
    /// Size in bytes of JSON that a NodeNetSlice with several Services may reach: what one endpoint change costs each
    /// node is one slice.
    pub slice_bytes: usize,
    /// Size in bytes of JSON above which one Service is split into parts, each in a slice of its own. A change of an endpoint
    /// rewrites one part; a change of anything else rewrites all.
    pub part_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let sysctl = |name: &str, value: &str| Sysctl { name: name.to_owned(), value: value.to_owned() };
        Self {
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            api_servers: Vec::new(),
            external_ip_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::All,
            scheduler: None,
            modules: ["ip_vs", "ip_vs_rr", "nf_conntrack"].map(str::to_owned).to_vec(),
            sysctls: vec![
                sysctl("net.ipv4.conf.all.arp_announce", "2"),
                sysctl("net.ipv4.conf.all.arp_ignore", "1"),
                sysctl("net.ipv4.ip_forward", "1"),
                sysctl("net.ipv4.vs.conntrack", "1"),
                sysctl("net.ipv4.vs.expire_nodest_conn", "1"),
                sysctl("net.ipv4.vs.expire_quiescent_template", "1"),
            ],
            slice_bytes: 8192,
            part_bytes: 16384,
        }
    }
}

/// Most ranges of node port addresses (the schema's bound).
const NODE_PORT_RANGES_MAX: usize = 64;

/// On which of a node's addresses node ports answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all.
    #[default]
    All,
    /// On the first internal address of each family, by its Node.
    Primary,
    /// On those within these ranges (at most 64).
    Within(Vec<IpNet>),
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A module that agents would refuse.
    #[error("kernel module {0:?} is not one that agents load; allowed are: {allowed}", allowed = ALLOWED_MODULES.join(", "))]
    Module(String),
    /// A setting that agents would refuse.
    #[error("kernel setting {name}={value} is not one that agents write; see the list in the documentation")]
    Sysctl {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// Too many ranges for a NodeNetState.
    #[error("{0} has more than 16 entries")]
    TooMany(&'static str),
    /// Too many ranges of node port addresses for a NodeNetState.
    #[error("the ranges of node port addresses have more than {NODE_PORT_RANGES_MAX} entries")]
    TooManyNodePortAddresses,
    /// Every node would make the addresses of pods its own.
    #[error(
        "service range {service} and pod network {pods} overlap: nodes would answer for the pods themselves; \
         give the ranges that the API server and the pod network are configured with"
    )]
    Overlap {
        /// Of the service CIDRs.
        service: IpNet,
        /// Of the cluster CIDRs.
        pods: IpNet,
    },
}

impl Settings {
    /// Checks what the API or the agents would refuse later.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn check(&self) -> Result<(), SettingsError> {
        for module in &self.modules {
            if !ALLOWED_MODULES.contains(&module.as_str()) {
                return Err(SettingsError::Module(module.clone()));
            }
        }
        for Sysctl { name, value } in &self.sysctls {
            if !ALLOWED_SYSCTLS.iter().any(|(n, values)| n == name && values.contains(&value.as_str())) {
                return Err(SettingsError::Sysctl { name: name.clone(), value: value.clone() });
            }
        }
        for (field, list) in [("service CIDRs", &self.service_cidrs), ("cluster CIDRs", &self.cluster_cidrs)]
        {
            if list.len() > 16 {
                return Err(SettingsError::TooMany(field));
            }
        }
        if let NodePortAddresses::Within(ranges) = &self.node_port_addresses
            && ranges.len() > NODE_PORT_RANGES_MAX
        {
            return Err(SettingsError::TooManyNodePortAddresses);
        }
        for service in &self.service_cidrs {
            // Of two networks with an address in common one holds the other.
            let overlaps =
                |pods: &&IpNet| service.contains(&pods.network()) || pods.contains(&service.network());
            if let Some(pods) = self.cluster_cidrs.iter().find(overlaps) {
                return Err(SettingsError::Overlap { service: *service, pods: *pods });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ranges_that_overlap_pod_networks_are_refused() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let check = |service: &str, pods: &str| {
            let settings = Settings {
                service_cidrs: vec![net("172.20.0.0/16"), net(service)],
                cluster_cidrs: vec![net("192.168.128.0/17"), net(pods)],
                ..Settings::default()
            };
            settings.check()
        };
        assert_eq!(check("10.96.0.0/12", "10.244.0.0/16"), Ok(()));
        assert_eq!(check("fd00:96::/112", "fd00:244::/56"), Ok(()));
        for (service, pods) in [
            ("10.96.0.0/12", "10.100.0.0/16"),
            ("10.96.0.0/12", "10.0.0.0/8"),
            ("10.96.0.0/12", "10.96.0.0/12"),
            ("fd00::/108", "fd00::/48"),
        ] {
            let overlap = SettingsError::Overlap { service: net(service), pods: net(pods) };
            assert_eq!(check(service, pods), Err(overlap));
        }
    }
}
