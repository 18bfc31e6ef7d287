//! What load balancers ask a node by HTTP, with the meanings that kube-proxy gave it: whether the node has endpoints of a
//! Service ([`service_ports`], one port for each Service that has a `healthCheckNodePort`).

pub mod service_ports;
mod sockets;

pub use sockets::listen;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nodenet_crds::Failure;
use nodenet_crds::conditions::reason;

use crate::report::facts::Verdict;

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
