//! Server-sent events of orders that Redis no longer knows, or not any more for long: the books are
//! asked every second until the order is final.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use futures_util::stream::unfold;
use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::verdict::{Code, Rejection};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::Api;
use super::buyer::show;
use super::call::Call;
use super::order_sheet::OrderSheet;
use super::reply::Answer;

/// How often the books are asked.
const POLL: Duration = Duration::from_secs(1);
/// How often a silent stream says that it lives.
const COMMENT: Duration = Duration::from_secs(15);
/// A stream ends after this; its ticket has expired by then.
const LONGEST: Duration = Duration::from_secs(30 * 60);

struct Stream {
    api: Arc<Api>,
    order: OrderId,
    user: Option<UserId>,
    end: Instant,
    said: Instant,
    /// The event that was sent last.
    last: Bytes,
    over: bool,
    _room: OwnedSemaphorePermit,
}

/// `GET /internal/v1/orders/{order}/events`
pub async fn stream(api: Arc<Api>, call: Call) -> Answer {
    let (order, user) = (call.order()?, call.watcher()?);
    let room = Arc::clone(&api.streams)
        .try_acquire_owned()
        .map_err(|_| Rejection::new(Code::Overloaded, "too many event streams are open"))?;
    let present = show(&api, &order, user.as_ref()).await?;
    let now = Instant::now();
    let last = event(&present)?;
    let over = present.is_final();
    let stream =
        Stream { api, order, user, end: now + LONGEST, said: now, last: last.clone(), over, _room: room };
    let events = unfold((Some(last), stream), |(first, mut stream)| async move {
        let next = match first {
            Some(first) => Some(first),
            None => stream.next().await,
        }?;
        Some((Ok::<_, std::convert::Infallible>(next), (None, stream)))
    });
    let mut answer = Response::new(Body::from_stream(events));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

fn event(order: &OrderSheet) -> Result<Bytes, Rejection> {
    let data = serde_json::to_string(order)
        .map_err(|error| Rejection::new(Code::Unavailable, format!("the order cannot be shown: {error}")))?;
    Ok(Bytes::from(format!("id: {}\nevent: order\ndata: {data}\n\n", order.version())))
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over && Instant::now() < self.end {
            sleep(POLL).await;
            match show(&self.api, &self.order, self.user.as_ref()).await {
                Ok(order) => {
                    let event = event(&order).ok()?;
                    self.over = order.is_final();
                    if event != self.last {
                        self.said = Instant::now();
                        self.last = event.clone();
                        return Some(event);
                    }
                }
                // A store that is away for a while, or very busy, is no reason to end.
                Err(rejection) if matches!(rejection.code, Code::Unavailable | Code::Overloaded) => {}
                Err(_) => return None,
            }
            if self.said.elapsed() >= COMMENT {
                self.said = Instant::now();
                return Some(Bytes::from_static(b": waiting\n\n"));
            }
        }
        None
    }
}
