//! The back office and the calls that edges pass on: one HTTP server, one table of routes.
//!
//! [`route`] is the table; this file drives a request through it: head, caller, body, handler. Each
//! handler is a file's function from a [`call::Call`] to an answer or a refusal. Nothing a handler
//! does to a sale reaches Redis directly, but stock changes: the warden projects the books.

pub mod auditor;
pub mod auth;
pub mod buyer;
pub mod call;
pub mod claims;
pub mod desk;
pub mod json;
pub mod lanes;
pub mod locate;
pub mod order_sheet;
pub mod orders;
pub mod page;
pub mod payments;
pub mod ready;
pub mod reply;
pub mod route;
pub mod sales;
pub mod sheet;
pub mod spread;
pub mod steps;
pub mod stock;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, on};
use sluice_shared::clock::Millis;
use sluice_shared::config::Secret;
use sluice_shared::redis::Redis;
use sluice_shared::verdict::{Code, Rejection};

use self::auditor::Auditor;
use self::auth::Keys;
use self::call::Call;
use self::desk::Desk;
use self::lanes::{Cancels, LookUps, Notices};
use self::locate::Locator;
use self::reply::Answer;
use self::route::{ROUTES, Route};
use crate::metrics::api::{Answered, Metrics};
use crate::store::Store;

const REQUEST_ID: &str = "x-request-id";

/// What handlers work with.
#[derive(Debug)]
pub struct Api {
    /// The books.
    pub store: Store,
    /// The shelf.
    pub redis: Redis,
    /// Who may call.
    pub keys: Keys,
    /// Signs payment notices.
    pub payment_secret: Secret,
    /// Where they queue to be booked.
    pub notices: Desk<Notices>,
    /// Where buyers' cancellations do.
    pub cancels: Desk<Cancels>,
    /// And what they look for.
    pub look_ups: Desk<LookUps>,
    /// How long a step waits for the edges.
    pub edge_wait: Duration,
    /// Where orders are.
    pub locator: Arc<Locator>,
    /// Makes audits.
    pub auditor: Auditor,
    /// What is counted.
    pub metrics: Metrics,
}

impl Api {
    /// A back office over these stores; to be made within a runtime, where its desks work.
    pub fn new(
        store: Store,
        redis: Redis,
        keys: Keys,
        payment_secret: Secret,
        edge_wait: Duration,
        auditor: Auditor,
        metrics: Metrics,
    ) -> Self {
        let locator = Arc::new(Locator::new(store.clone(), redis.clone()));
        let cancels = Cancels::new(store.clone(), locator.clone());
        Self {
            notices: Desk::open(Notices::new(store.clone()), metrics.notices.clone()),
            cancels: Desk::open(cancels, metrics.cancels.clone()),
            look_ups: Desk::open(LookUps(locator.clone()), metrics.look_ups.clone()),
            store,
            redis,
            keys,
            payment_secret,
            edge_wait,
            locator,
            auditor,
            metrics,
        }
    }
}

/// The server's router, made from the table.
pub fn router(api: Arc<Api>) -> Router {
    let mut paths: Vec<(&'static str, MethodRouter<Arc<Api>>)> = Vec::new();
    for route in ROUTES {
        let run = move |State(api): State<Arc<Api>>, request: Request| drive(route, api, request);
        let handler = on(route.filter(), run);
        match paths.iter().position(|(path, _)| *path == route.path) {
            Some(at) => {
                let (path, methods) = paths.swap_remove(at);
                paths.push((path, methods.merge(handler)));
            }
            None => paths.push((route.path, handler)),
        }
    }
    let router = paths.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router.fallback(nothing_here).layer(from_fn_with_state(api.clone(), finish)).with_state(api)
}

async fn nothing_here() -> Response {
    reply::problem(&Rejection::new(Code::NotFound, "nothing is at this address"))
}

/// The name that a request goes by: the caller's own when it is one, so that an edge's and ours agree.
#[derive(Debug, Clone)]
struct RequestId(String);

/// Around every request: its id on the answer, and a problem document where axum itself refused.
async fn finish(State(_): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let told = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let word = |text: &&str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        (1..=64).contains(&text.len()) && text.bytes().all(byte)
    };
    let id = told.filter(word).map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut answer = next.run(request).await;
    if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = answer.headers_mut().remove("allow");
        answer =
            reply::problem(&Rejection::new(Code::MethodNotAllowed, "see Allow for what is possible here"));
        if let Some(allow) = allow {
            answer.headers_mut().insert("allow", allow);
        }
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// One request along its route.
async fn drive(route: &'static Route, api: Arc<Api>, request: Request) -> Response {
    let metrics = api.metrics.clone();
    let answer = attempt(route, api, request).await.unwrap_or_else(|rejection| reply::problem(&rejection));
    let status = answer.status().as_u16();
    metrics.answers.get_or_create(&Answered { path: route.path, method: route.method, status }).inc();
    answer
}

async fn attempt(route: &'static Route, api: Arc<Api>, request: Request) -> Answer {
    let (mut head, body) = request.into_parts();
    call::judge_head(&head.headers, &body)?;
    let caller = api.keys.admit(route.needs, &head.headers, Millis::now())?;
    let id = if route.path.contains('{') {
        let Path(id) = Path::<String>::from_request_parts(&mut head, &())
            .await
            .map_err(|_| reply::not_found("the path is not UTF-8"))?;
        id
    } else {
        String::new()
    };
    let request_id = head.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
    let body = call::read_body(body).await?;
    (route.run)(api, Call { caller, id, uri: head.uri, headers: head.headers, body, request_id }).await
}
