//! The listening sockets: bound, or taken over from a running edge, and served.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::l4::listener::Listener;
use pingora::protocols::l4::stream::Stream;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora_runtime::current_handle;
use tokio::sync::watch;

use crate::config::Listen;
use crate::connections::Connections;
use crate::front::Front;
use crate::phase::Phase;

/// Connections that may wait to be taken; the kernel's own limit (`net.core.somaxconn`) is below it.
const BACKLOG: i32 = 65_535;
/// After an error: those that are open will end.
const PAUSE: Duration = Duration::from_millis(100);
/// After an error for which idle connections are closed.
const MOMENT: Duration = Duration::from_millis(5);

/// The sockets of one edge.
#[derive(Debug)]
pub struct Listeners {
    /// For everybody.
    pub public: Vec<TcpListener>,
    /// For operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Those of the configuration: out of `taken`, and what is not there is bound.
    pub fn open(listen: &Listen, mut taken: Vec<TcpListener>) -> anyhow::Result<Self> {
        let mut open = |address: SocketAddr, key: &str| -> anyhow::Result<TcpListener> {
            let there = taken.iter().position(|socket| socket.local_addr().ok() == Some(address));
            let socket = match there {
                Some(at) => taken.swap_remove(at),
                None => TcpListener::bind(address)
                    .with_context(|| format!("{key}: cannot listen on {address}"))?,
            };
            rustix::net::listen(&socket, BACKLOG).with_context(|| format!("{key}: {address}"))?;
            socket.set_nonblocking(true).with_context(|| format!("{key}: {address}"))?;
            Ok(socket)
        };
        let admin = open(listen.admin, "listen.admin")?;
        let public = listen.public.iter().map(|address| open(*address, "listen.public"));
        Ok(Self { public: public.collect::<anyhow::Result<_>>()?, admin })
    }

    /// The same sockets once more, for a successor.
    pub fn share(&self) -> std::io::Result<Shared> {
        let sockets = self.public.iter().chain([&self.admin]).map(TcpListener::try_clone);
        Ok(Shared(Mutex::new(sockets.collect::<std::io::Result<_>>()?)))
    }
}

/// What a successor may have, until it is withdrawn.
#[derive(Debug)]
pub struct Shared(Mutex<Vec<TcpListener>>);

impl Shared {
    /// The sockets; none once they are withdrawn.
    pub fn sockets(&self) -> MutexGuard<'_, Vec<TcpListener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listeners are being closed: nobody gets them any more.
    pub fn withdraw(&self) {
        self.sockets().clear();
    }
}

/// Takes connections off its sockets until they go elsewhere.
#[derive(Debug)]
pub struct Door<A> {
    /// Bound before anything starts, so that a taken port is told at once. Gone once they are served:
    /// a socket that somebody still holds would let clients wait for nobody.
    pub sockets: Mutex<Vec<TcpListener>>,
    /// What serves each connection.
    pub front: Arc<Front<A>>,
    /// Where idle connections are closed when the process can open no more files.
    pub room: Arc<Connections>,
    /// How far a stop has come.
    pub phase: Phase,
    /// Turns true when connections may be taken.
    pub open: watch::Receiver<bool>,
    /// Whether it stays open while the edge stops, to say so.
    pub to_the_end: bool,
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> BackgroundService for Door<A> {
    async fn start(&self, shutdown: ShutdownWatch) {
        let mut open = self.open.clone();
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        let mut tasks = Vec::new();
        let sockets = std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in sockets {
            let (front, room) = (self.front.clone(), self.room.clone());
            let (phase, shutdown) = (self.phase.clone(), shutdown.clone());
            tasks.push(current_handle().spawn(serve(socket, front, room, phase, self.to_the_end, shutdown)));
        }
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a listener has failed");
            }
        }
    }
}

async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    socket: TcpListener,
    front: Arc<Front<A>>,
    room: Arc<Connections>,
    phase: Phase,
    to_the_end: bool,
    shutdown: ShutdownWatch,
) {
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => Listener::from(listener),
        Err(error) => return tracing::error!(%error, "a listener cannot be served"),
    };
    let welcome = |stream: Stream| {
        let (front, shutdown) = (front.clone(), shutdown.clone());
        current_handle().spawn(async move { front.process_new(Box::new(stream), &shutdown).await });
    };
    let mut told = phase.clone();
    let mut elsewhere =
        std::pin::pin!(async { if to_the_end { told.handed().await } else { told.moved().await } });
    loop {
        tokio::select! {
            biased;
            () = &mut elsewhere => break,
            taken = listener.accept() => match taken {
                Ok(mut stream) => {
                    // Only a delay is lost when it cannot be set.
                    let _ = stream.set_nodelay();
                    welcome(stream);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    // Those that go need a moment for it.
                    tokio::time::sleep(if room.make_room() { MOMENT } else { PAUSE }).await;
                }
            },
        }
    }
    if phase.is_handed() {
        // The queue is the successor's as well: it takes whoever waits there.
        return;
    }
    // Who has connected already is served; closing the socket would reset him.
    let end = Instant::now() + LAST_OF_ALL;
    while let Ok(Ok(mut stream)) = tokio::time::timeout(LAST, listener.accept()).await {
        let _ = stream.set_nodelay();
        welcome(stream);
        // Whoever still comes in such a crowd is sent here by a balancer that does not look.
        if Instant::now() > end {
            break;
        }
    }
}

/// How long the queue of a closing listener must have been empty.
const LAST: Duration = Duration::from_millis(5);
/// How long that may take.
const LAST_OF_ALL: Duration = Duration::from_millis(200);
