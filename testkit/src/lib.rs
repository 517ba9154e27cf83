//! What tests of every crate need: a private Redis on a free port, the addresses of the other servers, a
//! clock that jumps, a TCP proxy that breaks connections. No shipped program depends on it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice_shared::redis::Redis;

mod clock_step;
pub mod proxy;

pub use clock_step::ClockStep;

/// The value of an environment variable that `./dev test` sets; a missing one fails the test.
///
/// # Panics
/// When it is not set.
#[allow(clippy::panic)]
pub fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by ./dev test"))
}

/// A port that was free a moment ago.
///
/// # Panics
/// When the machine has none.
#[allow(clippy::expect_used)]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A Redis of one test's own, as the gate wants it (`appendfsync always`, `noeviction`); killed and
/// wiped when dropped.
#[derive(Debug)]
pub struct PrivateRedis {
    child: Child,
    directory: PathBuf,
    port: u16,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

#[allow(clippy::expect_used, clippy::panic)]
impl PrivateRedis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not within 10 s.
    pub fn start() -> Self {
        Self::start_under(|_| Vec::new())
    }

    /// The same, started by another program (`strace -D …`, `env NAME=value`), which must become it:
    /// the process that is started is the one that is killed. After a crash it starts without. The
    /// program's words may depend on where the data is.
    ///
    /// # Panics
    /// When it does not answer within 10 s.
    pub fn start_under(prefix: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory for redis");
        let port = free_port();
        let child = Self::spawn(prefix(&directory), &directory, port);
        let redis = Self { child, directory, port };
        redis.wait();
        redis
    }

    fn spawn(mut words: Vec<String>, directory: &Path, port: u16) -> Child {
        words.push(required("SLUICE_TEST_REDIS_SERVER"));
        Command::new(&words[0])
            .args(&words[1..])
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--maxmemory-policy", "noeviction", "--lazyfree-lazy-expire", "yes"])
            .args(["--lazyfree-lazy-server-del", "yes", "--dir"])
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts")
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.answers() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection, inside the runtime that calls.
    ///
    /// # Panics
    /// When the URL is not understood.
    pub fn connect(&self) -> Redis {
        Redis::lazy(&self.url(), Duration::from_secs(2)).expect("a connection")
    }

    /// kill -9, then the same data again.
    ///
    /// # Panics
    /// When it does not come back within 10 s.
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.child = Self::spawn(Vec::new(), &self.directory, self.port);
        self.wait();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its data.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    /// When the process cannot be asked for.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("redis-server's end").is_some()
    }

    /// kill -9.
    ///
    /// # Panics
    /// When the process does not end.
    pub fn crash(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("redis-server ends");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        // Whatever fails here leaves only a directory in the temporary folder behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Looks at a condition every 10 ms until it holds.
///
/// # Panics
/// When it does not within the deadline; says what was waited for.
pub async fn eventually<F, Fut>(what: &str, deadline: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "did not happen within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
