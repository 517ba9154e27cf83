//! Paths: in how many spellings one comes, and which are never reached from outside.

use std::borrow::Cow;

use sluice_shared::verdict::{Code, Rejection};

/// The path after one round of percent-decoding, with empty, `.` and `..` segments resolved.
pub fn normalise(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let odd = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\')) && !bytes.windows(2).any(odd) {
        return Cow::Borrowed(path);
    }
    let decoded = decode(bytes);
    // Some servers take a backslash for a slash.
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let directory = decoded.ends_with('/') && !segments.is_empty();
    Cow::Owned(format!("/{}{}", segments.join("/"), if directory { "/" } else { "" }))
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let pair = digit(at + 1).zip(digit(at + 2)).filter(|_| bytes[at] == b'%');
        match pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Whether a normalised path is one of the private listeners'.
pub fn is_private(path: &str) -> bool {
    private(path, "/admin/v1") || private(path, "/-")
}

/// Whether a path is this one or below it, in whatever case.
fn private(path: &str, prefix: &str) -> bool {
    let (path, prefix) = (path.as_bytes(), prefix.as_bytes());
    path.len() >= prefix.len()
        && path[..prefix.len()].eq_ignore_ascii_case(prefix)
        && path.get(prefix.len()).is_none_or(|next| *next == b'/')
}

/// What is said where there is nothing, or nothing that this buyer may see.
pub fn nothing_here() -> Rejection {
    Rejection::new(Code::NotFound, "there is nothing at this address, or it is not yours")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/v1/sales/demo-1"), Cow::Borrowed(_)));
        assert_eq!(normalise("/a%zz"), "/a%zz");
    }
}
