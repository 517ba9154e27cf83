//! The one place where verdicts become responses.

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, VARY};
use http::{HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::date::get_cached_date;
use sluice_shared::verdict::{Code, Rejection};

use crate::exchange::{Context, Exchange};
use crate::fields::REQUEST_ID;

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
    /// What the body is.
    pub kind: HeaderValue,
    /// JSON, or nothing.
    pub body: Bytes,
    /// Fields that only this answer has.
    pub fields: Vec<(&'static str, HeaderValue)>,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, kind: JSON, body: body.into(), fields: Vec::new() }
    }

    /// With one more field.
    pub fn with(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.fields.push((name, value));
        self
    }

    /// A refusal: `application/problem+json`. It is what the request's verdict is counted as.
    pub fn refusal(context: &mut Context, rejection: &Rejection) -> Self {
        context.verdict = Some(rejection.code);
        let reply = Self { kind: PROBLEM, ..Self::json(rejection.code.status(), rejection.to_json()) };
        let reply = match rejection.retry_after() {
            Some(seconds) => reply.with("Retry-After", HeaderValue::from(seconds)),
            None => reply,
        };
        match rejection.code {
            Code::Unauthenticated => reply.with("WWW-Authenticate", BEARER),
            Code::MethodNotAllowed => reply.with("Allow", HeaderValue::from_static(context.allow)),
            _ => reply,
        }
    }

    /// Every field of the head, in its order; a later one takes the place of an earlier one.
    fn each(&self, context: &Context, mut put: impl FnMut(&'static str, &HeaderValue)) {
        if self.status != 204 {
            put("Content-Type", &self.kind);
            put("Content-Length", &HeaderValue::from(self.body.len()));
        }
        put("Cache-Control", &NO_STORE);
        put("X-Request-Id", context.request_id());
        if let Some((left, policy)) = context.rate.fields() {
            put("RateLimit", &left);
            put("RateLimit-Policy", policy);
        }
        if let Some(origin) = &context.origin {
            put("Access-Control-Allow-Origin", origin);
            put("Access-Control-Expose-Headers", &EXPOSED);
            put("Vary", &ORIGIN);
        }
        for (name, value) in &self.fields {
            put(name, value);
        }
    }
}

/// Writes an answer.
pub async fn reply(exchange: &mut Exchange<'_>, reply: Reply) -> pingora::Result<()> {
    let head = head(exchange.context, &reply)?;
    exchange.context.status = reply.status;
    let session = &mut exchange.session.downstream_session;
    session.write_response_header(head).await?;
    session.write_response_body(reply.body, true).await
}

/// Writes a refusal.
pub async fn refuse(exchange: &mut Exchange<'_>, rejection: &Rejection) -> pingora::Result<()> {
    let refusal = Reply::refusal(exchange.context, rejection);
    reply(exchange, refusal).await
}

/// The head of an answer, for a session.
pub fn head(context: &Context, reply: &Reply) -> pingora::Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build_no_case(reply.status, Some(12))?;
    let mut good = Ok(());
    reply.each(context, |name, value| {
        if let Err(error) = head.insert_header(name, value.clone()) {
            good = Err(error);
        }
    });
    good.map(|()| Box::new(head))
}

/// An answer as the bytes that a session would write; `last` where the connection does not go on.
pub fn write(context: &Context, reply: &Reply, last: bool, out: &mut Vec<u8>) {
    status_line(reply.status, out);
    let mut put = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    reply.each(context, |name, value| put(name, value.as_bytes()));
    put("Date", get_cached_date().as_bytes());
    put("Connection", if last { b"close" } else { b"keep-alive" });
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&reply.body);
}

fn status_line(status: u16, out: &mut Vec<u8>) {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.unwrap_or("Refused").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Marks the workers' answer as ours.
pub fn ours(context: &Context, head: &mut ResponseHeader) -> pingora::Result<()> {
    head.insert_header(REQUEST_ID, context.request_id().clone())?;
    head.insert_header(CACHE_CONTROL, NO_STORE)
}

/// Lets the pages of an allowed origin read the answer.
pub fn allow_origin(origin: Option<&HeaderValue>, head: &mut ResponseHeader) -> pingora::Result<()> {
    let Some(origin) = origin else { return Ok(()) };
    head.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())?;
    head.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
    head.append_header(VARY, ORIGIN).map(|_| ())
}

/// A whole refusal as bytes, for a head that nothing could be built upon; the connection closes.
pub fn raw(rejection: &Rejection) -> Vec<u8> {
    let (body, mut answer) = (rejection.to_json(), Vec::with_capacity(512));
    status_line(rejection.code.status(), &mut answer);
    if rejection.code == Code::MethodNotAllowed {
        answer.extend_from_slice(b"Allow: GET, HEAD, POST, DELETE\r\n");
    }
    let rest = format!(
        "Content-Type: application/problem+json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {:016x}\r\nConnection: close\r\n\r\n",
        body.len(),
        rand::random::<u64>(),
    );
    answer.extend_from_slice(rest.as_bytes());
    answer.extend_from_slice(&body);
    answer
}
