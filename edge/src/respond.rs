//! The one place where verdicts become responses.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW, CACHE_CONTROL, CONTENT_LENGTH,
    CONTENT_TYPE, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use sluice_shared::verdict::{Code, Rejection};

use crate::exchange::Exchange;

/// Every answer of ours has one; the client's where it sent a sane one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What is left in a bucket (draft-ietf-httpapi-ratelimit-headers-11).
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// How large the buckets are.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");
const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Location, Retry-After, X-Request-Id, Idempotent-Replayed, RateLimit, RateLimit-Policy",
);

/// An answer of ours.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// JSON; empty: none.
    pub body: Bytes,
    /// Fields that only this answer has.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), fields: Vec::new() }
    }

    /// With one more field.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }
}

/// Writes an answer.
pub async fn reply(exchange: &mut Exchange<'_>, reply: Reply) -> pingora::Result<()> {
    let mut head = head(exchange, reply.status, &JSON, reply.body.len())?;
    for (name, value) in reply.fields {
        head.insert_header(name, value)?;
    }
    write(exchange, head, reply.body).await
}

/// Writes a refusal: `application/problem+json`.
pub async fn refuse(exchange: &mut Exchange<'_>, rejection: &Rejection) -> pingora::Result<()> {
    exchange.context.verdict = Some(rejection.code);
    let body = rejection.to_json();
    let mut head = head(exchange, rejection.code.status(), &PROBLEM, body.len())?;
    if let Some(seconds) = rejection.retry_after() {
        head.insert_header(RETRY_AFTER, HeaderValue::from(seconds))?;
    }
    match rejection.code {
        Code::Unauthenticated => head.insert_header(WWW_AUTHENTICATE, BEARER)?,
        Code::MethodNotAllowed => {
            head.insert_header(ALLOW, HeaderValue::from_static(exchange.context.allow))?
        }
        _ => {}
    }
    write(exchange, head, Bytes::from(body)).await
}

/// The head that every answer of ours has.
pub fn head(
    exchange: &Exchange<'_>,
    status: u16,
    kind: &HeaderValue,
    length: usize,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build_no_case(status, Some(12))?;
    if status != 204 {
        head.insert_header(CONTENT_TYPE, kind.clone())?;
        head.insert_header(CONTENT_LENGTH, HeaderValue::from(length))?;
    }
    head.insert_header(CACHE_CONTROL, NO_STORE)?;
    ours(exchange.context.request_id(), &mut head)?;
    if let Some((left, policy)) = exchange.context.rate.fields() {
        head.insert_header(RATE_LIMIT, left)?;
        head.insert_header(RATE_LIMIT_POLICY, policy)?;
    }
    allow_origin(exchange.context.origin.as_ref(), &mut head)?;
    Ok(Box::new(head))
}

/// Marks an answer as ours.
pub fn ours(request_id: HeaderValue, head: &mut ResponseHeader) -> pingora::Result<()> {
    head.insert_header(REQUEST_ID, request_id)
}

/// Lets the pages of an allowed origin read the answer.
pub fn allow_origin(origin: Option<&HeaderValue>, head: &mut ResponseHeader) -> pingora::Result<()> {
    let Some(origin) = origin else { return Ok(()) };
    head.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())?;
    head.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
    head.append_header(VARY, ORIGIN).map(|_| ())
}

async fn write(exchange: &mut Exchange<'_>, head: Box<ResponseHeader>, body: Bytes) -> pingora::Result<()> {
    exchange.context.status = head.status.as_u16();
    let session = &mut exchange.session.downstream_session;
    session.write_response_header(head).await?;
    session.write_response_body(body, true).await
}

/// A whole refusal as bytes, for a head that nothing could be built upon; the connection closes.
pub fn raw(rejection: &Rejection) -> Vec<u8> {
    let body = rejection.to_json();
    let status = rejection.code.status();
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Refused"));
    if rejection.code == Code::MethodNotAllowed {
        head.push_str("Allow: GET, HEAD, POST, DELETE\r\n");
    }
    // Writing into a String cannot fail.
    let _ = write!(
        head,
        "Content-Type: application/problem+json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {:016x}\r\nConnection: close\r\n\r\n",
        body.len(),
        rand::random::<u64>(),
    );
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    answer
}
