//! The servers behind us: where they are, and what a request looks like on its way there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Api, Upstream};
use crate::exchange::{Context, Target};
use crate::fields::REQUEST_ID;
use crate::filter::address::Networks;

/// The verified user, for the shop and for the workers.
pub const USER: HeaderName = HeaderName::from_static("x-sluice-user");
const SIGNATURE: HeaderName = HeaderName::from_static("x-payment-signature");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Fields by which a proxy says who its client is and what he asked for; from anybody else they are made
/// up. Beside them everything that begins with `x-forwarded-`.
const FORWARDED: [&str; 10] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-remote-user",
    "x-original-url",
    "x-rewrite-url",
];
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Longest answer of the workers that is read here.
const ANSWER_MAX: usize = 64 * 1024;
/// How long a resolved name is believed.
const RESOLVED_FOR: Duration = Duration::from_secs(10);

/// A server by `host:port`.
#[derive(Debug)]
struct Place {
    text: String,
    resolved: ArcSwapOption<(SocketAddr, Option<Instant>)>,
}

impl Place {
    fn new(text: &str) -> Self {
        let fixed = text.parse().ok().map(|address| Arc::new((address, None)));
        Self { text: text.to_owned(), resolved: ArcSwapOption::new(fixed) }
    }

    async fn address(&self) -> pingora::Result<SocketAddr> {
        if let Some(known) = self.resolved.load().as_deref()
            && known.1.is_none_or(|since| since.elapsed() < RESOLVED_FOR)
        {
            return Ok(known.0);
        }
        let context = || format!("resolving {}", self.text);
        let mut found =
            tokio::net::lookup_host(&self.text).await.or_err_with(ErrorType::ConnectError, context)?;
        let address = found.next().ok_or_else(|| Error::explain(ErrorType::ConnectError, context()))?;
        self.resolved.store(Some(Arc::new((address, Some(Instant::now())))));
        Ok(address)
    }
}

/// All servers behind us.
#[derive(Debug)]
pub struct Peers {
    api: Api,
    api_place: Place,
    api_bearer: HeaderValue,
    upstream: Option<(Upstream, Place)>,
}

impl Peers {
    /// As configured.
    pub fn new(api: Api, upstream: Option<Upstream>) -> Self {
        let api_place = Place::new(&api.address);
        let bearer = format!("Bearer {}", api.secret.reveal());
        let mut api_bearer = HeaderValue::from_str(&bearer).unwrap_or(HeaderValue::from_static(""));
        api_bearer.set_sensitive(true);
        let upstream = upstream.map(|upstream| {
            let place = Place::new(&upstream.address);
            (upstream, place)
        });
        Self { api, api_place, api_bearer, upstream }
    }

    /// How long a connection that has left HTTP may be silent.
    pub fn tunnel_idle(&self) -> Duration {
        self.upstream.as_ref().map_or(Duration::ZERO, |(upstream, _)| upstream.tunnel_idle)
    }

    /// Whether there is a shop.
    pub fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// Where a request goes.
    pub async fn peer(&self, target: Target) -> pingora::Result<Box<HttpPeer>> {
        let (place, tls, host, connect, read) = match (target, &self.upstream) {
            (Target::Upstream, Some((upstream, place))) => {
                (place, upstream.tls, upstream.host.clone(), upstream.connect, upstream.read)
            }
            (Target::Order(_) | Target::Callback, _) => {
                (&self.api_place, false, String::new(), self.api.connect, self.api.read)
            }
            (Target::Here, _) | (Target::Upstream, None) => {
                return Err(Error::explain(ErrorType::InternalError, "nowhere to go"));
            }
        };
        let mut peer = Box::new(HttpPeer::new(place.address().await?, tls, host));
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        peer.options.read_timeout = Some(read);
        peer.options.write_timeout = Some(read);
        peer.options.idle_timeout = Some(Duration::from_secs(30));
        Ok(peer)
    }

