//! Defects of known systems, each as a fact about ours. T4 is a test of the edge's buckets, T5 of its
//! relay, T8, T9 and T16 of the workers, T10 to T12 of `segment`.

use sluice_shared::lines::Lines;
use sluice_shared::record::OrderState;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Answer, Released, Script};

use crate::segment::{Sale, ask, sku};

#[tokio::test]
async fn t1_a_replay_after_sell_out_gets_its_order_and_not_a_refusal() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    assert_eq!(sale.reserve(&order).await, Answer::Ok(1));
    assert_eq!(sale.reserve(&ask("v", "phone=1")).await, Answer::SoldOut(sku("phone")));
    let Answer::Replay(record) = sale.reserve(&order).await else { panic!("no replay") };
    assert_eq!((record.seq, record.state), (1, OrderState::Accepted));
    assert_eq!(sale.whole().await.seq, 1);
}

#[tokio::test]
async fn t2_the_last_unit_is_sold_and_said_to_be() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let answers = sale.answers(&[ask("u", "phone=1")]).await;
    assert_eq!(answers.answers, [Answer::Ok(1)]);
    assert_eq!(answers.left, [(sku("phone"), 0)]);
}

#[tokio::test]
async fn t3_every_script_compiles_in_redis() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    sluice_shared::script::DelayQueue::new(0).load(&sale.redis).await.unwrap();
    sale.warden.load(&sale.redis).await.unwrap();
    sale.scripts.load(&sale.redis).await.unwrap();
    let server = cmd("INFO").arg("memory").to_owned();
    let info: String = sale.redis.run("test", &server).await.unwrap();
    let cached = format!("number_of_cached_scripts:{}", Script::ALL.len());
    assert!(info.contains(&cached), "{cached} in {info}");
}

#[tokio::test]
async fn t6_a_release_twice_puts_the_units_back_once() {
    let sale = Sale::open(&[("phone", 2, 2)]).await;
    let order = ask("u", "phone=2");
    sale.reserve(&order).await;
    assert!(matches!(sale.release(&order, OrderState::Expired).await, Released::Released(_)));
    let after = sale.whole().await;
    for state in [OrderState::Expired, OrderState::Cancelled, OrderState::Refunded] {
        let again = sale.release(&order, state).await;
        assert!(matches!(again, Released::Already(record) if record.state == OrderState::Expired));
        assert_eq!(sale.whole().await, after);
    }
    assert_eq!(after.stock["phone"], 2);
}

#[tokio::test]
async fn t6_one_batch_with_the_same_release_twice_counts_it_once() {
    let sale = Sale::open(&[("phone", 2, 2)]).await;
    let order = ask("u", "phone=1");
    sale.reserve(&order).await;
    let release = sluice_shared::script::Release {
        uuid: order.uuid,
        state: OrderState::Expired,
        lines: order.lines.clone(),
        user: order.user.clone(),
    };
    let twice = [release.clone(), release];
    let answers = sale.scripts.release(&sale.redis, &twice).await.unwrap().unwrap();
    assert!(matches!(answers[..], [Released::Released(_), Released::Already(_)]), "{answers:?}");
    assert_eq!(sale.whole().await.stock["phone"], 2);
}

#[tokio::test]
async fn t7_t13_no_key_of_a_sale_ever_runs_out() {
    let sale = Sale::open(&[("phone", 2, 2)]).await;
    sale.reserve(&ask("u", "phone=1")).await;
    for key in [sale.segment.meta(), sale.segment.stock(), sale.segment.orders(), sale.segment.journal()] {
        let ttl: i64 = sale.redis.run("test", cmd("PTTL").arg(&key)).await.unwrap();
        assert_eq!(ttl, -1, "{key}");
    }
}

#[tokio::test]
async fn t14_stock_never_goes_below_nothing_and_a_returned_unit_sells_again() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    sale.reserve(&order).await;
    for n in 0..90 {
        let refused = sale.reserve(&ask(&format!("v{n}"), "phone=1")).await;
        assert_eq!(refused, Answer::SoldOut(sku("phone")));
    }
    assert_eq!(sale.whole().await.stock["phone"], 0);
    sale.release(&order, OrderState::Expired).await;
    assert_eq!(sale.reserve(&ask("w", "phone=1")).await, Answer::Ok(2));
}

#[tokio::test]
async fn t15_two_lines_of_one_sku_are_judged_together() {
    let lines = Lines::merge(vec![(sku("phone"), 2), (sku("phone"), 2)]).unwrap();
    let sale = Sale::open(&[("phone", 3, 9)]).await;
    let order = sluice_shared::script::Ask { lines, ..ask("u", "phone=1") };
    assert_eq!(sale.reserve(&order).await, Answer::SoldOut(sku("phone")));
    let limited = Sale::open(&[("phone", 9, 3)]).await;
    assert_eq!(limited.reserve(&order).await, Answer::Limit { held: 0, limit: 3 });
}

#[tokio::test]
async fn t17_a_failed_attempt_burns_nothing() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    sale.step(3, SaleStep::Paused, 0, i64::MAX / 2).await;
    assert_eq!(sale.reserve(&order).await, Answer::Paused);
    sale.step(4, SaleStep::Open, 0, i64::MAX / 2).await;
    let more = sluice_shared::script::Ask { lines: Lines::parse("phone=2").unwrap(), ..order.clone() };
    assert_eq!(sale.reserve(&more).await, Answer::Limit { held: 0, limit: 1 });
    assert_eq!(sale.reserve(&order).await, Answer::Ok(1), "with the same token");
}

#[tokio::test]
async fn an_order_released_before_it_was_reserved_is_never_sold() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    let before = sale.whole().await;
    assert!(matches!(sale.release(&order, OrderState::Cancelled).await, Released::Tombstone(_)));
    assert_eq!(sale.reserve(&order).await, Answer::Spent);
    assert_eq!(sale.whole().await.stock, before.stock);
    assert!(matches!(sale.release(&order, OrderState::Cancelled).await, Released::Already(_)));
}

#[tokio::test]
async fn a_record_that_does_not_fit_its_mark_is_reported_and_left_alone() {
    let sale = Sale::open(&[("phone", 2, 2)]).await;
    let order = ask("u", "phone=2");
    sale.reserve(&order).await;
    sale.set(&sale.segment.orders(), "@u", "phone=1").await;
    let before = sale.whole().await;
    let corrupt = sale.release(&order, OrderState::Expired).await;
    assert_eq!(corrupt, Released::Corrupt("mark".to_owned()));
    assert_eq!(sale.whole().await, before);
}
