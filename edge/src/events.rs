//! Event streams: an order's states as they come, until a final one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Version};
use pingora::http::ResponseHeader;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::record::Record;

use crate::engine::{Follower, LiveSale};
use crate::exchange::Exchange;
use crate::gate::Gate;
use crate::respond::Reply;
use crate::{respond, view};

/// Proxies and browsers drop a stream that is silent for long.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// When the followers of an edge that stops come back, in milliseconds.
const BACK_MS: std::ops::Range<u32> = 500..3_000;
const KIND: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Asks proxies of nginx's kind not to hold events back.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How many streams each user has open. Taken when a stream opens and closes, never on a purchase.
#[derive(Debug)]
pub struct Streams {
    open: Mutex<HashMap<UserId, usize>>,
    per_user: usize,
}

/// A place for one stream; given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    streams: &'a Streams,
    user: UserId,
}

impl Streams {
    /// So many at a time for each user.
    pub fn new(per_user: usize) -> Self {
        Self { open: Mutex::default(), per_user }
    }

    /// A place for one more stream of a user, if he may have one.
    pub fn open(&self, user: &UserId) -> Option<Place<'_>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(user.clone()).or_default();
        if *count >= self.per_user {
            return None;
        }
        *count += 1;
        Some(Place { streams: self, user: user.clone() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

/// Writes the present state and every later one. Ends at a final state, when the client leaves or
/// when new connections go elsewhere; a browser then comes back by itself and finds another edge.
pub async fn stream(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    id: &OrderId,
    record: Record,
    sale: &LiveSale,
    mut follower: Follower,
) -> pingora::Result<()> {
    let reply = Reply { kind: KIND, ..Reply::json(200, Bytes::new()) };
    let mut head = respond::head(exchange.context, &reply)?;
    as_stream(&mut head, exchange.head().version)?;
    exchange.context.status = 200;
    exchange.session.downstream_session.write_response_header(head).await?;
    gate.metrics.streams.fetch_add(1, Ordering::Relaxed);
    let written = write(gate, exchange, id, record, sale, &mut follower).await;
    gate.metrics.streams.fetch_sub(1, Ordering::Relaxed);
    written
}

async fn write(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    id: &OrderId,
    mut record: Record,
    sale: &LiveSale,
    follower: &mut Follower,
) -> pingora::Result<()> {
    let mut phase = gate.phase.clone();
    follower.knows(&record);
    let session = &mut exchange.session.downstream_session;
    let mut event = Some(event(record.updated.0, &view::order(id, &record, &sale.view)));
    loop {
        if let Some(event) = event.take() {
            session.write_response_body(event, false).await?;
            if record.state.is_final() {
                break;
            }
        }
        tokio::select! {
            changed = follower.next() => match changed {
                Some(changed) => {
                    record = changed;
                    event = Some(self::event(record.updated.0, &view::order(id, &record, &sale.view)));
                }
                None => break,
            },
            () = tokio::time::sleep(COMMENT_EVERY) => {
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

/// Tells a browser when to come back: not all at once.
fn farewell() -> Bytes {
    let millis = rand::random_range(BACK_MS);
    format!(": this edge stops\nretry: {millis}\n\n").into()
}

/// Turns the head of an answer into that of a stream.
pub fn as_stream(head: &mut ResponseHeader, version: Version) -> pingora::Result<()> {
    head.insert_header(CONTENT_TYPE, KIND)?;
    head.remove_header(&CONTENT_LENGTH);
    head.insert_header(UNBUFFERED, HeaderValue::from_static("no"))?;
    // HTTP/1.0 knows no chunks: there the end of the connection ends the stream.
    if version == Version::HTTP_11 {
        head.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(())
}

/// Makes the workers' whole answer, as it comes in pieces, one event. What Redis has forgotten is
/// over, so there is no second one.
pub fn wrap(whole: &mut Vec<u8>, body: &mut Option<Bytes>, last: bool) {
    whole.extend_from_slice(&body.take().unwrap_or_default());
    if last {
        *body = Some(event(Millis::now().0, whole.trim_ascii()));
    }
}

/// One event. The JSON has no line breaks.
pub fn event(id: i64, json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 48);
    event.extend_from_slice(b"event: order\nid: ");
    event.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
    event.extend_from_slice(b"\ndata: ");
    event.extend_from_slice(json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_two_streams_and_gets_a_place_back() {
        let streams = Streams::new(2);
        let (alice, bob) = (UserId::parse("alice").unwrap(), UserId::parse("bob").unwrap());
        let first = streams.open(&alice).unwrap();
        let _second = streams.open(&alice).unwrap();
        assert!(streams.open(&alice).is_none());
        assert!(streams.open(&bob).is_some());
        drop(first);
        assert!(streams.open(&alice).is_some());
    }
}
