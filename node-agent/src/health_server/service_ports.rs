//! Health check node ports: a load balancer asks each node whether it has endpoints of a Service, and sends clients only
//! to those that have.
//!
//! 200 where the node has one that takes new connections and the proxy is well, 503 otherwise; with the count, which
//! load balancers may take for the node's weight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::watch;

use super::sockets::{EVERYWHERE, Sockets};
use super::{Hearing, Listen, NotHeard, json};
use crate::report::health::Health;
use crate::resolve::{HealthCheck, HealthChecks};

/// First wait before a port that another program has is tried again; doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Listens and answers for as long as it is polled. `tell` gets to know what cannot be listened on.
pub async fn serve(
    mut asked: watch::Receiver<HealthChecks>,
    health: Arc<Health>,
    listen: Listen,
    tell: impl Fn(Hearing) + Send,
) {
    let mut ports = Ports { health, listen, open: BTreeMap::new() };
    let mut told = None;
    let mut wait = RETRY;
    loop {
        let wanted = asked.borrow_and_update().clone();
        let not_heard = ports.set(&wanted);
        let hearing = Hearing::new(
            format!("{} ports of health checks are listened on", wanted.ports.len()),
            &not_heard,
        );
        if told.as_ref() != Some(&hearing) {
            for place in &not_heard {
                tracing::warn!("{}: {}", place.object, place.message);
            }
            tell(hearing.clone());
            told = Some(hearing);
        }
        tokio::select! {
            changed = asked.changed() => match changed {
                Ok(()) => wait = RETRY,
                // The lane has ended, and the agent ends with it. Until then load balancers get their answers.
                Err(_) => std::future::pending().await,
            },
            () = tokio::time::sleep(wait), if !not_heard.is_empty() => wait = (wait * 2).min(RETRY_MAX),
        }
    }
}

/// What one port answers.
struct Port {
    check: Mutex<HealthCheck>,
    health: Arc<Health>,
}

struct Ports {
    health: Arc<Health>,
    listen: Listen,
    open: BTreeMap<u16, (Arc<Port>, Sockets)>,
}

impl Ports {
    fn set(&mut self, wanted: &HealthChecks) -> Vec<NotHeard> {
        self.open.retain(|port, _| wanted.ports.contains_key(port));
        let mut not_heard = Vec::new();
        for (port, check) in &wanted.ports {
            let (there, sockets) = self.open.entry(*port).or_insert_with(|| {
                let port = Arc::new(Port { check: Mutex::new(check.clone()), health: self.health.clone() });
                let router = Router::new().fallback(answer).with_state(port.clone());
                (port, Sockets::new(router))
            });
            there.check.lock().unwrap_or_else(PoisonError::into_inner).clone_from(check);
            let addresses: BTreeSet<SocketAddr> = match &wanted.addresses {
                Some(some) => some.iter().map(|address| SocketAddr::new(*address, *port)).collect(),
                None => EVERYWHERE.iter().map(|address| SocketAddr::new(*address, *port)).collect(),
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
