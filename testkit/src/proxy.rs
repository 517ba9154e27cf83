//! A TCP proxy that breaks connections in chosen ways: what networks do to programs, on one machine.
//!
//! Every connection is two [`pump`]s, one a direction, that follow the same [`rules`]; a change of the
//! rules reaches connections that are open. Bytes that are kept are bounded, and so are connections.
//! What is left to chance is chosen by the seed and the number of the connection.

mod control;
pub mod frames;
mod pump;
pub mod rules;
pub mod way;

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

pub use control::serve;
use frames::Protocol;
use pump::{End, Ground, Pump};
use rules::{Armed, Flow, Rules, Trap};
use way::Way;

/// Connections that are open at the most; further ones are reset.
const CONNECTIONS: u64 = 2048;
/// How long the target may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an end that is closed in order is still listened to.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a proxy has seen.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    open: AtomicU64,
    carried: AtomicU64,
    swallowed: AtomicU64,
    cut: AtomicU64,
}

/// What a proxy has seen, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Connections accepted so far.
    pub connections: u64,
    /// Those that are open.
    pub open: u64,
    /// Bytes delivered.
    pub carried: u64,
    /// Bytes swallowed.
    pub swallowed: u64,
    /// Connections that this proxy broke.
    pub cut: u64,
}

