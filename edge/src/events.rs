//! Event streams: an order's states as they come, until a final one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession as HttpSession;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::record::Record;
use sluice_shared::sale::SaleView;
use sluice_shared::verdict::{Code, Rejection};
use tokio::time::Instant;

use crate::engine::Follower;
use crate::exchange::{Context, Exchange};
use crate::fields::Fields;
use crate::gate::Gate;
use crate::respond::Reply;
use crate::{respond, route, view};

/// Proxies and browsers drop a stream that is silent for long.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// How often the workers are asked for an order that Redis has lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The last event that a browser has seen.
const LAST_EVENT_ID: &str = "last-event-id";
/// When the followers of an edge that stops come back, in milliseconds.
const BACK_MS: std::ops::Range<u32> = 500..3_000;
const KIND: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Asks proxies of nginx's kind not to hold events back.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// An order as a stream shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Names this state of it.
    pub id: i64,
    /// Whether no other state follows.
    pub last: bool,
    json: Vec<u8>,
}

/// What is read of the workers' answer.
#[derive(serde::Deserialize)]
struct Told {
    state: String,
    updated_at: Option<String>,
}

impl Shown {
    /// A record of Redis.
    pub fn record(id: &OrderId, record: &Record, sale: &SaleView) -> Self {
        let json = view::order(id, record, sale);
        Self { id: record.updated.0, last: record.state.is_final(), json }
    }

    /// The workers' whole answer.
    fn books(json: &[u8]) -> Option<Self> {
        let Told { state, updated_at } = serde_json::from_slice(json).ok()?;
        let last = matches!(state.as_str(), "paid" | "expired" | "cancelled" | "failed" | "refunded");
        let id = updated_at.and_then(|at| Millis::from_text(&at)).unwrap_or_else(Millis::now).0;
        Some(Self { id, last, json: json.trim_ascii().to_vec() })
    }

    /// Whether the client has seen this state already: `Last-Event-ID` is its own.
    pub fn is_known(&self, fields: &(impl Fields + ?Sized)) -> bool {
        fields.field(LAST_EVENT_ID).is_some_and(|last| last == itoa::Buffer::new().format(self.id).as_bytes())
    }
}

/// The order as the workers know it: Redis has lost it, or has forgotten it long after its sale.
pub async fn ask(gate: &Gate, context: &Context, id: &OrderId) -> Result<Shown, Rejection> {
    let away = || Rejection::new(Code::Unavailable, "the books cannot be asked at the moment; try again");
    let _place = gate.lookups.take()?;
    let path = format!("/internal/v1/orders/{id}");
    match gate.peers.ask(context, Method::GET, &path, b"").await {
        Ok((200, json)) => Shown::books(&json).ok_or_else(away),
        Ok((404, _)) => Err(route::nothing_here()),
        Ok(_) | Err(_) => Err(away()),
    }
}

/// Writes the present state and every later one. Ends at a final state, when the client leaves or
/// when new connections go elsewhere; a browser then comes back by itself and finds another edge.
/// Where Redis has lost the order, the workers are asked now and then.
pub async fn stream(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    id: &OrderId,
    shown: Shown,
    follower: Option<Follower>,
) -> pingora::Result<()> {
    let reply = Reply { kind: KIND, ..Reply::json(200, Bytes::new()) };
    let mut head = respond::head(exchange.context, &reply)?;
    as_stream(&mut head, exchange.head().version)?;
    exchange.context.status = 200;
    exchange.session.downstream_session.write_response_header(head).await?;
    gate.metrics.streams.fetch_add(1, Ordering::Relaxed);
    let written = write(gate, exchange, id, shown, follower).await;
    gate.metrics.streams.fetch_sub(1, Ordering::Relaxed);
    written
}

async fn write(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    id: &OrderId,
    mut shown: Shown,
    mut follower: Option<Follower>,
) -> pingora::Result<()> {
    let Exchange { session, context } = exchange;
    let (mut phase, session) = (gate.phase.clone(), &mut session.downstream_session);
    let mut lost = follower.as_ref().is_none_or(Follower::knows_nothing);
    let every = |span| tokio::time::interval_at(Instant::now() + span, span);
    let (mut comments, mut looks) = (every(COMMENT_EVERY), every(LOOK_EVERY));
    session.write_response_body(event(&shown), false).await?;
    while !shown.last {
        let look = async {
            looks.tick().await;
            ask(gate, context, id).await
        };
        tokio::select! {
            changed = changed(&mut follower) => {
                let Some((record, sale)) = changed.zip(gate.engine.sale_by_number(id.sale)) else { break };
                lost = false;
                put(session, &mut shown, Shown::record(id, &record, &sale.view)).await?;
            }
            asked = look, if lost => {
                // Who is not answered asks again.
                if let Ok(asked) = asked {
                    put(session, &mut shown, asked).await?;
                }
            }
            _ = comments.tick() => {
                session.write_response_body(Bytes::from_static(b": still here\n\n"), false).await?;
            }
            () = phase.moved() => {
                session.write_response_body(farewell(), false).await?;
                break;
            }
            left = session.read_body_or_idle(true) => {
                left?;
            }
        }
    }
    session.write_response_body(Bytes::new(), true).await
}

/// The next record; pends where nobody tells one.
async fn changed(follower: &mut Option<Follower>) -> Option<Record> {
    match follower {
        Some(follower) => follower.next().await,
        None => std::future::pending().await,
    }
}

/// Writes another state, where it is one.
async fn put(session: &mut HttpSession, shown: &mut Shown, next: Shown) -> pingora::Result<()> {
    if next.json != shown.json {
        *shown = next;
        session.write_response_body(event(shown), false).await?;
    }
    Ok(())
}

/// Tells a browser when to come back: not all at once.
fn farewell() -> Bytes {
    let millis = rand::random_range(BACK_MS);
    format!(": this edge stops\nretry: {millis}\n\n").into()
}

/// Turns the head of an answer into that of a stream.
fn as_stream(head: &mut ResponseHeader, version: Version) -> pingora::Result<()> {
    head.insert_header(CONTENT_TYPE, KIND)?;
    head.remove_header(&CONTENT_LENGTH);
    head.insert_header(UNBUFFERED, HeaderValue::from_static("no"))?;
    // HTTP/1.0 knows no chunks: there the end of the connection ends the stream.
    if version == Version::HTTP_11 {
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(())
}

/// One event. The JSON has no line breaks.
fn event(shown: &Shown) -> Bytes {
    let mut event = Vec::with_capacity(shown.json.len() + 48);
    event.extend_from_slice(b"event: order\nid: ");
    event.extend_from_slice(itoa::Buffer::new().format(shown.id).as_bytes());
    event.extend_from_slice(b"\ndata: ");
    event.extend_from_slice(&shown.json);
    event.extend_from_slice(b"\n\n");
    event.into()
}
