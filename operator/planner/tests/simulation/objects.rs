//! Objects as users and controllers write them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nodenet_crds::{LABEL_SERVICE_NAME, VirtualIP, VirtualIPSpec};

pub fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..Default::default() }
}

pub fn node(name: &str, ip: &str) -> Node {
    let mut metadata = meta(name);
    metadata.labels = Some(BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]));
    Node {
        metadata,
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            addresses: Some(vec![NodeAddress { address: ip.to_owned(), type_: "InternalIP".to_owned() }]),
            conditions: Some(vec![NodeCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..Default::default()
            }]),
            ..Default::default()
        }),
    }
}

pub fn service(namespace: &str, name: &str, ip: &str, node_port: Option<i32>) -> Service {
    let mut metadata = meta(name);
    metadata.namespace = Some(namespace.to_owned());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            cluster_ip: Some(ip.to_owned()),
            cluster_ips: Some(vec![ip.to_owned()]),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: 80,
                node_port,
                ..Default::default()
            }]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// An EndpointSlice with one ready endpoint for each of `addresses`, port `http` 8080.
pub fn endpoints(namespace: &str, service: &str, name: &str, addresses: &[String]) -> EndpointSlice {
    let mut metadata = meta(name);
    metadata.namespace = Some(namespace.to_owned());
    metadata.labels = Some(BTreeMap::from([(LABEL_SERVICE_NAME.to_owned(), service.to_owned())]));
    EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        endpoints: addresses
            .iter()
            .map(|a| Endpoint {
                addresses: vec![a.clone()],
                conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
                node_name: Some("n1".to_owned()),
                ..Default::default()
            })
            .collect(),
        ports: Some(vec![EndpointPort {
            name: Some("http".to_owned()),
            port: Some(8080),
            ..Default::default()
        }]),
    }
}

pub fn virtual_ip(name: &str, addresses: &[&str]) -> VirtualIP {
    let spec = VirtualIPSpec {
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        ..Default::default()
    };
    VirtualIP::new(name, spec)
}
