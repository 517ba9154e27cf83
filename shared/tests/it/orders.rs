//! What each script does to the whole state of a segment.

use sluice_shared::clock::Millis;
use sluice_shared::lines::Lines;
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Adjusted, Answer, Ask, Released, Settle, Settled};

use crate::segment::{Sale, ask, sku};

const FOREVER: i64 = i64::MAX / 2;

#[tokio::test]
async fn a_reserve_takes_units_marks_the_buyer_and_writes_the_journal() {
    let sale = Sale::open(&[("phone", 10, 5), ("case", 4, 2)]).await;
    let order = ask("al|ice", "case=1,phone=2");
    let answers = sale.answers(std::slice::from_ref(&order)).await;
    assert_eq!((answers.epoch, &answers.answers[..]), (7, &[Answer::Ok(1)][..]));
    assert_eq!(answers.left, [(sku("case"), 3), (sku("phone"), 8)]);
    let (id, whole) = (hex::encode(order.uuid), sale.whole().await);
    assert_eq!(whole.stock, [("case".to_owned(), 3), ("phone".to_owned(), 8)].into());
    assert_eq!(whole.orders, [(id.clone(), "Ah|7|1|0|0|0|-|case=1,phone=2|al|ice".to_owned())].into());
    assert_eq!(whole.marks, [("al|ice".to_owned(), "case=1,phone=2".to_owned())].into());
    assert_eq!(whole.journal, [("7-1".to_owned(), id)]);
    assert_eq!(whole.seq, 1);
}

#[tokio::test]
async fn a_refused_order_changes_nothing() {
    let sale = Sale::open(&[("phone", 3, 2)]).await;
    sale.reserve(&ask("a", "phone=2")).await;
    let before = sale.whole().await;
    let expired = Ask { expired: true, ..ask("b", "phone=1") };
    for (order, answer) in [
        (ask("a", "phone=1"), Answer::Limit { held: 2, limit: 2 }),
        (ask("b", "phone=2"), Answer::SoldOut(sku("phone"))),
        (ask("b", "car=1,phone=1"), Answer::UnknownSku(sku("car"))),
        (ask("b", "phone=3"), Answer::Limit { held: 0, limit: 2 }),
        (expired, Answer::TokenExpired),
    ] {
        assert_eq!(sale.reserve(&order).await, answer);
        assert_eq!(sale.whole().await, before);
    }
    assert_eq!(sale.reserve(&ask("b", "phone=1")).await, Answer::Ok(2));
}

#[tokio::test]
async fn a_batch_that_names_any_number_of_skus_is_answered() {
    let sale = Sale::open(&[("phone", 10, 2)]).await;
    let strange = |n: usize| (0..20).map(|i| format!("x{n}-{i:02}=1")).collect::<Vec<_>>().join(",");
    let mut asks: Vec<Ask> = (0..512).map(|n| ask(&format!("u{n}"), &strange(n))).collect();
    asks.push(ask("alice", "phone=1"));
    let answers = sale.answers(&asks).await.answers;
    assert_eq!(answers[511], Answer::UnknownSku(sku("x511-00")));
    assert_eq!(answers[512], Answer::Ok(1));
    assert_eq!(sale.whole().await.stock, [("phone".to_owned(), 9)].into());
}

#[tokio::test]
async fn several_lines_are_taken_all_or_nothing() {
    let sale = Sale::open(&[("a", 5, 9), ("b", 1, 9)]).await;
    assert_eq!(sale.reserve(&ask("u", "a=2,b=2")).await, Answer::SoldOut(sku("b")));
    assert_eq!(sale.whole().await.stock, [("a".to_owned(), 5), ("b".to_owned(), 1)].into());
    assert_eq!(sale.reserve(&ask("u", "a=2,b=1")).await, Answer::Ok(1));
}

