//! A crowd of buyers as a load: most behave, some do not, and each has its set of right answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;

use crate::admin::CURRENCY;
use crate::buyers::{Buyers, Notice};
use crate::client::answer::Answer;
use crate::client::outcome::{
    ACCEPTED, CUT, FROZEN, NO_ANSWER, OK, OVERLOADED, Outcome, PENDING, PURCHASE_LIMIT, RATE_LIMITED,
    REFUSED, REPLAYED, SOLD_OUT, TOKEN_SPENT, UNAVAILABLE,
};
use crate::client::{Kind, Lane, Load, Micros, Shot};
use crate::schedule::{Profile, Schedule};

const BAD_GATEWAY: Outcome = Outcome("bad_gateway");
const TOKEN_INVALID: &[Outcome] = &[Outcome("token_invalid")];
const TOKEN_EXPIRED: &[Outcome] = &[Outcome("token_expired"), UNAVAILABLE];
const UNAUTHENTICATED: &[Outcome] = &[Outcome("unauthenticated")];
const BOT: &[Outcome] = &[Outcome("token_invalid"), RATE_LIMITED];
const TOKEN: &[Outcome] = &[OK];
// Redis may answer too late at any time: then the same token has to yield the truth.
const BUY: &[Outcome] = &[ACCEPTED, SOLD_OUT, UNAVAILABLE];
const TWIN: &[Outcome] = &[ACCEPTED, REPLAYED, SOLD_OUT, UNAVAILABLE];
const AGAIN_HELD: &[Outcome] = &[REPLAYED, UNAVAILABLE];
const OVER_LIMIT: &[Outcome] = &[PURCHASE_LIMIT, SOLD_OUT, UNAVAILABLE];
/// A notice is told to come again while the order's row cannot be asked for.
const PAY: &[Outcome] = &[OK, UNAVAILABLE];
/// A cancel that is made again may meet what it did before.
const CANCEL: &[Outcome] =
    &[OK, UNAVAILABLE, FROZEN, OVERLOADED, CUT, NO_ANSWER, REFUSED, BAD_GATEWAY, Outcome("gateway_timeout")];
/// What may happen to any request while servers die.
const ANYTHING: &[Outcome] = &[
    OK,
    ACCEPTED,
    REPLAYED,
    PENDING,
    SOLD_OUT,
    UNAVAILABLE,
    FROZEN,
    OVERLOADED,
    CUT,
    NO_ANSWER,
    REFUSED,
    BAD_GATEWAY,
];
const ANYTHING_AGAIN: &[Outcome] = &[
    ACCEPTED,
    REPLAYED,
    PENDING,
    SOLD_OUT,
    UNAVAILABLE,
    FROZEN,
    OVERLOADED,
    CUT,
    NO_ANSWER,
    REFUSED,
    BAD_GATEWAY,
    TOKEN_SPENT,
];

/// Requests of bots a second.
const BOTS_RATE: f64 = 20_000.0;
/// Attempts at one thing before it is given up.
const ATTEMPTS: u16 = 200;
/// Between two of them.
const PAUSE: Micros = 500_000;

/// How a buyer behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Plain,
    DoubleClick,
    Replay,
    Second,
    Greedy,
    Forger,
    Late,
    Stranger,
}

/// What a crowd does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// When buyers come.
    pub profile: Profile,
    /// Nobody comes any more once this is set.
    pub stop: Arc<AtomicBool>,
    /// Orders accepted so far.
    pub accepted: Arc<AtomicU64>,
    /// Whether some misbehave.
    pub mixed: bool,
    /// Tokens are minted beforehand instead of fetched.
    pub mint: bool,
    /// Servers die: any transport failure is expected, and tried again.
    pub faults: bool,
    /// Which share of the orders is paid.
    pub paid: f64,
    /// Which share of the others is cancelled.
    pub cancelled: f64,
    /// How long a buyer needs to pay or to cancel at most; at least a tenth of it.
    pub pay_after: Duration,
    /// Price of a unit.
    pub price: i64,
    /// Units that a user may hold.
    pub per_user: u32,
    /// Requests of bots.
    pub bots: u32,
    /// Chooses who behaves how.
    pub seed: u64,
}

