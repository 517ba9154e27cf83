//! The configuration of an edge, every value checked before anything starts.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use sluice_shared::config::{Problems, Secret, Settings};
use sluice_shared::jwt::Verifier;
use sluice_shared::redis::Redis;
use sluice_shared::ticket::TicketKey;
use sluice_shared::token::TokenKeys;

use crate::engine::EngineConfig;
use crate::filter::address::{Network, Networks};

/// The commented reference: each key with its default.
pub const DEFAULTS: &str = include_str!("edge.default.toml");

/// Everything that the edge is told.
#[derive(Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// What a request may be.
    pub limits: Limits,
    /// Who may name the buyer's address.
    pub trusted: Networks,
    /// Origins that browsers may call from.
    pub cors: Vec<String>,
    /// Keys that buyers' JWTs are verified with.
    pub verifier: Verifier,
    /// Verified JWTs that are remembered.
    pub identity_cache: u64,
    /// The sale token.
    pub token: Token,
    /// Rate limits.
    pub rate: Rates,
    /// Event streams.
    pub events: Events,
    /// The workers' private listener.
    pub api: Api,
    /// The shop behind the gate, if there is one.
    pub upstream: Option<Upstream>,
    /// Idle upstream connections kept.
    pub upstream_keepalive: usize,
    /// How long a stop may take at the most.
    pub grace: Duration,
    /// What the engine is told.
    pub engine: EngineConfig,
}

/// Where an edge listens.
#[derive(Debug, Clone)]
pub struct Listen {
    /// For everybody.
    pub public: Vec<SocketAddr>,
    /// For operators.
    pub admin: SocketAddr,
    /// Threads that serve requests.
    pub threads: usize,
}

/// What a request may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Request line and fields together.
    pub head_bytes: usize,
    /// Fields.
    pub head_fields: usize,
    /// Request target.
    pub uri_bytes: usize,
    /// Body of a call of ours.
    pub body_bytes: usize,
    /// Time for the whole head.
    pub head_timeout: Duration,
    /// Time for the whole body.
    pub body_timeout: Duration,
    /// Time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Connections at a time.
    pub connections: usize,
    /// Body on its way to the upstream.
    pub upstream_body_bytes: usize,
}

/// Sale tokens and tickets.
#[derive(Debug)]
pub struct Token {
    /// Sign and verify tokens.
    pub keys: TokenKeys,
    /// Sign (the first) and verify tickets of event streams.
    pub tickets: Vec<TicketKey>,
    /// From when before the start of a sale.
    pub lead: Duration,
    /// For how long at the most.
    pub max: Duration,
}

/// One rate limit; off without `per_second`.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Requests a second in the long run.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

/// All rate limits.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// For each address.
    pub address: Rate,
    /// Whether proxied requests count for their address.
    pub proxied: bool,
    /// For each user.
    pub user: Rate,
    /// For each sale.
    pub sale: Rate,
    /// For all.
    pub total: Rate,
    /// Addresses and users remembered.
    pub slots: usize,
    /// Whether answers tell what is left.
    pub fields: bool,
}

/// Event streams.
#[derive(Debug, Clone, Copy)]
pub struct Events {
    /// Streams of one user at a time.
    pub per_user: usize,
    /// How long a ticket is good.
    pub ticket: Duration,
}

/// The workers' private listener.
#[derive(Debug, Clone)]
pub struct Api {
    /// `host:port`.
    pub address: String,
    /// Proves that it is an edge that asks.
    pub secret: Secret,
    /// Time to connect.
    pub connect: Duration,
    /// Time for each pause.
    pub read: Duration,
}

/// The shop behind the gate.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// `host:port`.
    pub address: String,
    /// Whether to speak TLS.
    pub tls: bool,
    /// Name for SNI and `Host`; empty: `Host` is the client's.
    pub host: String,
    /// Time to connect.
    pub connect: Duration,
    /// Time for each pause.
    pub read: Duration,
}

impl Config {
    /// Reads defaults, file and environment; every problem is told.
    pub fn load(file: &Path, name: Option<&str>) -> Result<Self, Problems> {
        Self::read(Settings::load(DEFAULTS, Some(file)), name)
    }

