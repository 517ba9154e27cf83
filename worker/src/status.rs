//! `/metrics`, `/-/live` and `/-/ready` of a worker process, on a private address.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::process::{Context, Stop};

/// How long PostgreSQL and Redis may take to answer before the process is called not ready.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves until told to stop.
pub async fn serve(listen: SocketAddr, context: Context, mut stop: Stop) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let stopped = async move {
        // An end of the sender is the end of the process too.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router(context)).with_graceful_shutdown(stopped).await?;
    Ok(())
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/-/live", get(|| async { "live\n" }))
        .route("/-/ready", get(ready))
        .with_state(context)
}

async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    if let Ok((waiting, _)) = context.store.outbox_depth().await {
        context.metrics.waiting("outbox", waiting);
    }
    let text = context.metrics.render(context.store.connections());
    ([(header::CONTENT_TYPE, sluice_shared::metrics::CONTENT_TYPE)], text)
}

async fn ready(State(context): State<Context>) -> impl IntoResponse {
    let books = tokio::time::timeout(PATIENCE, context.store.now());
    let segment = tokio::time::timeout(PATIENCE, context.redis.time());
    let (books, segment) = tokio::join!(books, segment);
    let mut reasons = Vec::new();
    if !matches!(books, Ok(Ok(_))) {
        reasons.push("postgresql does not answer".to_owned());
    }
    if !matches!(segment, Ok(Ok(_))) {
        reasons.push("redis does not answer".to_owned());
    }
    let unknown = context.metrics.warden.unknown_sales.get();
    if unknown > 0 {
        reasons.push(format!(
            "postgresql does not know {unknown} sales of redis: the wrong database, or an old one?"
        ));
    }
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n")))
}
