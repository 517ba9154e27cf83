//! Puts the parts together, starts them, and stops them in order.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderName;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, GenBackgroundService};
use tokio::runtime::Builder;
use tokio::sync::watch;

use crate::books::Books;
use crate::calls::CALLS;
use crate::config::{Config, Limits};
use crate::connections::{Bounds, Connections};
use crate::descriptors;
use crate::engine::Engine;
use crate::express::Express;
use crate::filter::address::Networks;
use crate::front::Front;
use crate::gate::Gate;
use crate::handover::{self, TakeOver};
use crate::listeners::{Door, Listeners};
use crate::metrics::{self, Metrics};
use crate::phase::{Phase, Stage, phase};
use crate::session::Proxied;
use crate::signals::Signals;
use crate::status::Status;

/// What the engine needs at most to hand over what it holds; requests get the rest of the grace.
const ENGINE_END: Duration = Duration::from_secs(6);
/// Threads of the engine: one for Redis and RabbitMQ each. What they are called.
const ENGINE_THREADS: usize = 2;
const ENGINE: &str = "engine";
/// The exit status when a part of the engine has broken down (EX_SOFTWARE of sysexits.h).
const EXIT_BROKEN: i32 = 70;

/// Runs an edge until it is told to stop, and returns when it has stopped. With `former`, it starts
/// beside the edge of that name, and takes its listeners over once it would sell.
pub fn run(config: Config, former: Option<&str>) -> anyhow::Result<()> {
    end_with_the_engine();
    let mut registry = sluice_shared::metrics::registry();
    let engine = Engine::new(config.engine.clone(), &mut registry)?;
    let (takeover, taken) = match former {
        Some(name) => {
            let (takeover, taken) = TakeOver::ask(&config.engine.state_dir, name)?;
            (Some(takeover), taken)
        }
        None => (None, Vec::new()),
    };
    let (listen, mut limits, grace, drain) =
        (config.listen.clone(), config.limits, config.grace, config.drain);
    let kept = if config.upstream.is_some() { config.upstream_keepalive } else { 0 };
    limits.connections = descriptors::prepare(limits.connections, kept)?;
    let listeners = Listeners::open(&listen, taken)?;
    let (teller, phase) = phase();
    let (teller, (open, opened), (done, finished)) =
        (Arc::new(teller), watch::channel(false), mpsc::channel());
    let conf = conf(listen.threads, config.upstream_keepalive, grace);
    let books = Arc::new(Books::new(config.api.clone()));
    let counts = Arc::new(Metrics::new(CALLS.iter().map(|call| call.label)));
    let (state_dir, name) = (config.engine.state_dir.clone(), config.engine.name.clone());
    let gate = Gate::new(config, engine.clone(), counts.clone(), phase.clone());
    metrics::register(&mut registry, counts.clone(), gate.gauges());
    let keys = gate.keys.clone();
    let (registry, shared) = (Arc::new(registry), Arc::new(listeners.share()?));
    let status = Status { registry, engine: engine.clone(), books, keys: keys.clone(), phase: phase.clone() };
    let running = Running {
        engine: engine.clone(),
        busy: counts.clone(),
        patience: grace.saturating_sub(ENGINE_END),
        phase: phase.clone(),
        done: done.clone(),
    };
    let doors = Doors { listeners, threads: listen.threads, phase: phase.clone(), opened };
    let server = server(conf, limits, gate, status, running, doors, &counts);
    tracing::info!(public = ?listen.public, admin = %listen.admin, "listening");
    let signals = Signals {
        teller: teller.clone(),
        phase: phase.clone(),
        drain,
        keys,
        shared: shared.clone(),
        ended: done,
    };
    let server = spawn(server, signals)?;
    let ready = takeover.map_or(Ok(()), |takeover| takeover.finish(&engine, &phase));
    match &ready {
        Ok(()) => {
            handover::offer(handover::path(&state_dir, &name), shared, teller);
            open.send_replace(true);
        }
        // It is in the register, and has to leave it.
        Err(_) => teller.reach(Stage::Draining),
    }
    wait(&finished, &server);
    tracing::info!("stopped");
    ready
}

