//! Puts the parts together, starts them, and stops them in order.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, GenBackgroundService};
use pingora::services::listening::Service;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::books::Books;
use crate::config::{Config, Limits, Listen};
use crate::engine::Engine;
use crate::express::Express;
use crate::front::Front;
use crate::gate::{Gate, Proxied};
use crate::metrics::{self, Metrics};
use crate::status::{Admin, Status};

/// What the engine needs at most to hand over what it holds; requests get the rest of the grace.
const ENGINE_END: Duration = Duration::from_secs(6);
/// Threads of the engine: one for Redis and RabbitMQ each.
const ENGINE_THREADS: usize = 2;

/// Runs an edge until it is told to stop, and returns when it has stopped.
pub fn run(config: Config) -> anyhow::Result<()> {
    let mut registry = sluice_shared::metrics::registry();
    let engine = Engine::new(config.engine.clone(), &mut registry)?;
    let (listen, limits, grace) = (config.listen.clone(), config.limits, config.grace);
    let admin = bind(listen.admin, "listen.admin")?;
    admin.set_nonblocking(true)?;
    for address in &listen.public {
        // pingora would panic on a thread of its own and leave the rest running.
        drop(bind(*address, "listen.public")?);
    }
    let (stop, stopping) = watch::channel(false);
    let (done, finished) = mpsc::channel();
    let conf = conf(&listen, config.upstream_keepalive, grace);
    let books = Arc::new(Books::new(config.api.clone()));
    let counts = Arc::new(Metrics::default());
    let gate = Gate::new(config, engine.clone(), counts.clone(), stopping.clone());
    metrics::register(&mut registry, counts.clone(), gate.gauges());
    let status = Status { registry: Arc::new(registry), engine: engine.clone(), books, stopping };
    let engine = Running { engine, busy: counts.clone(), patience: grace.saturating_sub(ENGINE_END), done };
    let server = server(conf, &listen, limits, gate, status, engine, admin, counts);
    tracing::info!(public = ?listen.public, admin = %listen.admin, "listening");
    // pingora sleeps through its whole grace period, busy or not, so it does that on a thread of its
    // own: this one ends the process as soon as everything is served.
    let server = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
        server.run(RunArgs { shutdown_signal: Box::new(Signals { stop }) });
    })?;
    wait(&finished, &server);
    tracing::info!("stopped");
    Ok(())
}

/// Waits for the engine's end, or for the server's when it was told to stop at once.
fn wait(finished: &mpsc::Receiver<()>, server: &std::thread::JoinHandle<()>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(Duration::from_millis(20)) {
        if server.is_finished() {
            return;
        }
    }
}

fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("{key}: cannot listen on {address}"))
}

fn conf(listen: &Listen, keepalive: usize, grace: Duration) -> ServerConf {
    ServerConf {
        threads: listen.threads,
        // A connection stays on its thread: moving tasks about costs more than it evens out.
        work_stealing: false,
        upstream_keepalive_pool_size: keepalive,
        // A second try is for a kept connection that had died.
        max_retries: 2,
        grace_period_seconds: Some(grace.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

#[allow(clippy::too_many_arguments)]
fn server(
    conf: ServerConf,
    listen: &Listen,
    limits: Limits,
    gate: Gate,
    status: Status,
    engine: Running,
    admin: TcpListener,
    counts: Arc<Metrics>,
) -> Server {
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let gate = Arc::new(gate);
    let proxy = Arc::new(http_proxy(&server.configuration, Proxied(gate.clone())));
    let front = Front::new(proxy, limits, counts.connections.clone()).with_express(Express::new(gate));
    let mut public = Service::new("gate".to_owned(), front);
    for address in &listen.public {
        public.add_tcp(&address.to_string());
    }
    server.add_service(GenBackgroundService::new("books".to_owned(), status.books.clone()));
    let front = Arc::new(Front::new(Arc::new(status), limits, Arc::default()));
    server.add_service(GenBackgroundService::new("engine".to_owned(), Arc::new(engine)));
    server.add_service(GenBackgroundService::new(
        "admin".to_owned(),
        Arc::new(Admin { listener: admin, front, public: listen.public.first().copied() }),
    ));
    server.add_service(public);
    server
}

/// The engine as a service: it goes on until every request is served, and ends last.
struct Running {
    engine: Arc<Engine>,
    busy: Arc<Metrics>,
    patience: Duration,
    done: mpsc::Sender<()>,
}

#[async_trait]
impl BackgroundService for Running {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut threads = Builder::new_multi_thread();
        threads.worker_threads(ENGINE_THREADS).thread_name("engine").enable_all();
        let runtime = match threads.build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the engine has no threads");
                // Without it nothing can be sold: the process ends.
                let _ = self.done.send(());
                return;
            }
        };
        let (stop, stopped) = watch::channel(false);
        let engine = runtime.spawn(self.engine.clone().run(stopped));
        // A server that is gone has been told to stop, too.
        drop(shutdown.wait_for(|stopping| *stopping).await);
        // What is not served by then is cut off.
        let _ = tokio::time::timeout(self.patience, self.drained()).await;
        let _ = stop.send(true);
        if let Err(error) = engine.await {
            tracing::error!(%error, "the engine has failed");
        }
        runtime.shutdown_background();
        let _ = self.done.send(());
    }
}

impl Running {
    /// Waits until no request has been served for a moment: a connection that was accepted last may
    /// still be on its way to its first.
    async fn drained(&self) {
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < Duration::from_millis(100) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.busy.busy.load(Ordering::Relaxed) > 0 {
                idle_since = Instant::now();
            }
        }
    }
}

/// SIGTERM and SIGQUIT serve what is under way and stop; SIGINT stops at once.
struct Signals {
    stop: watch::Sender<bool>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let listen =
            |kind| signal(kind).map_err(|error| tracing::error!(%error, "signals cannot be received")).ok();
        let mut term = listen(SignalKind::terminate());
        let mut quit = listen(SignalKind::quit());
        let mut int = listen(SignalKind::interrupt());
        let mut hup = listen(SignalKind::hangup());
        loop {
            tokio::select! {
                () = received(&mut term) => break,
                () = received(&mut quit) => break,
                () = received(&mut int) => return ShutdownSignal::FastShutdown,
                () = received(&mut hup) => {
                    tracing::warn!("SIGHUP: reloading is not built yet; restart to change the configuration");
                }
            }
        }
        tracing::info!("stopping: no new connections, requests under way are served");
        // Everybody who listens is this process.
        let _ = self.stop.send(true);
        ShutdownSignal::GracefulTerminate
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
