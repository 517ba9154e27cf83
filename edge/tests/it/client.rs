//! An HTTP client that shows everything, and a server that repeats what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// `code` of a problem document, after a look at everything that each must have.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let code = body["code"].as_str().unwrap_or_else(|| panic!("no problem: {body}")).to_owned();
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{code}");
        assert_eq!(body["status"], self.status, "{code}");
        assert_eq!(body["type"], format!("urn:sluice:problem:{code}"));
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        assert!(self.field("x-request-id").is_some(), "{code}");
        assert_eq!(self.field("server"), None, "{code}");
        if matches!(self.status, 429 | 503) {
            assert_eq!(self.field("retry-after"), Some(body["retry_after"].to_string().as_str()));
        }
        assert_eq!(self.field("www-authenticate").is_some(), code == "unauthenticated");
        assert_eq!(self.field("allow").is_some(), self.status == 405, "{code}");
        code
    }
}

/// One connection.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).expect("a connection"))
    }

    pub(crate) fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // A server that has answered already may have closed; the answer is what matters.
        let _ = self.reader.get_mut().write_all(bytes.as_ref());
    }

    /// Sends a whole request.
    pub(crate) fn ask(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: gate\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        self.send(format!("{text}\r\n{body}"));
    }

    pub(crate) fn call(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        self.ask(method, path, fields, body);
        self.answer_to(method).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    /// The next answer; `None` when the connection was closed instead.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let (status, fields) = self.head()?;
        let find = |name: &str| fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).cloned();
        let mut body = Vec::new();
        if method == "HEAD" || status == 204 {
        } else if find("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else if let Some((_, length)) = find("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body).ok()?;
        }
        Some(Answer { status, fields, body })
    }

    /// Status and fields of the next answer.
    pub(crate) fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => fields.push((name.to_owned(), value.trim().to_owned())),
                None => return Some((status, fields)),
            }
        }
    }

    /// One chunk; `None` for the last.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).ok()?;
        let mut chunk = vec![0; size];
        self.reader.read_exact(&mut chunk).ok()?;
        self.line()?;
        (size > 0).then_some(chunk)
    }

    /// All chunks to the last; `None` when the connection ends before it.
    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).ok()?;
            let mut chunk = vec![0; size];
            self.reader.read_exact(&mut chunk).ok()?;
            whole.extend(chunk);
            self.line()?;
            if size == 0 {
                return Some(whole);
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// Everything until the connection ends.
    pub(crate) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // What came before an error is what matters.
        let _ = self.reader.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the server closes the connection before it says anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        !matches!(self.reader.read(&mut byte), Ok(1))
    }
}

/// One request that [`Echo`] received.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let same = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }
}

/// A server on a thread of its own that remembers requests. `/slow` is never answered, `/garbage`
/// with nonsense; an order of the workers is told as it would be, or is unknown to them, and then a claim
/// of it is noted; everything else is `200 {}`.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// As a back office: whether its books are away.
    pub(crate) away: Arc<AtomicBool>,
    /// As a back office: whether it has no order at all.
    pub(crate) empty: Arc<AtomicBool>,
    /// As a back office: the state of every order.
    pub(crate) state: Arc<Mutex<&'static str>>,
}

impl Echo {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (away, empty) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let state = Arc::new(Mutex::new("paid"));
        let (log, gone, lacks, word) = (asked.clone(), away.clone(), empty.clone(), state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, gone, lacks, word) = (log.clone(), gone.clone(), lacks.clone(), word.clone());
                std::thread::spawn(move || serve(stream, &log, &gone, &lacks, &word));
            }
        });
        Self { address, asked, away, empty, state }
    }

    /// The last request.
    pub(crate) fn last(&self) -> Asked {
        self.asked.lock().unwrap().last().cloned().expect("a request came here")
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests about orders.
    pub(crate) fn orders(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.path.starts_with("/internal/v1/orders/")).cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    away: &AtomicBool,
    empty: &AtomicBool,
    state: &Mutex<&'static str>,
) {
    let mut connection = Connection { reader: BufReader::new(stream) };
    while let Some(asked) = request(&mut connection) {
        let path = asked.path.clone();
        log.lock().unwrap().push(asked);
        let body = match path.as_str() {
            "/slow" => {
                // Until the client gives up.
                while request(&mut connection).is_some() {}
                return;
            }
            "/garbage" => {
                connection.send("this is no HTTP\r\n\r\n");
                return;
            }
            path if path.starts_with("/internal/v1/orders/") => {
                let state = *state.lock().unwrap();
                json!({"order_id": path.rsplit('/').next(), "state": state}).to_string()
            }
            _ => "{}".to_owned(),
        };
        let order = path.starts_with("/internal/v1/orders/");
        let away = (path == "/internal/v1/ready" || order) && away.load(Ordering::Relaxed);
        let status = match order && empty.load(Ordering::Relaxed) {
            _ if away => "503 Service Unavailable",
            true if path.ends_with("/claim") => "409 Conflict",
            true => "404 Not Found",
            false => "200 OK",
        };
        connection.send(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }
}

pub(crate) fn request(connection: &mut Connection) -> Option<Asked> {
    let line = connection.line()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut fields = Vec::new();
    while let Some((name, value)) = connection.line()?.split_once(':') {
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut asked = Asked { method, path, fields, body: String::new() };
    let mut body = Vec::new();
    if !asked.all("transfer-encoding").is_empty() {
        body = connection.chunks()?;
    } else if let Some(length) = asked.all("content-length").first() {
        body.resize(length.parse().ok()?, 0);
        connection.reader.read_exact(&mut body).ok()?;
    }
    asked.body = String::from_utf8(body).ok()?;
    Some(asked)
}
