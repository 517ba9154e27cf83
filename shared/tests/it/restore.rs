//! A segment that was made anew takes the place of the one that lost data, whole or not at all.

use std::time::Duration;

use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Frozen, Preload, Preloaded, Raised};

use crate::segment::{Sale, ask, sku};

const KEPT: Duration = Duration::from_secs(60);

impl Sale {
    async fn stage(&self, epoch: u64) {
        let new = Preload {
            epoch,
            step: SaleStep::Open,
            starts_at: sluice_shared::clock::Millis(0),
            ends_at: sluice_shared::clock::Millis(i64::MAX / 2),
            cfg: 1,
            journal_max: 10,
            items: vec![(sku("phone"), 9, 1)],
        };
        assert_eq!(self.warden.stage(&self.redis, &self.segment, &new).await, Ok(Preloaded::Preloaded));
    }

    async fn stage_journal(&self, epoch: u64) {
        let [meta, .., journal] = self.segment.staged(epoch);
        let mut add = cmd("XADD");
        add.arg(&journal).arg(format!("{epoch}-0")).arg("o").arg("-");
        let _: String = self.redis.run("test", &add).await.unwrap();
        let _: u64 =
            self.redis.run("test", cmd("XDEL").arg(&journal).arg(format!("{epoch}-0"))).await.unwrap();
        for key in [meta, journal] {
            let _: u64 = self.redis.run("test", cmd("EXPIRE").arg(key).arg(3600)).await.unwrap();
        }
    }

    async fn restore(&self, epoch: u64) -> Raised {
        self.warden.restore(&self.redis, &self.segment, epoch, KEPT).await.unwrap()
    }

    async fn lives(&self, key: &str) -> i64 {
        self.redis.run("test", cmd("TTL").arg(key)).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_made_anew_is_put_there_and_what_was_there_is_kept_for_a_while() {
    let sale = Sale::open(&[("phone", 3, 1)]).await;
    sale.reserve(&ask("u", "phone=1")).await;
    sale.stage(8).await;
    sale.stage_journal(8).await;
    assert_eq!(sale.restore(8).await, Raised::Raised);
    let whole = sale.whole().await;
    assert_eq!((whole.stock["phone"], whole.seq), (9, 0));
    assert!(whole.orders.is_empty() && whole.marks.is_empty() && whole.journal.is_empty());
    let segment = &sale.segment;
    for key in [segment.meta(), segment.stock(), segment.journal()] {
        assert_eq!(sale.lives(&key).await, -1, "{key}");
    }
    assert_eq!(sale.lives(&segment.orders()).await, -2);
    for key in segment.lost() {
        assert!((1..=60).contains(&sale.lives(&key).await), "{key}");
    }
    for key in segment.staged(8) {
        assert_eq!(sale.lives(&key).await, -2, "{key}");
    }
    // Told again it says so and changes nothing; an older epoch never replaces it.
    assert_eq!(sale.restore(8).await, Raised::Raised);
    sale.stage(7).await;
    sale.stage_journal(7).await;
    assert_eq!(sale.restore(7).await, Raised::Frozen(Frozen::Fenced(8)));
    assert_eq!(sale.whole().await, whole);
}

#[tokio::test]
async fn what_is_not_wholly_there_replaces_nothing() {
    let sale = Sale::open(&[("phone", 3, 1)]).await;
    sale.reserve(&ask("u", "phone=1")).await;
    let before = sale.whole().await;
    let frozen = |why: &str| Raised::Frozen(Frozen::Because(why.to_owned()));
    assert_eq!(sale.restore(8).await, frozen("meta"));
    sale.stage(8).await;
    assert_eq!(sale.restore(8).await, frozen("stock"), "there is no journal yet");
    assert_eq!(sale.whole().await, before);
    for key in sale.segment.lost() {
        assert_eq!(sale.lives(&key).await, -2, "{key}");
    }
}

/// Two restores of one day, and the end of what the first one kept: nobody waits for either.
#[tokio::test]
async fn a_large_segment_that_is_replaced_is_not_freed_while_others_wait() {
    let sale = Sale::open(&[("phone", 3, 1)]).await;
    let [.., orders, _] = sale.segment.lost();
    let run = async |command: &str, words: &[&str]| {
        sale.redis.run::<sluice_shared::redis::Value>("test", cmd(command).arg(words)).await.unwrap()
    };
    run("CONFIG", &["SET", "latency-monitor-threshold", "1"]).await;
    let script = "for i=1,ARGV[1] do redis.call('HSET',KEYS[1],ARGV[2]..i,'Ah|7|1|1|1|0|-|phone=1|u') end";
    let fill = async |key: &str| {
        for part in 0..50 {
            run("EVAL", &[script, "1", key, "20000", &format!("{part}.")]).await;
        }
    };
    fill(&orders).await;
    fill(&sale.segment.orders()).await;
    sale.stage(8).await;
    sale.stage_journal(8).await;
    run("CONFIG", &["RESETSTAT"]).await;
    assert_eq!(sale.restore(8).await, Raised::Raised);
    let info: String = sale.redis.run("test", cmd("INFO").arg("commandstats")).await.unwrap();
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    let micros = line.split_once("usec=").unwrap().1.split_once(',').unwrap().0;
    assert!(micros.parse::<u64>().unwrap() <= 5_000, "replaced in {micros} us");
    run("LATENCY", &["RESET"]).await;
    run("PEXPIRE", &[&orders, "1"]).await;
    sluice_testkit::eventually("it is gone", Duration::from_secs(10), async || {
        let keys: Vec<String> = sale.redis.run("test", cmd("KEYS").arg("*")).await.unwrap();
        !keys.contains(&orders)
    })
    .await;
    // Each line: an event, when it was, its milliseconds, the most there were.
    let slow: Vec<(String, u64, u64, u64)> =
        sale.redis.run("test", cmd("LATENCY").arg("LATEST")).await.unwrap();
    let expiry = slow.iter().find(|(event, ..)| event.starts_with("expire"));
    assert!(expiry.is_none_or(|(.., most)| *most <= 5), "{slow:?}");
}
