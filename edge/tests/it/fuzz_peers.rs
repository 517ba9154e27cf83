//! nginx and HAProxy beside an edge, and what each makes of the same bytes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluice_testkit::free_port;

use crate::client::{Answer, Asked, Connection, request};
use crate::harness::{directory, eventually};

/// The patience of everybody here.
const PATIENCE: Duration = Duration::from_millis(300);

/// A request as a server sees it: which one, and its body.
#[derive(Debug, Clone)]
pub(crate) struct Seen(pub(crate) String, pub(crate) String);

/// A body that nobody looked at is like any other.
impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 && (self.1 == other.1 || [&self.1, &other.1].iter().any(|body| *body == "*"))
    }
}

/// What one server made of a case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    pub(crate) seen: Vec<Seen>,
    /// It waited for more.
    pub(crate) waits: bool,
    /// It saw the last request.
    pub(crate) ended_well: bool,
}

impl Heard {
    fn new(seen: Vec<Seen>, said: &Said) -> Self {
        let waits = said.waited || said.answers.last().is_some_and(|answer| answer.status == 408);
        let ended_well = seen.last().is_some_and(|seen| seen.0.ends_with("end"));
        Self { seen, waits, ended_well }
    }
}

/// How a request is told from others.
pub(crate) type See = fn(&Asked) -> Seen;

/// A shop that knows which case a request is of.
pub(crate) struct Shop {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, Vec<Asked>>>>,
    count: Arc<AtomicUsize>,
}

impl Shop {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, count) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicUsize::new(0)));
        let (log, counted) = (asked.clone(), count.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, counted) = (log.clone(), counted.clone());
                std::thread::spawn(move || Self::serve(stream, &log, &counted));
            }
        });
        Self { address, asked, count }
    }

    fn serve(stream: TcpStream, log: &Mutex<HashMap<String, Vec<Asked>>>, counted: &AtomicUsize) {
        let mut connection = Connection::of(stream);
        while let Some(asked) = request(&mut connection) {
            let case = asked.all("x-case").first().map(|case| (*case).to_owned()).unwrap_or_default();
            let last = asked.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
            log.lock().unwrap().entry(case).or_default().push(asked);
            counted.fetch_add(1, Ordering::Relaxed);
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            if last {
                return;
            }
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// What comes here of bytes that are sent to a server before it.
    pub(crate) fn through(&self, server: SocketAddr, case: u64, parts: &[Vec<u8>], see: See) -> Heard {
        let said = send(server, parts);
        let asked = self.asked.lock().unwrap().remove(&case.to_string()).unwrap_or_default();
        Heard::new(asked.iter().map(see).collect(), &said)
    }
}

/// What a server answered.
pub(crate) struct Said {
    answers: Vec<Answer>,
    waited: bool,
}

/// Sends bytes part by part, and reads until the server closes.
pub(crate) fn send(server: SocketAddr, parts: &[Vec<u8>]) -> Said {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        // A server that has answered already may have closed.
        let _ = stream.write_all(part);
    }
    let (began, mut bytes) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut bytes);
    let waited = began.elapsed() > PATIENCE * 4 / 5;
    Said { answers: answers(&bytes), waited }
}

fn answers(bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut left = bytes;
    while let Some(end) = left.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&left[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let mut answer = Answer { status, fields, body: Vec::new() };
        let length = answer.field("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let body = &left[end + 4..];
        let (body, rest) = body.split_at(body.len().min(length));
        (answer.body, left) = (body.to_vec(), rest);
        answers.push(answer);
    }
    answers
}

/// What our own calls saw, from what they said: they tell which member of a body they do not know.
pub(crate) fn own(said: &Said) -> Heard {
    let seen = said.answers.iter().filter_map(|answer| {
        let id = answer.field("x-request-id")?.to_owned();
        let body = if answer.status == 200 { String::new() } else { looked_at(answer)? };
        Some(Seen(id, body))
    });
    Heard::new(seen.collect(), said)
}

fn looked_at(answer: &Answer) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    let (field, detail) = (problem["field"].as_str().unwrap_or_default(), problem["detail"].as_str()?);
    if ["the body is not JSON", "the body must be"].iter().any(|begin| detail.starts_with(begin)) {
        return Some("?".to_owned());
    }
    match field {
        "" | "head" | "Host" | "Content-Length" | "Transfer-Encoding" | "Authorization" | "body" => {
            (answer.field("connection") != Some("close")).then(|| "*".to_owned())
        }
        member => Some(member.to_owned()),
    }
}

