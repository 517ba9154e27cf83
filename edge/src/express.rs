//! The short way: a request for a sale that came whole is judged and answered without a session of
//! pingora's, which costs more than all the filters together.
//!
//! Only what is plain goes this way: HTTP/1.1, head and body in one piece, no field that changes how
//! the connection or the body is read. Whatever is not goes the long way, byte for byte as it came,
//! and is refused there where it has to be. The filters are the same on both ways, and so are the
//! answers.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use http::header::ORIGIN;
use pingora::protocols::Stream;
use pingora::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::calls::{self, Asked, Hit, Judged, Route, Short, route};
use crate::conn::Conn;
use crate::connections::Place;
use crate::exchange::{Busy, Context};
use crate::fields::Fields;
use crate::filter::guard;
use crate::framing::Framing;
use crate::gate::{Gate, WRITE_TIMEOUT};
use crate::head;
use crate::metrics::Kind;
use crate::phase::Stage;
use crate::respond::{self, Reply};
use crate::route::normalise;

/// A head with more fields than this goes the long way.
const FIELDS: usize = 48;
/// What is read at once; what is larger goes the long way.
const READ: usize = 4096;
/// Fields that say how a connection or a body is to be read.
const ODD: [&str; 4] = ["expect", "upgrade", "connection", "trailer"];

/// How long the first request of a connection may be on its way when this edge closes.
const FIRST: Duration = Duration::from_secs(1);

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// By a session.
    Session,
    /// Not at all: there is nobody to be told.
    Closed,
    /// Not at all, because this edge stops. What is still sent on it must not destroy the last answer.
    Last,
}

/// Answers what can go the short way.
#[derive(Debug)]
pub struct Express {
    gate: Arc<Gate>,
}

/// A request in one piece.
struct Whole<'b, 'f> {
    hit: Hit<'b>,
    judge: Short,
    fields: &'f [httparse::Header<'b>],
    body: &'b [u8],
}

impl Express {
    /// The short way to a gate.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate }
    }

    /// Serves a connection until something comes that has to go the long way, which is then in `bytes`.
    pub async fn serve(
        &self,
        stream: &mut Stream,
        bytes: &mut BytesMut,
        peer: IpAddr,
        mut fresh: bool,
        place: &Place,
    ) -> Onward {
        let mut go = pin!(place.told_to_go());
        let mut phase = self.gate.phase.clone();
        let mut closing = pin!(phase.reached(Stage::Closing));
        let (mut idle, mut active) = (self.gate.limits.idle_timeout, Instant::now());
        let (mut silent, mut awaited) = (pin!(sleep(idle)), None);
        let mut out = Vec::with_capacity(1024);
        loop {
            while bytes.is_empty() {
                bytes.reserve(READ);
                tokio::select! {
                    biased;
                    read = stream.read_buf(bytes) => match read {
                        Ok(1..) => {}
                        // Gone or broken: nobody is there to be told.
                        Ok(0) | Err(_) => return Onward::Closed,
                    },
                    () = &mut go => return Onward::Closed,
                    () = &mut closing, if awaited.is_none() => {
                        if !fresh { return Onward::Last }
                        // Taken in last: its first request may be on its way.
                        awaited = Some(self.begun());
                        (idle, active) = (FIRST, Instant::now());
                        silent.as_mut().reset((active + idle).into());
                    }
                    // Set once for many requests: where there were some meanwhile, it is set again.
                    () = &mut silent => {
                        if active.elapsed() >= idle { return Onward::Closed }
                        silent.as_mut().reset((active + idle).into());
                    }
                }
            }
            let mut context = Context::new(&self.gate.metrics.busy);
            (context.peer, active, fresh) = (peer, context.started, false);
            let Some((judged, length)) = self.judge(bytes, &mut context) else {
                return Onward::Session;
            };
            // Told to go before the request came: as if it had come too late.
            if !place.begin() {
                return Onward::Closed;
            }
            bytes.advance(length);
            let answer = match judged {
                Judged::Answer(answer) => answer,
                Judged::Take(buyer, lines) => calls::take(&self.gate, buyer, lines).await,
            };
            let reply = answer.unwrap_or_else(|rejection| Reply::refusal(&mut context, &rejection));
            out.clear();
            let last = self.gate.phase.is(Stage::Draining);
            respond::write(&context, &reply, last, &mut out);
            self.gate.metrics.answered(context.kind, context.verdict, context.started.elapsed());
            let written = timeout(WRITE_TIMEOUT, async {
                stream.write_all(&out).await?;
                stream.flush().await
            });
            let written = written.await;
            // Only now it is served: a stopping edge waits until none is being served.
            drop(context);
            place.rest(active);
            let Ok(Ok(())) = written else { return Onward::Closed };
            if last {
                return Onward::Last;
            }
        }
    }

    /// Counts a request that has begun to come as being served.
    pub fn begun(&self) -> Busy {
        Busy::new(&self.gate.metrics.busy)
    }

    /// Counts what a session was not given: its head was refused.
    pub fn refused(&self, conn: &Conn) {
        if let Some(code) = conn.refused() {
            self.gate.metrics.answered(Kind::OTHER, Some(code), Duration::ZERO);
        }
    }

    /// Judges the first request of `bytes`, and tells how long it is; `None` when it has to go the long
    /// way.
    fn judge(&self, bytes: &[u8], context: &mut Context) -> Option<(Judged, usize)> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut fields);
        let Ok(httparse::Status::Complete(length)) = parsed else { return None };
        let (whole, length) = self.whole(&request, bytes, length)?;
        context.identify(whole.fields);
        context.kind = whole.hit.kind;
        context.origin = self.gate.origin(whole.fields.field(ORIGIN.as_str()));
        Some((self.filters(&whole, context), length))
    }

    /// The request and its length, if all of it is there and nothing about it is odd.
    fn whole<'b, 'f>(
        &self,
        request: &'f httparse::Request<'f, 'b>,
        bytes: &'b [u8],
        head: usize,
    ) -> Option<(Whole<'b, 'f>, usize)> {
        let (limits, fields, path) = (&self.gate.limits, &*request.headers, request.path?);
        let length = match head::judge(request, &bytes[..head]).ok()?.framing {
            Framing::Nothing => head,
            Framing::Length(length) => head.checked_add(usize::try_from(length).ok()?)?,
            Framing::Chunked => return None,
        };
        let body = bytes.get(head..length)?;
        let odd = fields.iter().any(|field| ODD.iter().any(|odd| field.name.eq_ignore_ascii_case(odd)));
        let small = fields.len() <= limits.head_fields
            && head <= limits.head_bytes
            && path.len() <= limits.uri_bytes
            && body.len() <= limits.body_bytes;
        if odd || !small || request.version != Some(1) {
            return None;
        }
        // A path that is not plain is one that `normalise` would have to touch.
        let (std::borrow::Cow::Borrowed(path), false) = (normalise(path), path.contains(['?', '#'])) else {
            return None;
        };
        let Route::Ours(hit) = route(path) else { return None };
        let judge = hit.call.short(request.method?)?;
        Some((Whole { hit, judge, fields, body }, length))
    }

    /// The same filters in the same order as on the long way; see [`calls`].
    fn filters(&self, request: &Whole<'_, '_>, context: &mut Context) -> Judged {
        let Whole { hit, judge, fields, body } = *request;
        let asked = Asked { id: hit.id, query: None };
        let judged = guard::ours(fields, !body.is_empty());
        let judged = judged.and_then(|()| judge(&self.gate, fields, context, asked, body));
        judged.unwrap_or_else(|rejection| Judged::Answer(Err(rejection)))
    }
}
