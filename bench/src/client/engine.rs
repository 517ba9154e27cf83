//! The load loop: sends each request when it is due and never waits for the ones before.
//!
//! One thread, one epoll, one request at a time on a connection. A request that is due while every
//! connection is busy waits here, and the wait counts: latency is measured from when it was due
//! (coordinated omission is what the opposite is called).

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::answer::Answer;
use super::connection::{Connection, Step};
use super::outcome::{NO_ANSWER, Outcome};
use super::{Entry, Lane, Load, Micros, Shot};
use crate::cpu;

/// The timer's token in the epoll set; connections count from 0.
const TIMER: u64 = u64::MAX;
/// Requests that are due within this time of each other go out together.
const QUANTUM: Micros = 100;
/// Requests that are drawn up while every connection is busy.
const QUEUE: usize = 4096;
/// How often deadlines are looked at.
const SWEEP: Micros = 100_000;

/// How the load is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The gates; connections are spread over them, so that a second attempt may meet another.
    pub targets: Vec<SocketAddrV4>,
    /// Connections of the crowd.
    pub connections: usize,
    /// Connections of the bots.
    pub bots: usize,
    /// An answer later than this is none.
    pub patience: Duration,
    /// The load ends after so long, whatever is left.
    pub limit: Duration,
    /// What times are counted from: one moment for all loads of a drill.
    pub base: Instant,
}

/// What is told about each request as it ends.
pub trait Sink {
    /// A request ended.
    fn note(&mut self, shot: &Shot, entry: &Entry, answer: &Answer<'_>);
    /// Called some times a second.
    fn tick(&mut self, now: Micros);
}

/// How a load went.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    /// From the first request sent to the last answer.
    pub elapsed: Duration,
    /// Requests that ended.
    pub requests: u64,
    /// Requests that were never sent because time was up.
    pub unsent: u64,
    /// CPU time of the generator's thread.
    pub cpu: Duration,
}

struct Engine {
    options: Options,
    epoll: Epoll,
    timer: TimerFd,
    connections: Vec<Connection>,
    idle: [VecDeque<usize>; 2],
    waiting: [VecDeque<Shot>; 2],
    later: BTreeMap<(Micros, u64), Shot>,
    counter: u64,
    flying: usize,
    requests: u64,
    first_sent: Option<Micros>,
    last_done: Micros,
}

/// Runs a load to its end.
pub fn run(options: &Options, load: &mut dyn Load, sink: &mut dyn Sink) -> Result<Ran> {
    let mut engine = Engine::new(options.clone())?;
    engine.warm_up()?;
    let cpu = cpu::of_this_thread();
    load.begin(engine.now());
    engine.drive(load, sink)?;
    let unsent = engine.waiting.iter().map(VecDeque::len).sum::<usize>() + engine.later.len();
    Ok(Ran {
        elapsed: Duration::from_micros(engine.last_done.saturating_sub(engine.first_sent.unwrap_or(0))),
        requests: engine.requests,
        unsent: u64::try_from(unsent).unwrap_or(u64::MAX),
        cpu: cpu::of_this_thread().saturating_sub(cpu),
    })
}

fn lane_at(lane: Lane) -> usize {
    match lane {
        Lane::Crowd => 0,
        Lane::Bots => 1,
    }
}

/// The own address of a connection: 127.1.0.1 and on for the crowd, one for all bots.
fn source(number: usize, crowd: usize) -> Ipv4Addr {
    if number >= crowd {
        return Ipv4Addr::new(127, 66, 66, 66);
    }
    let byte = |shift: usize| u8::try_from((number >> shift) & 0x7f).unwrap_or(0);
    Ipv4Addr::new(127, 1, byte(7), byte(0) + 1)
}

