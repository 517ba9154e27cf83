//! The cheapest filter: what the head alone shows, once it is sound (see [`crate::head`]).

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use sluice_shared::verdict::{Code, Rejection};

use crate::fields::Fields;

/// What our own calls ask for.
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