/// The same, of a request that a proxy has passed on.
pub(crate) fn own_seen(asked: &Asked) -> Seen {
    let id = asked.all("x-request-id").concat();
    let body = asked.body.trim_matches([' ', '\t', '\r', '\n']);
    let members = match serde_json::from_str::<serde_json::Value>(body) {
        Ok(serde_json::Value::Object(members)) => members.keys().next().cloned().unwrap_or_default(),
        Ok(_) => "?".to_owned(),
        Err(_) if body.is_empty() => String::new(),
        Err(_) => "?".to_owned(),
    };
    Seen(id, members)
}

/// A request for the shop: all of it.
pub(crate) fn shop_seen(asked: &Asked) -> Seen {
    let path = asked
        .path
        .split_once("://")
        .map_or(asked.path.as_str(), |(_, rest)| rest.find('/').map_or("/", |slash| &rest[slash..]));
    Seen(format!("{} {path}", asked.method), asked.body.clone())
}

struct Proxy {
    name: &'static str,
    address: SocketAddr,
    shop: Shop,
    child: Child,
    directory: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    fn start(name: &'static str, file: impl Fn(&str, u16, SocketAddr) -> String, arguments: &[&str]) -> Self {
        let (directory, port, shop) = (directory(), free_port(), Shop::start());
        let path = directory.join("conf");
        std::fs::write(&path, file(&directory.display().to_string(), port, shop.address)).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new(format!("/usr/sbin/{name}"));
        command.args(arguments).arg(&path).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}; install the Debian package"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually(&format!("{name} listens"), || TcpStream::connect(address).is_ok());
        Self { name, address, shop, child, directory }
    }
}

fn nginx(directory: &str, port: u16, shop: SocketAddr) -> String {
    let temps = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temps: String = temps.iter().map(|name| format!("{name}_temp_path {directory}/{name};\n")).collect();
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off; {temps} client_header_timeout 300ms; client_body_timeout 300ms;\n\
         keepalive_timeout 1s; lingering_timeout 300ms; underscores_in_headers on;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{shop}; }} }} }}\n"
    )
}

fn haproxy(_: &str, port: u16, shop: SocketAddr) -> String {
    format!(
        "global\n maxconn 1000\ndefaults\n mode http\n timeout connect 2s\n timeout server 2s\n\
         \x20timeout client 300ms\n timeout http-request 300ms\n timeout http-keep-alive 1s\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend b\nbackend b\n server s {shop}\n"
    )
}

/// All that an edge is compared with, and its own shop.
pub(crate) struct Peers {
    pub(crate) shop: Shop,
    proxies: Vec<Proxy>,
}

impl Peers {
    pub(crate) fn start() -> Self {
        let proxies = vec![
            Proxy::start("nginx", nginx, &["-c"]),
            Proxy::start("haproxy", haproxy, &["-db", "-q", "-f"]),
        ];
        Self { shop: Shop::start(), proxies }
    }

    /// What each of them makes of a case.
    pub(crate) fn ask(&self, case: u64, parts: &[Vec<u8>], see: See) -> Vec<(&'static str, Heard)> {
        let ask = |proxy: &Proxy| (proxy.name, proxy.shop.through(proxy.address, case, parts, see));
        self.proxies.iter().map(ask).collect()
    }
}