impl Plan {
    /// A plain crowd that comes in this way.
    pub fn plain(profile: Profile) -> Self {
        Self {
            profile,
            stop: Arc::default(),
            accepted: Arc::default(),
            mixed: false,
            mint: false,
            faults: false,
            paid: 0.0,
            cancelled: 0.0,
            pay_after: Duration::from_millis(1_500),
            price: 100,
            per_user: 1,
            bots: 0,
            seed: 1,
        }
    }
}

/// A crowd on its way.
pub struct Crowd {
    buyers: Arc<Buyers>,
    plan: Plan,
    who: Vec<u32>,
    /// Those that are not plain.
    manners: HashMap<u32, Manner>,
    /// Orders ready to be sent, in the order of arrival.
    minted: Vec<(Bytes, OrderId)>,
    forged: Vec<Bytes>,
    arrivals: Schedule,
    bots: Schedule,
    random: StdRng,
}

impl Crowd {
    /// These buyers, in this order, on a plan; what can be made beforehand is.
    pub fn new(buyers: &Arc<Buyers>, who: Vec<u32>, plan: Plan) -> Self {
        let mut random = StdRng::seed_from_u64(plan.seed);
        let mut manners = HashMap::new();
        if plan.mixed {
            let drawn = who.iter().map(|buyer| (*buyer, manner(&mut random)));
            manners.extend(drawn.filter(|(_, manner)| *manner != Manner::Plain));
        }
        let expires = Millis(Millis::now().0 + 14 * 60_000);
        let mint = |buyer: &u32| {
            let (token, order) = buyers.mint(*buyer, expires)?;
            Some((buyers.order_request(*buyer, &token, 1), order))
        };
        let forge = |buyer: &u32| Some(buyers.order_request(*buyer, &buyers.forge(*buyer)?, 1));
        Self {
            arrivals: Schedule::new(plan.profile, 0, who.len() as u64),
            bots: Schedule::new(Profile::Rate(BOTS_RATE), 0, u64::from(plan.bots)),
            buyers: buyers.clone(),
            manners,
            minted: who.iter().filter(|_| plan.mint).filter_map(mint).collect(),
            forged: who.iter().filter(|_| plan.bots > 0).take(64).filter_map(forge).collect(),
            plan,
            who,
            random,
        }
    }

    /// How many buyers try to buy one unit with a good token.
    pub fn demand(&self) -> u32 {
        let buys = |manner: &&Manner| matches!(manner, Manner::DoubleClick | Manner::Replay | Manner::Second);
        let odd = self.manners.values().filter(|manner| !buys(manner)).count();
        u32::try_from(self.who.len() - odd).unwrap_or(u32::MAX)
    }

    /// About how many requests it makes.
    pub fn requests(&self) -> u64 {
        let each = if self.plan.mint { 1 } else { 2 };
        self.who.len() as u64 * each + u64::from(self.plan.bots)
    }

    fn manner(&self, buyer: u32) -> Manner {
        self.manners.get(&buyer).copied().unwrap_or(Manner::Plain)
    }

    fn shot(&self, due: Micros, kind: Kind, buyer: u32, request: Bytes, allowed: &'static [Outcome]) -> Shot {
        let allowed = match (self.plan.faults, kind) {
            (false, _) => allowed,
            (true, Kind::Again) => ANYTHING_AGAIN,
            (true, Kind::Cancel) => allowed,
            (true, _) => ANYTHING,
        };
        Shot { due, kind, buyer, order: None, units: 1, request, allowed, lane: Lane::Crowd, attempt: 0 }
    }

