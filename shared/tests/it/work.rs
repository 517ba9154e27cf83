//! How long one call holds Redis up, when buyers do their worst: nobody else is served meanwhile.

use sluice_shared::ids::SkuId;
use sluice_shared::lines::LINES_MAX;
use sluice_shared::record::OrderState;
use sluice_shared::redis::cmd;
use sluice_shared::script::{Answer, Ask, Release, Released, fitting, mark_work};

use crate::segment::{Sale, ask, sku};

/// What a call may take: four times its five milliseconds, for other programs run on the same machine. The
/// shortest of some is printed. A call that is not bounded by its work takes half a second and more.
const MOST_MICROS: u64 = 20_000;
const TRIES: usize = 5;

/// A hundred SKUs with short names or the longest.
fn names(length: usize) -> Vec<String> {
    (0..100).map(|n| format!("{n:0>length$}")).collect()
}

async fn open(names: &[String], per_user: u32) -> Sale {
    let items: Vec<_> = names.iter().map(|name| (name.as_str(), 1_000_000, per_user)).collect();
    let sale = Sale::preloaded(&items, 100_000).await;
    sale.step(2, sluice_shared::sale::SaleStep::Open, 0, i64::MAX / 2).await;
    sale
}

fn text(names: &[String], units: impl Fn(usize) -> usize) -> String {
    let lines: Vec<String> =
        names.iter().enumerate().map(|(n, name)| format!("{name}={}", units(n))).collect();
    lines.join(",")
}

fn mark(names: &[String]) -> usize {
    let skus: Vec<SkuId> = names.iter().map(|name| sku(name)).collect();
    mark_work(&skus)
}

/// Microseconds of all EVALSHA since the last time.
async fn micros(sale: &Sale) -> u64 {
    let info: String = sale.redis.run("test", cmd("INFO").arg("commandstats")).await.unwrap();
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:"));
    let usec = line.map_or("0", |line| line.split_once("usec=").unwrap().1.split_once(',').unwrap().0);
    sale.redis.run::<String>("test", cmd("CONFIG").arg("RESETSTAT")).await.unwrap();
    usec.parse().unwrap()
}

/// As many orders as one call takes.
fn batch(names: &[String], order: impl Fn(usize) -> Ask) -> Vec<Ask> {
    let mark = mark(names);
    let mut orders: Vec<Ask> = (0..512).map(order).collect();
    orders.truncate(fitting(orders.iter().map(|ask| ask.work(mark))));
    orders
}

async fn shortest(what: &str, sale: &Sale, told: fn(&Answer) -> bool, orders: impl Fn() -> Vec<Ask>) {
    let mut shortest = u64::MAX;
    let mut count = 0;
    micros(sale).await;
    for _ in 0..TRIES {
        let orders = orders();
        let answers = sale.answers(&orders).await.answers;
        assert!(answers.iter().all(told), "{what}: {:?}", answers[0]);
        (shortest, count) = (shortest.min(micros(sale).await), orders.len());
        assert!(shortest > 0, "{what}: not measured");
    }
    println!("{what}: {count} orders in {shortest} us");
    assert!(shortest <= MOST_MICROS, "{what}: {count} orders hold Redis up for {shortest} us");
}

#[tokio::test]
async fn the_worst_batch_is_bounded_by_its_work() {
    for length in [3, 64] {
        let names = names(length);
        let last = &names[names.len() - LINES_MAX..];
        // Refused for the last line only, each with other lines, so that no two are read together.
        let refused = |n: usize| text(last, |at| if at + 1 == LINES_MAX { 2 + n } else { 1 });
        let limit = |answer: &Answer| matches!(answer, Answer::Limit { held: 0, limit: 1 });
        let taken = |answer: &Answer| matches!(answer, Answer::Ok(_));
        let one = format!("{}=1", names[99]);

        let sale = open(&names, 1).await;
        let most = text(&names[..80], |_| 1);
        for n in 0..150 {
            sale.set(&sale.segment.orders(), &format!("@u{n}"), &most).await;
        }
        let orders = || batch(&names, |n| ask("u0", &refused(n)));
        shortest(&format!("one buyer refused, names of {length}"), &sale, limit, orders).await;
        let orders = || batch(&names, |n| ask(&format!("u{n}"), &refused(n)));
        shortest(&format!("buyers refused, names of {length}"), &sale, limit, orders).await;

        let sale = open(&names, 1_000_000).await;
        for n in 0..150 {
            sale.set(&sale.segment.orders(), &format!("@u{n}"), &text(&names, |_| 1)).await;
        }
        let orders = || batch(&names, |n| ask("u0", &text(last, |at| if at == 0 { 1 + n } else { 1 })));
        shortest(&format!("one buyer served, names of {length}"), &sale, taken, orders).await;
        let orders = || batch(&names, |n| ask(&format!("u{n}"), &text(last, |_| 1)));
        shortest(&format!("buyers served, names of {length}"), &sale, taken, orders).await;
        let orders = || batch(&names, |n| ask(&format!("u{n}"), &one));
        shortest(&format!("buyers of one thing served, names of {length}"), &sale, taken, orders).await;
    }
}

