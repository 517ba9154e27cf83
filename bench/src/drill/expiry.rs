//! Half of the orders are paid, the rest expires; the units that come back are sold again, and again.

use std::time::Duration;

use anyhow::{Result, bail};
use sluice_shared::record::OrderState;

use super::{Scene, Setting, wait_for};
use crate::admin::{Offer, Row};
use crate::crowd::{Crowd, Plan};
use crate::oracle::{Rules, accepted};
use crate::report::Tally;
use crate::schedule::Profile;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Expiry {
    /// Units on sale
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub units: u32,
    /// How often the units that came back are sold again
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub again: u32,
    /// Seconds until an unpaid order expires
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=600))]
    pub pay_within: u32,
}

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Expiry) -> Result<bool> {
    let offer = Offer { stock: ask.units, per_user: 1, price: 19_900, pay_within: ask.pay_within };
    let fresh = ask.units + ask.units / 5;
    let mut scene = Scene::open(setting, offer, fresh * (ask.again + 1))?;
    let mut tally = scene.tally("expiry", u64::from(fresh * (ask.again + 1)))?;
    let mut left = ask.units;
    let mut returned: Vec<u32> = Vec::new();
    for wave in 0..=ask.again {
        // Those whose orders expired come first: their limits must be free again.
        let mut who = std::mem::take(&mut returned);
        let back = u32::try_from(who.len()).unwrap_or(u32::MAX);
        who.extend(wave * fresh..(wave + 1) * fresh);
        sell(&mut scene, &mut tally, wave, who, left)?;
        let rows = rest(&scene, ask.pay_within)?;
        scene.audit(&format!("after wave {}", wave + 1), u64::from(left))?;
        judge_returned(&mut scene, &rows, wave, back);
        let expired = rows.iter().filter(|row| row.state == OrderState::Expired);
        returned = expired.filter_map(|row| scene.buyers.buyer(&row.user)).collect();
        returned.sort_unstable();
        returned.dedup();
        let holders: Vec<u32> = live(&rows).filter_map(|row| scene.buyers.buyer(&row.user)).collect();
        returned.retain(|buyer| !holders.contains(buyer));
        left = ask.units - units(&rows);
    }
    scene.close(tally, &Rules { stock: ask.units, per_user: 1, returns: true, taken: Some(ask.units - left) })
}

fn live(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.is_live())
}

fn units(rows: &[Row]) -> u32 {
    live(rows).map(|row| row.units).sum()
}

/// One wave: more buyers than there are units, in less time than orders take to expire.
fn sell(scene: &mut Scene, tally: &mut Tally, wave: u32, who: Vec<u32>, left: u32) -> Result<()> {
    let rate = f64::from(left.max(2_000));
    let plan = Plan { mint: true, paid: 0.5, ..scene.plan(Profile::Rate(rate)) };
    let plan = Plan { seed: plan.seed + u64::from(wave), ..plan };
    let before = accepted(&tally.entries()?);
    let mut crowd = Crowd::new(&scene.buyers, who, plan);
    scene.run(&mut crowd, tally, Duration::from_secs(120))?;
    let sold = accepted(&tally.entries()?) - before;
    let what = if wave == 0 { "units" } else { "returned units" };
    let good = sold >= left;
    scene.verdicts.say(good, format!("wave {}: {sold} of {left} {what} sold", wave + 1));
    Ok(())
}

/// Waits until nothing is unpaid any more and the gate knows what came back.
fn rest(scene: &Scene, pay_within: u32) -> Result<Vec<Row>> {
    let limit = Duration::from_secs(u64::from(pay_within) + 60);
    wait_for("unpaid orders to expire", limit, || {
        if scene.admin.has(&scene.sale, OrderState::PendingPayment)? {
            bail!("some are unpaid")
        } else {
            Ok(())
        }
    })?;
    let rows = scene.admin.orders(&scene.sale)?;
    let back = units(&rows) < scene.offer.stock;
    let edge = scene.setting.environment.edge;
    wait_for("the gate to know", Duration::from_secs(15), || match scene.admin.look(edge, &scene.sale)? {
        (_, available) if available == back => Ok(()),
        (state, _) => bail!("the sale is {state}"),
    })?;
    Ok(rows)
}

/// Who had his order expire could buy again in the next wave, being first in line.
fn judge_returned(scene: &mut Scene, rows: &[Row], wave: u32, back: u32) {
    let paid = rows.iter().filter(|row| row.state == OrderState::Paid).count();
    let expired = rows.iter().filter(|row| row.state == OrderState::Expired).count();
    let good = paid > 0 && expired > 0;
    let words = format!("wave {}: {paid} orders are paid, {expired} expired so far", wave + 1);
    scene.verdicts.say(good, words);
    if wave == 0 {
        return;
    }
    let mut orders = std::collections::HashMap::new();
    for row in rows {
        *orders.entry(row.user.as_str()).or_insert(0_u32) += 1;
    }
    let twice = orders.values().filter(|count| **count > 1).count();
    let words = format!(
        "wave {}: {back} buyers whose orders had expired came again, {twice} so far have bought again",
        wave + 1
    );
    scene.verdicts.say(twice > 0, words);
}
