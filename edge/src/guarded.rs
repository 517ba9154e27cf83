//! The connection before it is a request: one deadline and one size for the whole head.
//!
//! pingora's own read timeout counts from byte to byte, so one byte a minute would hold a connection
//! for ever; it buffers heads of up to 1 MiB, and answers a head that it cannot read by itself. So
//! each stream is wrapped: until the gate has taken the request over, [`Guarded`] watches time and
//! size. When either runs out it feeds the parser a NUL, which no head may have, and whatever the
//! parser then writes is replaced by the answer that we would have given.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::Limits;
use crate::connections::Place;
use crate::respond;
use sluice_shared::verdict::{Code, Rejection};

/// What a closing connection is still read for, so that the client sees our last answer instead of
/// a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// What the stream and the gate know of one connection together.
#[derive(Debug)]
pub struct Conn {
    /// Its place among all connections.
    pub place: Place,
    taken: AtomicBool,
    linger: AtomicBool,
    /// Bytes that were read ahead, to be read again.
    ahead: Mutex<BytesMut>,
    has_ahead: AtomicBool,
    /// Bytes that the present session has read.
    read: AtomicUsize,
}

impl Conn {
    /// A new connection.
    pub fn new(place: Place) -> Self {
        let (taken, linger, has_ahead) = Default::default();
        Self { place, taken, linger, ahead: Mutex::default(), has_ahead, read: AtomicUsize::new(0) }
    }

    /// The head is read; from here on the gate watches.
    pub fn take_over(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// The next head is for a session, which finds these bytes first.
    pub fn hand_over(&self, ahead: BytesMut) {
        self.has_ahead.store(!ahead.is_empty(), Ordering::Relaxed);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
        self.read.store(0, Ordering::Relaxed);
        self.taken.store(false, Ordering::Relaxed);
    }

    /// How many bytes the present session has read.
    pub fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads again what was read ahead; `false` when there is nothing.
    fn read_ahead(&self, buffer: &mut ReadBuf<'_>) -> bool {
        if !self.has_ahead.load(Ordering::Relaxed) {
            return false;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let count = ahead.len().min(buffer.remaining());
        buffer.put_slice(&ahead.split_to(count));
        self.has_ahead.store(!ahead.is_empty(), Ordering::Relaxed);
        true
    }

    /// Something that we shall not read may still be on its way: close with patience.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    TooLarge,
    TooLate,
}

/// What came of the present head.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    lines: usize,
    /// Length of the request line, once it has ended.
    first: Option<usize>,
    trouble: Option<Trouble>,
    /// Our answer in place of the parser's, and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
}

impl Head {
    fn came(&mut self, bytes: &[u8]) {
        if self.first.is_none() {
            self.first = bytes.iter().position(|byte| *byte == b'\n').map(|at| self.bytes + at);
        }
        self.lines += bytes.iter().map(|byte| usize::from(*byte == b'\n')).sum::<usize>();
        self.bytes += bytes.len();
    }

    /// What the parser means with its answer, which begins with `wrote`.
    fn verdict(&self, wrote: &[u8], limits: &Limits) -> Rejection {
        let uri = self.first.unwrap_or(self.bytes) > limits.uri_bytes;
        match self.trouble {
            Some(Trouble::TooLate) => {
                Rejection::new(Code::RequestTimeout, "the head did not come in time; send it at once")
            }
            _ if uri => Rejection::new(Code::UriTooLong, "shorten the request target"),
            Some(Trouble::TooLarge) => Rejection::new(Code::HeadersTooLarge, "send fewer or shorter fields"),
            // The request line and the blank one are no fields.
            None if self.lines > limits.head_fields + 2 => {
                Rejection::new(Code::HeadersTooLarge, "send fewer or shorter fields")
            }
            None if wrote.starts_with(b"HTTP/1.1 405") => {
                Rejection::new(Code::MethodNotAllowed, "CONNECT is not for this gate")
            }
            None => Rejection::field("head", "the request line, a field or the framing is malformed"),
        }
    }
}

/// A stream that watches the head of each request on it.
pub struct Guarded {
    /// `None` only while it is dropped.
    inner: Option<Stream>,
    conn: Arc<Conn>,
    limits: Limits,
    head: Head,
    began: Option<Instant>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("conn", &self.conn).finish_non_exhaustive()
    }
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}

impl Guarded {
    /// Watches a stream.
    pub fn new(inner: Stream, conn: Arc<Conn>, limits: Limits) -> Self {
        Self { inner: Some(inner), conn, limits, head: Head::default(), began: None, deadline: None }
    }