    /// Asks the workers something for a request's buyer, rather than passing his request on; answers
    /// their status and body.
    pub async fn ask(
        &self,
        context: &Context,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> pingora::Result<(u16, Bytes)> {
        let mut head = RequestHeader::build(method, path.as_bytes(), Some(8))?;
        if !body.is_empty() {
            head.insert_header(CONTENT_LENGTH, body.len())?;
        }
        self.internal(&mut head, context, path)?;
        let connect = TcpStream::connect(self.api_place.address().await?);
        let late = |_| Error::explain(ErrorType::ConnectTimedout, "connecting to the workers");
        let stream = timeout(self.api.connect, connect).await.map_err(late)?;
        let stream: Stream = stream.or_err(ErrorType::ConnectError, "connecting to the workers")?.into();
        let mut session = HttpSession::new(Box::new(stream));
        (session.read_timeout, session.write_timeout) = (Some(self.api.read), Some(self.api.read));
        session.write_request_header(Box::new(head)).await?;
        if !body.is_empty() {
            session.write_body(body).await?;
        }
        session.finish_body().await?;
        session.read_response().await?;
        let status = session.get_status().map_or(0, |status| status.as_u16());
        let mut answer = BytesMut::new();
        while let Some(part) = session.read_body_bytes().await? {
            answer.extend_from_slice(&part);
            if answer.len() > ANSWER_MAX {
                return Err(Error::explain(ErrorType::ReadError, "the workers' answer is too long"));
            }
        }
        Ok((status, answer.freeze()))
    }

    /// Makes the request what the server behind shall see.
    pub fn rewrite(
        &self,
        request: &mut RequestHeader,
        context: &Context,
        trusted: &Networks,
    ) -> pingora::Result<()> {
        match context.target {
            Target::Order(id) => self.internal(request, context, &format!("/internal/v1/orders/{id}")),
            Target::Callback => self.internal(request, context, "/internal/v1/payments/callback"),
            Target::Upstream | Target::Here => self.shop(request, context, trusted),
        }
    }

    /// For the workers: a head of our own, with nothing of the client's but the body's fields.
    fn internal(&self, request: &mut RequestHeader, context: &Context, path: &str) -> pingora::Result<()> {
        let mut head = RequestHeader::build(request.method.clone(), path.as_bytes(), Some(8))?;
        for name in [CONTENT_LENGTH, CONTENT_TYPE, SIGNATURE] {
            for value in request.headers.get_all(&name) {
                head.append_header(name.clone(), value.clone())?;
            }
        }
        head.insert_header(HOST, self.api.address.as_str())?;
        head.insert_header(AUTHORIZATION, self.api_bearer.clone())?;
        head.insert_header(REQUEST_ID, context.request_id())?;
        if let Some(user) = &context.user {
            head.insert_header(USER, user.as_str())?;
        }
        head.insert_header(FORWARDED_FOR, context.client.to_string())?;
        *request = head;
        Ok(())
    }

    /// For the shop: the client's head without what only we may say.
    fn shop(
        &self,
        request: &mut RequestHeader,
        context: &Context,
        trusted: &Networks,
    ) -> pingora::Result<()> {
        let told = trusted.trusts(context.peer);
        let made_up = |name: &&HeaderName| is_ours(name) || !told && is_forwarded(name);
        let made_up: Vec<HeaderName> = request.headers.keys().filter(made_up).cloned().collect();
        for name in &made_up {
            request.remove_header(name);
        }
        // pingora has taken out what concerns the client's connection only; httpoxy's is nobody's.
        request.remove_header("proxy");
        if let Some(user) = &context.user {
            request.insert_header(USER, user.as_str())?;
        }
        request.insert_header(REQUEST_ID, context.request_id())?;
        let peer = context.peer.to_string();
        let before = request.headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let chain: Vec<&str> = before.filter(|_| told).chain([peer.as_str()]).collect();
        request.insert_header(FORWARDED_FOR, chain.join(", "))?;
        if !told || !request.headers.contains_key(FORWARDED_PROTO) {
            request.insert_header(FORWARDED_PROTO, HeaderValue::from_static("http"))?;
        }
        let host = request.headers.get(HOST).cloned();
        if !told || !request.headers.contains_key(FORWARDED_HOST) {
            match host {
                Some(host) => request.insert_header(FORWARDED_HOST, host)?,
                None => drop(request.remove_header(&FORWARDED_HOST)),
            }
        }
        match &self.upstream {
            Some((upstream, _)) if !upstream.host.is_empty() => {
                request.insert_header(HOST, upstream.host.as_str())
            }
            // HTTP/1.0 needs none, but what the shop gets is 1.1.
            Some((upstream, _)) if !request.headers.contains_key(HOST) => {
                request.insert_header(HOST, upstream.address.as_str())
            }
            _ => Ok(()),
        }
    }
}

/// `X-User-…` and `X-Sluice-…`.
fn is_ours(name: &HeaderName) -> bool {
    ["x-user-", "x-sluice-"].iter().any(|prefix| begins(name, prefix))
}

/// What only a proxy may say.
fn is_forwarded(name: &HeaderName) -> bool {
    let same = |known: &&str| name.as_str().len() == known.len() && begins(name, known);
    begins(name, "x-forwarded-") || FORWARDED.iter().any(same)
}

/// Also with underscores, which some servers take for dashes.
fn begins(name: &HeaderName, prefix: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    name.as_str().len() >= prefix.len() && name.as_str().bytes().zip(prefix.bytes()).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_we_may_say_who_the_user_is() {
        for (name, ours) in [
            ("x-user-id", true),
            ("x-sluice-user", true),
            ("x_sluice_user", true),
            ("x-user_id", true),
            ("x-username", false),
            ("x-sluic", false),
            ("user-agent", false),
        ] {
            assert_eq!(is_ours(&HeaderName::from_static(name)), ours, "{name}");
        }
    }

    #[test]
    fn only_a_proxy_may_say_whom_it_speaks_for() {
        for (name, forwarded) in [
            ("forwarded", true),
            ("x-forwarded-for", true),
            ("x-forwarded-port", true),
            ("x_forwarded_user", true),
            ("x_real-ip", true),
            ("true-client-ip", true),
            ("forwarded-to", false),
            ("x-real-ipv", false),
            ("x-forwarded", false),
            ("accept", false),
        ] {
            assert_eq!(is_forwarded(&HeaderName::from_static(name)), forwarded, "{name}");
        }
    }
}
