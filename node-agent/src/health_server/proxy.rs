//! Health of the proxy as a whole, where kube-proxy has it: port 10256. Cloud load balancers ask there which nodes may
//! get clients, whatever the Service.
//!
//! * `/healthz`: 503 where changes of Services wait for too long, and where the node is being deleted.
//! * `/livez`: 503 only for the former: a restart does not help a node that goes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde::Serialize;

use super::limited::Places;
use super::sockets::{Sockets, everywhere};
use super::{Listen, NotHeard, json};
use crate::report::health::Health;

/// Where the proxy's health is served, and whether by this process.
#[derive(Debug)]
pub struct Place {
    address: SocketAddr,
    ours: AtomicBool,
}

impl Place {
    /// Not served yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, ours: AtomicBool::new(false) }
    }

    /// The address and port. An unspecified address of either family means all of both, as it does for kube-proxy.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether this process listens there. Who answers otherwise is another proxy.
    pub fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Acquire)
    }
}

/// The server.
pub(super) struct Proxy {
    place: Arc<Place>,
    addresses: BTreeSet<SocketAddr>,
    listen: Listen,
    sockets: Sockets,
}

impl Proxy {
    /// Not listening yet.
    pub fn new(place: Arc<Place>, health: Arc<Health>, listen: Listen) -> Self {
        let address = place.address();
        let addresses = match address.ip().is_unspecified() {
            true => everywhere(address.port()),
            false => BTreeSet::from([address]),
        };
        let router =
            Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(health);
        Self { place, addresses, listen, sockets: Sockets::new(router, Places::new()) }
    }

    /// Leaves the place to another proxy.
    pub fn close(&mut self) {
        self.sockets.set(&BTreeSet::new(), &self.listen);
        self.place.ours.store(false, Ordering::Release);
    }

    /// Listens, where it does not yet. Returns the addresses that cannot be had now.
    pub fn listen(&mut self) -> Vec<NotHeard> {
        let refused = self.sockets.set(&self.addresses, &self.listen);
        self.place.ours.store(self.sockets.any(), Ordering::Release);
        let not_heard = refused.into_iter().map(|(address, error)| {
            let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
            let remedy = if in_use {
                "; stop the program that has it (kube-proxy?), or set another address"
            } else {
                ""
            };
            let message = format!("listen on {address}: {error}{remedy}");
            NotHeard { object: "health of the proxy".to_owned(), address, in_use, message }
        });
        not_heard.collect()
    }
}

#[derive(Serialize)]
struct Answer {
    #[serde(rename = "lastUpdated")]
    last_updated: String,
    #[serde(rename = "currentTime")]
    current_time: String,
    #[serde(rename = "nodeEligible", skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

async fn healthz(State(health): State<Arc<Health>>) -> Response {
    let eligible = health.eligible();
    answer(&health, health.proxies() && eligible, Some(eligible))
}

async fn livez(State(health): State<Arc<Health>>) -> Response {
    answer(&health, health.proxies(), None)
}

/// A proxy that is well was updated just now, whether or not there was anything to do.
fn answer(health: &Health, well: bool, node_eligible: Option<bool>) -> Response {
    let now = Timestamp::now();
    let cleared = health.backlog.cleared().and_then(|time: SystemTime| Timestamp::try_from(time).ok());
    let last_updated = if well { Some(now) } else { cleared };
    let body = Answer {
        last_updated: last_updated.map_or_else(never, text),
        current_time: text(now),
        node_eligible,
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json(&body)).into_response()
}

/// As Go writes a time, because kube-proxy does.
fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

fn never() -> String {
    "0001-01-01 00:00:00 +0000 UTC".to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn ask(response: Response) -> (u16, serde_json::Value) {
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_node_that_goes_is_alive_and_gets_no_new_clients() {
        let health = Arc::new(Health { services_limit: Duration::from_secs(60), ..Health::default() });
        let (status, body) = ask(healthz(State(health.clone())).await).await;
        assert_eq!((status, &body["nodeEligible"]), (200, &true.into()));
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        health.set_leaving(true);
        let (status, body) = ask(healthz(State(health.clone())).await).await;
        assert_eq!((status, &body["nodeEligible"]), (503, &false.into()));
        assert_eq!(body["lastUpdated"], "0001-01-01 00:00:00 +0000 UTC");
        let (status, body) = ask(livez(State(health.clone())).await).await;
        assert_eq!((status, body.get("nodeEligible")), (200, None));
        health.set_leaving(false);
        assert_eq!(ask(healthz(State(health)).await).await.0, 200);
    }

    #[tokio::test]
    async fn changes_that_wait_for_too_long_are_bad_health() {
        let health = Arc::new(Health::default());
        health.backlog.clear();
        health.backlog.grow();
        std::iter::repeat(()).take_while(|()| health.backlog.age().is_zero()).for_each(drop);
        for response in [healthz(State(health.clone())).await, livez(State(health.clone())).await] {
            let (status, body) = ask(response).await;
            assert_eq!(status, 503);
            assert!(body["lastUpdated"].as_str().unwrap().starts_with("2"), "{body}");
        }
    }

    #[test]
    fn times_are_written_as_go_does() {
        let time = Timestamp::from_millisecond(1_700_000_000_250).unwrap();
        assert_eq!(text(time), "2023-11-14 22:13:20.25 +0000 UTC");
    }
}
