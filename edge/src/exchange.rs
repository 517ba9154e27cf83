//! One request and its answer, as the filters see it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};
use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::verdict::{Code, Rejection};

use crate::conn::Conn;
use crate::fields::Fields;
use crate::fields::REQUEST_ID;
use crate::filter::rate::Left;
use crate::lookups::Lookup;
use crate::metrics::Kind;

/// Bodies up to this size are read to the end beside a refusal, so that the connection lives on.
const DRAIN_BYTES: usize = 64 * 1024;
/// How long the rest of such a body may take once the refusal is told.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Where a request goes when we do not answer it ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// Nowhere: it is answered here.
    #[default]
    Here,
    /// The shop.
    Upstream,
    /// The workers: an order.
    Order(OrderId),
    /// The workers: a payment notice.
    Callback,
}

/// What is known of a request while it is served.
#[derive(Debug)]
pub struct Context {
    /// When its head was read.
    pub started: Instant,
    /// What is asked.
    pub kind: Kind,
    /// Where it goes.
    pub target: Target,
    /// The buyer's address.
    pub client: IpAddr,
    /// The peer's address.
    pub peer: IpAddr,
    /// The verified user, if there is one.
    pub user: Option<UserId>,
    /// `Allow` of the path.
    pub allow: &'static str,
    /// The refusal, if it was refused.
    pub verdict: Option<Code>,
    /// The status of the answer.
    pub status: u16,
    /// What is left in its buckets.
    pub rate: Left,
    /// What the browser may be told, as `Access-Control-Allow-Origin`.
    pub origin: Option<HeaderValue>,
    /// Bytes of a proxied body so far.
    pub forwarded: usize,
    /// Its place among the calls to the workers.
    pub lookup: Option<Lookup>,
    /// Whether it asks for another protocol.
    pub upgrade: bool,
    /// The connection that it came on.
    pub conn: Option<Arc<Conn>>,
    request_id: HeaderValue,
    _busy: Busy,
}

/// Counts as being served until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// One more in this count.
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Context {
    /// A new request; `busy` counts those being served.
    pub fn new(busy: &Arc<AtomicUsize>) -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            started: Instant::now(),
            kind: Kind::PROXIED,
            target: Target::Here,
            client: nobody,
            peer: nobody,
            user: None,
            allow: "",
            verdict: None,
            status: 0,
            rate: Left::default(),
            origin: None,
            forwarded: 0,
            lookup: None,
            upgrade: false,
            conn: None,
            request_id: HeaderValue::from_static("0"),
            _busy: Busy::new(busy),
        }
    }

    /// Takes the client's id of the request when it is a sane one, else mints one.
    pub fn identify(&mut self, fields: &(impl Fields + ?Sized)) {
        let sane = |id: &&[u8]| {
            let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
            (1..=64).contains(&id.len()) && id.iter().all(good)
        };
        let sent =
            fields.field(REQUEST_ID.as_str()).filter(sane).and_then(|id| HeaderValue::from_bytes(id).ok());
        self.request_id = sent.unwrap_or_else(mint);
    }

    /// The id of the request; "0" before it is identified.
    pub fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }
}

fn mint() -> HeaderValue {
    let id = Bytes::from(hex::encode(rand::random::<[u8; 8]>()));
    HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static("0"))
}

/// Why a request is not served further.
#[derive(Debug)]
pub enum Stop {
    /// It is refused.
    Refused(Rejection),
    /// There is nobody to answer any more.
    Gone(Box<Error>),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Self::Gone(error)
    }
}

/// One request and its answer.
pub struct Exchange<'a> {
    /// The connection's present request.
    pub session: &'a mut Session,
    /// What is known of it.
    pub context: &'a mut Context,
}