/// A panic in the engine ends the process at once, as `kill -9` does: what it held is in the journal, and
/// its successor proves it dead. Going on, it would look alive while nobody does that part's work.
fn end_with_the_engine() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        if std::thread::current().name() == Some(ENGINE) {
            tracing::error!("a part of the engine has broken down: the process ends");
            std::process::exit(EXIT_BROKEN);
        }
    }));
}

/// pingora sleeps through its whole grace period, busy or not, so it does that on a thread of its own:
/// the first one ends the process as soon as everything is served.
fn spawn(server: Server, signals: Signals) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("server".to_owned()).spawn(move || {
        server.run(RunArgs { shutdown_signal: Box::new(signals) });
    })
}

/// Waits for the engine's end, or for the server's when it was told to stop at once.
fn wait(finished: &mpsc::Receiver<()>, server: &std::thread::JoinHandle<()>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(Duration::from_millis(20)) {
        if server.is_finished() {
            return;
        }
    }
}

fn conf(threads: usize, keepalive: usize, grace: Duration) -> ServerConf {
    ServerConf {
        threads,
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

/// The listening sockets, and when they are served.
struct Doors {
    listeners: Listeners,
    threads: usize,
    phase: Phase,
    opened: watch::Receiver<bool>,
}

fn server(
    conf: ServerConf,
    limits: Limits,
    gate: Gate,
    status: Status,
    engine: Running,
    doors: Doors,
    counts: &Metrics,
) -> Server {
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let gate = Arc::new(gate);
    let proxy = Arc::new(http_proxy(&server.configuration, Proxied(gate.clone())));
    let bounds = Bounds { most: limits.connections, each: limits.per_address };
    let room = Connections::new(bounds, gate.trusted.clone(), counts.connections.clone());
    let front = Front::new(proxy, limits, room.clone()).with_express(Express::new(gate));
    let Doors { listeners, threads, phase, opened: open } = doors;
    let public = Door {
        sockets: Mutex::new(listeners.public),
        front: Arc::new(front),
        room: room.clone(),
        phase: phase.clone(),
        open: open.clone(),
        to_the_end: false,
    };
    let mut public = GenBackgroundService::new("gate".to_owned(), Arc::new(public));
    public.threads = Some(threads);
    server.add_service(GenBackgroundService::new("books".to_owned(), status.books.clone()));
    let nobody = Networks::new(Vec::new(), HeaderName::from_static("x-forwarded-for"));
    let own = Connections::new(Bounds { each: 0, ..bounds }, nobody, Arc::default());
    let front = Arc::new(Front::new(Arc::new(status), limits, own));
    let sockets = Mutex::new(vec![listeners.admin]);
    let admin = Door { sockets, front, room, phase, open, to_the_end: true };
    server.add_service(GenBackgroundService::new("engine".to_owned(), Arc::new(engine)));
    server.add_service(GenBackgroundService::new("admin".to_owned(), Arc::new(admin)));
    server.add_service(public);
    server
}

/// The engine as a service: it goes on until every request is served, and ends last.
struct Running {
    engine: Arc<Engine>,
    busy: Arc<Metrics>,
    patience: Duration,
    phase: Phase,
    done: mpsc::Sender<()>,
}

#[async_trait]
impl BackgroundService for Running {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut threads = Builder::new_multi_thread();
        threads.worker_threads(ENGINE_THREADS).thread_name(ENGINE).enable_all();
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
        let mut phase = self.phase.clone();
        phase.reached(Stage::Draining).await;
        let end = tokio::time::Instant::now() + self.patience;
        // A server that is gone has been told to stop, too.
        drop(shutdown.wait_for(|stopping| *stopping).await);
        // What is not served by then is cut off.
        let served = tokio::time::timeout_at(end, async {
            tokio::select! {
                () = self.drained() => true,
                () = phase.reached(Stage::Cutting) => false,
            }
        });
        if !matches!(served.await, Ok(true)) {
            let busy = self.busy.busy.load(Ordering::Relaxed);
            tracing::warn!(busy, "requests under way are cut off");
        }
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
