//! One request at a time over a connection of its own, for drills that do one thing after another.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use super::answer::{Answer, Reader};
use super::outcome::{CUT, MALFORMED, NO_ANSWER, Outcome, REFUSED};

/// How long a call waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer that owns its bytes.
#[derive(Debug)]
pub struct Reply {
    reader: Reader,
    failure: Option<Outcome>,
}

impl Reply {
    /// The answer.
    pub fn answer(&self) -> Answer<'_> {
        self.failure.map_or_else(|| self.reader.answer(), Answer::none)
    }

    /// What it amounts to.
    pub fn outcome(&self) -> Outcome {
        self.answer().outcome
    }

    /// A member of a JSON body, `null` when it has none.
    pub fn member(&self, name: &str) -> serde_json::Value {
        let body: Option<serde_json::Value> = serde_json::from_slice(self.answer().body).ok();
        body.and_then(|body| body.get(name).cloned()).unwrap_or_default()
    }
}

/// How a client goes away without reading its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// At once, in an orderly way.
    AtOnce,
    /// After this time.
    After(Duration),
    /// When this many bytes of the answer were read.
    Within(usize),
}

/// Sends a request and reads its answer.
pub fn call(target: SocketAddrV4, request: &[u8]) -> Reply {
    let mut reply = Reply { reader: Reader::default(), failure: None };
    if let Err(outcome) = exchange(target, request, &mut reply.reader) {
        reply.failure = Some(outcome);
    }
    reply
}

fn connect(target: SocketAddrV4) -> Result<TcpStream, Outcome> {
    let stream = TcpStream::connect_timeout(&target.into(), PATIENCE).map_err(|_| REFUSED)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|_| REFUSED)?;
    stream.set_nodelay(true).map_err(|_| REFUSED)?;
    Ok(stream)
}

fn exchange(target: SocketAddrV4, request: &[u8], reader: &mut Reader) -> Result<(), Outcome> {
    let mut stream = connect(target)?;
    stream.write_all(request).map_err(|_| CUT)?;
    let mut bytes = [0; 16 * 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return if reader.close() { Ok(()) } else { Err(CUT) },
            Ok(count) => {
                if reader.feed(&bytes[..count]).map_err(|_| MALFORMED)? {
                    return Ok(());
                }
            }
            Err(error) => {
                let late =
                    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                return Err(if late { NO_ANSWER } else { CUT });
            }
        }
    }
}

/// Sends a request and goes away.
pub fn cut(target: SocketAddrV4, request: &[u8], how: Cut) -> Result<(), Outcome> {
    let mut stream = connect(target)?;
    stream.write_all(request).map_err(|_| CUT)?;
    match how {
        Cut::AtOnce => {}
        Cut::After(time) => std::thread::sleep(time),
        Cut::Within(count) => stream.read_exact(&mut vec![0; count]).map_err(|_| CUT)?,
    }
    Ok(())
}
