//! A running edge with a Redis of its own, and just enough of a warden to sell something.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{InstanceId, SaleId, SkuId};
use sluice_shared::jwt::sign_hs256;
use sluice_shared::keys::{EDGES, GENERATION, REGISTER, SALES, SALES_CHANNEL, Segment};
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::{AcceptAfter, Item, SaleStep, SaleView};
use sluice_shared::script::{Control, Preload, SegmentScripts, WardenScripts};
use sluice_testkit::{PrivateRedis, free_port};
use tokio::runtime::Runtime;

use crate::client::{Answer, Connection};

pub(crate) const JWT_SECRET: &str = "jwt secret of the tests";
pub(crate) const API_SECRET: &str = "api secret of the tests";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A buyer's JWT that is good for an hour.
pub(crate) fn jwt(user: &str) -> String {
    sign_hs256(JWT_SECRET, &json!({"sub": user, "exp": Millis::now().seconds() + 3600}))
}

/// `Authorization` of a buyer.
pub(crate) fn bearer(user: &str) -> String {
    format!("Bearer {}", jwt(user))
}

/// Looks until it holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A sale to be.
#[derive(Debug, Clone)]
pub(crate) struct Sale {
    pub(crate) id: &'static str,
    pub(crate) step: SaleStep,
    /// Seconds from now.
    pub(crate) starts: i64,
    /// Seconds from now.
    pub(crate) ends: i64,
    /// SKU, units, units a user.
    pub(crate) items: Vec<(&'static str, u64, u32)>,
}

impl Default for Sale {
    fn default() -> Self {
        let items = vec![("phone", 100, 2), ("case", 5, 5)];
        Self { id: "demo", step: SaleStep::Open, starts: -60, ends: 3600, items }
    }
}

/// One process of the gate.
pub(crate) struct Process {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Child,
    directory: PathBuf,
}

/// An edge, its Redis, and the warden's pen.
pub(crate) struct Edge {
    pub(crate) redis: PrivateRedis,
    process: Process,
    runtime: Runtime,
    pen: Redis,
    views: HashMap<&'static str, SaleView>,
}

impl std::ops::Deref for Edge {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for Edge {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The built binary.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-edge"));
    command.stdin(Stdio::null());
    command
}

/// A directory of one test's own.
pub(crate) fn directory() -> PathBuf {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("sluice-test-edge-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A configuration; `settings` are `section.key = value` lines that go over it.
pub(crate) fn configuration(ports: [u16; 2], redis: &str, state: &Path, settings: &[(&str, &str)]) -> String {
    let text = |text: &str| format!("{text:?}");
    let mut all: Vec<(String, String)> = vec![
        ("listen.public".into(), format!("[\"127.0.0.1:{}\"]", ports[0])),
        ("listen.admin".into(), text(&format!("127.0.0.1:{}", ports[1]))),
        ("listen.threads".into(), "2".into()),
        ("identity.jwt_secret".into(), text(JWT_SECRET)),
        ("token.keys".into(), "[\"k1:token secret of the tests\"]".into()),
        ("redis.url".into(), text(redis)),
        ("redis.deadline_ms".into(), "2000".into()),
        ("amqp.url".into(), text("amqp://127.0.0.1:1/sluice")),
        ("api.address".into(), text("127.0.0.1:1")),
        ("api.secret".into(), text(API_SECRET)),
        ("shutdown.drain_ms".into(), "0".into()),
    ];
    for (key, value) in settings {
        all.retain(|(name, _)| name != key);
        all.push(((*key).to_owned(), (*value).to_owned()));
    }
    let mut file = format!("state_dir = {:?}\n", state.display().to_string());
    for (key, value) in all {
        writeln!(file, "{key} = {value}").unwrap();
    }
    file
}

impl Process {
    /// Starts `command` with a configuration of its own and waits for nothing.
    fn spawn(
        mut command: Command,
        ports: [u16; 2],
        redis: &str,
        state: Option<&Path>,
        settings: &[(&str, &str)],
    ) -> Self {
        let directory = directory();
        let state = state.unwrap_or(&directory);
        let file = directory.join("edge.toml");
        std::fs::write(&file, configuration(ports, redis, state, settings)).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let child = command.arg("--config").arg(&file).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self { public: local(ports[0]), admin: local(ports[1]), child, directory }
    }

    /// Where its lock and its socket are.
    pub(crate) fn state(&self) -> &Path {
        &self.directory
    }

    /// Whether it says so; not before it listens.
    pub(crate) fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(self.admin).is_ok() && self.ready().status == 200
    }

    pub(crate) fn ready(&self) -> Answer {
        Connection::open(self.admin).call("GET", "/-/ready", &[], "")
    }

    /// A number that it counts.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let answer = Connection::open(self.admin).call("GET", "/metrics", &[], "");
        let text = String::from_utf8(answer.body).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Changes its configuration file.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let file = self.directory.join("edge.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.public)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() > end => return None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn sale(&self, id: &str) -> serde_json::Value {
        self.connect().call("GET", &format!("/v1/sales/{id}"), &[], "").json()
    }

    /// A token for a user.
    pub(crate) fn token(&self, id: &str, user: &str) -> String {
        let path = format!("/v1/sales/{id}/token");
        let answer = self.connect().call("POST", &path, &[("Authorization", &bearer(user))], "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// One purchase with a token.
    pub(crate) fn buy(&self, id: &str, user: &str, token: &str, body: &str) -> Answer {
        let fields = [("Authorization", bearer(user)), ("X-Sale-Token", token.to_owned())];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.connect().call("POST", &format!("/v1/sales/{id}/orders"), &fields, body)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the edge's log\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Edge {
    /// Starts one with the tests' configuration and these keys over it, and waits until it is ready.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let redis = PrivateRedis::start();
        let process = Process::spawn(binary(), [free_port(), free_port()], &redis.url(), None, settings);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let pen = runtime.block_on(async { redis.connect() });
        let edge = Self { redis, process, runtime, pen, views: HashMap::new() };
        eventually("the edge is ready", || {
            edge.admit();
            edge.instances().len() == 1 && edge.is_ready()
        });
        edge
    }

    /// Starts one that sells [`Sale::default`].
    pub(crate) fn selling(settings: &[(&str, &str)]) -> Self {
        let mut edge = Self::start(settings);
        edge.put(&Sale::default());
        edge
    }

    /// Another one of the same gate, with its own name, address and settings, started by `command`, once
    /// it is ready.
    pub(crate) fn another(&self, command: Command, settings: &[(&str, &str)]) -> Process {
        let ports = [free_port(), free_port()];
        let process = Process::spawn(command, ports, &self.redis.url(), None, settings);
        eventually("another edge is ready", || {
            self.admit();
            process.is_ready()
        });
        process
    }

    /// Another one of the same gate on another host, where Redis has another address too, once it is ready.
    pub(crate) fn elsewhere(
        &self,
        command: Command,
        host: std::net::Ipv4Addr,
        redis: &str,
        settings: &[(&str, &str)],
    ) -> Process {
        let ports = [free_port(), free_port()];
        let [public, admin] = ports.map(|port| SocketAddr::from((host, port)));
        let listen = [format!("[\"{public}\"]"), format!("\"{admin}\"")];
        let mut all = vec![("listen.public", listen[0].as_str()), ("listen.admin", listen[1].as_str())];
        all.extend_from_slice(settings);
        let mut process = Process::spawn(command, ports, redis, None, &all);
        (process.public, process.admin) = (public, admin);
        eventually("an edge elsewhere is ready", || {
            self.admit();
            process.is_ready()
        });
        process
    }

    /// An edge of this name on the same address, which takes the listeners of the one called `former`
    /// over; not waited for.
    pub(crate) fn successor(&self, former: &str, name: &str, settings: &[(&str, &str)]) -> Process {
        let mut command = binary();
        command.args(["--name", name, "--take-over", former]);
        let (ports, state) = ([self.public.port(), self.admin.port()], &self.process.directory);
        Process::spawn(command, ports, &self.redis.url(), Some(state), settings)
    }

    /// Does what a warden would: whoever gives a sign of life may sell, and is then told so.
    pub(crate) fn admit(&self) {
        let instances = self.instances();
        for view in self.views.values() {
            let segment = Segment::new(view.sale.clone(), 0);
            self.runtime.block_on(async {
                let hour = Duration::from_secs(3600);
                let warden = WardenScripts::default();
                warden.lease(&self.pen, &segment, 1, hour, &instances, &[]).await.unwrap().unwrap();
            });
        }
        for instance in &instances {
            let _: i64 = self.run(cmd("HSET").arg(REGISTER).arg(instance.as_str()).arg("1"));
        }
    }

    fn instances(&self) -> Vec<InstanceId> {
        let names: Vec<String> = self.run(cmd("HKEYS").arg(EDGES));
        names.iter().map(|name| InstanceId::parse(name).unwrap()).collect()
    }

    /// Runs a command as an operator.
    pub(crate) fn run<T: sluice_shared::redis::FromRedisValue + Send>(
        &self,
        command: &sluice_shared::redis::Cmd,
    ) -> T {
        self.runtime.block_on(self.pen.run("a test's command", command)).unwrap()
    }

    /// Puts a sale on the shelf and waits until the edge shows it.
    pub(crate) fn put(&mut self, sale: &Sale) {
        let view = view(sale, u32::try_from(self.views.len() + 1).unwrap());
        let segment = Segment::new(view.sale.clone(), 0);
        let preload = Preload {
            epoch: 1,
            step: view.step,
            starts_at: view.starts_at,
            ends_at: view.ends_at,
            cfg: 1,
            journal_max: 100_000,
            items: sale.items.iter().map(|(sku, n, most)| (SkuId::parse(sku).unwrap(), *n, *most)).collect(),
        };
        self.runtime.block_on(async {
            let warden = WardenScripts::default();
            warden.load(&self.pen).await.unwrap();
            warden.preload(&self.pen, &segment, &preload).await.unwrap();
            SegmentScripts::new(segment.clone(), 1).load(&self.pen).await.unwrap();
        });
        self.views.insert(sale.id, view.clone());
        self.admit();
        self.publish(sale.id, view);
    }

    /// Moves a sale to another step.
    pub(crate) fn step(&mut self, id: &'static str, step: SaleStep) {
        let view = SaleView { step, ..self.views[id].clone() };
        let view = self.control(view);
        self.publish(id, view);
    }

    /// Changes how many units of a sale a buyer may have, and tells no edge.
    pub(crate) fn limit_in_secret(&mut self, id: &'static str, per_user: u32) {
        let mut view = self.views[id].clone();
        view.items.iter_mut().for_each(|item| item.per_user = per_user);
        self.control(view);
    }

    /// Writes a sale's new terms where the script finds them.
    fn control(&self, mut view: SaleView) -> SaleView {
        view.cfg += 1;
        let control = Control {
            cfg: view.cfg,
            step: view.step,
            starts_at: view.starts_at,
            ends_at: view.ends_at,
            limits: view.items.iter().map(|item| (item.sku.clone(), item.per_user)).collect(),
        };
        self.runtime.block_on(async {
            let segment = Segment::new(view.sale.clone(), 0);
            let warden = WardenScripts::default();
            warden.control(&self.pen, &segment, 1, &control).await.unwrap().unwrap();
        });
        view
    }

    /// Takes a sale's scripts away from buyers: its epoch is being raised.
    pub(crate) fn freeze(&mut self, id: &'static str) {
        let mut view = self.views[id].clone();
        view.epochs = vec![0];
        view.cfg += 1;
        self.publish(id, view);
        eventually("the sale is frozen", || self.process.sale(id)["state"] == "frozen");
    }

    fn publish(&mut self, id: &'static str, view: SaleView) {
        let _: i64 = self.run(cmd("HSET").arg(SALES).arg(id).arg(serde_json::to_string(&view).unwrap()));
        let generation: i64 = self.run(cmd("INCR").arg(GENERATION));
        let _: i64 = self.run(cmd("PUBLISH").arg(SALES_CHANNEL).arg(generation));
        let known = view.cfg;
        self.views.insert(id, view);
        eventually(&format!("the edge knows {id} as of {known}"), || self.heard(generation));
    }

    fn heard(&self, generation: i64) -> bool {
        let beats: Vec<String> = self.run(cmd("HVALS").arg(EDGES));
        let known = |beat: &String| {
            let beat: serde_json::Value = serde_json::from_str(beat).unwrap();
            beat["generation"].as_i64() >= Some(generation)
        };
        beats.iter().all(known)
    }
}

fn view(sale: &Sale, number: u32) -> SaleView {
    let now = Millis::now();
    let item = |(sku, _, per_user): &(&str, u64, u32)| Item {
        sku: SkuId::parse(sku).unwrap(),
        title: format!("A {sku}"),
        price: 1999,
        currency: "EUR".to_owned(),
        per_user: *per_user,
    };
    SaleView {
        sale: SaleId::parse(sale.id).unwrap(),
        number,
        step: sale.step,
        starts_at: Millis(now.0 + sale.starts * 1000),
        ends_at: Millis(now.0 + sale.ends * 1000),
        cfg: 1,
        segments: 1,
        accept_after: AcceptAfter::Journal,
        epochs: vec![1],
        items: sale.items.iter().map(item).collect(),
    }
}