    /// The same from settings that are merged already.
    pub fn read(mut settings: Settings, name: Option<&str>) -> Result<Self, Problems> {
        let s = &mut settings;
        let listen = listen(s);
        let limits = limits(s);
        let trusted = trusted(s);
        let cors = origins(s);
        let verifier = verifier(s);
        let identity_cache = s.integer("identity.cache_entries", 0..=10_000_000);
        let token = token(s);
        let rate = rates(s);
        let engine = engine(s, name);
        let events = Events {
            per_user: size(s, "events.streams_per_user", 1..=1000),
            ticket: s.seconds("events.ticket_seconds", 1..=86_400),
        };
        let api = api(s);
        let upstream = upstream(s);
        let upstream_keepalive = size(s, "upstream.keepalive", 0..=100_000);
        let grace = s.seconds("shutdown.grace_seconds", 0..=3600);
        settings.finish()?;
        let gone = || Problems(vec!["identity: no key to verify JWTs with".to_owned()]);
        let verifier = verifier.ok_or_else(gone)?;
        Ok(Self {
            listen,
            limits,
            trusted,
            cors,
            verifier,
            identity_cache,
            token,
            rate,
            events,
            api,
            upstream,
            upstream_keepalive,
            grace,
            engine,
        })
    }
}

fn size(s: &mut Settings, key: &str, range: std::ops::RangeInclusive<u64>) -> usize {
    usize::try_from(s.integer(key, range)).unwrap_or(usize::MAX)
}

fn small(s: &mut Settings, key: &str, range: std::ops::RangeInclusive<u64>) -> u32 {
    u32::try_from(s.integer(key, range)).unwrap_or(u32::MAX)
}

fn listen(s: &mut Settings) -> Listen {
    let mut public: Vec<SocketAddr> = Vec::new();
    let texts = s.texts("listen.public");
    if texts.is_empty() {
        s.problem("listen.public", "must name at least one ADDRESS:PORT");
    }
    for text in texts {
        match text.parse() {
            Ok(address) if public.contains(&address) => {
                s.problem("listen.public", &format!("{text} stands there twice"));
            }
            Ok(address) => public.push(address),
            Err(_) => s.problem("listen.public", &format!("{text:?} is not ADDRESS:PORT")),
        }
    }
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let admin = s.parsed("listen.admin", "is not ADDRESS:PORT").unwrap_or(nowhere);
    if public.contains(&admin) {
        s.problem("listen.admin", "must differ from listen.public: it is not for buyers");
    }
    let threads = match size(s, "listen.threads", 0..=1024) {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    Listen { public, admin, threads }
}

fn limits(s: &mut Settings) -> Limits {
    Limits {
        head_bytes: size(s, "limits.head_bytes", 1024..=1_000_000),
        // The parser stops at 256.
        head_fields: size(s, "limits.head_fields", 8..=255),
        uri_bytes: size(s, "limits.uri_bytes", 64..=60_000),
        body_bytes: size(s, "limits.body_bytes", 256..=1_048_576),
        head_timeout: s.millis("limits.head_timeout_ms", 100..=600_000),
        body_timeout: s.millis("limits.body_timeout_ms", 100..=600_000),
        idle_timeout: s.millis("limits.idle_timeout_ms", 1000..=3_600_000),
        connections: size(s, "limits.connections", 1..=10_000_000),
        upstream_body_bytes: size(s, "limits.upstream_body_bytes", 0..=1 << 40),
    }
}

fn trusted(s: &mut Settings) -> Networks {
    let mut networks = Vec::new();
    for text in s.texts("trusted_proxies.addresses") {
        match Network::parse(&text) {
            Some(network) => networks.push(network),
            None => s.problem("trusted_proxies.addresses", &format!("{text:?} is not ADDRESS/BITS")),
        }
    }
    let header = s.parsed("trusted_proxies.header", "is not the name of a header field");
    Networks::new(networks, header.unwrap_or(HeaderName::from_static("x-forwarded-for")))
}

fn origins(s: &mut Settings) -> Vec<String> {
    let origins = s.texts("cors.allowed_origins");
    for origin in &origins {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let plain = |host: &str| !host.is_empty() && !host.contains(['/', ' ', ',', '"']);
        if origin != "*" && !host.is_some_and(plain) {
            s.problem("cors.allowed_origins", &format!("{origin:?} is not like https://shop.example, or *"));
        }
    }
    origins
}

fn verifier(s: &mut Settings) -> Option<Verifier> {
    let secret = s.text("identity.jwt_secret");
    if !secret.is_empty() && secret.len() < 16 {
        s.problem("identity.jwt_secret", "must have at least 16 bytes");
    }
    let file = s.text("identity.jwks_file");
    let jwks = if file.is_empty() { None } else { Some(std::fs::read_to_string(&file)) };
    let jwks = match jwks {
        Some(Err(error)) => {
            s.problem("identity.jwks_file", &format!("{file}: {error}"));
            return None;
        }
        Some(Ok(text)) => Some(text),
        None => None,
    };
    let secret = (!secret.is_empty()).then_some(secret);
    if secret.is_none() && jwks.is_none() {
        s.problem("identity.jwt_secret", "must be set, or identity.jwks_file");
        return None;
    }
    match Verifier::new(secret.as_deref(), jwks.as_deref()) {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            s.problem("identity.jwks_file", &error.to_string());
            None
        }
    }
}

