//! The local port: `/metrics` for Prometheus, `/healthz` while the daemon runs, `/readyz` while it has
//! adopted its VMs and has a bus.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use drover_actors::bus::connect::Bus;
use drover_actors::metrics::Metrics;
use drover_actors::router::HostPhase;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}; choose another admin.listen")]
pub struct AdminError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

#[derive(Clone)]
struct Admin {
    metrics: Metrics,
    phase: watch::Receiver<HostPhase>,
    bus: Bus,
}

/// Serves the port until the task is aborted.
///
/// # Errors
/// [`AdminError`].
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    phase: watch::Receiver<HostPhase>,
    bus: Bus,
) -> Result<JoinHandle<()>, AdminError> {
    let failed = |source| AdminError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!(address = %listener.local_addr().map_err(failed)?, "metrics and health");
    let router = Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Admin { metrics, phase, bus });
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics and health ended");
        }
    }))
}

async fn page(State(admin): State<Admin>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], admin.metrics.page())
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    let phase = *admin.phase.borrow();
    let connected = admin.bus.state.borrow().connected;
    match (phase, connected) {
        (HostPhase::Adopting, _) => (StatusCode::SERVICE_UNAVAILABLE, "adopting\n"),
        (_, false) => (StatusCode::SERVICE_UNAVAILABLE, "no bus\n"),
        _ => (StatusCode::OK, "ok\n"),
    }
}
