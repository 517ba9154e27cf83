//! Whether the books can be asked: what edges tell their operators.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::reply::{self, Answer};

/// How long PostgreSQL may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// `GET /internal/v1/ready`
pub async fn get(api: Arc<Api>, _: Call) -> Answer {
    match tokio::time::timeout(PATIENCE, api.store.now()).await {
        Ok(Ok(_)) => reply::json(200, &json!({"ready": true})),
        Ok(Err(_)) | Err(_) => Err(Rejection::new(Code::Unavailable, "postgresql does not answer")),
    }
}
