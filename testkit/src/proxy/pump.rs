//! One direction of one connection: takes bytes in, lets them out as the rules say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Counts;
use super::frames::{Framer, Piece, Protocol};
use super::rules::{Armed, Deed, Flow, Moment, Rules, Trap};
use super::way::Way;

/// Bytes that a direction keeps at the most; more wait at the sender.
const KEPT: usize = 1024 * 1024;

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its sender closed it, and everything was delivered.
    Closed,
    /// The connection is broken, or has to be.
    Broken,
    /// What this direction carried was delivered; now the connection is cut.
    Delivered,
}

/// A connection of a proxy, as each of its pumps sees it.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) rules: watch::Receiver<Rules>,
    pub(super) counts: Arc<Counts>,
    pub(super) protocol: Protocol,
    pub(super) seed: u64,
}

pub(super) struct Pump {
    way: Way,
    rules: watch::Receiver<Rules>,
    counts: Arc<Counts>,
    framer: Framer,
    random: StdRng,
    flow: Flow,
    closes: u64,
    trap: Option<Watch>,
    queue: VecDeque<(Instant, Bytes)>,
    kept: usize,
    /// No more comes: the sender has closed, or was told that nobody listens.
    eof: bool,
    /// Nobody gets what still comes.
    deaf: bool,
    /// A gap: the connection must not go on.
    lost: bool,
    /// A trap has sprung: cut as soon as the queue is empty.
    cut: bool,
}

/// A trap as one connection follows it.
struct Watch {
    armed: Arc<Armed>,
    carried: u64,
    /// The last bytes, in which a text may have begun.
    tail: Vec<u8>,
}

impl Pump {
    pub(super) fn new(ground: &Ground, way: Way) -> Self {
        let mut rules = ground.rules.clone();
        let now = rules.borrow_and_update().clone();
        Self {
            way,
            rules,
            counts: ground.counts.clone(),
            framer: Framer::new(ground.protocol, way),
            random: StdRng::seed_from_u64(ground.seed.wrapping_mul(2).wrapping_add(way.at() as u64)),
            flow: now.flow[way.at()],
            closes: now.closes[way.at()],
            trap: Watch::of(now.trap, way),
            queue: VecDeque::new(),
            kept: 0,
            eof: false,
            deaf: false,
            lost: false,
            cut: false,
        }
    }