    /// What the buyer who arrives in this place begins with.
    fn arrival(&mut self, place: usize, due: Micros) -> Option<Shot> {
        let buyer = *self.who.get(place)?;
        let buyers = self.buyers.clone();
        let now = Millis::now();
        let (request, kind, allowed, order) = match self.manner(buyer) {
            Manner::Forger => {
                (buyers.order_request(buyer, &buyers.forge(buyer)?, 1), Kind::Forged, TOKEN_INVALID, None)
            }
            Manner::Late => {
                let (token, order) = buyers.mint(buyer, Millis(now.0 - 1_000))?;
                (buyers.order_request(buyer, &token, 1), Kind::Expired, TOKEN_EXPIRED, Some(order))
            }
            Manner::Stranger => {
                let (token, _) = buyers.mint(buyer, Millis(now.0 + 60_000))?;
                (buyers.stranger_request(&token), Kind::Stranger, UNAUTHENTICATED, None)
            }
            Manner::Greedy => {
                let (token, order) = buyers.mint(buyer, Millis(now.0 + 60_000))?;
                let request = buyers.order_request(buyer, &token, self.plan.per_user + 1);
                (request, Kind::Greedy, OVER_LIMIT, Some(order))
            }
            _ => match self.minted.get(place) {
                Some(minted) => {
                    let (request, order) = minted.clone();
                    (request, Kind::Buy, BUY, Some(order))
                }
                None => (buyers.token_request(buyer), Kind::Token, TOKEN, None),
            },
        };
        let mut shot = Shot { order, ..self.shot(due, kind, buyer, request, allowed) };
        if kind == Kind::Greedy {
            shot.units = self.plan.per_user + 1;
        }
        Some(shot)
    }

    /// A token came: the order goes out at once, twice for who clicks twice.
    fn buy(&self, shot: &Shot, answer: &Answer<'_>, now: Micros, more: &mut Vec<Shot>) {
        let (Some(token), Some(order)) = (answer.text("token"), answer.order) else { return };
        let request = self.buyers.order_request(shot.buyer, token, 1);
        let twice = self.manner(shot.buyer) == Manner::DoubleClick;
        let allowed = if twice { TWIN } else { BUY };
        let first = self.shot(now, Kind::Buy, shot.buyer, request.clone(), allowed);
        more.push(Shot { order: Some(order), ..first });
        if twice {
            more.push(Shot { order: Some(order), ..self.shot(now, Kind::Twin, shot.buyer, request, TWIN) });
        }
    }

    /// What a buyer does who knows his order's fate.
    fn after(&mut self, shot: &Shot, held: bool, now: Micros, more: &mut Vec<Shot>) {
        let manner = self.manner(shot.buyer);
        let later = now + self.random.random_range(200_000..1_500_000);
        if manner == Manner::Replay && shot.kind == Kind::Buy {
            let allowed = if held { AGAIN_HELD } else { BUY };
            let again = self.shot(later, Kind::Again, shot.buyer, shot.request.clone(), allowed);
            more.push(Shot { order: shot.order, ..again });
        }
        if manner == Manner::Second && held && shot.kind == Kind::Buy {
            more.extend(self.second(shot.buyer, later));
        }
        if !held {
            return;
        }
        let most = u64::try_from(self.plan.pay_after.as_micros()).unwrap_or(u64::MAX).max(1);
        let due = now + self.random.random_range(most / 10..=most);
        if self.random.random_bool(self.plan.paid) {
            more.extend(self.payment(shot, due));
        } else if self.random.random_bool(self.plan.cancelled) {
            more.extend(self.cancel(shot, due));
        }
    }

    fn cancel(&self, shot: &Shot, due: Micros) -> Option<Shot> {
        let order = shot.order?;
        let request = self.buyers.cancel_request(shot.buyer, &order);
        Some(Shot { order: Some(order), ..self.shot(due, Kind::Cancel, shot.buyer, request, CANCEL) })
    }

