//! The private listener: `/metrics`, `/-/live`, `/-/ready`. It answers until the process ends, so
//! that a stopping edge can say that it is stopping.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus_client::registry::Registry;
use sluice_shared::metrics::{CONTENT_TYPE as OPENMETRICS, render};
use sluice_shared::verdict::{Code, Rejection};
use tokio::sync::watch;

use crate::books::Books;
use crate::engine::{Engine, ReadyState};
use crate::exchange::Context;
use crate::front::Front;
use crate::respond::REQUEST_ID;

/// The private listener's application.
#[derive(Debug)]
pub struct Status {
    /// Everything that is counted.
    pub registry: Arc<Registry>,
    /// What readiness is asked of.
    pub engine: Arc<Engine>,
    /// What is known of the books.
    pub books: Arc<Books>,
    /// Turns true when this edge stops.
    pub stopping: watch::Receiver<bool>,
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

    fn refused(code: Code, detail: &'static str, allow: Option<&'static str>) -> Self {
        let rejection = Rejection::new(code, detail);
        Self { status: code.status(), kind: "application/problem+json", body: rejection.to_json(), allow }
    }
}

impl Status {
    fn answer(&self, method: &Method, path: &str) -> Answer {
        if !matches!(path, "/metrics" | "/-/live" | "/-/ready") {
            return Answer::refused(Code::NotFound, "there are /metrics, /-/live and /-/ready", None);
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Answer::refused(Code::MethodNotAllowed, "allowed here: GET, HEAD", Some("GET, HEAD"));
        }
        match path {
            "/metrics" => {
                let body = render(&self.registry).into_bytes();
                Answer { status: 200, kind: OPENMETRICS, body, allow: None }
            }
            "/-/live" => Answer::json(200, &serde_json::json!({"live": true})),
            _ => self.ready(),
        }
    }

    fn ready(&self) -> Answer {
        let readiness = self.engine.readiness();
        let state = if *self.stopping.borrow() { ReadyState::Draining } else { readiness.state };
        let word = match state {
            ReadyState::Starting => "starting",
            ReadyState::Ready => "ready",
            ReadyState::Draining => "draining",
            ReadyState::NoRedis => "no_redis",
        };
        let ready = state == ReadyState::Ready;
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
        if !session.read_request().await.ok()? {
            return None;
        }
        let conn = conn.and_then(|conn| conn.downcast::<Arc<crate::guarded::Conn>>().ok());
        if let Some(conn) = conn {
            conn.take_over();
        }
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(75));
        }
        let mut context = Context::new(Arc::default());
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

/// Accepts on the private listener, also while the edge stops.
#[derive(Debug)]
pub struct Admin {
    /// Bound before anything started, so that a taken port is told at once.
    pub listener: TcpListener,
    /// The application behind the guard.
    pub front: Arc<Front<Status>>,
    /// A public listener. Nobody is told "ready" before it takes connections.
    pub public: Option<SocketAddr>,
}

/// Waits until somebody listens there; a moment, as the port was free at the start.
async fn listening(address: SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[async_trait]
impl BackgroundService for Admin {
    async fn start(&self, shutdown: ShutdownWatch) {
        let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the private listener cannot be served");
                return;
            }
        };
        if let Some(public) = self.public {
            listening(public).await;
        }
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors: those that are open will end.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let (front, shutdown) = (self.front.clone(), shutdown.clone());
            tokio::spawn(async move {
                let stream: Stream = stream.into();
                front.process_new(Box::new(stream), &shutdown).await;
            });
        }
    }
}
