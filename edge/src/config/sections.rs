//! Each section of the configuration, read and checked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use sluice_shared::config::Settings;
use sluice_shared::jwt::Verifier;
use sluice_shared::receipt::{RECEIPT_MAX, ReceiptKeys};
use sluice_shared::redis::Redis;
use sluice_shared::ticket::TicketKey;
use sluice_shared::token::TokenKeys;

use super::{Api, Limits, Listen, Rate, Rates, Token, Upstream};
use crate::engine::EngineConfig;
use crate::filter::address::{Network, Networks};

pub(super) fn size(s: &mut Settings, key: &str, range: std::ops::RangeInclusive<u64>) -> usize {
    usize::try_from(s.integer(key, range)).unwrap_or(usize::MAX)
}

fn small(s: &mut Settings, key: &str, range: std::ops::RangeInclusive<u64>) -> u32 {
    u32::try_from(s.integer(key, range)).unwrap_or(u32::MAX)
}

pub(super) fn listen(s: &mut Settings) -> Listen {
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

pub(super) fn limits(s: &mut Settings) -> Limits {
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
        per_address: size(s, "limits.connections_per_address", 0..=10_000_000),
        upstream_body_bytes: size(s, "limits.upstream_body_bytes", 0..=1 << 40),
    }
}

pub(super) fn drain(s: &mut Settings, grace: Duration) -> Duration {
    let drain = s.millis("shutdown.drain_ms", 0..=3_600_000);
    if drain > grace {
        s.problem("shutdown.drain_ms", "must not be longer than shutdown.grace_seconds: it is a part of it");
    }
    drain
}

pub(super) fn trusted(s: &mut Settings) -> Networks {
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

pub(super) fn origins(s: &mut Settings) -> Vec<String> {
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

pub(super) fn verifier(s: &mut Settings) -> Option<Verifier> {
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

pub(super) fn token(s: &mut Settings) -> Token {
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

/// Keys of receipts, at the most: those of every receipt that may still be shown.
const RECEIPT_KEYS_MAX: usize = 16;

pub(super) fn receipts(s: &mut Settings, body_bytes: usize) -> ReceiptKeys {
    let (texts, mut keys) = (s.texts("receipt.keys"), ReceiptKeys::default());
    if texts.len() > RECEIPT_KEYS_MAX {
        s.problem("receipt.keys", &format!("may hold {RECEIPT_KEYS_MAX} keys"));
    }
    for (at, text) in texts.iter().enumerate() {
        let (name, seed) = text.split_once(':').unwrap_or_default();
        if let Err(bad) = keys.add(name, seed) {
            s.problem("receipt.keys", &format!("key {}, NAME:SEED: {bad}", at + 1));
        }
    }
    if !texts.is_empty() && body_bytes < RECEIPT_MAX {
        s.problem(
            "limits.body_bytes",
            &format!("must be at least {RECEIPT_MAX}, or no receipt can be claimed"),
        );
    }
    keys
}

pub(super) fn rates(s: &mut Settings) -> Rates {
    let mut rate = |name: &str| Rate {
        per_second: small(s, &format!("rate.{name}.per_second"), 0..=1_000_000_000),
        burst: small(s, &format!("rate.{name}.burst"), 1..=1_000_000_000),
    };
    let (address, user, sale, total) = (rate("address"), rate("user"), rate("sale"), rate("total"));
    let notices = rate("notices");
    Rates {
        address,
        proxied: s.flag("rate.address.proxied"),
        user,
        sale,
        total,
        notices,
        slots: size(s, "rate.table_slots", 1024..=1 << 28),
        fields: s.flag("rate.fields"),
    }
}

/// Shorter than a subscription lasts by itself: the next one stands before it ends.
const LISTEN: Duration = Duration::from_secs(20);

pub(super) fn engine(s: &mut Settings, name: Option<&str>) -> EngineConfig {
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
        spare_max: size(s, "relay.spare_max", 0..=100_000_000),
        spare_for: s.seconds("relay.spare_seconds", 0..=3600),
        sweep_after: s.millis("relay.sweep_after_ms", 100..=60_000),
        streams_max: size(s, "events.streams_max", 1..=10_000_000),
        listen_for: LISTEN,
        skew_max: s.seconds("redis.skew_max_seconds", 60..=86_400),
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

pub(super) fn api(s: &mut Settings) -> Api {
    let address = peer(s, "api.address");
    if address.is_empty() {
        s.problem("api.address", "must be set: orders are cancelled and paid through it");
    }
    Api {
        address,
        secret: s.secret("api.secret"),
        connect: s.millis("api.connect_timeout_ms", 1..=60_000),
        read: s.millis("api.read_timeout_ms", 1..=600_000),
        lookups: size(s, "api.lookups_max", 1..=100_000),
    }
}

pub(super) fn upstream(s: &mut Settings) -> Option<Upstream> {
    let upstream = Upstream {
        address: peer(s, "upstream.address"),
        tls: s.flag("upstream.tls"),
        host: s.text("upstream.host"),
        connect: s.millis("upstream.connect_timeout_ms", 1..=600_000),
        read: s.millis("upstream.read_timeout_ms", 1..=3_600_000),
        tunnel_idle: s.millis("upstream.tunnel_idle_timeout_ms", 100..=86_400_000),
    };
    if http::HeaderValue::from_str(&upstream.host).is_err() {
        s.problem("upstream.host", "is not the name of a host");
    }
    if upstream.tls && upstream.host.is_empty() {
        s.problem("upstream.host", "must be set with upstream.tls: the certificate is checked against it");
    }
    (!upstream.address.is_empty()).then_some(upstream)
}
