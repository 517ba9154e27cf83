//! The connection before and behind a request: one deadline, one size and one judge for the whole head,
//! and an end that nobody reads beyond.
//!
//! pingora's own read timeout counts from byte to byte, so one byte a minute would hold a connection
//! for ever; it buffers heads of up to 1 MiB, mends what it cannot read, takes an empty line for the
//! last chunk, and reads as much as comes. So each stream is wrapped: [`Guarded`] hands a session one
//! head, whole and sound, and then its body up to the end and no further. A head that is not sound it
//! replaces by a NUL, which no head may have, and whatever the parser then writes by the answer that
//! we would have given. A body that is malformed is an error, for good: what lies behind it is lost.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::Limits;
use crate::conn::{Conn, Mode, linger};
use crate::framing::{Body, Framing};
use crate::head::Head;
use crate::respond;
use sluice_shared::verdict::{Code, Rejection};

/// What is read at once beside what a session asks for.
const READ: usize = 4096;

/// A stream that watches each request on it.
pub struct Guarded {
    /// `None` only while it is dropped.
    inner: Option<Stream>,
    conn: Arc<Conn>,
    limits: Limits,
    /// `None` once it is whole.
    head: Option<Head>,
    /// The head as the session is to see it, until it is read.
    sound: BytesMut,
    body: Body,
    timer: Option<Pin<Box<Sleep>>>,
    /// When a head began, or something last went either way.
    since: Option<Instant>,
    /// Our answer in place of the parser's, and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("conn", &self.conn).finish_non_exhaustive()
    }
}

fn late() -> Rejection {
    Rejection::new(Code::RequestTimeout, "the head did not come in time; send it at once")
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}

impl Guarded {
    /// Watches a stream.
    pub fn new(inner: Stream, conn: Arc<Conn>, limits: Limits) -> Self {
        Self {
            inner: Some(inner),
            conn,
            limits,
            head: None,
            sound: BytesMut::new(),
            body: Body::new(Framing::Nothing),
            timer: None,
            since: None,
            answer: None,
        }
    }

