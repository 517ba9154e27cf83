//! A server that answers as a test says.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sluice_shared::ids::OrderId;

/// What is done with one request.
pub(crate) enum Deed {
    /// These bytes are sent.
    Answer(String),
    /// Nothing is sent, and the connection is closed.
    Close,
    /// Nothing is sent.
    Silence,
}

/// A listening server; its threads end with the test's process.
pub(crate) struct Server {
    pub(crate) address: SocketAddrV4,
    pub(crate) peers: Arc<Mutex<HashSet<SocketAddr>>>,
}

impl Server {
    /// Answers each request by its number, counted over all connections.
    pub(crate) fn start(deed: impl Fn(u64) -> Deed + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
        let peers = Arc::new(Mutex::new(HashSet::new()));
        let (deed, seen, count) = (Arc::new(deed), peers.clone(), Arc::new(Mutex::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                seen.lock().unwrap().insert(stream.peer_addr().unwrap());
                let (deed, count) = (deed.clone(), count.clone());
                std::thread::spawn(move || serve(stream, &*deed, &count));
            }
        });
        Self { address, peers }
    }
}

fn serve(mut stream: TcpStream, deed: &dyn Fn(u64) -> Deed, count: &Mutex<u64>) {
    let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&bytes[..length]),
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        let number = {
            let mut count = count.lock().unwrap();
            *count += 1;
            *count - 1
        };
        match deed(number) {
            Deed::Answer(text) => stream.write_all(text.as_bytes()).unwrap(),
            Deed::Close => return,
            Deed::Silence => {}
        }
    }
}

/// An acceptance as the contract has it.
pub(crate) fn accepted() -> Deed {
    let body = format!("{{\"order_id\":\"{}\",\"state\":\"accepted\"}}", OrderId::mint(1, 0));
    let length = body.len();
    Deed::Answer(format!(
        "HTTP/1.1 202 Accepted\r\nX-Request-Id: 1\r\nLocation: /\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}