    fn second(&self, buyer: u32, due: Micros) -> Option<Shot> {
        let (token, order) = self.buyers.mint(buyer, Millis(Millis::now().0 + 60_000))?;
        let request = self.buyers.order_request(buyer, &token, self.plan.per_user);
        let shot = self.shot(due, Kind::Second, buyer, request, OVER_LIMIT);
        Some(Shot { order: Some(order), units: self.plan.per_user, ..shot })
    }

    fn payment(&self, shot: &Shot, due: Micros) -> Option<Shot> {
        let order = shot.order?;
        let payment = format!("p-{order}");
        let amount = self.plan.price * i64::from(shot.units);
        let notice = Notice { payment: &payment, order, amount, currency: CURRENCY, status: "succeeded" };
        let request = self.buyers.notice_request(&notice);
        Some(Shot { order: Some(order), ..self.shot(due, Kind::Pay, shot.buyer, request, PAY) })
    }

    /// The same bytes again a little later; units may have been taken by them already.
    fn retry(&self, shot: &Shot, now: Micros, more: &mut Vec<Shot>) {
        if shot.attempt >= ATTEMPTS {
            return;
        }
        let kind = if shot.kind.is_order() { Kind::Again } else { shot.kind };
        let allowed = match (shot.kind.is_order(), self.plan.faults) {
            (false, _) => shot.allowed,
            (true, false) => TWIN,
            (true, true) => ANYTHING_AGAIN,
        };
        more.push(Shot { due: now + PAUSE, kind, allowed, attempt: shot.attempt + 1, ..shot.clone() });
    }
}

impl Load for Crowd {
    fn begin(&mut self, now: Micros) {
        self.arrivals.begin(now);
        self.bots.begin(now);
    }

    fn peek(&self) -> Option<Micros> {
        if self.plan.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.arrivals.peek().into_iter().chain(self.bots.peek()).min()
    }

    fn take(&mut self) -> Option<Shot> {
        let bots_first = match (self.bots.peek(), self.arrivals.peek()) {
            (Some(bot), Some(arrival)) => bot < arrival,
            (bot, _) => bot.is_some(),
        };
        if bots_first {
            let (number, due) = self.bots.take()?;
            let at = usize::try_from(number).unwrap_or(0) % self.forged.len().max(1);
            let shot = self.shot(due, Kind::Bot, *self.who.first()?, self.forged.get(at)?.clone(), BOT);
            return Some(Shot { lane: Lane::Bots, ..shot });
        }
        let (number, due) = self.arrivals.take()?;
        self.arrival(usize::try_from(number).ok()?, due)
    }

    fn answered(&mut self, shot: &Shot, answer: &Answer<'_>, now: Micros, more: &mut Vec<Shot>) {
        let outcome = answer.outcome;
        if outcome == ACCEPTED {
            self.plan.accepted.fetch_add(1, Ordering::Relaxed);
        }
        match shot.kind {
            Kind::Token if outcome == OK => self.buy(shot, answer, now, more),
            Kind::Pay | Kind::Cancel if outcome != OK && outcome.is_transient() => {
                self.retry(shot, now, more)
            }
            Kind::Token | Kind::Buy | Kind::Again if self.plan.faults && outcome.is_transient() => {
                self.retry(shot, now, more);
            }
            Kind::Buy | Kind::Again if outcome == UNAVAILABLE => self.retry(shot, now, more),
            Kind::Buy => self.after(shot, outcome.is_held(), now, more),
            // The first attempt had no answer, so this one is what the buyer knows.
            Kind::Again if shot.attempt > 0 => self.after(shot, outcome.is_held(), now, more),
            _ => {}
        }
    }
}

fn manner(random: &mut StdRng) -> Manner {
    match random.random_range(0..100) {
        0..61 => Manner::Plain,
        61..73 => Manner::DoubleClick,
        73..83 => Manner::Replay,
        83..88 => Manner::Second,
        88..93 => Manner::Greedy,
        93..96 => Manner::Forger,
        96..98 => Manner::Late,
        _ => Manner::Stranger,
    }
}
