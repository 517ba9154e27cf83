//! The configuration of an edge, every value checked before anything starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_shared::config::{Problems, Secret, Settings};
use sluice_shared::receipt::ReceiptKeys;
use sluice_shared::ticket::TicketKey;
use sluice_shared::token::TokenKeys;

use crate::engine::EngineConfig;
use crate::filter::address::Networks;
use crate::filter::identity::Identity;

mod sections;

/// The commented reference: each key with its default.
pub const DEFAULTS: &str = include_str!("../edge.default.toml");

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
    /// The file that it was read from.
    pub file: Option<PathBuf>,
    /// Keys that JWTs, sale tokens and tickets are judged with.
    pub keys: Keys,
    /// Keys of receipts; none: there are no receipts.
    pub receipts: ReceiptKeys,
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
    /// How long of that new connections are still taken, for load balancers to notice.
    pub drain: Duration,
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
    /// Connections of one address at a time; 0 for any number.
    pub per_address: usize,
    /// Body on its way to the upstream.
    pub upstream_body_bytes: usize,
}

/// Keys of one reading of the configuration.
#[derive(Debug)]
pub struct Keys {
    /// Who the buyer is.
    pub identity: Identity,
    /// Sale tokens and tickets.
    pub token: Token,
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
    /// For payment notices of each address.
    pub notices: Rate,
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
    /// Calls for buyers at a time.
    pub lookups: usize,
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
    /// Time for each pause of a connection that has left HTTP.
    pub tunnel_idle: Duration,
}

impl Config {
    /// Reads defaults, file and environment; every problem is told.
    pub fn load(file: Option<&Path>, name: Option<&str>) -> Result<Self, Problems> {
        let config = Self::read(Settings::load(DEFAULTS, file), name)?;
        Ok(Self { file: file.map(Path::to_owned), ..config })
    }

    /// The same from settings that are merged already.
    pub fn read(mut settings: Settings, name: Option<&str>) -> Result<Self, Problems> {
        let s = &mut settings;
        let listen = sections::listen(s);
        let limits = sections::limits(s);
        let trusted = sections::trusted(s);
        let cors = sections::origins(s);
        let verifier = sections::verifier(s);
        let identity_cache = sections::size(s, "identity.cache_entries", 1..=10_000_000);
        let token = sections::token(s);
        let receipts = sections::receipts(s, limits.body_bytes);
        let rate = sections::rates(s);
        let engine = sections::engine(s, name);
        let events = Events {
            per_user: sections::size(s, "events.streams_per_user", 1..=1000),
            ticket: s.seconds("events.ticket_seconds", 1..=86_400),
        };
        let api = sections::api(s);
        let upstream = sections::upstream(s);
        let upstream_keepalive = sections::size(s, "upstream.keepalive", 0..=100_000);
        let grace = s.seconds("shutdown.grace_seconds", 0..=3600);
        let drain = sections::drain(s, grace);
        settings.finish()?;
        let gone = || Problems(vec!["identity: no key to verify JWTs with".to_owned()]);
        let identity = Identity::new(verifier.ok_or_else(gone)?, identity_cache);
        Ok(Self {
            listen,
            limits,
            trusted,
            cors,
            file: None,
            keys: Keys { identity, token },
            receipts,
            rate,
            events,
            api,
            upstream,
            upstream_keepalive,
            grace,
            drain,
            engine,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