#[tokio::test]
async fn the_limit_counts_live_units_of_all_orders_and_a_release_frees_it() {
    let sale = Sale::open(&[("phone", 100, 3)]).await;
    let (first, second) = (ask("u", "phone=2"), ask("u", "phone=1"));
    assert_eq!(sale.reserve(&first).await, Answer::Ok(1));
    assert_eq!(sale.reserve(&second).await, Answer::Ok(2));
    assert_eq!(sale.reserve(&ask("u", "phone=1")).await, Answer::Limit { held: 3, limit: 3 });
    assert!(matches!(sale.release(&first, OrderState::Expired).await, Released::Released(_)));
    assert_eq!(sale.reserve(&ask("u", "phone=2")).await, Answer::Ok(3));
    assert!(matches!(sale.release(&second, OrderState::Expired).await, Released::Released(_)));
    assert_eq!(sale.whole().await.marks, [("u".to_owned(), "phone=2".to_owned())].into());
}

#[tokio::test]
async fn one_batch_answers_as_the_same_orders_one_by_one() {
    let sale = Sale::open(&[("phone", 3, 2)]).await;
    let first = ask("a", "phone=2");
    let again = Ask { lines: Lines::parse("phone=1").unwrap(), ..first.clone() };
    let batch =
        [first.clone(), first.clone(), again, ask("a", "phone=1"), ask("b", "phone=1"), ask("c", "phone=1")];
    let answers = sale.answers(&batch).await.answers;
    assert_eq!(answers[0], Answer::Ok(1));
    assert!(matches!(&answers[1], Answer::Replay(record) if record.seq == 1));
    assert_eq!(answers[2], Answer::Reused);
    assert_eq!(answers[3], Answer::Limit { held: 2, limit: 2 });
    assert_eq!(answers[4..], [Answer::Ok(2), Answer::SoldOut(sku("phone"))]);
    assert_eq!(sale.whole().await.stock["phone"], 0);
}

#[tokio::test]
async fn the_first_reason_to_refuse_is_the_one_that_is_told() {
    let sale = Sale::preloaded(&[("phone", 1, 1)], 1_000).await;
    let wrong = Ask { expired: true, ..ask("u", "car=1") };
    assert_eq!(sale.reserve(&wrong).await, Answer::NotStarted);
    sale.step(2, SaleStep::Open, FOREVER - 1, FOREVER).await;
    assert_eq!(sale.reserve(&wrong).await, Answer::NotStarted);
    sale.step(3, SaleStep::Open, 0, 1).await;
    assert_eq!(sale.reserve(&wrong).await, Answer::Ended);
    sale.step(4, SaleStep::Paused, 0, 1).await;
    assert_eq!(sale.reserve(&wrong).await, Answer::Paused);
    sale.step(5, SaleStep::Closed, 0, FOREVER).await;
    assert_eq!(sale.reserve(&wrong).await, Answer::Ended);
    sale.step(6, SaleStep::Open, 0, FOREVER).await;
    assert_eq!(sale.reserve(&wrong).await, Answer::TokenExpired);
    assert_eq!(sale.reserve(&ask("u", "car=1")).await, Answer::UnknownSku(sku("car")));
}

#[tokio::test]
async fn a_replay_is_answered_whatever_the_sale_does() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    assert_eq!(sale.reserve(&order).await, Answer::Ok(1));
    let before = sale.whole().await;
    let replay = Ask { expired: true, ..order.clone() };
    for (cfg, step, ends) in
        [(2, SaleStep::Open, FOREVER), (3, SaleStep::Paused, FOREVER), (4, SaleStep::Closed, FOREVER)]
    {
        if cfg > 2 {
            sale.step(cfg, step, 0, ends).await;
        }
        assert!(matches!(sale.reserve(&replay).await, Answer::Replay(_)), "{step:?}");
        assert_eq!(sale.whole().await, before);
    }
}

#[tokio::test]
async fn a_full_journal_refuses_new_orders_and_answers_replays() {
    let sale = Sale::preloaded(&[("phone", 9, 9)], 2).await;
    sale.step(2, SaleStep::Open, 0, FOREVER).await;
    let first = ask("u", "phone=1");
    let batch = [first.clone(), ask("u", "phone=1"), ask("u", "phone=1")];
    assert_eq!(sale.answers(&batch).await.answers, [Answer::Ok(1), Answer::Ok(2), Answer::Overloaded]);
    assert!(matches!(sale.reserve(&first).await, Answer::Replay(_)));
    let delete = cmd("XDEL").arg(sale.segment.journal()).arg("7-1").to_owned();
    assert_eq!(sale.redis.run::<u64>("test", &delete).await.unwrap(), 1);
    assert_eq!(sale.reserve(&ask("u", "phone=1")).await, Answer::Ok(3));
}

