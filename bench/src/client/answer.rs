//! Reads HTTP/1.1 answers from a connection, however the bytes are cut.

use sluice_shared::ids::OrderId;

use super::outcome::{ACCEPTED, OK, Outcome, PENDING, REPLAYED, UNHEARD, WRITTEN};

/// Longest head and longest body that are read.
const HEAD_MAX: usize = 32 * 1024;
const BODY_MAX: usize = 4 * 1024 * 1024;

/// Bytes that are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    bytes: usize,
    framing: Framing,
    close: bool,
    replayed: bool,
    retry_after: bool,
    request_id: bool,
    problem: bool,
    location: bool,
}

/// Collects one answer at a time.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    head: Option<Head>,
    /// A chunked body, put together.
    joined: Vec<u8>,
}

/// One answer, whole.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status; 0 when there was none.
    pub status: u16,
    /// What it amounts to.
    pub outcome: Outcome,
    /// The order that it names.
    pub order: Option<OrderId>,
    /// What the contract demands of such an answer and this one lacks.
    pub fault: Option<&'static str>,
    /// Its body.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// No answer, for this reason of the transport's.
    pub fn none(outcome: Outcome) -> Self {
        Self { status: 0, outcome, order: None, fault: None, body: b"" }
    }

    /// The text of a JSON string member.
    pub fn text(&self, name: &str) -> Option<&str> {
        json_text(self.body, name)
    }
}

impl Reader {
    /// Forgets everything: for a new connection, or the next answer.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.head = None;
        self.joined.clear();
    }

    /// Nothing of an answer has come.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes bytes; `true` when the answer is whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        self.buffer.extend_from_slice(bytes);
        if self.head.is_none() {
            self.head = read_head(&self.buffer)?;
        }
        let Some(head) = self.head else {
            return if self.buffer.len() > HEAD_MAX {
                Err(Malformed("the head is too long"))
            } else {
                Ok(false)
            };
        };
        let body = &self.buffer[head.bytes..];
        if body.len() > BODY_MAX {
            return Err(Malformed("the body is too long"));
        }
        match head.framing {
            Framing::Length(length) if body.len() > length => Err(Malformed("bytes behind the answer")),
            Framing::Length(length) => Ok(body.len() == length),
            Framing::UntilClose => Ok(false),
            Framing::Chunked => match join_chunks(body, &mut self.joined)? {
                None => Ok(false),
                Some(end) if end == body.len() => Ok(true),
                Some(_) => Err(Malformed("bytes behind the answer")),
            },
        }
    }

    /// The other side closed; `true` when that ends the answer.
    pub fn close(&self) -> bool {
        self.head.is_some_and(|head| head.framing == Framing::UntilClose)
    }

    /// The other side will close, or has to: no further request on this connection.
    pub fn is_last(&self) -> bool {
        self.head.is_none_or(|head| head.close || head.framing == Framing::UntilClose)
    }

    /// The answer that [`Self::feed`] or [`Self::close`] called whole.
    pub fn answer(&self) -> Answer<'_> {
        let Some(head) = self.head else { return Answer::none(UNHEARD) };
        let body = match head.framing {
            Framing::Chunked => self.joined.as_slice(),
            Framing::Length(_) | Framing::UntilClose => &self.buffer[head.bytes..],
        };
        let order = json_text(body, "order_id").and_then(OrderId::parse);
        let outcome = head.outcome(body);
        Answer { status: head.status, outcome, order, fault: head.fault(outcome, order.is_some()), body }
    }
}

impl Head {
    fn outcome(&self, body: &[u8]) -> Outcome {
        match self.status {
            200 => OK,
            201 | 202 if self.replayed => REPLAYED,
            201 => WRITTEN,
            202 => match json_text(body, "state") {
                Some("accepted") => ACCEPTED,
                Some("pending") => PENDING,
                // An order that was given up.
                _ => OK,
            },
            status => {
                json_text(body, "code").and_then(|code| Outcome::of_code(code, status)).unwrap_or(UNHEARD)
            }
        }
    }

    /// What the contract says of every answer of its kind.
    fn fault(&self, outcome: Outcome, names_order: bool) -> Option<&'static str> {
        let faults = [
            (outcome == UNHEARD, "a status and code that the contract does not have"),
            (!self.request_id, "no X-Request-Id"),
            (self.status >= 400 && !self.problem, "not application/problem+json"),
            (matches!(self.status, 429 | 503) && !self.retry_after, "no Retry-After"),
            (matches!(self.status, 201 | 202) && !names_order, "no order_id"),
            (outcome.is_held() && !self.location, "no Location"),
        ];
        faults.into_iter().find(|(wrong, _)| *wrong).map(|(_, what)| what)
    }
}

fn read_head(buffer: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let bytes = match response.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed("not an HTTP/1.1 head")),
    };
    let status = response.code.ok_or(Malformed("no status"))?;
    let mut head = Head {
        status,
        bytes,
        framing: if matches!(status, 204 | 304) { Framing::Length(0) } else { Framing::UntilClose },
        close: response.version == Some(0),
        replayed: false,
        retry_after: false,
        request_id: false,
        problem: false,
        location: false,
    };
    for field in response.headers.iter() {
        head.note(field.name, field.value)?;
    }
    Ok(Some(head))
}

impl Head {
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            self.framing = Framing::Length(length.ok_or(Malformed("Content-Length is no number"))?);
        } else if is("transfer-encoding") {
            self.framing = Framing::Chunked;
        } else if is("connection") {
            self.close |= value.eq_ignore_ascii_case(b"close");
        } else if is("content-type") {
            self.problem = value.starts_with(b"application/problem+json");
        } else {
            self.replayed |= is("idempotent-replayed") && value == b"true";
            self.retry_after |= is("retry-after");
            self.request_id |= is("x-request-id") && !value.is_empty();
            self.location |= is("location");
        }
        Ok(())
    }
}

/// Puts the chunks that are there together; `Some` with the end of the last one once it has come.
fn join_chunks(body: &[u8], joined: &mut Vec<u8>) -> Result<Option<usize>, Malformed> {
    joined.clear();
    let mut at = 0;
    loop {
        let (head, size) = match httparse::parse_chunk_size(&body[at..]) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed("not a chunk size")),
        };
        let size = usize::try_from(size).ok().filter(|size| *size <= BODY_MAX);
        let (from, size) = (at + head, size.ok_or(Malformed("the chunk is too long"))?);
        let Some(end) = body.get(from + size..from + size + 2) else { return Ok(None) };
        if end != b"\r\n" {
            return Err(Malformed("a chunk does not end where it said"));
        }
        if size == 0 {
            return Ok(Some(from + 2));
        }
        joined.extend_from_slice(&body[from..from + size]);
        at = from + size + 2;
    }
}

/// The first string member of that name, without reading the rest; escapes are not undone.
fn json_text<'a>(body: &'a [u8], name: &str) -> Option<&'a str> {
    let mut rest = body;
    loop {
        let quote = rest.iter().position(|byte| *byte == b'"')?;
        rest = &rest[quote + 1..];
        let Some(after) = rest.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"\"")) else {
            continue;
        };
        let Some(value) = after.trim_ascii_start().strip_prefix(b":") else { continue };
        let value = value.trim_ascii_start().strip_prefix(b"\"")?;
        let end = value.iter().position(|byte| *byte == b'"')?;
        return std::str::from_utf8(&value[..end]).ok();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "answer_tests.rs"]
mod tests;