impl Exchange<'_> {
    /// Its head.
    pub fn head(&self) -> &RequestHeader {
        self.session.downstream_session.req_header()
    }

    /// The head's fields, and what is known of the request.
    pub fn split(&mut self) -> (&HeaderMap, &mut Context) {
        (&self.session.downstream_session.req_header().headers, self.context)
    }

    /// Whether a body follows the head.
    pub fn has_body(&mut self) -> bool {
        !self.session.downstream_session.is_body_empty()
    }

    /// Reads the whole body within a size and a time.
    pub async fn body(&mut self, limit: usize, time: Duration) -> Result<Bytes, Stop> {
        if !self.has_body() {
            return Ok(Bytes::new());
        }
        self.proceed().await?;
        let read = tokio::time::timeout(time, collect(self.session, limit.max(DRAIN_BYTES))).await;
        match read {
            Ok(Ok(Some(body))) if body.len() <= limit => Ok(body),
            Ok(Ok(whole)) => {
                if whole.is_none() {
                    self.close();
                }
                let detail = format!("the body may have {limit} bytes");
                Err(Rejection::new(Code::BodyTooLarge, detail).into())
            }
            Ok(Err(error)) if self.is_malformed(&error) => {
                self.close();
                Err(Rejection::field("body", "the chunks of the body are malformed").into())
            }
            Ok(Err(error)) if *error.etype() != ErrorType::ReadTimedout => Err(Stop::Gone(error)),
            // Two clocks run: that of the whole body, and the session's from byte to byte.
            Ok(Err(_)) | Err(_) => {
                self.close();
                let detail = format!("the body did not come within {} s", time.as_secs_f32());
                Err(Rejection::new(Code::RequestTimeout, detail).into())
            }
        }
    }

    /// Sees to a body that nobody wants, before the answer: it is waited for by nobody. Small ones are
    /// read away, what is still to come of them behind the answer; else the connection closes softly.
    pub fn settle(&mut self) {
        if self.session.downstream_session.is_body_done() {
            return;
        }
        if let Some(here) = collect(self.session, DRAIN_BYTES).now_or_never() {
            if !matches!(here, Ok(Some(_))) {
                self.close();
            }
            return;
        }
        let length = self.head().headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let small = length.is_some_and(|length| length <= DRAIN_BYTES);
        // Who waits to be told may send the body or leave it: nobody knows what comes next.
        if !small || self.expects() || self.session.downstream_session.get_keepalive().is_none() {
            return self.close();
        }
        let session = &mut self.session.downstream_session;
        session.set_close_on_response_before_downstream_finish(false);
        session.set_total_drain_timeout(Some(DRAIN_TIME));
    }

    /// Whether the client waits to be told before it sends the body.
    fn expects(&self) -> bool {
        let expects = self.head().headers.get(http::header::EXPECT);
        expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    }

    /// Whether a body ended because its framing is broken, rather than its connection.
    pub fn is_malformed(&self, error: &Error) -> bool {
        framing(error) || self.context.conn.as_ref().is_some_and(|conn| conn.is_malformed())
    }

    /// Tells a client that waits for it to send the body (RFC 9110 §10.1.1).
    pub async fn proceed(&mut self) -> Result<(), Box<Error>> {
        if self.expects() {
            let session = &mut self.session.downstream_session;
            // An answer before the end of the body costs the connection, and this would count as one.
            session.set_close_on_response_before_downstream_finish(false);
            session.write_continue_response().await?;
            session.set_close_on_response_before_downstream_finish(true);
        }
        Ok(())
    }

    /// This is the connection's last answer, and not everything that was sent is read.
    pub fn close(&mut self) {
        self.session.downstream_session.set_keepalive(None);
        if let Some(conn) = &self.context.conn {
            conn.linger();
        }
    }
}

async fn collect(session: &mut Session, limit: usize) -> pingora::Result<Option<Bytes>> {
    let session = &mut session.downstream_session;
    let Some(first) = session.read_request_body().await? else { return Ok(Some(Bytes::new())) };
    if first.len() > limit {
        return Ok(None);
    }
    let Some(second) = session.read_request_body().await? else { return Ok(Some(first)) };
    let mut whole = BytesMut::from(first);
    whole.extend_from_slice(&second);
    while whole.len() <= limit {
        match session.read_request_body().await? {
            Some(more) => whole.extend_from_slice(&more),
            None => return Ok(Some(whole.freeze())),
        }
    }
    Ok(None)
}

fn framing(error: &Error) -> bool {
    !matches!(
        error.etype(),
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::ReadTimedout | ErrorType::WriteError
    )
}