    fn read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(Err(gone())) };
        Pin::new(inner).poll_read(context, buffer)
    }

    /// Reads ahead, where nothing was; how much that was.
    fn read_on(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::<u8>::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(self.read(context, &mut buffer))?;
        let came = buffer.filled();
        if !came.is_empty() {
            self.conn.set_ahead(BytesMut::from(came));
        }
        Poll::Ready(Ok(came.len()))
    }

    /// Whether so much time has passed since something came or went.
    fn late(&mut self, context: &mut Context<'_>, limit: Duration) -> bool {
        let end = *self.since.get_or_insert_with(Instant::now) + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        // Set once for many bytes: where there were some meanwhile, it is set again.
        while timer.as_mut().poll(context).is_ready() {
            if end <= Instant::now() {
                return true;
            }
            timer.as_mut().reset(end);
        }
        false
    }

    fn begin(&mut self) {
        (self.head, self.answer) = (Some(Head::default()), None);
        (self.timer, self.since) = (None, None);
        self.sound.clear();
        self.body = Body::new(Framing::Nothing);
    }

    /// Reads a head until it is whole. Almost always the first read brings all of it: only the second
    /// needs a timer.
    fn poll_head(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.answer.is_some() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let came = self.conn.take_ahead();
            if !came.is_empty() {
                self.since.get_or_insert_with(Instant::now);
                match self.head.get_or_insert_default().read(came, &self.limits) {
                    Ok(None) => {}
                    Ok(Some(whole)) => {
                        (self.head, self.timer, self.since) = (None, None, None);
                        (self.sound, self.body) = (whole.head, Body::new(whole.framing));
                        self.conn.began(whole.behind, self.body.is_whole());
                        return self.poll_body(context, buffer);
                    }
                    Err(rejection) => return self.poison(&rejection, buffer),
                }
            }
            match self.read_on(context) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.since.is_some() && self.late(context, self.limits.head_timeout) {
                        return self.poison(&late(), buffer);
                    }
                    return Poll::Pending;
                }
            }
            if self.since.is_some_and(|since| since.elapsed() > self.limits.head_timeout) {
                return self.poison(&late(), buffer);
            }
        }
    }

    fn poison(&mut self, rejection: &Rejection, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.refuse(rejection);
        buffer.put_slice(&[0]);
        Poll::Ready(Ok(()))
    }

    fn refuse(&mut self, rejection: &Rejection) {
        self.conn.refuse(rejection.code);
        self.answer = Some((respond::raw(rejection), 0));
    }

    /// Hands the head and the body to the session, and nothing that lies behind.
    fn poll_body(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.sound.is_empty() {
            let count = self.sound.len().min(buffer.remaining());
            buffer.put_slice(&self.sound[..count]);
            self.sound.advance(count);
            return Poll::Ready(Ok(()));
        }
        if self.body.is_whole() {
            return self.poll_behind(context);
        }
        if self.conn.is_malformed() {
            return Poll::Ready(Err(self.conn.malformed()));
        }
        let before = buffer.filled().len();
        let mut ahead = self.conn.take_ahead();
        let taken = if ahead.is_empty() {
            ready!(self.read(context, buffer))?;
            let came = &buffer.filled()[before..];
            let taken = self.body.take(came);
            if let Ok(taken) = taken
                && taken < came.len()
            {
                self.conn.set_ahead(BytesMut::from(&came[taken..]));
            }
            taken
        } else {
            let count = ahead.len().min(buffer.remaining());
            let taken = self.body.take(&ahead[..count]);
            if let Ok(taken) = taken {
                buffer.put_slice(&ahead.split_to(taken));
                self.conn.set_ahead(ahead);
            }
            taken
        };
        let Ok(taken) = taken else {
            buffer.set_filled(before);
            return Poll::Ready(Err(self.conn.malformed()));
        };
        buffer.set_filled(before + taken);
        if self.body.is_whole() {
            self.conn.ended();
        }
        Poll::Ready(Ok(()))
    }

    /// Behind a request a session only learns that the client is gone: what else comes waits until the
    /// next one.
    fn poll_behind(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.silence().is_some_and(|limit| self.late(context, limit)) {
            return Poll::Ready(Err(self.conn.overdue()));
        }
        if self.conn.has_ahead() {
            return Poll::Pending;
        }
        match ready!(self.read_on(context))? {
            0 => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    /// Another protocol: all bytes pass, until none has gone either way for long.
    fn poll_tunnel(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match self.poll_plain(context, buffer) {
            Poll::Pending if self.conn.silence().is_some_and(|limit| self.late(context, limit)) => {
                Poll::Ready(Ok(()))
            }
            polled => {
                if buffer.filled().len() > before {
                    self.since = Some(Instant::now());
                }
                polled
            }
        }
    }

    fn poll_plain(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.conn.has_ahead() {
            return self.read(context, buffer);
        }
        let mut ahead = self.conn.take_ahead();
        let count = ahead.len().min(buffer.remaining());
        buffer.put_slice(&ahead.split_to(count));
        self.conn.set_ahead(ahead);
        Poll::Ready(Ok(()))
    }

    fn write_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some((answer, at)), Some(inner)) = (self.answer.as_mut(), self.inner.as_mut()) else {
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

    /// Whether what is written is the parser's own answer, which nobody shall see.
    fn is_replaced(&mut self) -> bool {
        let replaced = matches!(self.conn.mode(), Mode::Next | Mode::Head);
        if replaced && self.answer.is_none() {
            // Sound to us, and not to the parser.
            self.refuse(&Rejection::field("head", "the request line or a field is malformed"));
        }
        replaced
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.conn.mode() {
            Mode::Plain => this.poll_plain(context, buffer),
            Mode::Next => {
                this.begin();
                this.conn.heads();
                this.poll_head(context, buffer)
            }
            Mode::Head if this.head.is_some() => this.poll_head(context, buffer),
            Mode::Head | Mode::Taken => this.poll_body(context, buffer),
            Mode::Tunnel => this.poll_tunnel(context, buffer),
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
        if this.is_replaced() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(Err(gone())) };
        let written = ready!(Pin::new(inner).poll_write(context, bytes));
        if this.conn.silence().is_some() {
            this.since = Some(Instant::now());
        }
        Poll::Ready(written)
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
        if !self.is_replaced() && self.conn.silence().is_none() {
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

impl Drop for Guarded {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if let (true, Ok(runtime)) = (self.conn.lingers(), tokio::runtime::Handle::try_current()) {
            let conn = Arc::clone(&self.conn);
            runtime.spawn(async move {
                linger(inner).await;
                // It keeps its place until then.
                drop(conn);
            });
        }
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
