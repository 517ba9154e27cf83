//! The private listener: `/metrics`, `/-/live`, `/-/ready`, `/-/reload`. It answers until the process
//! ends, so that a stopping edge can say that it is stopping.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use prometheus_client::registry::Registry;
use sluice_shared::metrics::{CONTENT_TYPE as OPENMETRICS, render};
use sluice_shared::verdict::{Code, Rejection};

use crate::books::Books;
use crate::engine::{Engine, ReadyState};
use crate::exchange::Context;
use crate::fields::REQUEST_ID;
use crate::keys::Keyring;
use crate::phase::{Phase, Stage};

/// The private listener's application.
#[derive(Debug)]
pub struct Status {
    /// Everything that is counted.
    pub registry: Arc<Registry>,
    /// What readiness is asked of.
    pub engine: Arc<Engine>,
    /// What is known of the books.
    pub books: Arc<Books>,
    /// What a reload replaces.
    pub keys: Arc<Keyring>,
    /// How far a stop has come.
    pub phase: Phase,
}

#[derive(serde::Serialize)]
struct Ready {
    ready: bool,
    state: &'static str,
    reasons: Vec<String>,
}

struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
    allow: Option<&'static str>,
}

impl Answer {
    fn json(status: u16, body: &impl serde::Serialize) -> Self {
        let body = serde_json::to_vec(body).unwrap_or_default();
        Self { status, kind: "application/json", body, allow: None }
    }

    fn refused(rejection: &Rejection, allow: Option<&'static str>) -> Self {
        let (status, body) = (rejection.code.status(), rejection.to_json());
        Self { status, kind: "application/problem+json", body, allow }
    }
}

impl Status {
    fn answer(&self, method: &Method, path: &str) -> Answer {
        let (allow, detail) = match path {
            "/metrics" | "/-/live" | "/-/ready" => ("GET, HEAD", "allowed here: GET, HEAD"),
            "/-/reload" => ("POST", "allowed here: POST"),
            _ => {
                let detail = "there are /metrics, /-/live, /-/ready and /-/reload";
                return Answer::refused(&Rejection::new(Code::NotFound, detail), None);
            }
        };
        if !allow.split(", ").any(|allowed| allowed == method.as_str()) {
            return Answer::refused(&Rejection::new(Code::MethodNotAllowed, detail), Some(allow));
        }
        match path {
            "/metrics" => {
                let body = render(&self.registry).into_bytes();
                Answer { status: 200, kind: OPENMETRICS, body, allow: None }
            }
            "/-/live" => Answer::json(200, &serde_json::json!({"live": true})),
            "/-/reload" => self.reload(),
            _ => self.ready(),
        }
    }

    fn reload(&self) -> Answer {
        match self.keys.reload() {
            Ok(()) => Answer::json(200, &serde_json::json!({"reloaded": ["identity", "token"]})),
            Err(problems) => {
                tracing::warn!(%problems, "not reloaded: the configuration is not good");
                let detail = problems.to_string().replace('\n', "; ");
                Answer::refused(&Rejection::field("configuration", detail), None)
            }
        }
    }

    fn ready(&self) -> Answer {
        let readiness = self.engine.readiness();
        let state = if self.phase.is(Stage::Draining) { ReadyState::Draining } else { readiness.state };
        // Who asks at this address asks for the successor, and on his next connection gets it.
        let handed = self.phase.is_handed();
        let word = match state {
            ReadyState::Draining if handed => "handed_over",
            ReadyState::Starting => "starting",
            ReadyState::Ready => "ready",
            ReadyState::Draining => "draining",
            ReadyState::NoRedis => "no_redis",
        };
        let ready = state == ReadyState::Ready || handed;
        let mut reasons = readiness.reasons;
        reasons.extend(self.books.reason().map(str::to_owned));
        let body = Ready { ready, state: word, reasons };
        Answer::json(if ready { 200 } else { 503 }, &body)
    }
}

#[async_trait]
impl HttpServerApp for Status {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let conn = session.take_connection_user_context();
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(_) => {
                // The guard has the words. Nobody is left to tell when they cannot be written.
                let _ = session.respond_error(400).await;
                session.shutdown().await;
                return None;
            }
        }
        let conn = conn.and_then(|conn| conn.downcast::<Arc<crate::conn::Conn>>().ok());
        if let Some(conn) = conn {
            conn.take_over();
            if !conn.place.begin() {
                return None;
            }
        }
        if session.get_keepalive().is_some() {
            session.set_keepalive((!self.phase.is_handed()).then_some(75));
        }
        let mut context = Context::new(&Arc::default());
        let head = session.req_header();
        context.identify(&head.headers);
        let answer = self.answer(&head.method, head.uri.path());
        let mut head = ResponseHeader::build_no_case(answer.status, Some(8)).ok()?;
        head.insert_header(CONTENT_TYPE, HeaderValue::from_static(answer.kind)).ok()?;
        head.insert_header(CONTENT_LENGTH, HeaderValue::from(answer.body.len())).ok()?;
        head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store")).ok()?;
        head.insert_header(REQUEST_ID, context.request_id()).ok()?;
        if answer.status == 503 {
            head.insert_header(RETRY_AFTER, HeaderValue::from_static("1")).ok()?;
        }
        if let Some(allow) = answer.allow {
            head.insert_header(ALLOW, HeaderValue::from_static(allow)).ok()?;
        }
        session.write_response_header(Box::new(head)).await.ok()?;
        session.write_response_body(answer.body.into(), true).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}