#[tokio::test]
async fn the_worst_releases_are_bounded_by_their_work() {
    for (length, lines) in [(3, 1), (3, LINES_MAX), (64, 1), (64, LINES_MAX)] {
        let names = names(length);
        let sale = open(&names, 1_000_000).await;
        let taken = text(&names[names.len() - lines..], |_| 1);
        let mut shortest = u64::MAX;
        for _ in 0..TRIES {
            let orders = batch(&names, |n| ask(&format!("u{n}"), &taken));
            for n in 0..orders.len() {
                sale.set(&sale.segment.orders(), &format!("@u{n}"), &text(&names, |_| 1)).await;
            }
            assert!(sale.answers(&orders).await.answers.iter().all(|answer| matches!(answer, Answer::Ok(_))));
            let release = |ask: Ask| Release {
                uuid: ask.uuid,
                state: OrderState::Expired,
                lines: ask.lines,
                user: ask.user,
            };
            let mark = mark(&names);
            let mut releases: Vec<Release> = orders.into_iter().map(release).collect();
            releases.truncate(fitting(releases.iter().map(|release| release.work(mark))));
            micros(&sale).await;
            let answers = sale.scripts.release(&sale.redis, &releases).await.unwrap().unwrap();
            assert!(answers.iter().all(|answer| matches!(answer, Released::Released(_))));
            shortest = shortest.min(micros(&sale).await);
        }
        println!("{lines} lines, names of {length}: {shortest} us");
        assert!(shortest <= MOST_MICROS, "{lines} lines, names of {length}: {shortest} us");
    }
}

/// A buyer who holds most of a large sale, and then asks for the rest of it and one unit too many.
#[tokio::test]
async fn a_large_mark_grows_and_shrinks_line_by_line() {
    let names = names(3);
    let sale = open(&names, 2).await;
    let first = ask("u", &text(&names[..20], |_| 1));
    let second = ask("u", &text(&names[10..30], |_| 1));
    assert_eq!(sale.answers(&[first.clone(), second.clone()]).await.answers, [Answer::Ok(1), Answer::Ok(2)]);
    let whole = sale.whole().await;
    assert_eq!(whole.marks["u"], text(&names[..30], |n| if (10..20).contains(&n) { 2 } else { 1 }));
    assert!(matches!(sale.release(&first, OrderState::Expired).await, Released::Released(_)));
    assert_eq!(sale.whole().await.marks["u"], text(&names[10..30], |_| 1));
    assert!(matches!(sale.release(&second, OrderState::Expired).await, Released::Released(_)));
    assert!(sale.whole().await.marks.is_empty());
    assert!(sale.whole().await.stock.values().all(|left| *left == 1_000_000));
}

/// One SKU's name may be the end or the beginning of another's.
#[tokio::test]
async fn names_within_names_are_told_apart() {
    let sale = Sale::open(&[("a", 9, 3), ("aa", 9, 3), ("a-a", 9, 3), ("-a", 9, 3)]).await;
    assert_eq!(sale.reserve(&ask("u", "aa=2")).await, Answer::Ok(1));
    assert_eq!(sale.reserve(&ask("u", "-a=1,a=3")).await, Answer::Ok(2));
    assert_eq!(sale.reserve(&ask("u", "a-a=3,aa=1")).await, Answer::Ok(3));
    assert_eq!(sale.reserve(&ask("u", "a=1")).await, Answer::Limit { held: 3, limit: 3 });
    assert_eq!(sale.reserve(&ask("u", "-a=2")).await, Answer::Ok(4));
    assert_eq!(sale.whole().await.marks["u"], "aa=3,-a=3,a=3,a-a=3");
}

/// Each order that ends leaves its record: a buyer who buys and cancels all day does not fill Redis.
#[tokio::test]
async fn who_buys_and_cancels_again_and_again_comes_to_an_end() {
    let sale = Sale::open(&[("a", 9, 2), ("b", 9, 2)]).await;
    let mut taken = 0;
    loop {
        let order = ask("u", "a=1,b=2");
        match sale.reserve(&order).await {
            Answer::Ok(_) => taken += 1,
            Answer::Limit { held: 100, limit: 100 } => break,
            other => panic!("after {taken}: {other:?}"),
        }
        assert!(taken <= 100, "no end");
        assert!(matches!(sale.release(&order, OrderState::Cancelled).await, Released::Released(_)));
        assert!(matches!(sale.release(&order, OrderState::Cancelled).await, Released::Already(_)));
    }
    let whole = sale.whole().await;
    assert_eq!((taken, whole.orders.len(), whole.stock["a"], whole.marks.len()), (100, 100, 9, 0));
    assert!(matches!(sale.reserve(&ask("v", "a=1")).await, Answer::Ok(_)), "another buyer");
}

#[test]
fn a_call_takes_as_many_plain_orders_as_ever_and_one_of_whatever_it_is() {
    let plain = ask("u", "phone=1").work(mark_work(&[sku("phone")]));
    assert_eq!(fitting(vec![plain; 512]), 512);
    assert_eq!(fitting(vec![plain; 600]), 562);
    assert_eq!((fitting([usize::MAX, 1]), fitting([9_999]), fitting([])), (1, 1, 1));
}
