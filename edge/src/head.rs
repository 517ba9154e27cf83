//! What the head of a request may look like, whichever way the request goes (RFC 9112 §2 to §6).
//!
//! The parser reads more than it should: lines that end with a bare LF, any text for a host, lengths
//! and codings that contradict each other. What another server might read differently is refused here,
//! before anybody acts on it.

use bytes::{Buf, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use httparse::{Header, Request};
use sluice_shared::verdict::{Code, Rejection};

use crate::config::Limits;
use crate::fields::Fields;
use crate::framing::Framing;

/// More than any limit of ours, and what the parser behind us can take.
const FIELDS: usize = 256;
/// Bytes of empty lines before a request, which old clients send behind a body.
const EMPTY: usize = 4;

/// A head on its way.
#[derive(Debug, Default)]
pub struct Head {
    bytes: BytesMut,
}

/// A head that has come, and may be acted on.
#[derive(Debug)]
pub struct Whole {
    /// As a server behind us may see it.
    pub head: BytesMut,
    /// What it says about its body.
    pub framing: Framing,
    /// What came behind it.
    pub behind: BytesMut,
}

impl Head {
    /// More of it came; all of it, once it is there.
    pub fn read(&mut self, came: BytesMut, limits: &Limits) -> Result<Option<Whole>, Rejection> {
        let before = self.bytes.len();
        self.bytes.unsplit(came);
        // Read at once, and then not again before it can be whole: a head may come in drips.
        let whole = (before == 0 || has_blank_line(&self.bytes, before)).then(|| parse(&self.bytes, limits));
        let Some((length, framing, rewritten)) = whole.transpose()?.flatten() else {
            return match self.bytes.len() < limits.head_bytes {
                true => Ok(None),
                false => Err(long_target(&self.bytes, limits).unwrap_or_else(too_large)),
            };
        };
        let mut head = std::mem::take(&mut self.bytes);
        let behind = head.split_off(length);
        head.advance(empty(&head));
        let head = rewritten.map_or(head, |rewritten| BytesMut::from(&rewritten[..]));
        Ok(Some(Whole { head, framing, behind }))
    }
}

/// How long a head is, what it says about its body, and how it reads with a path for its target where it
/// has none; `None` when more of it has to come.
type Parsed = (usize, Framing, Option<Vec<u8>>);

fn parse(bytes: &[u8], limits: &Limits) -> Result<Option<Parsed>, Rejection> {
    if empty(bytes) > EMPTY {
        return Err(malformed("a request begins with its request line"));
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(_) => {
            let malformed = || malformed("the request line or a field is malformed");
            return Err(long_target(bytes, limits).unwrap_or_else(malformed));
        }
    };
    if request.path.is_some_and(|path| path.len() > limits.uri_bytes) {
        return Err(too_long(limits));
    }
    if request.headers.len() > limits.head_fields || length > limits.head_bytes {
        return Err(too_large());
    }
    let sound = judge(&request, &bytes[..length])?;
    Ok(Some((length, sound.framing, sound.absolute.map(|absolute| absolute.rewritten(&request)))))
}

fn empty(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// Whether there is a blank line that was not whole in the bytes `before`.
fn has_blank_line(bytes: &[u8], before: usize) -> bool {
    let start = before.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[start..])
        .any(|at| matches!(bytes.get(start + at + 1..), Some([b'\n', ..] | [b'\r', b'\n', ..])))
}

fn too_large() -> Rejection {
    Rejection::new(Code::HeadersTooLarge, "send fewer or shorter fields")
}

fn too_long(limits: &Limits) -> Rejection {
    Rejection::new(Code::UriTooLong, format!("the request target may have {} bytes", limits.uri_bytes))
}

/// Of a head that cannot be read, whether its target is too long.
fn long_target(bytes: &[u8], limits: &Limits) -> Option<Rejection> {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    (line > limits.uri_bytes).then(|| too_long(limits))
}

/// A head that may be acted on.
#[derive(Debug, PartialEq, Eq)]
pub struct Sound<'b> {
    /// What it says about its body.
    pub framing: Framing,
    /// What its target names beside a path, when it does.
    pub absolute: Option<Absolute<'b>>,
}

/// A target in absolute form (RFC 9112 §3.2.2).
#[derive(Debug, PartialEq, Eq)]
pub struct Absolute<'b> {
    authority: &'b str,
    /// From the path on; may be empty, or begin with the query.
    rest: &'b str,
}

