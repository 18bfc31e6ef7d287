//! What load balancers ask a node by HTTP, with the meanings that kube-proxy gave it: whether the node has endpoints of a
//! Service (one port for each that has a `healthCheckNodePort`), and whether it may get clients at all ([`proxy`]).

mod limited;
pub mod proxy;
mod service_ports;
mod sockets;

pub use sockets::listen;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nodenet_crds::Failure;
use nodenet_crds::conditions::reason;
use tokio::sync::watch;

use crate::report::facts::Verdict;
use crate::report::health::Health;
use crate::resolve::HealthChecks;

/// Listens on an address of the node.
pub type Listen = Arc<dyn Fn(SocketAddr) -> std::io::Result<TcpListener> + Send + Sync>;

/// A place that cannot be listened on, with whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotHeard {
    /// For whom, for example `Service default/web`.
    pub object: String,
    /// The place.
    pub address: SocketAddr,
    /// Another program has the port.
    pub in_use: bool,
    /// In the kernel's words, and what to do.
    pub message: String,
}

/// Whether all who may ask are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hearing {
    /// In one word.
    pub verdict: Verdict,
    /// One by one.
    pub failures: Vec<Failure>,
}

impl Default for Hearing {
    fn default() -> Self {
        Self { verdict: Verdict::ready("no load balancer asks for anything"), failures: Vec::new() }
    }
}

impl Hearing {
    pub(crate) fn new(ready: impl Into<String>, not_heard: &[NotHeard]) -> Self {
        let words: Vec<String> = not_heard.iter().map(|n| format!("{}: {}", n.object, n.message)).collect();
        let verdict = match not_heard {
            [] => Verdict::ready(ready),
            some if some.iter().any(|n| n.in_use) => Verdict::not(reason::PORT_IN_USE, words.join("; ")),
            _ => Verdict::not(reason::LISTEN_REFUSED, words.join("; ")),
        };
        let failures = not_heard.iter().map(|n| Failure {
            object: n.object.clone(),
            operation: format!("listen on {}", n.address),
            message: n.message.clone(),
        });
        Self { verdict, failures: failures.collect() }
    }
}

/// First wait before a place that cannot be had is tried again; doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Listens and answers for as long as it is polled: on the ports that Services ask for, and with the health of the proxy
/// where there is a place for it. `tell` gets to know what cannot be listened on.
pub async fn serve(
    mut asked: watch::Receiver<HealthChecks>,
    place: Option<Arc<proxy::Place>>,
    health: Arc<Health>,
    listen: Listen,
    tell: impl Fn(Hearing) + Send,
) {
    let mut proxy = place.map(|place| proxy::Proxy::new(place, health.clone(), listen.clone()));
    let mut ports = service_ports::Ports::new(health, listen);
    let mut told = None;
    let mut wait = RETRY;
    loop {
        let wanted = asked.borrow_and_update().clone();
        let (not_heard, ready) = if wanted.elsewhere {
            proxy.iter_mut().for_each(proxy::Proxy::close);
            (ports.set(&HealthChecks::default()), "another proxy answers load balancers".to_owned())
        } else {
            let mut not_heard = ports.set(&wanted);
            not_heard.extend(proxy.iter_mut().flat_map(proxy::Proxy::listen));
            (not_heard, format!("{} ports of health checks are listened on", wanted.ports.len()))
        };
        let hearing = Hearing::new(ready, &not_heard);
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

/// A body of JSON, which browsers are not to take for anything else.
pub(crate) fn json(body: &impl serde::Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => {
            let headers =
                [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
            (headers, text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
