//! More buyers than units: exactly the units are sold, once each, and everybody is told the truth.

use std::time::Duration;

use anyhow::Result;

use super::{Scene, Setting};
use crate::admin::{Offer, Row};
use crate::client::Kind;
use crate::client::outcome::{RATE_LIMITED, SOLD_OUT};
use crate::crowd::{Crowd, Plan};
use crate::oracle::Rules;
use crate::report::Counted;
use crate::schedule::Profile;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct SellOut {
    /// Buyers, all distinct
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub buyers: u32,
    /// Units on sale
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub units: u32,
    /// Buyers that come each second; 0: all at once
    #[arg(long, default_value_t = 8_000)]
    pub rate: u32,
    /// Share of the orders that is paid, in percent; the rest is left to expire after 15 minutes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub paid: u32,
    /// How many seconds a buyer needs to pay, at most; at least a tenth of it
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub pay_after: u32,
    /// Requests of bots, all from one address; enough of them meet the bucket of 1,000/s
    #[arg(long, default_value_t = 4_000)]
    pub bots: u32,
}

/// Orders a second that have to be written when there are enough to tell.
const WRITTEN_FLOOR: f64 = 5_000.0;
const ENOUGH_TO_TELL: u32 = 50_000;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &SellOut) -> Result<bool> {
    let offer = Offer { stock: ask.units, per_user: 1, price: 19_900, pay_within: 900 };
    let mut scene = Scene::open(setting, offer, ask.buyers)?;
    let profile = if ask.rate == 0 { Profile::Step } else { Profile::Rate(f64::from(ask.rate)) };
    let plan = Plan {
        mixed: true,
        paid: f64::from(ask.paid) / 100.0,
        pay_after: Duration::from_secs(u64::from(ask.pay_after)),
        bots: ask.bots,
        ..scene.plan(profile)
    };
    let mut crowd = Crowd::new(&scene.buyers, (0..ask.buyers).collect(), plan);
    let (demand, requests) = (crowd.demand(), crowd.requests());
    let mut tally = scene.tally("sell-out", requests)?;
    scene.run(&mut crowd, &mut tally, Duration::from_secs(900))?;
    let sold = ask.units.min(demand);
    scene.audit("at rest", u64::from(sold))?;
    judge_codes(&mut scene, tally.counted(), ask, demand);
    let rows = scene.admin.orders(&scene.sale)?;
    judge_writing(&mut scene, &rows);
    scene.close(tally, &Rules { stock: ask.units, per_user: 1, returns: false, taken: Some(sold) })
}

/// The drill shows something only if what it is about has happened.
fn judge_codes(scene: &mut Scene, counted: &Counted, ask: &SellOut, demand: u32) {
    if demand > ask.units {
        let refused = counted.of(Kind::Buy, SOLD_OUT);
        scene.verdicts.say(refused > 0, format!("{refused} buyers were told that it is sold out"));
    }
    if ask.bots > 2_500 {
        let limited = counted.of(Kind::Bot, RATE_LIMITED);
        scene.verdicts.say(limited > 0, format!("{limited} of {} requests of bots were limited", ask.bots));
    }
}

/// How fast rows came, by the times that they carry.
fn judge_writing(scene: &mut Scene, rows: &[Row]) {
    let times = || rows.iter().filter_map(|row| row.pay_before);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return };
    let seconds =
        Duration::from_millis(u64::try_from(last.0 - first.0).unwrap_or(0)).as_secs_f64().max(0.001);
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    let rate = f64::from(count) / seconds;
    let good = count < ENOUGH_TO_TELL || rate >= WRITTEN_FLOOR;
    scene.verdicts.say(good, format!("{count} orders were written in {seconds:.1} s: {rate:.0}/s"));
}