fn token(s: &mut Settings) -> Token {
    let keys = s.texts("token.keys");
    if !(1..=2).contains(&keys.len()) {
        s.problem("token.keys", "must hold one key, or two while they are rotated: \"NAME:SECRET\"");
    }
    let mut secrets: Vec<&[u8]> = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        match key.split_once(':') {
            Some((name, secret)) if !name.is_empty() && secret.len() >= 16 => secrets.push(secret.as_bytes()),
            _ => {
                let what = format!("key {}: must be NAME:SECRET, the secret with at least 16 bytes", at + 1);
                s.problem("token.keys", &what);
            }
        }
    }
    Token {
        keys: TokenKeys::new(secrets.iter().copied()),
        tickets: secrets.iter().copied().map(TicketKey::derive).collect(),
        lead: s.seconds("token.lead_seconds", 0..=86_400),
        max: s.seconds("token.max_seconds", 1..=86_400),
    }
}

fn rates(s: &mut Settings) -> Rates {
    let mut rate = |name: &str| Rate {
        per_second: small(s, &format!("rate.{name}.per_second"), 0..=1_000_000_000),
        burst: small(s, &format!("rate.{name}.burst"), 1..=1_000_000_000),
    };
    let (address, user, sale, total) = (rate("address"), rate("user"), rate("sale"), rate("total"));
    Rates {
        address,
        proxied: s.flag("rate.address.proxied"),
        user,
        sale,
        total,
        slots: size(s, "rate.table_slots", 1024..=1 << 28),
        fields: s.flag("rate.fields"),
    }
}

fn engine(s: &mut Settings, name: Option<&str>) -> EngineConfig {
    let name = name.map_or_else(|| s.text("name"), str::to_owned);
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 32 || name.starts_with('.') || !name.bytes().all(word) {
        s.problem("name", "must match ^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,31}$");
    }
    let state_dir = PathBuf::from(s.text("state_dir"));
    if state_dir.as_os_str().is_empty() {
        s.problem("state_dir", "must name a directory");
    }
    let redis_url = s.text("redis.url");
    if let Err(error) = Redis::check_url(&redis_url) {
        s.problem("redis.url", &error.to_string());
    }
    let amqp_url = s.text("amqp.url");
    if !amqp_url.starts_with("amqp://") && !amqp_url.starts_with("amqps://") {
        s.problem("amqp.url", "must start with amqp:// or amqps://");
    }
    EngineConfig {
        name,
        state_dir,
        redis_url,
        redis_deadline: s.millis("redis.deadline_ms", 5..=60_000),
        amqp_url,
        amqp_inflight: size(s, "amqp.inflight", 1..=65_535),
        shards: u16::try_from(s.integer("relay.shards", 1..=64)).unwrap_or(1),
        batch_max: size(s, "reserve.batch_max", 1..=1000),
        batches_inflight: size(s, "reserve.inflight_batches", 1..=64),
        queue_max: size(s, "reserve.queue_max", 1..=10_000_000),
        held_max: size(s, "relay.held_max", 1..=100_000_000),
        sweep_after: s.millis("relay.sweep_after_ms", 100..=60_000),
        streams_max: size(s, "events.streams_max", 1..=10_000_000),
    }
}

