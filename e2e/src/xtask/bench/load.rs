//! The Services and endpoints that are measured with.

use crate::lab::api::Api;
use crate::lab::cluster::Cluster;
use anyhow::bail;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};

const NAMESPACE: &str = "bench";
const PORT: u16 = 80;
pub(super) const TARGET: u16 = 8080;

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
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        for number in 0..self.services {
            services.push(service(number));
            endpoints.extend(self.endpoints_of(number));
        }
        api.create(&services)?;
        api.create(&endpoints)?;
        Ok(())
    }

    /// EndpointSlice and Endpoints of a Service.
    fn endpoints_of(&self, number: usize) -> [(String, Value); 2] {
        let name = name(number);
        let slice = slice(&name, &name, &self.slice_endpoints(number, self.endpoints));
        [(slices_path(), slice), legacy(&name, self.subsets(number, self.endpoints))]
    }

    /// One Service more than there are, its endpoints before it: with the last answer all is there.
    pub(super) fn add_service(&self, api: &Api, number: usize) -> anyhow::Result<()> {
        api.create(&self.endpoints_of(number))?;
        api.create(&[service(number)])?;
        Ok(())
    }

    /// Takes such a Service away.
    pub(super) fn remove_service(&self, api: &Api, number: usize) -> anyhow::Result<()> {
        let name = name(number);
        // The API server takes the Endpoints of a Service along.
        for path in [format!("{}/{name}", path("services")), format!("{}/{name}", slices_path())] {
            api.delete(&path)?;
        }
        Ok(())
    }

    /// Gives a Service one endpoint more, or takes that one away again.
    pub(super) fn change(&self, api: &Api, number: usize, added: bool, legacy: bool) -> anyhow::Result<()> {
        let name = name(number);
        let count = self.endpoints + usize::from(added);
        if legacy {
            let path = format!("{}/{name}", path("endpoints"));
            api.merge(&path, &json!({"subsets": self.subsets(number, count)}))?;
        } else {
            let path = format!("{}/{name}", slices_path());
            api.merge(&path, &json!({"endpoints": self.slice_endpoints(number, count)}))?;
        }
        Ok(())
    }

    /// The Service of a change: they are spread over all.
    pub(super) fn service_to_change(&self, change: usize) -> usize {
        // A prime, so that few repeat.
        change * 97 % self.services
    }

    /// Where a Service answers.
    pub(super) fn server(&self, number: usize) -> SocketAddr {
        SocketAddr::new(cluster_ip(number).into(), PORT)
    }

    /// The real server that [`Load::change`] brings and takes.
    pub(super) fn added(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.address(number, self.endpoints).into(), TARGET)
    }

    /// The first real server of the first Service.
    pub(super) fn first_endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address(0, 0).into(), TARGET)
    }

    fn slice_endpoints(&self, number: usize, count: usize) -> Vec<Value> {
        (0..count)
            .map(|endpoint| {
                json!({"addresses": [self.address(number, endpoint).to_string()],
                       "conditions": {"ready": true, "serving": true, "terminating": false}})
            })
            .collect()
    }

    fn subsets(&self, number: usize, count: usize) -> Value {
        let addresses: Vec<Value> =
            (0..count).map(|endpoint| json!({"ip": self.address(number, endpoint).to_string()})).collect();
        json!([{"addresses": addresses, "ports": [{"port": TARGET, "protocol": "TCP"}]}])
    }

    /// Pods live in 10.64.0.0/10, a Service's side by side, with room for one more each.
    fn address(&self, number: usize, endpoint: usize) -> Ipv4Addr {
        let index = number * (self.endpoints + 1) + endpoint;
        Ipv4Addr::from(POD_NETWORK + 1 + u32::try_from(index).unwrap_or(0))
    }

    /// Refuses what the address ranges have no room for.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.services == 0 || self.services > MAX_SERVICES {
            bail!("between 1 and {MAX_SERVICES} Services");
        }
        if self.endpoints == 0 || self.services * (self.endpoints + 1) > POD_NETWORK_SIZE {
            bail!("between 1 and {} endpoints", POD_NETWORK_SIZE / self.services - 1);
        }
        Ok(())
    }
}

/// Where pods live, without the topology's ranges.
pub(super) const POD_CIDR: &str = "10.64.0.0/10";
const POD_NETWORK: u32 = 0x0a40_0000;
const POD_NETWORK_SIZE: usize = 1 << 22;
/// From [`cluster_ip`]'s first address to the end of the lab's range.
const MAX_SERVICES: usize = 39_000;

pub(super) fn name(number: usize) -> String {
    format!("service-{number:05}")
}

/// The Service of a number, as it is created.
pub(super) fn service(number: usize) -> (String, Value) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number)},
        "spec": {"clusterIP": cluster_ip(number).to_string(), "ports": [{"port": PORT, "targetPort": TARGET}]}});
    (path("services"), service)
}

/// An EndpointSlice.
pub(super) fn slice(name: &str, service: &str, endpoints: &[Value]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}],
        "endpoints": endpoints})
}

/// Endpoints, as they are created.
pub(super) fn legacy(name: &str, subsets: Value) -> (String, Value) {
    let endpoints =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": subsets});
    (path("endpoints"), endpoints)
}

/// Where the API server keeps this kind of object.
pub(super) fn path(plural: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{plural}")
}

pub(super) fn slices_path() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

/// From the middle of the range, away from what the API server takes by itself.
fn cluster_ip(number: usize) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 243, 100, 0));
    Ipv4Addr::from(base + u32::try_from(number).unwrap_or(0))
}
