//! What belongs to one connection only and is not passed on (RFC 9110 §7.6.1).

use http::header::{
    CONNECTION, CONTENT_LENGTH, PROXY_AUTHENTICATE, SEC_WEBSOCKET_KEY, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderName, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::fields::Fields;

/// Fields that are never passed on, named by `Connection` or not.
const NEVER: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
];

/// Whether a request asks to speak WebSocket from here on. Other protocols are not for this gate: what
/// they carry would go round it.
pub fn asks_for_websocket(head: &RequestHeader) -> bool {
    let fields = &head.headers;
    let mut protocols = fields.all(UPGRADE.as_str());
    let one = protocols.next().filter(|_| protocols.next().is_none());
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && one.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && options(fields).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
        && fields.contains_key(SEC_WEBSOCKET_KEY)
}

/// Takes out of an answer what concerns the connection that it came on; of a `tunnel` the handshake
/// stays.
pub fn strip(head: &mut ResponseHeader, tunnel: bool) {
    // The framing is not the server's to take away: the body has been read by it.
    let keeps = |name: &HeaderName| {
        *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING || (tunnel && *name == UPGRADE)
    };
    let named = options(&head.headers).filter_map(|option| HeaderName::from_bytes(option).ok());
    let named: Vec<HeaderName> = named.filter(|name| !keeps(name)).collect();
    for name in named.iter().chain(&NEVER) {
        head.remove_header(name);
    }
    if tunnel {
        return;
    }
    head.remove_header(&CONNECTION);
    head.remove_header(&UPGRADE);
}

fn options(fields: &http::HeaderMap) -> impl Iterator<Item = &[u8]> {
    fields
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}