/// Judges what the parser took for a whole head; `bytes` are those that it was read from.
pub fn judge<'b>(request: &Request<'_, 'b>, bytes: &[u8]) -> Result<Sound<'b>, Rejection> {
    let mut lines = memchr::memchr_iter(b'\n', bytes);
    if lines.any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return Err(malformed("each line of the head ends with CR LF"));
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Rejection::new(Code::MethodNotAllowed, format!("{method} is not for this gate")));
    }
    let absolute = absolute(method, target)?;
    let old = request.version == Some(0);
    let (mut hosts, mut lengths, mut codings) = (None, None, None);
    for field in &*request.headers {
        let (seen, name) = match field.name.len() {
            4 => (&mut hosts, HOST),
            14 => (&mut lengths, CONTENT_LENGTH),
            17 => (&mut codings, TRANSFER_ENCODING),
            _ => continue,
        };
        if field.name.eq_ignore_ascii_case(name.as_str()) && seen.replace(field.value).is_some() {
            return Err(twice(&*request.headers, field.name));
        }
    }
    match (hosts, &absolute) {
        (Some(host), _) if !is_host(host) => {
            return Err(Rejection::field("Host", "Host is a name or an address, and perhaps a port"));
        }
        (Some(host), Some(target)) if !host.eq_ignore_ascii_case(target.authority.as_bytes()) => {
            return Err(Rejection::field("Host", "Host and the request target name different hosts"));
        }
        (None, _) if !old => return Err(Rejection::field("Host", "an HTTP/1.1 request names its host")),
        _ => {}
    }
    let framing = match (codings, lengths) {
        (None, None) => Framing::Nothing,
        (None, Some(length)) => Framing::Length(self::length(length)?),
        (Some(_), Some(_)) => {
            let both = "send Content-Length or Transfer-Encoding, not both";
            return Err(Rejection::field("Content-Length", both));
        }
        (Some(_), None) if old => {
            return Err(Rejection::field("Transfer-Encoding", "HTTP/1.0 knows no Transfer-Encoding"));
        }
        (Some(coding), None) => coded(coding)?,
    };
    Ok(Sound { framing, absolute })
}

fn malformed(detail: &'static str) -> Rejection {
    Rejection::field("head", detail)
}

fn twice(fields: &[Header<'_>], name: &str) -> Rejection {
    if name.eq_ignore_ascii_case(TRANSFER_ENCODING.as_str()) {
        // Two fields are one list.
        let values: Vec<&[u8]> = fields.all(TRANSFER_ENCODING.as_str()).collect();
        return match coded(&values.join(&b","[..])) {
            Err(rejection) => rejection,
            Ok(_) => Rejection::field("Transfer-Encoding", "send Transfer-Encoding once"),
        };
    }
    let name = if name.len() == 4 { "Host" } else { "Content-Length" };
    Rejection::field(name, format!("send {name} once"))
}

fn length(value: &[u8]) -> Result<u64, Rejection> {
    if !(1..=18).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return Err(Rejection::field("Content-Length", "Content-Length is one whole number"));
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Only `chunked` is known, and it comes last, once.
fn coded(value: &[u8]) -> Result<Framing, Rejection> {
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).rev();
    let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let wrong = |detail: &'static str| Err(Rejection::field("Transfer-Encoding", detail));
    if !codings.next().is_some_and(chunked) {
        return wrong(
            "the last coding of Transfer-Encoding must be chunked, or nobody knows where the body ends",
        );
    }
    let mut unknown = false;
    for coding in codings {
        if coding.is_empty() || chunked(coding) {
            return wrong("Transfer-Encoding is chunked, once");
        }
        unknown = true;
    }
    match unknown {
        true => Err(Rejection::new(Code::NotImplemented, "the only Transfer-Encoding known here is chunked")),
        false => Ok(Framing::Chunked),
    }
}

/// Whether a target is a path; if it is a whole URI, its parts.
fn absolute<'b>(method: &str, target: &'b str) -> Result<Option<Absolute<'b>>, Rejection> {
    if target.contains('#') {
        return Err(malformed("a request target has no fragment"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(None);
    }
    let wrong = || malformed("the request target is a path that begins with a slash");
    let (scheme, rest) = target.split_once("://").ok_or_else(wrong)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(wrong());
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if !is_host(authority.as_bytes()) {
        return Err(malformed("the request target names no host"));
    }
    Ok(Some(Absolute { authority, rest }))
}

impl Absolute<'_> {
    /// The same head with a path for its target, and its authority as `Host`.
    pub fn rewritten(&self, request: &Request<'_, '_>) -> Vec<u8> {
        let slash = if self.rest.starts_with('/') { "" } else { "/" };
        let minor = request.version.unwrap_or(1);
        let line = format!(
            "{} {slash}{} HTTP/1.{minor}\r\nHost: {}\r\n",
            request.method.unwrap_or_default(),
            self.rest,
            self.authority
        );
        let mut head = line.into_bytes();
        let others = request.headers.iter().filter(|field| !field.name.eq_ignore_ascii_case(HOST.as_str()));
        for field in others {
            for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// Whether this is a host with or without a port (RFC 3986 §3.2.2).
pub fn is_host(text: &[u8]) -> bool {
    let port = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    let address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte);
    if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let behind = &rest[end + 1..];
        let numbered = behind.is_empty() || behind.strip_prefix(b":").is_some_and(port);
        return end > 0 && rest[..end].iter().all(address) && numbered;
    }
    let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
    end > 0 && text[..end].iter().all(name) && text.get(end + 1..).is_none_or(port)
}
