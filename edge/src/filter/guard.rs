//! The cheapest filter: what the head alone shows.

use http::Version;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use sluice_shared::verdict::{Code, Rejection};

use crate::config::Limits;
use crate::exchange::Exchange;
use crate::fields::Fields;

/// Size, number of fields and framing; for every request.
pub fn head(exchange: &Exchange<'_>, limits: &Limits) -> Result<(), Rejection> {
    let head = exchange.head();
    if head.raw_path().len() > limits.uri_bytes {
        let detail = format!("the request target may have {} bytes", limits.uri_bytes);
        return Err(Rejection::new(Code::UriTooLong, detail));
    }
    if head.headers.len() > limits.head_fields {
        let detail = format!("a request may have {} fields", limits.head_fields);
        return Err(Rejection::new(Code::HeadersTooLarge, detail));
    }
    let raw = exchange.session.downstream_session.as_http1().map(|session| session.get_headers_raw_bytes());
    let raw = raw.unwrap_or_default();
    if raw.len() > limits.head_bytes {
        let detail = format!("the head may have {} bytes", limits.head_bytes);
        return Err(Rejection::new(Code::HeadersTooLarge, detail));
    }
    // The parser drops the length when both are there; a proxy before us may have believed it.
    if head.headers.contains_key(TRANSFER_ENCODING) && names_length(&raw) {
        return Err(Rejection::field("Content-Length", "send Content-Length or Transfer-Encoding, not both"));
    }
    if head.version == Version::HTTP_11 && !head.headers.contains_key(HOST) {
        return Err(Rejection::field("Host", "an HTTP/1.1 request names its host"));
    }
    Ok(())
}

fn names_length(raw: &[u8]) -> bool {
    let name = CONTENT_LENGTH.as_str().as_bytes();
    raw.split(|byte| *byte == b'\n')
        .any(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))
}

/// What our own calls ask for beside that.
pub fn ours(fields: &(impl Fields + ?Sized), has_body: bool) -> Result<(), Rejection> {
    if fields.all(AUTHORIZATION.as_str()).nth(1).is_some() {
        return Err(Rejection::field("Authorization", "send one Authorization field"));
    }
    if !has_body {
        return Ok(());
    }
    if fields.field(CONTENT_ENCODING.as_str()).is_some() {
        return Err(Rejection::new(Code::UnsupportedMediaType, "send the body without Content-Encoding"));
    }
    let mut kinds = fields.all(CONTENT_TYPE.as_str());
    let json = |value: &[u8]| {
        let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
    };
    match (kinds.next(), kinds.next()) {
        (None, _) => Ok(()),
        (Some(kind), None) if json(kind) => Ok(()),
        _ => Err(Rejection::new(Code::UnsupportedMediaType, "send the body as application/json")),
    }
}

/// A length that is too large is judged before the body comes.
pub fn length(fields: &(impl Fields + ?Sized), limit: usize) -> Result<(), Rejection> {
    let length = fields.field(CONTENT_LENGTH.as_str());
    let length = length.and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(Rejection::new(Code::BodyTooLarge, format!("the body may have {limit} bytes")));
    }
    Ok(())
}