#[tokio::test]
async fn states_only_ever_move_forward() {
    let sale = Sale::open(&[("phone", 1, 1)]).await;
    let order = ask("u", "phone=1");
    sale.reserve(&order).await;
    let settle = async |state, pay_before, refund| {
        let settle = Settle { uuid: order.uuid, state, pay_before, refund };
        sale.scripts.settle(&sale.redis, &[settle]).await.unwrap().unwrap().remove(0)
    };
    let due = Some(Millis(99));
    let Settled::Settled(record) = settle(Some(OrderState::PendingPayment), due, Refund::None).await else {
        panic!("not settled")
    };
    assert_eq!((record.state, record.pay_before), (OrderState::PendingPayment, due));
    assert!(matches!(settle(Some(OrderState::Paid), None, Refund::None).await, Settled::Settled(_)));
    let late = settle(Some(OrderState::PendingPayment), due, Refund::None).await;
    assert!(matches!(late, Settled::Already(record) if record.state == OrderState::Paid));
    assert!(matches!(settle(None, None, Refund::Done(1)).await, Settled::Settled(_)));
    let late = settle(None, None, Refund::Due(1)).await;
    assert!(matches!(late, Settled::Already(record) if record.refund == Refund::Done(1)));
    // Paid again: due anew, and what is told of the first round, late or twice, changes nothing.
    assert!(matches!(settle(None, None, Refund::Due(2)).await, Settled::Settled(_)));
    for late in [Refund::Done(1), Refund::Due(1), Refund::None, Refund::Due(2)] {
        let late = settle(None, None, late).await;
        assert!(matches!(late, Settled::Already(record) if record.refund == Refund::Due(2)));
    }
    assert!(matches!(settle(None, None, Refund::Done(2)).await, Settled::Settled(_)));
    assert_eq!(sale.whole().await.stock["phone"], 0);
    let unknown =
        Settle { uuid: ask("u", "phone=1").uuid, state: None, pay_before: None, refund: Refund::None };
    let answers = sale.scripts.settle(&sale.redis, &[unknown]).await.unwrap().unwrap();
    assert_eq!(answers, [Settled::Unknown]);
}

#[tokio::test]
async fn stock_is_adjusted_once_per_change_and_never_below_nothing() {
    let sale = Sale::open(&[("phone", 5, 9)]).await;
    let adjust = async |change: &str, delta| {
        sale.scripts.adjust(&sale.redis, change, &sku("phone"), delta).await.unwrap()
    };
    assert_eq!(adjust("c1", 3).await, Adjusted::Adjusted(8));
    assert_eq!(adjust("c1", 3).await, Adjusted::Already(8));
    assert_eq!(adjust("c2", -9).await, Adjusted::Insufficient(8));
    assert_eq!(adjust("c2", -8).await, Adjusted::Adjusted(0));
    assert_eq!(sale.whole().await.stock["phone"], 0);
    let unknown = sale.scripts.adjust(&sale.redis, "c3", &sku("car"), 1).await.unwrap();
    assert_eq!(unknown, Adjusted::UnknownSku);
}

#[tokio::test]
async fn a_release_runs_when_redis_is_full_and_a_reserve_does_not() {
    let sale = Sale::open(&[("phone", 5, 9)]).await;
    let order = ask("u", "phone=1");
    sale.reserve(&order).await;
    let full = cmd("CONFIG").arg("SET").arg("maxmemory").arg("1mb").to_owned();
    sale.redis.run::<String>("test", &full).await.unwrap();
    let refused = sale.scripts.reserve(&sale.redis, &crate::segment::edge(), &[ask("v", "phone=1")]).await;
    let refused = refused.unwrap_err();
    assert!(!refused.is_unknown() && refused.to_string().contains("OOM"), "{refused}");
    assert!(matches!(sale.release(&order, OrderState::Expired).await, Released::Released(_)));
    assert_eq!(sale.whole().await.stock["phone"], 5);
}
