//! What the stream, the gate and the front know of one connection together.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use sluice_shared::verdict::Code;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::connections::Place;

/// What a closing connection is still read for.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// Who reads a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The front: bytes as they come.
    Plain,
    /// A session, from the next byte on.
    Next,
    /// A session, which has no whole head yet.
    Head,
    /// A session whose head the gate has taken over.
    Taken,
    /// Another protocol, after an upgrade.
    Tunnel,
}

const MODES: [Mode; 5] = [Mode::Plain, Mode::Next, Mode::Head, Mode::Taken, Mode::Tunnel];

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Its place among all connections.
    pub place: Place,
    mode: AtomicU8,
    linger: AtomicBool,
    /// Bytes that were read ahead, to be read again.
    ahead: Mutex<BytesMut>,
    has_ahead: AtomicBool,
    /// Whether the present request was read to its end.
    whole: AtomicBool,
    malformed: AtomicBool,
    overdue: AtomicBool,
    /// For how long no byte may go either way, in milliseconds; 0: nobody looks.
    silence: AtomicU64,
    refused: Mutex<Option<Code>>,
}

impl Conn {
    /// A new connection.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            mode: AtomicU8::default(),
            linger: AtomicBool::default(),
            ahead: Mutex::default(),
            has_ahead: AtomicBool::default(),
            whole: AtomicBool::default(),
            malformed: AtomicBool::default(),
            overdue: AtomicBool::default(),
            silence: AtomicU64::default(),
            refused: Mutex::default(),
        }
    }

    /// Who reads it.
    pub fn mode(&self) -> Mode {
        MODES.get(usize::from(self.mode.load(Ordering::Relaxed))).copied().unwrap_or(Mode::Plain)
    }

    fn turn(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// The front reads it.
    pub fn plain(&self) {
        self.turn(Mode::Plain);
    }

    /// The next request is for a session, which finds these bytes first.
    pub fn hand_over(&self, ahead: BytesMut) {
        self.set_ahead(ahead);
        for flag in [&self.whole, &self.malformed, &self.overdue] {
            flag.store(false, Ordering::Relaxed);
        }
        self.silence.store(0, Ordering::Relaxed);
        self.turn(Mode::Next);
    }

    /// The session waits for its head.
    pub fn heads(&self) {
        self.turn(Mode::Head);
    }

    /// The head is read; from here on the gate watches.
    pub fn take_over(&self) {
        self.turn(Mode::Taken);
    }

    /// An answer is awaited, and then perhaps a tunnel: for this long no byte may go either way.
    pub fn watch(&self, silence: Duration) {
        self.silence.store(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// From here on it is another protocol.
    pub fn tunnel(&self, silence: Duration) {
        self.watch(silence);
        self.turn(Mode::Tunnel);
    }

    /// For how long nothing may go either way, if somebody looks.
    pub fn silence(&self) -> Option<Duration> {
        let silence = self.silence.load(Ordering::Relaxed);
        (silence > 0).then(|| Duration::from_millis(silence))
    }

    /// The head is whole; these bytes lie behind it, and it may be the whole request.
    pub fn began(&self, behind: BytesMut, whole: bool) {
        self.set_ahead(behind);
        self.whole.store(whole, Ordering::Relaxed);
    }

    /// The request was read to its end.
    pub fn ended(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    /// The body is malformed: nothing of this connection is read any more.
    pub fn malformed(&self) -> io::Error {
        self.malformed.store(true, Ordering::Relaxed);
        io::Error::from(io::ErrorKind::InvalidData)
    }

    /// Whether it is.
    pub fn is_malformed(&self) -> bool {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Nothing has gone either way for too long.
    pub fn overdue(&self) -> io::Error {
        self.overdue.store(true, Ordering::Relaxed);
        io::Error::from(io::ErrorKind::TimedOut)
    }

    /// Whether it has not.
    pub fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// The head was refused.
    pub fn refuse(&self, code: Code) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
    }

    /// Why it was, once.
    pub fn refused(&self) -> Option<Code> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether something was read ahead.
    pub fn has_ahead(&self) -> bool {
        self.has_ahead.load(Ordering::Relaxed)
    }

    /// What was read ahead.
    pub fn take_ahead(&self) -> BytesMut {
        if !self.has_ahead() {
            return BytesMut::new();
        }
        self.has_ahead.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.ahead.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This is read next.
    pub fn set_ahead(&self, ahead: BytesMut) {
        self.has_ahead.store(!ahead.is_empty(), Ordering::Relaxed);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }

    /// What lies behind a request that was read to its end; behind any other there is nothing that may
    /// be served.
    pub fn next(&self) -> Option<BytesMut> {
        self.whole.load(Ordering::Relaxed).then(|| self.take_ahead())
    }

    /// Something that we shall not read may still be on its way: close with patience.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    /// Whether to close with patience.
    pub fn lingers(&self) -> bool {
        let unread = || !self.whole.load(Ordering::Relaxed) || self.has_ahead();
        self.linger.load(Ordering::Relaxed) || (matches!(self.mode(), Mode::Head | Mode::Taken) && unread())
    }
}

/// Closes with patience: a reset would destroy the answer on its way to the client, so the rest of what he
/// sends is read and thrown away for a moment.
pub async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    // Nobody is left to tell.
    let _ = stream.shutdown().await;
    let (mut waste, mut left) = ([0; 4096], LINGER_BYTES);
    let drain = async {
        while let Ok(n @ 1..) = stream.read(&mut waste).await {
            left = left.saturating_sub(n);
            if left == 0 {
                break;
            }
        }
    };
    // Whoever is slower than that loses the answer.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
