//! `/livez`, `/readyz`, `/healthz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use super::health::Health;

struct Shared {
    health: Arc<Health>,
    registry: Registry,
}

/// The address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} (--http-address): {source}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// Cause.
    pub source: std::io::Error,
}

/// Takes the address; [`serve`] answers on it.
pub async fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener, ListenError> {
    tokio::net::TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Answers for as long as it is polled.
pub async fn serve(listener: tokio::net::TcpListener, health: Arc<Health>, registry: Registry) {
    let shared = Arc::new(Shared { health, registry });
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("health and metrics are not served any more: {error}");
    }
}

fn answer(problem: Option<String>) -> (StatusCode, String) {
    match problem {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(words) => (StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")),
    }
}

async fn livez(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    answer(shared.health.dead().then(|| shared.health.stale().unwrap_or_default()))
}

async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    answer(shared.health.unready())
}

async fn healthz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    answer(shared.health.stale())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &shared.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if let Some(bytes) = resident_bytes() {
        let end = text.rfind("# EOF").unwrap_or(text.len());
        let own = format!(
            "# HELP process_resident_memory_bytes Resident memory.\n\
             # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}\n"
        );
        text.insert_str(end, &own);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Resident memory of this process (`VmRSS` of `/proc/self/status`).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
