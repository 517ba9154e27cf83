//! One keep-alive connection with at most one request on it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

use super::answer::Reader;
use super::outcome::{CUT, MALFORMED, Outcome, REFUSED};
use super::{Micros, Shot};

/// What came of an attempt to get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits for the network.
    Wait,
    /// The answer is whole.
    Answered,
    /// It is over without an answer.
    Failed(Outcome),
}

/// A socket, or none yet, and the request on it.
#[derive(Debug)]
pub(super) struct Connection {
    source: Ipv4Addr,
    target: SocketAddrV4,
    token: u64,
    stream: Option<TcpStream>,
    connected: bool,
    wants_out: bool,
    written: usize,
    pub(super) shot: Option<Shot>,
    pub(super) sent: Micros,
    pub(super) reader: Reader,
}

impl Connection {
    pub(super) fn new(source: Ipv4Addr, target: SocketAddrV4, token: u64) -> Self {
        Self {
            source,
            target,
            token,
            stream: None,
            connected: false,
            wants_out: false,
            written: 0,
            shot: None,
            sent: 0,
            reader: Reader::default(),
        }
    }

    /// Connected, or not to be.
    pub(super) fn is_settled(&self) -> bool {
        self.connected || self.stream.is_none()
    }

    /// Starts to connect, from this connection's own address.
    pub(super) fn open(&mut self, epoll: &Epoll) -> Result<(), Errno> {
        self.drop_stream();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(self.source, 0)))?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(self.target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let stream = TcpStream::from(fd);
        // Only a delay is lost when it cannot be set.
        stream.set_nodelay(true).ok();
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, self.token))?;
        self.stream = Some(stream);
        self.wants_out = true;
        Ok(())
    }

    /// Closes: the next request connects anew.
    pub(super) fn drop_stream(&mut self) {
        // Closing takes it out of the epoll set.
        self.stream = None;
        self.connected = false;
        self.written = 0;
        self.reader.clear();
    }

    /// Puts a request on it and sends what can be sent.
    pub(super) fn start(&mut self, shot: Shot, now: Micros, epoll: &Epoll) -> Step {
        self.shot = Some(shot);
        self.sent = now;
        self.written = 0;
        self.reader.clear();
        if self.connected {
            return self.send(epoll);
        }
        if self.stream.is_none() && self.open(epoll).is_err() {
            return self.fail(REFUSED);
        }
        Step::Wait
    }

    /// Takes the answered or failed request off.
    pub(super) fn finish(&mut self) -> Option<Shot> {
        self.written = 0;
        self.shot.take()
    }

    /// Gives up on the request that is on it.
    pub(super) fn fail(&mut self, outcome: Outcome) -> Step {
        self.drop_stream();
        Step::Failed(outcome)
    }

    /// The network has something for it.
    pub(super) fn ready(&mut self, flags: EpollFlags, epoll: &Epoll, scratch: &mut [u8]) -> Step {
        if !self.connected && !self.greet(flags) {
            return match self.shot {
                Some(_) => self.fail(REFUSED),
                None => self.idle_end(),
            };
        }
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            let step = self.receive(epoll, scratch);
            if step != Step::Wait {
                return step;
            }
        }
        if flags.contains(EpollFlags::EPOLLOUT) { self.send(epoll) } else { Step::Wait }
    }

    /// Whether the connection stands now.
    fn greet(&mut self, flags: EpollFlags) -> bool {
        let failed = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let sound = |stream: &TcpStream| matches!(stream.take_error(), Ok(None));
        self.connected = !failed && self.stream.as_ref().is_some_and(sound);
        self.connected
    }

    fn idle_end(&mut self) -> Step {
        self.drop_stream();
        Step::Wait
    }

    fn send(&mut self, epoll: &Epoll) -> Step {
        let Some(stream) = self.stream.as_mut() else { return Step::Wait };
        let request = self.shot.as_ref().map_or(&b""[..], |shot| &shot.request);
        while self.written < request.len() {
            match stream.write(&request[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.broken(epoll),
            }
        }
        let wants_out = self.written < request.len();
        if wants_out != self.wants_out {
            let flags =
                if wants_out { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            if epoll.modify(stream, &mut EpollEvent::new(flags, self.token)).is_err() {
                return self.broken(epoll);
            }
            self.wants_out = wants_out;
        }
        Step::Wait
    }

    /// A request of which nothing was sent may go out on another connection: its keep-alive
    /// connection had ended meanwhile.
    fn broken(&mut self, epoll: &Epoll) -> Step {
        if self.written > 0 {
            return self.fail(CUT);
        }
        match self.open(epoll) {
            Ok(()) => Step::Wait,
            Err(_) => self.fail(REFUSED),
        }
    }

    fn receive(&mut self, epoll: &Epoll, scratch: &mut [u8]) -> Step {
        let Some(stream) = self.stream.as_mut() else { return Step::Wait };
        match stream.read(scratch) {
            Ok(0) if self.shot.is_none() => self.idle_end(),
            Ok(0) if self.reader.close() => Step::Answered,
            Ok(0) => self.broken(epoll),
            Ok(_) if self.shot.is_none() => self.idle_end(),
            Ok(count) => match self.reader.feed(&scratch[..count]) {
                Ok(true) => Step::Answered,
                Ok(false) => Step::Wait,
                Err(_) => self.fail(MALFORMED),
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Step::Wait
            }
            Err(_) if self.shot.is_none() => self.idle_end(),
            Err(_) => self.broken(epoll),
        }
    }
}
