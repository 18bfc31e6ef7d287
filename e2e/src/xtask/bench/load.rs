//! The Services and endpoints that are measured with.

use crate::lab::api::Api;
use crate::lab::cluster::Cluster;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};

const NAMESPACE: &str = "bench";
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// So many Services with so many endpoints each.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) services: usize,
    pub(super) endpoints: usize,
}

impl Load {
    /// Creates all objects. kube-proxy of that age reads Endpoints (its EndpointSlices are v1beta1), so
    /// these are made too.
    pub(super) fn create(&self, api: &Api, cluster: &Cluster) -> anyhow::Result<()> {
        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let core = format!("/api/v1/namespaces/{NAMESPACE}");
        let mut services = Vec::new();
        let mut endpoints = Vec::new();
        for number in 0..self.services {
            let name = name(number);
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"clusterIP": cluster_ip(number).to_string(), "ports": [{"port": PORT, "targetPort": TARGET}]}});
            services.push((format!("{core}/services"), service));
            let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}],
                "endpoints": self.slice_endpoints(number, 0)});
            endpoints.push((slices_path(), slice));
            let legacy = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name},
                "subsets": self.subsets(number, 0)});
            endpoints.push((format!("{core}/endpoints"), legacy));
        }
        api.create(&services)?;
        api.create(&endpoints)?;
        Ok(())
    }

    /// Gives the last endpoint of a Service another address: `turn` says which.
    pub(super) fn change(&self, api: &Api, number: usize, turn: usize, legacy: bool) -> anyhow::Result<()> {
        let name = name(number);
        if legacy {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/endpoints/{name}");
            api.merge(&path, &json!({"subsets": self.subsets(number, turn)}))?;
        } else {
            let path = format!("{}/{name}", slices_path());
            api.merge(&path, &json!({"endpoints": self.slice_endpoints(number, turn)}))?;
        }
        Ok(())
    }

    /// Where a Service answers.
    pub(super) fn server(&self, number: usize) -> SocketAddr {
        SocketAddr::new(cluster_ip(number).into(), PORT)
    }

    /// The real server that [`Load::change`] brings.
    pub(super) fn changed(&self, number: usize, turn: usize) -> SocketAddr {
        SocketAddr::new(self.address(number, self.endpoints - 1, turn).into(), TARGET)
    }

    /// Virtual servers and real servers in the kernel when all is there; `kubernetes` comes on top.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.services, self.services * self.endpoints)
    }

    fn slice_endpoints(&self, number: usize, turn: usize) -> Vec<Value> {
        (0..self.endpoints)
            .map(|endpoint| {
                json!({"addresses": [self.address(number, endpoint, turn).to_string()],
                       "conditions": {"ready": true, "serving": true, "terminating": false}})
            })
            .collect()
    }

    fn subsets(&self, number: usize, turn: usize) -> Value {
        let addresses: Vec<Value> = (0..self.endpoints)
            .map(|endpoint| json!({"ip": self.address(number, endpoint, turn).to_string()}))
            .collect();
        json!([{"addresses": addresses, "ports": [{"port": TARGET, "protocol": "TCP"}]}])
    }

    /// Pods live in 10.64.0.0/10; the last endpoint of a Service moves on with each turn.
    fn address(&self, number: usize, endpoint: usize, turn: usize) -> Ipv4Addr {
        let base = u32::from(Ipv4Addr::new(10, 64, 0, 0));
        let index = number * self.endpoints + endpoint;
        let moved = if endpoint + 1 == self.endpoints { turn << 18 } else { 0 };
        Ipv4Addr::from(base + 1 + u32::try_from(index + moved).unwrap_or(0))
    }
}

fn name(number: usize) -> String {
    format!("service-{number:05}")
}

fn slices_path() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

/// From the middle of the range, away from what the API server takes by itself.
fn cluster_ip(number: usize) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 243, 100, 0));
    Ipv4Addr::from(base + u32::try_from(number).unwrap_or(0))
}
