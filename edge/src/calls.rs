//! Every call of ours as a row of one table: methods, path, label, what runs. What has no row is not ours;
//! nothing else lists calls. Routing, `Allow`, metrics and the short way follow from the table.

mod buy;
mod callback;
mod claim;
mod events;
mod keys;
mod order;
mod sale;
mod token;

use std::pin::Pin;

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderValue, Method};
use sluice_shared::lines::Lines;
use sluice_shared::verdict::{Code, Rejection};

pub use buy::take;

use crate::chain::{self, Buyer, Next};
use crate::exchange::{Context, Exchange, Stop};
use crate::fields::Fields;
use crate::filter::guard;
use crate::gate::Gate;
use crate::metrics::Kind;
use crate::respond::Reply;
use crate::route::{self, normalise, nothing_here};

/// What a request asks of a call.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The id in the path, as sent; empty where the path has none.
    pub id: &'a str,
    /// The query behind the path.
    pub query: Option<&'a str>,
}

/// What a call comes to on the long way.
type Running<'a> = Pin<Box<dyn Future<Output = Result<Next, Stop>> + Send + 'a>>;

/// A request on the short way, judged as far as it can be without waiting.
#[derive(Debug)]
pub enum Judged {
    /// It is answered.
    Answer(Result<Reply, Rejection>),
    /// Its units are to be taken, by [`take`].
    Take(Buyer, Lines),
}

/// Judges a request that came in one piece.
pub type Short =
    fn(&Gate, &[httparse::Header<'_>], &mut Context, Asked<'_>, &[u8]) -> Result<Judged, Rejection>;

/// One call.
pub struct Call {
    /// The path up to its id, or all of it.
    before: &'static str,
    /// The path behind its id; none: there is no id in it.
    behind: Option<&'static str>,
    /// Its methods, as `Allow` lists them. The first one may take the short way.
    pub allow: &'static str,
    /// What its requests are counted under.
    pub label: &'static str,
    run: for<'a> fn(&'a Gate, &'a mut Exchange<'_>, Asked<'a>) -> Running<'a>,
    short: Option<Short>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label)
    }
}

macro_rules! calls {
    ($($allow:literal $before:literal $(id $behind:literal)?: $label:literal => $run:path $(, short $short:path)?;)*) => {
        /// All of them. Where two fit, the first one counts.
        pub static CALLS: &[Call] = &[$(Call {
            before: $before,
            behind: calls!(@maybe $($behind)?),
            allow: $allow,
            label: $label,
            run: |gate, exchange, asked| Box::pin($run(gate, exchange, asked)),
            short: calls!(@maybe $($short)?),
        },)*];
    };
    (@maybe) => { None };
    (@maybe $it:expr) => { Some($it) };
}

calls! {
    "POST" "/v1/sales/" id "/orders": "buy" => buy::run, short buy::short;
    "POST" "/v1/sales/" id "/token": "token" => token::run, short token::short;
    "GET, HEAD" "/v1/sales/" id "": "sale" => sale::run, short sale::short;
    "POST" "/v1/orders/claim": "claim" => claim::run;
    "GET, HEAD, DELETE" "/v1/orders/" id "": "order" => order::run;
    "GET" "/v1/orders/" id "/events": "events" => events::run;
    "GET, HEAD" "/v1/receipt-keys": "keys" => keys::run;
    "POST" "/v1/payments/callback": "callback" => callback::run;
}

/// A path that is a call's.
#[derive(Debug, Clone, Copy)]
pub struct Hit<'p> {
    /// The call.
    pub call: &'static Call,
    /// What it is counted under.
    pub kind: Kind,
    /// The id in the path.
    pub id: &'p str,
}

/// Where a path leads.
#[derive(Debug, Clone, Copy)]
pub enum Route<'p> {
    /// To a call of ours.
    Ours(Hit<'p>),
    /// To ours, but no call is there.
    Nothing,
    /// Nowhere: private listeners are never reached through this one.
    Private,
    /// To the upstream.
    Elsewhere,
}

/// Routes a normalised path.
pub fn route(path: &str) -> Route<'_> {
    for (row, call) in CALLS.iter().enumerate() {
        if let Some(id) = call.id(path) {
            return Route::Ours(Hit { call, kind: Kind::call(row), id });
        }
    }
    if route::is_private(path) {
        Route::Private
    } else if CALLS.iter().any(|call| call.owns(path)) {
        Route::Nothing
    } else {
        Route::Elsewhere
    }
}

impl Call {
    /// The id in a path of this call; empty where such a path has none.
    fn id<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.before)?;
        match self.behind {
            None => rest.is_empty().then_some(""),
            Some(behind) => rest.strip_suffix(behind).filter(|id| !id.contains('/')),
        }
    }

    /// Whether a path is of this call's kind, so that the upstream is not asked for it.
    fn owns(&self, path: &str) -> bool {
        let area = self.before.trim_end_matches('/');
        path.strip_prefix(area).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn allows(&self, method: &Method) -> bool {
        self.allow.split(", ").any(|one| one == method.as_str())
    }

    /// What judges a request that came in one piece, where this method may take the short way.
    pub fn short(&self, method: &str) -> Option<Short> {
        let first = self.allow.split(", ").next();
        self.short.filter(|_| first == Some(method))
    }
}