impl Engine {
    fn new(options: Options) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
                .context("timer")?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER)).context("epoll")?;
        let all = options.connections + options.bots;
        if options.targets.is_empty() {
            bail!("a load needs a target");
        }
        let connection = |at: usize| {
            let target = options.targets[at % options.targets.len()];
            Connection::new(source(at, options.connections), target, u64::try_from(at).unwrap_or(TIMER))
        };
        Ok(Self {
            epoll,
            timer,
            connections: (0..all).map(connection).collect(),
            idle: [(0..options.connections).collect(), (options.connections..all).collect()],
            waiting: [VecDeque::new(), VecDeque::new()],
            later: BTreeMap::new(),
            counter: 0,
            flying: 0,
            requests: 0,
            first_sent: None,
            last_done: 0,
            options,
        })
    }

    fn now(&self) -> Micros {
        Micros::try_from(self.options.base.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// Connects before the clock starts, so that no buyer's time is the kernel's.
    fn warm_up(&mut self) -> Result<()> {
        for connection in &mut self.connections {
            connection
                .open(&self.epoll)
                .with_context(|| format!("connecting to {:?}", self.options.targets))?;
        }
        let (deadline, mut scratch) = (Instant::now() + Duration::from_secs(5), vec![0; 4096]);
        let mut events = vec![EpollEvent::empty(); 1024];
        while Instant::now() < deadline && !self.connections.iter().all(Connection::is_settled) {
            let count = self.epoll.wait(&mut events, EpollTimeout::from(100_u8)).unwrap_or(0);
            for event in &events[..count] {
                let at = usize::try_from(event.data()).unwrap_or(usize::MAX);
                if let Some(connection) = self.connections.get_mut(at) {
                    connection.ready(event.events(), &self.epoll, &mut scratch);
                }
            }
        }
        Ok(())
    }

    fn drive(&mut self, load: &mut dyn Load, sink: &mut dyn Sink) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 512];
        let (mut scratch, mut more) = (vec![0; 64 * 1024], Vec::new());
        let limit = self.now() + Micros::try_from(self.options.limit.as_micros()).unwrap_or(Micros::MAX / 2);
        let mut swept = 0;
        loop {
            let now = self.now();
            self.gather(load, now);
            self.dispatch(load, sink, &mut more);
            let next = load.peek().into_iter().chain(self.later.keys().next().map(|(due, _)| *due)).min();
            let queued = self.waiting.iter().any(|queue| !queue.is_empty());
            if now >= limit || (next.is_none() && self.flying == 0 && !queued) {
                return Ok(());
            }
            // With the queues full it is answers that have to come.
            self.set_timer(next.filter(|_| !self.is_full()), now)?;
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(50_u8)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("epoll"),
            };
            for event in &events[..count] {
                self.ready(*event, &mut scratch, load, sink, &mut more);
            }
            if now >= swept + SWEEP {
                swept = now;
                self.sweep(now, load, sink, &mut more);
                sink.tick(now);
            }
        }
    }

    /// Enough waits already: a step is not drawn up all at once.
    fn is_full(&self) -> bool {
        self.waiting.iter().any(|queue| queue.len() >= QUEUE)
    }

    /// Moves what is due into the queues.
    fn gather(&mut self, load: &mut dyn Load, now: Micros) {
        while !self.is_full() && load.peek().is_some_and(|due| due <= now) {
            let Some(shot) = load.take() else { break };
            self.waiting[lane_at(shot.lane)].push_back(shot);
        }
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let shot = entry.remove();
            self.waiting[lane_at(shot.lane)].push_back(shot);
        }
    }

    /// Sends what waits while a connection is idle.
    fn dispatch(&mut self, load: &mut dyn Load, sink: &mut dyn Sink, more: &mut Vec<Shot>) {
        for lane in 0..self.waiting.len() {
            while !self.waiting[lane].is_empty() {
                let Some(at) = self.idle[lane].pop_front() else { break };
                let Some(shot) = self.waiting[lane].pop_front() else { break };
                let now = self.now();
                self.flying += 1;
                self.first_sent.get_or_insert(now);
                let step = self.connections[at].start(shot, now, &self.epoll);
                self.settle(at, step, load, sink, more);
            }
        }
    }

    fn ready(
        &mut self,
        event: EpollEvent,
        scratch: &mut [u8],
        load: &mut dyn Load,
        sink: &mut dyn Sink,
        more: &mut Vec<Shot>,
    ) {
        if event.data() == TIMER {
            // Reads the timer so that it is silent again.
            self.timer.wait().ok();
            return;
        }
        let at = usize::try_from(event.data()).unwrap_or(usize::MAX);
        let Some(connection) = self.connections.get_mut(at) else { return };
        let step = connection.ready(event.events(), &self.epoll, scratch);
        self.settle(at, step, load, sink, more);
    }

    /// Notes the end of a request and asks what follows from it.
    fn settle(
        &mut self,
        at: usize,
        step: Step,
        load: &mut dyn Load,
        sink: &mut dyn Sink,
        more: &mut Vec<Shot>,
    ) {
        let failure: Option<Outcome> = match step {
            Step::Wait => return,
            Step::Answered => None,
            Step::Failed(outcome) => Some(outcome),
        };
        let done = self.now();
        let connection = &mut self.connections[at];
        let sent = connection.sent;
        let Some(shot) = connection.finish() else { return };
        let answer = failure.map_or_else(|| connection.reader.answer(), Answer::none);
        sink.note(&shot, &Entry::of(&shot, sent, done, &answer), &answer);
        load.answered(&shot, &answer, done, more);
        if failure.is_none() && connection.reader.is_last() {
            connection.drop_stream();
        }
        self.flying -= 1;
        self.requests += 1;
        self.last_done = done;
        self.idle[lane_at(shot.lane)].push_back(at);
        for shot in more.drain(..) {
            self.counter += 1;
            self.later.insert((shot.due, self.counter), shot);
        }
    }

    /// Gives up on requests whose answers are late.
    fn sweep(&mut self, now: Micros, load: &mut dyn Load, sink: &mut dyn Sink, more: &mut Vec<Shot>) {
        let patience = Micros::try_from(self.options.patience.as_micros()).unwrap_or(Micros::MAX);
        for at in 0..self.connections.len() {
            let connection = &mut self.connections[at];
            if connection.shot.is_some() && now.saturating_sub(connection.sent) > patience {
                let step = connection.fail(NO_ANSWER);
                self.settle(at, step, load, sink, more);
            }
        }
    }

    /// Wakes the loop when the next request is due.
    fn set_timer(&self, next: Option<Micros>, now: Micros) -> Result<()> {
        let Some(due) = next else { return Ok(()) };
        let wait = Duration::from_micros(due.saturating_sub(now).max(QUANTUM));
        let after = Expiration::OneShot(TimeSpec::from_duration(wait));
        self.timer.set(after, TimerSetTimeFlags::empty()).context("timer")
    }
}
