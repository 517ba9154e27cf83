//! Which paths are ours, which lead nowhere, and what is asked there.

use std::borrow::Cow;

use http::Method;
use sluice_shared::verdict::{Code, Rejection};

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'p> {
    /// To a call of ours.
    Ours(Call<'p>),
    /// Nowhere: private listeners are never reached through this one.
    Private,
    /// To the upstream.
    Elsewhere,
}

/// A call of ours; ids are as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'p> {
    /// What a sale is like.
    Sale(&'p str),
    /// A sale token.
    Token(&'p str),
    /// An order in a sale.
    Buy(&'p str),
    /// One order: look or cancel.
    Order(&'p str),
    /// Its changes.
    Events(&'p str),
    /// An order that was lost, by its receipt.
    Claim,
    /// The keys of receipts.
    Keys,
    /// The payment provider's notice.
    Callback,
    /// Ours, but nothing is there.
    Nothing,
}

impl Call<'_> {
    /// The methods of this call, as `Allow` lists them; empty where nothing is.
    pub fn allow(self) -> &'static str {
        match self {
            Self::Sale(_) | Self::Keys => "GET, HEAD",
            Self::Events(_) => "GET",
            Self::Token(_) | Self::Buy(_) | Self::Claim | Self::Callback => "POST",
            Self::Order(_) => "GET, HEAD, DELETE",
            Self::Nothing => "",
        }
    }

    /// Whether a method is one of them.
    pub fn allows(self, method: &Method) -> bool {
        match self {
            Self::Sale(_) | Self::Keys => matches!(*method, Method::GET | Method::HEAD),
            Self::Events(_) => *method == Method::GET,
            Self::Token(_) | Self::Buy(_) | Self::Claim | Self::Callback => *method == Method::POST,
            Self::Order(_) => matches!(*method, Method::GET | Method::HEAD | Method::DELETE),
            Self::Nothing => true,
        }
    }
}

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

/// Routes a normalised path.
pub fn route(path: &str) -> Route<'_> {
    if private(path, "/admin/v1") || private(path, "/-") {
        return Route::Private;
    }
    let Some(rest) = path.strip_prefix("/v1/") else { return Route::Elsewhere };
    let (area, rest) = rest.split_once('/').map_or((rest, None), |(area, rest)| (area, Some(rest)));
    let parts = rest.map(|rest| rest.split_once('/').map_or((rest, None), |(id, below)| (id, Some(below))));
    Route::Ours(match (area, parts) {
        ("sales", Some((sale, None))) => Call::Sale(sale),
        ("sales", Some((sale, Some("token")))) => Call::Token(sale),
        ("sales", Some((sale, Some("orders")))) => Call::Buy(sale),
        ("orders", Some(("claim", None))) => Call::Claim,
        ("orders", Some((order, None))) => Call::Order(order),
        ("orders", Some((order, Some("events")))) => Call::Events(order),
        ("receipt-keys", None) => Call::Keys,
        ("sales" | "orders" | "receipt-keys", _) => Call::Nothing,
        ("payments", Some(("callback", None))) => Call::Callback,
        ("payments", Some(("callback", Some(_)))) => Call::Nothing,
        _ => return Route::Elsewhere,
    })
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
    fn our_paths_are_ours_and_no_others() {
        assert_eq!(route("/v1/sales/demo"), Route::Ours(Call::Sale("demo")));
        assert_eq!(route("/v1/sales/demo/token"), Route::Ours(Call::Token("demo")));
        assert_eq!(route("/v1/sales/demo/orders"), Route::Ours(Call::Buy("demo")));
        assert_eq!(route("/v1/orders/x"), Route::Ours(Call::Order("x")));
        assert_eq!(route("/v1/orders/x/events"), Route::Ours(Call::Events("x")));
        assert_eq!(route("/v1/orders/claim"), Route::Ours(Call::Claim));
        assert_eq!(route("/v1/receipt-keys"), Route::Ours(Call::Keys));
        assert_eq!(route("/v1/payments/callback"), Route::Ours(Call::Callback));
        for path in [
            "/v1/sales",
            "/v1/sales/",
            "/v1/sales/demo/x",
            "/v1/sales/demo/orders/1",
            "/v1/orders",
            "/v1/orders/claim/x",
            "/v1/receipt-keys/1",
            "/v1/payments/callback/x",
        ] {
            let nothing = matches!(route(path), Route::Ours(Call::Nothing | Call::Sale("")));
            assert!(nothing, "{path}: {:?}", route(path));
        }
        for path in ["/", "/v1", "/v1/", "/v1/salesman", "/v1/payments", "/v1/payments/other", "/V1/sales/x"]
        {
            assert_eq!(route(path), Route::Elsewhere, "{path}");
        }
    }

    #[test]
    fn no_spelling_leads_to_a_private_listener() {
        for path in [
            "/admin/v1",
            "/admin/v1/sales",
            "/ADMIN/V1/sales",
            "/%61dmin/v1/sales",
            "//admin/v1",
            "/x/../admin/v1",
            "/./admin//v1/",
            "/admin%2fv1/sales",
            "/-/reload",
            "/%2d/reload",
            "/x/%2e%2e/-/live",
            "/\\admin\\v1\\x",
            "/../admin/v1",
            "/admin/x/../v1",
        ] {
            assert_eq!(route(&normalise(path)), Route::Private, "{path}");
        }
        for path in ["/admin", "/admin/v10", "/administrator/v1", "/-x/", "/x/-/y", "/x%252f"] {
            assert_eq!(route(&normalise(path)), Route::Elsewhere, "{path}");
        }
    }

    #[test]
    fn a_disguised_path_of_ours_is_ours() {
        assert_eq!(route(&normalise("/v1/%73ales/demo")), Route::Ours(Call::Sale("demo")));
        assert_eq!(route(&normalise("//v1/x/../sales/demo")), Route::Ours(Call::Sale("demo")));
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/v1/sales/demo-1"), Cow::Borrowed(_)));
        assert_eq!(normalise("/a%zz"), "/a%zz");
    }
}
