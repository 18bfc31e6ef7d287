//! Health check node ports: a load balancer asks each node whether it has endpoints of a Service, and sends clients only
//! to those that have.
//!
//! 200 where the node has one that takes new connections and the proxy is well, 503 otherwise; with the count, which
//! load balancers may take for the node's weight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::limited::Places;
use super::sockets::{Sockets, everywhere};
use super::{Listen, NotHeard, json};
use crate::report::health::Health;
use crate::resolve::{HealthCheck, HealthChecks};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What one port answers.
struct Port {
    check: Mutex<HealthCheck>,
    health: Arc<Health>,
}

/// All ports.
pub(super) struct Ports {
    health: Arc<Health>,
    listen: Listen,
    /// Of all Services together: their number is their authors' choice.
    places: Places,
    open: BTreeMap<u16, (Arc<Port>, Sockets)>,
}

impl Ports {
    /// None yet.
    pub fn new(health: Arc<Health>, listen: Listen) -> Self {
        Self { health, listen, places: Places::new(), open: BTreeMap::new() }
    }

    /// Listens on these ports and on no others. Returns those that cannot be had now.
    pub fn set(&mut self, wanted: &HealthChecks) -> Vec<NotHeard> {
        self.open.retain(|port, _| wanted.ports.contains_key(port));
        let mut not_heard = Vec::new();
        for (port, check) in &wanted.ports {
            let (there, sockets) = self.open.entry(*port).or_insert_with(|| {
                let port = Arc::new(Port { check: Mutex::new(check.clone()), health: self.health.clone() });
                let router = Router::new().fallback(answer).with_state(port.clone());
                (port, Sockets::new(router, self.places.clone()))
            });
            there.check.lock().unwrap_or_else(PoisonError::into_inner).clone_from(check);
            let addresses: BTreeSet<SocketAddr> = match &wanted.addresses {
                Some(some) => some.iter().map(|address| SocketAddr::new(*address, *port)).collect(),
                None => everywhere(*port),
            };
            for (address, error) in sockets.set(&addresses, &self.listen) {
                let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
                let remedy = if in_use {
                    "; stop the program that has the port, or give the Service another healthCheckNodePort"
                } else {
                    ""
                };
                not_heard.push(NotHeard {
                    object: format!("Service {}/{}", check.namespace, check.name),
                    address,
                    in_use,
                    message: format!("healthCheckNodePort {port}: listen on {address}: {error}{remedy}"),
                });
            }
        }
        not_heard
    }
}

#[derive(Serialize)]
struct Answer {
    service: Name,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name {
    namespace: String,
    name: String,
}

async fn answer(State(port): State<Arc<Port>>) -> Response {
    let HealthCheck { namespace, name, local_endpoints } =
        port.check.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let service_proxy_healthy = port.health.proxies();
    let status = match local_endpoints > 0 && service_proxy_healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = Answer { service: Name { namespace, name }, local_endpoints, service_proxy_healthy };
    (status, [(WEIGHT, HeaderValue::from(local_endpoints))], json(&body)).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn ask(local_endpoints: usize, health: Health) -> (StatusCode, String, String) {
        let check = HealthCheck { namespace: "default".into(), name: "web".into(), local_endpoints };
        let port = Arc::new(Port { check: Mutex::new(check), health: Arc::new(health) });
        let response = answer(State(port)).await;
        let status = response.status();
        let weight = response.headers()[&WEIGHT].to_str().unwrap().to_owned();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, weight, String::from_utf8(body.to_vec()).unwrap())
    }

    fn well() -> Health {
        Health { services_limit: Duration::from_secs(60), ..Health::default() }
    }

    #[tokio::test]
    async fn the_answer_is_kube_proxys() {
        let words = |count: usize, healthy: bool| {
            format!(
                r#"{{"service":{{"namespace":"default","name":"web"}},"localEndpoints":{count},"serviceProxyHealthy":{healthy}}}"#
            )
        };
        assert_eq!(ask(2, well()).await, (StatusCode::OK, "2".into(), words(2, true)));
        let none = (StatusCode::SERVICE_UNAVAILABLE, "0".into(), words(0, true));
        assert_eq!(ask(0, well()).await, none);
        let late = Health::default();
        std::iter::repeat(()).take_while(|()| late.services.age().is_zero()).for_each(drop);
        let unwell = (StatusCode::SERVICE_UNAVAILABLE, "2".into(), words(2, false));
        assert_eq!(ask(2, late).await, unwell, "who cannot follow changes is to get no clients");
    }
}
