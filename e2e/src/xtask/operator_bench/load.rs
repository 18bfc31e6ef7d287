//! Services, endpoints and Nodes in numbers.

use crate::lab::api::Api;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

pub(super) const NAMESPACE: &str = "bench";
pub(super) const SERVICE_CIDR: &str = "10.96.0.0/12";
/// First ClusterIP that is given.
const CLUSTER_IPS: u32 = 0x0a60_1000;
/// Pods live in 10.128.0.0/9; those that a change brings begin in the middle.
const PODS: u32 = 0x0a80_0000;
const CHANGED_PODS: u32 = 0x0ac0_0000;
/// Nodes live in 172.16.0.0/12.
const NODES: u32 = 0xac10_0001;

pub(super) struct Load {
    pub(super) services: usize,
    pub(super) endpoints: usize,
    pub(super) nodes: usize,
}

fn address(first: u32, number: usize) -> String {
    Ipv4Addr::from(first + u32::try_from(number).unwrap_or(0)).to_string()
}

/// Name of a Node.
pub(super) fn node(number: usize) -> String {
    format!("node-{number:05}")
}

fn name(number: usize) -> String {
    format!("service-{number:05}")
}

impl Load {
    /// Creates all objects.
    pub(super) fn create(&self, api: &Api) -> anyhow::Result<()> {
        let nodes: Vec<(String, Value)> = (0..self.nodes)
            .map(|number| {
                let node = json!({"apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": node(number), "labels": {"topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
                    "spec": {"podCIDR": format!("10.128.{}.0/24", number % 256)},
                    "status": {"addresses": [{"type": "InternalIP", "address": address(NODES, number)}],
                               "conditions": [{"type": "Ready", "status": "True"}]}});
                ("/api/v1/nodes".to_owned(), node)
            })
            .collect();
        api.create(&nodes)?;
        let services: Vec<(String, Value)> = (0..self.services)
            .map(|number| {
                let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number)},
                    "spec": {"clusterIP": address(CLUSTER_IPS, number), "ports": [{"port": 80, "targetPort": 8080}]}});
                (format!("/api/v1/namespaces/{NAMESPACE}/services"), service)
            })
            .collect();
        api.create(&services)?;
        let slices: Vec<(String, Value)> = (0..self.services)
            .map(|number| {
                let name = name(number);
                let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                    "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                    "endpoints": self.of(number, None)});
                (slices(), slice)
            })
            .collect();
        api.create(&slices)?;
        Ok(())
    }

    /// Replaces the last endpoint of a Service; returns the new one's address, which no other ever had.
    pub(super) fn change(&self, api: &Api, change: usize) -> anyhow::Result<String> {
        // A prime, so that few repeat.
        let number = change * 97 % self.services;
        let new = address(CHANGED_PODS, change);
        let patch = json!({"endpoints": self.of(number, Some(&new))});
        api.merge(&format!("{}/{}", slices(), name(number)), &patch)?;
        Ok(new)
    }

    fn of(&self, service: usize, last: Option<&str>) -> Vec<Value> {
        let one = |endpoint: usize| {
            let number = service * self.endpoints + endpoint;
            let address = match last {
                Some(new) if endpoint + 1 == self.endpoints => new.to_owned(),
                _ => address(PODS, number),
            };
            let mut one = json!({"addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false}});
            if let (true, Some(map)) = (self.nodes > 0, one.as_object_mut()) {
                map.insert("nodeName".into(), json!(node(number % self.nodes)));
            }
            one
        };
        (0..self.endpoints).map(one).collect()
    }
}

fn slices() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}
