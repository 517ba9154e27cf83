//! The `api` role: serves the back office until told to stop.

use std::sync::Arc;

use sluice_shared::jwt::Verifier;
use tokio::net::TcpListener;

use crate::api::auditor::Auditor;
use crate::api::auth::Keys;
use crate::api::{Api, router};
use crate::process::{Context, Stop};

/// Runs until told to stop; what is under way is answered first.
pub async fn run(context: Context, mut stop: Stop) -> anyhow::Result<()> {
    let config = &context.config.api;
    let verifier = Verifier::new(Some(config.admin_jwt_secret.reveal()), None)?;
    let keys = Keys::new(&config.admin_token, &config.edge_secret, verifier);
    let api = Api::new(
        context.store.clone(),
        context.redis.clone(),
        keys,
        config.payment_secret.clone(),
        config.edge_wait,
        Auditor::new(&context.config),
        context.metrics.api.clone(),
    );
    let listener = TcpListener::bind(config.listen).await?;
    tracing::info!(listen = %listener.local_addr()?, "the back office is open");
    let stopped = async move {
        // An error means that nobody is left who could say stop.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router(Arc::new(api))).with_graceful_shutdown(stopped).await?;
    Ok(())
}
