//! Every drill, one after the other.

use anyhow::Result;

use super::audit::Audit;
use super::broker_outage::{BrokerOutage, How};
use super::burst::Burst;
use super::expiry::Expiry;
use super::kill::Kill;
use super::lost_data::{Loss, LostData};
use super::lost_reply::LostReply;
use super::payments::Payments;
use super::power_cut::PowerCut;
use super::rolling::Rolling;
use super::sell_out::SellOut;
use super::{
    Setting, audit, broker_outage, burst, expiry, kill, lost_data, lost_reply, payments, power_cut, rolling,
    sell_out,
};

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct All {
    /// In a small size: shows in a minute or two that everything works, not how fast
    #[arg(long)]
    pub small: bool,
}

type Run<'a> = Box<dyn Fn() -> Result<bool> + 'a>;

/// Runs every drill, also after one that failed; whether all are good.
pub fn run(setting: &Setting, ask: &All) -> Result<bool> {
    let pick = |full: u32, small: u32| if ask.small { small } else { full };
    let pay_after = pick(20, 1);
    let sell = |buyers, units| SellOut { buyers, units, rate: 8_000, paid: 50, pay_after, bots: 4_000 };
    let few = sell(pick(20_000, 300), pick(1_000, 50));
    let many = sell(pick(120_000, 600), pick(100_000, 400));
    let expiry = Expiry { units: pick(1_000, 40), again: pick(2, 1), pay_within: 3 };
    let outage = |how| BrokerOutage { how, seconds: pick(60, 3), rate: pick(2_000, 200) };
    let kills = Kill { kills: pick(20, 1), servers: pick(2, 1), rate: pick(500, 100) };
    let losses = [Loss::Tail, Loss::Redis, Loss::Nothing, Loss::Broker, Loss::Both];
    let data = LostData {
        what: losses[..if ask.small { 2 } else { 5 }].to_vec(),
        times: pick(3, 1),
        rate: pick(500, 100),
        orders: pick(100_000, 0),
    };
    let rolled = Rolling { restarts: pick(10, 1), successors: pick(10, 2), rate: pick(500, 100) };
    let power = PowerCut { times: pick(3, 1), rate: pick(500, 100), orders: pick(100_000, 0) };
    let lost = LostReply { units: pick(60, 8) };
    let burst = Burst { orders: pick(300_000, 5_000), rounds: pick(3, 0) };
    let audited = Audit { orders: pick(100_000, 2_000), rate: pick(500, 200), audits: pick(3, 1) };
    let drills: Vec<(&str, Run<'_>)> = vec![
        ("sell-out", Box::new(|| sell_out::run(setting, &few))),
        ("sell-out, many units", Box::new(|| sell_out::run(setting, &many))),
        ("expiry", Box::new(|| expiry::run(setting, &expiry))),
        ("broker-outage", Box::new(|| broker_outage::run(setting, &outage(How::Stop)))),
        ("broker-outage, alarm", Box::new(|| broker_outage::run(setting, &outage(How::Alarm)))),
        ("kill", Box::new(|| kill::run(setting, &kills))),
        ("lost-data", Box::new(|| lost_data::run(setting, &data))),
        ("rolling", Box::new(|| rolling::run(setting, &rolled))),
        ("power-cut", Box::new(|| power_cut::run(setting, &power))),
        ("lost-reply", Box::new(|| lost_reply::run(setting, &lost))),
        ("burst", Box::new(|| burst::run(setting, &burst))),
        ("audit", Box::new(|| audit::run(setting, &audited))),
        ("payments", Box::new(|| payments::run(setting, &Payments { race: false }))),
    ];
    let mut told = Vec::new();
    for (name, run) in drills {
        println!("\n== {name}");
        let result = run();
        if let Err(error) = &result {
            println!("could not be carried out: {error:#}");
        }
        told.push((name, matches!(result, Ok(true))));
    }
    println!();
    for (name, good) in &told {
        println!("{}  {name}", if *good { "ok  " } else { "FAIL" });
    }
    Ok(told.iter().all(|(_, good)| *good))
}
