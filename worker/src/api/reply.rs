//! How answers and refusals are written down.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use sluice_shared::redis::Fault;
use sluice_shared::verdict::{Code, Rejection};

use crate::store::StoreError;

/// What a call comes to.
pub type Answer = Result<Response, Rejection>;

/// A value as JSON.
pub fn json(status: u16, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        Rejection::new(Code::Unavailable, "the answer could not be written")
    })?;
    Ok(body_of(status, "application/json", body))
}

/// A refusal as a problem document with the headers that go with it.
pub fn problem(rejection: &Rejection) -> Response {
    let mut answer = body_of(rejection.code.status(), "application/problem+json", rejection.to_json());
    let headers = answer.headers_mut();
    if rejection.code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = rejection.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn body_of(status: u16, kind: &'static str, body: Vec<u8>) -> Response {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The store failed: nothing is known, so nothing is claimed.
pub fn store(error: StoreError) -> Rejection {
    match &error {
        StoreError::Away(_) => tracing::warn!(%error, "the store is away"),
        StoreError::Broken(_) => tracing::error!(%error, "the store refused"),
    }
    Rejection::new(Code::Unavailable, "the books cannot be reached; the same request is safe to repeat")
}

/// Redis failed: nothing is known, so nothing is claimed.
pub fn redis(fault: Fault) -> Rejection {
    tracing::warn!(%fault, "redis failed");
    Rejection::new(Code::Unavailable, "the shelf cannot be reached; the same request is safe to repeat")
}

/// `not_found`.
pub fn not_found(detail: impl Into<std::borrow::Cow<'static, str>>) -> Rejection {
    Rejection::new(Code::NotFound, detail)
}

/// `not_found` for an order.
pub fn no_such_order() -> Rejection {
    not_found("there is no such order")
}