/// Judges one request on the long way.
pub async fn judge(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<Next, Stop> {
    let Some(target) = exchange.head().uri.path_and_query().cloned() else {
        return Err(nothing_here().into());
    };
    let path = normalise(target.path());
    let hit = match route(&path) {
        Route::Private => return Err(nothing_here().into()),
        Route::Elsewhere => return chain::elsewhere(gate, exchange),
        Route::Nothing => None,
        Route::Ours(hit) => Some(hit),
    };
    exchange.context.origin = gate.origin(exchange.head().headers.field(ORIGIN.as_str()));
    if let Some(Hit { call, .. }) = hit
        && is_preflight(exchange)
    {
        return Ok(Next::Reply(preflight(call.allow)));
    }
    let has_body = exchange.has_body();
    guard::ours(&exchange.head().headers, has_body)?;
    if let Some(Hit { call, .. }) = hit
        && !call.allows(&exchange.head().method)
    {
        exchange.context.allow = call.allow;
        let detail = format!("allowed here: {}", call.allow);
        return Err(Rejection::new(Code::MethodNotAllowed, detail).into());
    }
    guard::length(&exchange.head().headers, gate.limits.body_bytes)?;
    exchange.context.kind = hit.map_or(Kind::OTHER, |hit| hit.kind);
    let Hit { call, id, .. } = hit.ok_or_else(nothing_here)?;
    (call.run)(gate, exchange, Asked { id, query: target.query() }).await
}

fn is_preflight(exchange: &Exchange<'_>) -> bool {
    exchange.context.origin.is_some()
        && exchange.head().method == Method::OPTIONS
        && exchange.head().headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a browser that asks whether its page may call.
fn preflight(allow: &'static str) -> Reply {
    let headers = "Authorization, Content-Type, Last-Event-ID, X-Sale-Token, X-Request-Id";
    Reply::json(204, Bytes::new())
        .with("Access-Control-Allow-Methods", HeaderValue::from_static(allow))
        .with("Access-Control-Allow-Headers", HeaderValue::from_static(headers))
        .with("Access-Control-Max-Age", HeaderValue::from_static("600"))
        .with("Vary", HeaderValue::from_static("Origin, Access-Control-Request-Method"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Label and id, or what else the path leads to.
    fn led(path: &str) -> (String, &str) {
        match route(path) {
            Route::Ours(Hit { call, id, .. }) => (call.label.to_owned(), id),
            other => (format!("{other:?}"), ""),
        }
    }

    #[test]
    fn our_paths_are_ours_and_no_others() {
        for (path, label, id) in [
            ("/v1/sales/demo", "sale", "demo"),
            ("/v1/sales/", "sale", ""),
            ("/v1/sales/demo/token", "token", "demo"),
            ("/v1/sales/demo/orders", "buy", "demo"),
            ("/v1/orders/x", "order", "x"),
            ("/v1/orders/x/events", "events", "x"),
            ("/v1/orders/claim", "claim", ""),
            ("/v1/receipt-keys", "keys", ""),
            ("/v1/payments/callback", "callback", ""),
        ] {
            assert_eq!(led(path), (label.to_owned(), id), "{path}");
        }
        for path in [
            "/v1/sales",
            "/v1/sales/demo/x",
            "/v1/sales/demo/orders/1",
            "/v1/sales/a/b/orders",
            "/v1/orders",
            "/v1/orders/claim/x",
            "/v1/receipt-keys/1",
            "/v1/payments/callback/x",
        ] {
            assert_eq!(led(path).0, "Nothing", "{path}");
        }
        for path in ["/", "/v1", "/v1/", "/v1/salesman", "/v1/payments", "/v1/payments/other", "/V1/sales/x"]
        {
            assert_eq!(led(path).0, "Elsewhere", "{path}");
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
            assert_eq!(led(&normalise(path)).0, "Private", "{path}");
        }
        for path in ["/admin", "/admin/v10", "/administrator/v1", "/-x/", "/x/-/y", "/x%252f"] {
            assert_eq!(led(&normalise(path)).0, "Elsewhere", "{path}");
        }
    }

    #[test]
    fn a_disguised_path_of_ours_is_ours() {
        for path in ["/v1/%73ales/demo", "//v1/x/../sales/demo"] {
            assert_eq!(led(&normalise(path)), ("sale".to_owned(), "demo"), "{path}");
        }
    }

    #[test]
    fn only_the_first_method_of_a_short_call_takes_the_short_way() {
        let short: Vec<_> = CALLS
            .iter()
            .flat_map(|call| ["GET", "HEAD", "POST", "DELETE"].map(|method| (call, method)))
            .filter(|(call, method)| call.short(method).is_some())
            .map(|(call, method)| format!("{method} {}", call.label))
            .collect();
        assert_eq!(short, ["POST buy", "POST token", "GET sale"]);
    }

    const DOCUMENT: &str = include_str!("../../docs/openapi.yaml");

    #[test]
    fn the_document_has_every_call_and_no_other() {
        let (mut path, mut documented) = (String::new(), BTreeSet::new());
        let body = DOCUMENT.lines().skip_while(|line| *line != "paths:").skip(1);
        for line in body.take_while(|line| line.is_empty() || line.starts_with(' ')) {
            let word = line.trim().trim_end_matches(':');
            match line.len() - line.trim_start().len() {
                2 => {
                    path = word
                        .split(['{', '}'])
                        .enumerate()
                        .map(|(n, part)| if n == 1 { "ID" } else { part })
                        .collect()
                }
                4 if path.starts_with("/v1/")
                    && ["get", "post", "patch", "put", "delete"].contains(&word) =>
                {
                    documented.insert(format!("{} {path}", word.to_uppercase()));
                }
                _ => {}
            }
        }
        let calls = CALLS.iter().flat_map(|call| {
            let path =
                call.behind.map_or(call.before.to_owned(), |behind| format!("{}ID{behind}", call.before));
            // A HEAD is a GET without its body, which OpenAPI does not list.
            let methods = call.allow.split(", ").filter(|method| *method != "HEAD");
            methods.map(|method| format!("{method} {path}")).collect::<Vec<_>>()
        });
        assert_eq!(calls.collect::<BTreeSet<_>>(), documented);
    }
}