/// `host:port` where the host is an address or a name.
fn peer(s: &mut Settings, key: &str) -> String {
    let text = s.text(key);
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = || host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let host = match bracketed {
            Some(inner) => inner.parse::<IpAddr>().is_ok(),
            None => !host.is_empty() && name(),
        };
        host && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !text.is_empty() && !good {
        s.problem(key, &format!("{text:?} is not HOST:PORT"));
    }
    text
}

fn api(s: &mut Settings) -> Api {
    let address = peer(s, "api.address");
    if address.is_empty() {
        s.problem("api.address", "must be set: orders are cancelled and paid through it");
    }
    Api {
        address,
        secret: s.secret("api.secret"),
        connect: s.millis("api.connect_timeout_ms", 1..=60_000),
        read: s.millis("api.read_timeout_ms", 1..=600_000),
    }
}

fn upstream(s: &mut Settings) -> Option<Upstream> {
    let upstream = Upstream {
        address: peer(s, "upstream.address"),
        tls: s.flag("upstream.tls"),
        host: s.text("upstream.host"),
        connect: s.millis("upstream.connect_timeout_ms", 1..=600_000),
        read: s.millis("upstream.read_timeout_ms", 1..=3_600_000),
    };
    if http::HeaderValue::from_str(&upstream.host).is_err() {
        s.problem("upstream.host", "is not the name of a host");
    }
    if upstream.tls && upstream.host.is_empty() {
        s.problem("upstream.host", "must be set with upstream.tls: the certificate is checked against it");
    }
    (!upstream.address.is_empty()).then_some(upstream)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LEAST: &str = "[identity]\njwt_secret = \"0123456789abcdef\"\n[token]\nkeys = [\"k1:0123456789abcdef\"]\n\
        [api]\nsecret = \"0123456789abcdef\"\n";

    fn read(file: &str) -> Result<Config, Problems> {
        Config::read(Settings::merge(DEFAULTS, Some(file), []), None)
    }

    #[test]
    fn the_defaults_lack_only_secrets() {
        let config = read(LEAST).unwrap();
        assert_eq!((config.limits.body_bytes, config.rate.address.burst), (4096, 2000));
        assert!(config.upstream.is_none());
        let keys: Vec<String> = read("").unwrap_err().0;
        let keys: Vec<&str> = keys.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(keys, ["identity.jwt_secret", "token.keys", "api.secret"]);
    }

    #[test]
    fn every_example_is_a_good_file() {
        for example in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
            let path = example.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                let loaded = Config::load(&path, None);
                assert!(loaded.is_ok(), "{}: {}", path.display(), loaded.unwrap_err());
            }
        }
    }

    #[test]
    fn each_wrong_value_is_named() {
        let wrong = [
            ("[listen]\npublic = [\"8080\"]", "listen.public"),
            ("[listen]\nadmin = \"127.0.0.1:8080\"", "listen.admin"),
            ("[limits]\nhead_fields = 1000", "limits.head_fields"),
            ("[trusted_proxies]\naddresses = [\"10.0.0.0/33\"]", "trusted_proxies.addresses"),
            ("[cors]\nallowed_origins = [\"shop.example\"]", "cors.allowed_origins"),
            ("[redis]\nurl = \"http://x\"", "redis.url"),
            ("[amqp]\nurl = \"rabbit\"", "amqp.url"),
            ("[upstream]\naddress = \"shop\"", "upstream.address"),
            ("[upstream]\naddress = \"shop:443\"\ntls = true", "upstream.host"),
            ("name = \"a b\"", "name"),
        ];
        for (text, key) in wrong {
            let file =
                if text.starts_with('[') { format!("{LEAST}{text}") } else { format!("{text}\n{LEAST}") };
            let problems = read(&file).unwrap_err().0;
            assert!(problems.len() == 1 && problems[0].starts_with(key), "{text}: {problems:?}");
        }
    }
}
