//! Everything that requests are judged with, whichever way they come.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use sluice_shared::ids::OrderId;
use sluice_shared::receipt::ReceiptKeys;
use sluice_shared::record::Record;
use sluice_shared::verdict::{Code, Rejection};

use crate::config::{Config, Limits};
use crate::engine::{Engine, LiveSale};
use crate::filter::address::Networks;
use crate::filter::rate;
use crate::keys::Keyring;
use crate::lookups::Lookups;
use crate::metrics::{Gauges, Metrics};
use crate::phase::Phase;
use crate::streams::Streams;
use crate::upstream::Peers;

/// How long a client may read nothing until it is given up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that requests are judged with.
#[derive(Debug)]
pub struct Gate {
    /// Sales, reservations, orders.
    pub engine: Arc<Engine>,
    /// What a request may be.
    pub limits: Limits,
    /// Who may name the buyer's address.
    pub trusted: Networks,
    /// Who the buyer is, sale tokens and tickets.
    pub keys: Arc<Keyring>,
    /// Sign and verify receipts.
    pub receipts: ReceiptKeys,
    /// Rate limits.
    pub rates: Arc<rate::Limits>,
    /// Whether proxied requests count for their address.
    pub limit_proxied: bool,
    /// Places for event streams.
    pub streams: Streams,
    /// Places for buyers' calls to the workers.
    pub lookups: Arc<Lookups>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How far a stop of this edge has come.
    pub phase: Phase,
    /// The servers behind.
    pub peers: Peers,
    cors: Vec<HeaderValue>,
    ticket: Duration,
}

#[derive(Debug)]
struct GateGauges {
    keys: Arc<Keyring>,
    lookups: Arc<Lookups>,
    rates: Arc<rate::Limits>,
}

impl Gauges for GateGauges {
    fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
        let away = "Buyers' calls to the workers that found no place";
        vec![
            ("lookups_busy", "Buyers' calls to the workers under way", self.lookups.busy()),
            ("lookups_turned_away", away, self.lookups.turned_away()),
            ("identity_known", "Verified JWTs remembered", self.keys.now().identity.known()),
            ("rate_evicted", "Buckets given up while they still limited somebody", self.rates.evicted()),
        ]
    }
}

impl Gate {
    /// A gate as configured.
    pub fn new(config: Config, engine: Arc<Engine>, metrics: Arc<Metrics>, phase: Phase) -> Self {
        Self {
            engine,
            limits: config.limits,
            trusted: config.trusted,
            keys: Arc::new(Keyring::new(config.keys, config.file)),
            receipts: config.receipts,
            rates: Arc::new(rate::Limits::new(&config.rate)),
            limit_proxied: config.rate.proxied,
            streams: Streams::new(config.events.per_user),
            lookups: Arc::new(Lookups::new(config.api.lookups)),
            metrics,
            phase,
            peers: Peers::new(config.api, config.upstream),
            cors: config.cors.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect(),
            ticket: config.events.ticket,
        }
    }

    /// What operators may see of it.
    pub fn gauges(&self) -> Box<dyn Gauges> {
        let (keys, lookups, rates) = (self.keys.clone(), self.lookups.clone(), self.rates.clone());
        Box::new(GateGauges { keys, lookups, rates })
    }

    /// Whether there is a shop behind.
    pub fn has_upstream(&self) -> bool {
        self.peers.has_upstream()
    }

    /// What `Access-Control-Allow-Origin` may say to a request from this origin.
    pub fn origin(&self, origin: Option<&[u8]>) -> Option<HeaderValue> {
        let origin = origin.filter(|_| !self.cors.is_empty())?;
        let allowed = self.cors.iter().any(|allowed| allowed == origin || allowed == "*");
        allowed.then(|| HeaderValue::from_bytes(origin).ok()).flatten()
    }

    /// A ticket for an order's event stream.
    pub fn ticket(&self, order: &OrderId) -> String {
        let expires = self.engine.clock().now().after(self.ticket);
        self.keys.now().token.tickets.first().map(|key| key.issue(order, expires)).unwrap_or_default()
    }

    /// Whether a ticket opens an order's event stream.
    pub fn admits(&self, ticket: &str, order: &OrderId) -> bool {
        let now = self.engine.clock().now();
        self.keys.now().token.tickets.iter().any(|key| key.verify(ticket, order, now))
    }

    /// The record of an order and its sale, where Redis has them.
    pub async fn record(&self, id: &OrderId) -> Result<Option<(Record, Arc<LiveSale>)>, Rejection> {
        let record = self.engine.record(id).await.map_err(|_| {
            Rejection::new(Code::Unavailable, "the state of the order cannot be read at the moment")
        })?;
        Ok(record.zip(self.engine.sale_by_number(id.sale)))
    }
}