    pub(super) async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            if self.flow != Flow::Hold && self.queue.is_empty() {
                if self.cut {
                    return if self.lost { End::Broken } else { End::Delivered };
                }
                if self.eof && self.flow != Flow::Drop {
                    let closed = to.shutdown().await;
                    return if closed.is_ok() { End::Closed } else { End::Broken };
                }
            }
            let due = self.queue.front().map(|(due, _)| *due).filter(|_| self.flow != Flow::Hold);
            let reads = !self.eof && !self.cut && self.kept < KEPT;
            tokio::select! {
                biased;
                changed = self.rules.changed() => {
                    if changed.is_err() || !self.turn() {
                        return End::Broken;
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if !self.deliver(&mut to).await {
                        return End::Broken;
                    }
                }
                read = from.read(&mut buffer), if reads => match read {
                    Ok(0) => self.end(),
                    Ok(count) => self.take(&buffer[..count]),
                    // A partition hides a reset as it hides bytes.
                    Err(_) if matches!(self.flow, Flow::Hold | Flow::Drop) => {
                        self.eof = true;
                        self.lost = true;
                    }
                    Err(_) => return End::Broken,
                },
            }
        }
    }

    /// The sender has closed, maybe within a frame.
    fn end(&mut self) {
        if let Some(rest) = self.framer.finish() {
            self.pass(rest);
        }
        self.eof = true;
        self.lost |= self.flow == Flow::Drop;
    }

    /// Follows the rules, which have changed; whether the connection may go on.
    fn turn(&mut self) -> bool {
        let rules = self.rules.borrow_and_update().clone();
        let at = self.way.at();
        if !self.trap.as_ref().is_some_and(|watch| watch.is(rules.trap.as_ref())) {
            self.trap = Watch::of(rules.trap, self.way);
        }
        if rules.closes[at] > self.closes {
            self.closes = rules.closes[at];
            self.eof = true;
            self.deaf = true;
        }
        let before = std::mem::replace(&mut self.flow, rules.flow[at]);
        if self.flow == Flow::Drop {
            for (_, bytes) in std::mem::take(&mut self.queue) {
                self.swallow(bytes.len());
            }
            self.kept = 0;
        } else if before == Flow::Hold && self.flow != Flow::Hold {
            let now = Instant::now();
            self.queue.iter_mut().for_each(|(due, _)| *due = now);
        }
        // A stream with a gap is none: held or dropped, it ends with the fault.
        !self.lost || matches!(self.flow, Flow::Hold | Flow::Drop)
    }

    fn swallow(&mut self, count: usize) {
        self.lost = true;
        self.counts.swallowed.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Bytes came.
    fn take(&mut self, bytes: &[u8]) {
        for piece in self.framer.feed(bytes) {
            self.pass(piece);
        }
    }

    /// Keeps a piece, or does with it what the rules say.
    fn pass(&mut self, piece: Piece) {
        if self.deaf || self.cut {
            return;
        }
        if self.flow == Flow::Drop {
            self.swallow(piece.bytes.len());
            return;
        }
        let Some(Snap { deed, upto }) = self.trap.as_mut().and_then(|watch| watch.look(&piece)) else {
            return self.keep(piece.bytes);
        };
        match deed {
            Deed::Lose | Deed::Cut => {
                self.keep(piece.bytes.slice(..upto));
                self.lost |= deed == Deed::Lose;
                self.cut = true;
            }
            Deed::Twice => {
                self.keep(piece.bytes.clone());
                self.keep(piece.bytes);
                self.cut = self.way == Way::Up;
            }
        }
    }

    /// Puts bytes into the queue, for when they are due.
    fn keep(&mut self, bytes: Bytes) {
        let now = Instant::now();
        let after = self.queue.back().map_or(now, |(due, _)| (*due).max(now));
        let due = match self.flow {
            Flow::Pass | Flow::Drop | Flow::Hold => after,
            Flow::Delay(least, most) => {
                let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2);
                let late = self.random.random_range(micros(least)..=micros(most));
                after.max(now + Duration::from_micros(late))
            }
            Flow::Throttle(rate) => {
                let micros = bytes.len() as u64 * 1_000_000 / u64::from(rate.max(1));
                after + Duration::from_micros(micros)
            }
        };
        self.kept += bytes.len();
        self.queue.push_back((due, bytes));
    }

    /// Lets the first of the queue out; whether that was possible.
    async fn deliver(&mut self, to: &mut WriteHalf<'_>) -> bool {
        let Some((_, bytes)) = self.queue.pop_front() else { return true };
        self.kept -= bytes.len();
        let sent = to.write_all(&bytes).await.is_ok();
        self.counts.carried.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        sent
    }
}

/// A trap sprang at this piece: of which so many bytes are still carried.
struct Snap {
    deed: Deed,
    upto: usize,
}

impl Watch {
    fn of(armed: Option<Arc<Armed>>, way: Way) -> Option<Self> {
        let armed = armed.filter(|armed| armed.trap.way == way && !armed.has_sprung())?;
        Some(Self { armed, carried: 0, tail: Vec::new() })
    }

    fn is(&self, armed: Option<&Arc<Armed>>) -> bool {
        armed.is_some_and(|armed| Arc::ptr_eq(armed, &self.armed))
    }

    /// Whether the trap springs at this piece.
    fn look(&mut self, piece: &Piece) -> Option<Snap> {
        if self.armed.has_sprung() {
            return None;
        }
        let armed = self.armed.clone();
        let Trap { moment, deed, .. } = &armed.trap;
        let length = piece.bytes.len();
        let upto = match moment {
            Moment::Frame(frame) => {
                (piece.frame == Some(*frame)).then_some(if *deed == Deed::Lose { 0 } else { length })
            }
            Moment::Bytes(count) => {
                let left = usize::try_from(count.saturating_sub(self.carried)).unwrap_or(usize::MAX);
                self.carried += length as u64;
                (left <= length).then_some(left)
            }
            Moment::Text(text) => self.find(text, &piece.bytes).map(|end| match deed {
                Deed::Lose => end.saturating_sub(text.len()),
                Deed::Cut | Deed::Twice => end,
            }),
        };
        upto.filter(|_| armed.spring()).map(|upto| Snap { deed: *deed, upto })
    }

    /// Where in these bytes a text ends that may have begun in those before.
    fn find(&mut self, text: &[u8], bytes: &[u8]) -> Option<usize> {
        if text.is_empty() {
            return None;
        }
        let before = self.tail.len();
        self.tail.extend_from_slice(bytes);
        let found = self.tail.windows(text.len()).position(|window| window == text);
        let end = found.map(|at| (at + text.len()).saturating_sub(before));
        let spare = self.tail.len().saturating_sub(text.len() - 1);
        self.tail.drain(..spare);
        end
    }
}
