//! `/livez`, `/readyz`, `/healthz` and `/metrics`.

use std::net::SocketAddr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::election::Leadership;
use crate::health::Health;
use crate::metrics::Metrics;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error("--http-address {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Serving ended.
    #[error("http: {0}")]
    Serve(#[source] std::io::Error),
}

/// Content type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn answer(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

/// Binds the address. Apart from [`serve`], so that a taken port ends the process at once.
///
/// # Errors
/// [`Error::Bind`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Serves until the process ends.
///
/// # Errors
/// [`Error::Serve`].
pub async fn serve(
    listener: TcpListener,
    health: Health,
    leadership: Leadership,
    metrics: Metrics,
) -> Result<(), Error> {
    let (live, ready, fresh) = (health.clone(), health.clone(), health);
    let app = Router::new()
        .route("/livez", get(async move || answer(live.live())))
        .route("/readyz", get(async move || answer(ready.ready())))
        .route("/healthz", get(async move || answer(fresh.fresh(&leadership))))
        .route(
            "/metrics",
            get(async move || match metrics.encode() {
                Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }),
        );
    axum::serve(listener, app).await.map_err(Error::Serve)
}
