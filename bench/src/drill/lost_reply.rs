//! The answer to an order never reaches its buyer; the same token then gets the same order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;

use super::{Ask, Scene, Setting};
use crate::admin::Offer;
use crate::client::Kind;
use crate::client::answer::Answer;
use crate::client::call::{Cut, cut};
use crate::client::outcome::{ACCEPTED, CUT, OK, Outcome, REPLAYED, SOLD_OUT};
use crate::oracle::Rules;
use crate::report::Tally;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct LostReply {
    /// Units, each sold by an order whose answer is lost; the last one sells out
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub units: u32,
}

/// How long an order may take to be known after its buyer has gone.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// A way to lose an answer.
const WAYS: [Cut; 4] = [
    Cut::AtOnce,
    Cut::After(Duration::from_millis(1)),
    Cut::After(Duration::from_millis(20)),
    // Somewhere in the status line.
    Cut::Within(11),
];

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &LostReply) -> Result<bool> {
    let offer = Offer { stock: ask.units, per_user: 1, price: 19_900, pay_within: 900 };
    let mut scene = Scene::open(setting, offer, ask.units + 1)?;
    let mut tally = scene.tally("lost-reply", u64::from(ask.units) * 4)?;
    let expires = Millis(Millis::now().0 + 600_000);
    let mut orders = Vec::new();
    for buyer in 0..=ask.units {
        let (token, order) = scene.buyers.mint(buyer, expires).context("minting a token")?;
        orders.push((buyer, order, scene.buyers.order_request(buyer, &token, 1)));
    }
    let late = orders.pop().context("one buyer is late")?;
    let known = lose_each(&scene, &mut tally, &orders)?;
    // Losing shows something only if the order was there when its buyer came back.
    let words = format!("{known} of {} lost answers were of orders taken", ask.units);
    scene.verdicts.say(known * 2 > orders.len(), words);
    let (buyer, order, request) = &late;
    let last = Ask { buyer: *buyer, order, units: 1, request: request.clone() };
    let told = scene.ask(&mut tally, Kind::Buy, &last, &[SOLD_OUT]).outcome();
    scene.verdicts.say(told == SOLD_OUT, "after the last unit it is sold out");
    let known = lose_each(&scene, &mut tally, &orders)?;
    let words = format!("after that, {known} of {} replays were answered with their orders", ask.units);
    scene.verdicts.say(known == orders.len(), words);
    scene.audit("at rest", u64::from(ask.units))?;
    scene.close(tally, &Rules { stock: ask.units, per_user: 1, returns: false, taken: Some(ask.units) })
}

/// Loses the answer to each order, then sends its token again; how many orders were known by then.
fn lose_each(scene: &Scene, tally: &mut Tally, orders: &[(u32, OrderId, Bytes)]) -> Result<usize> {
    let mut count = 0;
    for (at, (buyer, order, request)) in orders.iter().enumerate() {
        let ask = Ask { buyer: *buyer, order, units: 1, request: request.clone() };
        lose(scene, tally, &ask, WAYS[at % WAYS.len()]);
        let known = is_known(scene, tally, &ask);
        let allowed: &[Outcome] = if known { &[REPLAYED] } else { &[ACCEPTED, REPLAYED] };
        scene.ask(tally, Kind::Again, &ask, allowed);
        count += usize::from(known);
    }
    Ok(count)
}

/// Sends an order and goes away.
fn lose(scene: &Scene, tally: &mut Tally, ask: &Ask<'_>, way: Cut) {
    let sent = scene.now();
    let outcome = cut(scene.setting.environment.edge, &ask.request, way).err().unwrap_or(CUT);
    let answer = Answer::none(outcome);
    tally.count(&[CUT], &scene.entry(Kind::Buy, ask, sent, &answer), &answer);
}

/// Whether the order of a lost answer is there, now or in a moment.
fn is_known(scene: &Scene, tally: &mut Tally, ask: &Ask<'_>) -> bool {
    let look = Ask { request: scene.buyers.look_request(ask.buyer, ask.order), ..*ask };
    let deadline = Instant::now() + KNOWN_WITHIN;
    loop {
        let outcome = scene.ask(tally, Kind::Look, &look, &[OK, Outcome("not_found")]).outcome();
        if outcome == OK || Instant::now() > deadline {
            return outcome == OK;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
