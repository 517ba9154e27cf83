//! A client that behaves as a load balancer does: it polls readiness, keeps connections, and goes
//! elsewhere when a server says so.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::answer::{Answer, Reader};
use crate::client::call::call;
use crate::client::outcome::{CUT, MALFORMED, NO_ANSWER, OK, Outcome, REFUSED};

/// How often readiness is asked for; a usual interval.
const POLL: Duration = Duration::from_secs(1);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an edge is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) public: SocketAddrV4,
    pub(super) admin: SocketAddrV4,
}

impl Address {
    /// Whether it wants traffic.
    pub(super) fn is_ready(&self) -> bool {
        let ready = b"GET /-/ready HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
        call(self.admin, ready).outcome() == OK
    }
}

/// The two edges, and which of them wants traffic.
#[derive(Debug)]
pub(super) struct Targets {
    addresses: [Address; 2],
    ready: [AtomicBool; 2],
}

impl Targets {
    pub(super) fn new(addresses: [Address; 2]) -> Self {
        Self { addresses, ready: [const { AtomicBool::new(true) }; 2] }
    }

    /// Polls readiness until told to stop.
    pub(super) fn watch(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            for (address, ready) in self.addresses.iter().zip(&self.ready) {
                ready.store(address.is_ready(), Ordering::Relaxed);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether traffic goes there.
    pub(super) fn is_used(&self, at: usize) -> bool {
        self.ready[at].load(Ordering::Relaxed)
    }
}

/// One thread's connections: at most one to each edge.
pub(super) struct Balancer<'a> {
    targets: &'a Targets,
    kept: [Option<TcpStream>; 2],
    turn: usize,
    stale: u64,
    reader: Reader,
}

impl<'a> Balancer<'a> {
    pub(super) fn new(targets: &'a Targets) -> Self {
        Self { targets, kept: [None, None], turn: 0, stale: 0, reader: Reader::default() }
    }

    /// Kept connections that were closed when they were to be used.
    pub(super) fn stale(&self) -> u64 {
        self.stale
    }

    /// Sends a request to the edges in turn; one that wants no traffic is passed over.
    pub(super) fn call(&mut self, request: &[u8]) -> Answer<'_> {
        self.turn += 1;
        let at = [self.turn % 2, (self.turn + 1) % 2].into_iter().find(|at| self.targets.is_used(*at));
        let at = at.unwrap_or(self.turn % 2);
        let outcome = match self.kept[at].take() {
            // Closed before anything of an answer came: the next one goes over a new connection.
            Some(stream) => match self.exchange(stream, at, request) {
                Err(CUT) if self.reader.is_empty() => {
                    self.stale += 1;
                    self.anew(at, request)
                }
                outcome => outcome,
            },
            None => self.anew(at, request),
        };
        outcome.map_or_else(Answer::none, |()| self.reader.answer())
    }

    fn anew(&mut self, at: usize, request: &[u8]) -> Result<(), Outcome> {
        let stream = TcpStream::connect_timeout(&self.targets.addresses[at].public.into(), PATIENCE);
        let stream = stream.map_err(|_| REFUSED)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_nodelay(true))
            .map_err(|_| REFUSED)?;
        self.exchange(stream, at, request)
    }

    fn exchange(&mut self, mut stream: TcpStream, at: usize, request: &[u8]) -> Result<(), Outcome> {
        self.reader.clear();
        stream.write_all(request).map_err(|_| CUT)?;
        let mut bytes = [0; 16 * 1024];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return if self.reader.close() { Ok(()) } else { Err(CUT) },
                Ok(count) if self.reader.feed(&bytes[..count]).map_err(|_| MALFORMED)? => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(NO_ANSWER);
                }
                Err(_) => return Err(CUT),
            }
        }
        self.kept[at] = (!self.reader.is_last()).then_some(stream);
        Ok(())
    }
}
