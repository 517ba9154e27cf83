//! An edge as a process of its own in a [`World`] with a broker: killed and stopped at failpoints.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_testkit::free_port;

use crate::client::{Answer, Connection};
use crate::engine_harness::{SHARDS, World};
use crate::harness::{bearer, binary, configuration, eventually};

pub(crate) struct Gate {
    name: String,
    public: SocketAddr,
    child: Child,
}

impl Gate {
    /// Starts one in this environment, has it admitted to the sale, and waits until it sells.
    pub(crate) async fn start(
        world: &World,
        state: &Path,
        segment: &Segment,
        name: &str,
        environment: &[(&str, String)],
    ) -> Self {
        let (ports, shards) = ([free_port(), free_port()], SHARDS.to_string());
        let (text, url) = (format!("{name:?}"), format!("{:?}", world.vhost.url()));
        let settings = [("name", text.as_str()), ("amqp.url", &url), ("relay.shards", &shards)];
        let file = state.join(format!("{name}.toml"));
        std::fs::write(&file, configuration(ports, &world.redis.url(), state, &settings)).unwrap();
        let log = std::fs::File::create(state.join(format!("{name}.log"))).unwrap();
        let mut edge = binary();
        edge.arg("--config").arg(&file).stderr(log).stdout(Stdio::null());
        edge.envs(environment.iter().map(|(name, value)| (name, value)));
        let public = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        let gate = Self { name: name.to_owned(), public, child: edge.spawn().unwrap() };
        world.register(name, segment, 1).await;
        eventually(&format!("{name} sells"), || {
            std::net::TcpStream::connect(public).is_ok()
                && gate.sale(segment.sale.as_str())["state"] == "open"
        });
        gate
    }

    /// A sale as buyers see it.
    pub(crate) fn sale(&self, sale: &str) -> serde_json::Value {
        Connection::open(self.public).call("GET", &format!("/v1/sales/{sale}"), &[], "").json()
    }

    /// A token, and the order that it stands for.
    pub(crate) fn token(&self, sale: &str, user: &str) -> (String, OrderId) {
        let path = format!("/v1/sales/{sale}/token");
        let answer =
            Connection::open(self.public).call("POST", &path, &[("Authorization", &bearer(user))], "");
        let answer = answer.json();
        let order = OrderId::parse(answer["order_id"].as_str().unwrap()).unwrap();
        (answer["token"].as_str().unwrap().to_owned(), order)
    }

    /// One unit with a token; `None` when the gate dies instead.
    pub(crate) fn buy(&self, sale: &str, user: &str, token: &str) -> Option<Answer> {
        let bearer = bearer(user);
        let fields = [("Authorization", bearer.as_str()), ("X-Sale-Token", token)];
        let mut connection = Connection::open(self.public);
        let body = r#"{"sku":"phone","quantity":1}"#;
        connection.ask("POST", &format!("/v1/sales/{sale}/orders"), &fields, body);
        connection.answer()
    }

    /// How it ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        let told = Command::new("kill").arg("-CONT").arg(self.child.id().to_string()).status();
        assert!(told.unwrap().success());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