/// A running proxy; it ends with this value, and its connections with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddrV4,
    rules: Option<watch::Sender<Rules>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens there (port 0: any) and carries everything to the target.
    pub fn start(listen: SocketAddrV4, target: SocketAddrV4, protocol: Protocol, seed: u64) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind(listen);
        let listener = listener.with_context(|| format!("the proxy cannot listen on {listen}"))?;
        listener.set_nonblocking(true)?;
        // Not by waiting in the runtime: whoever starts a proxy may be in another one.
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let SocketAddr::V4(address) = listener.local_addr()? else { bail!("{listen} is not IPv4") };
        let (rules, follow) = watch::channel(Rules::new(target));
        let counts = Arc::new(Counts::default());
        let ground = Ground { rules: follow, counts: counts.clone(), protocol, seed };
        let thread = std::thread::Builder::new()
            .name(format!("proxy-{}", address.port()))
            .spawn(move || runtime.block_on(accept(listener, ground)))?;
        Ok(Self { address, rules: Some(rules), counts, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// What it has seen.
    pub fn status(&self) -> Status {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { connections, open, carried, swallowed, cut } = &*self.counts;
        Status {
            connections: read(connections),
            open: read(open),
            carried: read(carried),
            swallowed: read(swallowed),
            cut: read(cut),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        if let Some(rules) = &self.rules {
            rules.send_modify(change);
        }
    }

    fn rules(&self) -> Option<Rules> {
        self.rules.as_ref().map(|rules| rules.borrow().clone())
    }

    /// What becomes of the bytes of one direction from now on.
    pub fn flow(&self, way: Way, flow: Flow) {
        self.change(|rules| rules.flow[way.at()] = flow);
    }

    /// The same in both directions.
    pub fn flow_both(&self, flow: Flow) {
        self.change(|rules| rules.flow = [flow; 2]);
    }

    /// New connections are reset at once, or not any more.
    pub fn refuse(&self, refuse: bool) {
        self.change(|rules| rules.refuse = refuse);
    }

    /// Where new connections go; those that are open stay where they are until they are cut.
    pub fn aim(&self, target: SocketAddrV4) {
        self.change(|rules| rules.target = target);
    }

    /// Where new connections go.
    pub fn target(&self) -> Option<SocketAddrV4> {
        self.rules().map(|rules| rules.target)
    }

    /// Resets every open connection, at both ends.
    pub fn reset(&self) {
        self.change(|rules| rules.resets += 1);
    }

    /// Tells the receivers of this direction that no more comes, whatever still comes.
    pub fn half_close(&self, way: Way) {
        self.change(|rules| rules.closes[way.at()] += 1);
    }

    /// Sets a trap, in the place of one that is set.
    pub fn set(&self, trap: Trap) {
        self.change(|rules| rules.trap = Some(Armed::new(trap)));
    }

    /// Whether the trap that was set last has sprung.
    pub fn has_sprung(&self) -> bool {
        self.rules().and_then(|rules| rules.trap).is_some_and(|armed| armed.has_sprung())
    }

    /// Ends every fault that lasts: bytes pass, connections are accepted, no trap is set.
    pub fn heal(&self) {
        self.change(|rules| {
            rules.flow = [Flow::Pass; 2];
            rules.refuse = false;
            rules.trap = None;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Without its sender the rules end, and everything that follows them.
        self.rules = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told already.
            thread.join().unwrap_or_default();
        }
    }
}

async fn accept(listener: TcpListener, ground: Ground) {
    let Ground { mut rules, counts, protocol, seed } = ground;
    loop {
        let client = tokio::select! {
            changed = rules.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                // Out of file descriptors: some connection will end.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let number = counts.connections.fetch_add(1, Ordering::Relaxed);
        if rules.borrow().refuse || counts.open.load(Ordering::Relaxed) >= CONNECTIONS {
            break_off(client);
            continue;
        }
        let seed = seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let ground = Ground { rules: rules.clone(), counts: counts.clone(), protocol, seed };
        counts.open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            carry(client, &ground).await;
            ground.counts.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection to its end.
async fn carry(mut client: TcpStream, ground: &Ground) {
    let (target, resets) = {
        let rules = ground.rules.borrow();
        (rules.target, rules.resets)
    };
    let server = timeout(CONNECT, TcpStream::connect(target)).await;
    let Ok(Ok(mut server)) = server else { return break_off(client) };
    for stream in [&client, &server] {
        // Only a delay is lost when it cannot be set.
        stream.set_nodelay(true).ok();
    }
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let up = Pump::new(ground, Way::Up).run(from_client, to_server);
        let down = Pump::new(ground, Way::Down).run(from_server, to_client);
        tokio::select! {
            ended = both(up, down) => ended,
            () = struck(ground.rules.clone(), resets) => Some((Way::Up, End::Broken)),
        }
    };
    let Some((way, end)) = ended else { return };
    ground.counts.cut.fetch_add(1, Ordering::Relaxed);
    match (end, way) {
        // Who got the last bytes is to read them: a reset might overtake them.
        (End::Delivered, Way::Up) => {
            break_off(client);
            farewell(server).await;
        }
        (End::Delivered, Way::Down) => {
            break_off(server);
            farewell(client).await;
        }
        _ => {
            break_off(client);
            break_off(server);
        }
    }
}

/// Waits for both directions, or for one that breaks the connection.
async fn both(up: impl Future<Output = End>, down: impl Future<Output = End>) -> Option<(Way, End)> {
    tokio::pin!(up, down);
    let (first, end) = tokio::select! {
        end = &mut up => (Way::Up, end),
        end = &mut down => (Way::Down, end),
    };
    if end != End::Closed {
        return Some((first, end));
    }
    let (second, end) = match first {
        Way::Up => (Way::Down, down.await),
        Way::Down => (Way::Up, up.await),
    };
    (end != End::Closed).then_some((second, end))
}

/// Returns when every connection is to be reset.
async fn struck(mut rules: watch::Receiver<Rules>, resets: u64) {
    // Ended rules are the end of the proxy: the same.
    rules.wait_for(|rules| rules.resets > resets).await.map(drop).unwrap_or_default();
}

/// Closes with a reset (SO_LINGER 0).
fn break_off(stream: TcpStream) {
    // Without it, an ordinary close is what the peer sees.
    stream.set_zero_linger().ok();
}

/// Closes in order, after the peer had time to read what it got and to say what nobody hears.
async fn farewell(mut stream: TcpStream) {
    let mut void = [0; 4096];
    let listen = async {
        stream.shutdown().await?;
        while stream.read(&mut void).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A peer that does not end is left.
    timeout(FAREWELL, listen).await.map(drop).unwrap_or_default();
}