    fn taken(&mut self) -> bool {
        let taken = self.conn.taken.load(Ordering::Relaxed);
        if taken && self.head.bytes > 0 {
            self.head = Head::default();
            self.began = None;
            self.deadline = None;
        }
        taken
    }

    fn fill(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.conn.read_ahead(buffer) {
            return Poll::Ready(Ok(()));
        }
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(Err(gone())) };
        Pin::new(inner).poll_read(context, buffer)
    }

    fn poison(&mut self, trouble: Trouble, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.head.trouble = Some(trouble);
        self.conn.linger();
        buffer.put_slice(&[0]);
        Poll::Ready(Ok(()))
    }

    /// The first read of a head almost always brings all of it: only the second needs a timer.
    fn late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(began) = self.began else { return false };
        let end = began + self.limits.head_timeout;
        let sleep = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        sleep.as_mut().poll(context).is_ready()
    }

    fn write_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some((answer, at)), Some(inner)) = (self.head.answer.as_mut(), self.inner.as_mut()) else {
            return Poll::Ready(Ok(()));
        };
        while *at < answer.len() {
            match ready!(Pin::new(&mut *inner).poll_write(context, &answer[*at..])) {
                Ok(0) => return Poll::Ready(Err(gone())),
                Ok(written) => *at += written,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let taken = this.taken();
        let before = buffer.filled().len();
        if taken {
            ready!(this.fill(context, buffer))?;
            this.conn.read.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
            return Poll::Ready(Ok(()));
        }
        if this.head.trouble.is_some() {
            return Poll::Ready(Ok(()));
        }
        // Asked for more: what came so far is no whole head.
        if this.head.bytes >= this.limits.head_bytes {
            return this.poison(Trouble::TooLarge, buffer);
        }
        match this.fill(context, buffer) {
            Poll::Pending if this.late(context) => this.poison(Trouble::TooLate, buffer),
            Poll::Ready(Ok(())) => {
                let came = &buffer.filled()[before..];
                this.conn.read.fetch_add(came.len(), Ordering::Relaxed);
                this.head.came(came);
                match this.began {
                    None if !came.is_empty() => this.began = Some(Instant::now()),
                    Some(began) if began.elapsed() > this.limits.head_timeout => {
                        buffer.set_filled(before);
                        return this.poison(Trouble::TooLate, buffer);
                    }
                    _ => {}
                }
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.taken() {
            let Some(inner) = this.inner.as_mut() else { return Poll::Ready(Err(gone())) };
            return Pin::new(inner).poll_write(context, bytes);
        }
        if this.head.answer.is_none() {
            let rejection = this.head.verdict(bytes, &this.limits);
            this.conn.linger();
            this.head.answer = Some((respond::raw(&rejection), 0));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.write_answer(context))?;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(Err(gone())) };
        Pin::new(inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.write_answer(context))?;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(Err(gone())) };
        Pin::new(inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.taken() {
            let Some(inner) = self.inner.as_mut() else { return Poll::Ready(Err(gone())) };
            return Pin::new(inner).poll_write_vectored(context, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_write_vectored())
    }
}

/// A reset would destroy the answer on its way to the client, so the rest of what he sends is read
/// and thrown away for a moment.
impl Drop for Guarded {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        if !self.conn.linger.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let conn = Arc::clone(&self.conn);
        runtime.spawn(async move {
            // It keeps its place until then.
            let _conn = conn;
            inner.shutdown().await;
            let (mut waste, mut left) = ([0; 4096], LINGER_BYTES);
            let drain = async {
                while let Ok(n @ 1..) = inner.read(&mut waste).await {
                    left = left.saturating_sub(n);
                    if left == 0 {
                        break;
                    }
                }
            };
            // Whoever is slower than that loses the answer.
            let _ = tokio::time::timeout(LINGER, drain).await;
        });
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        // Nobody is left to tell.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait]
impl Peek for Guarded {}

impl UniqueID for Guarded {
    fn id(&self) -> UniqueIDType {
        self.inner.as_ref().map_or(-1, |inner| inner.id())
    }
}

impl Ssl for Guarded {}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.as_ref().map(|inner| inner.get_timing_digest()).unwrap_or_default()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.as_ref().and_then(|inner| inner.get_proxy_digest())
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.as_ref().and_then(|inner| inner.get_socket_digest())
    }
}
