//! Random interleavings of every script against a small model; a failing run shrinks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_shared::lines::Lines;
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Adjusted, Answer, Ask, Released, Settle, Settled};

use crate::segment::{Sale, Whole, ask, sku};

const SKUS: [&str; 2] = ["a", "b"];
const USERS: usize = 3;
const ORDERS: usize = 8;
const LIMIT: u64 = 3;

/// One call; orders and users by index.
#[derive(Debug, Clone)]
enum Step {
    Reserve(Vec<(usize, usize, bool)>),
    Release(usize, OrderState),
    Settle(usize, Option<OrderState>, Refund),
    Adjust(u8, usize, i64),
    Pause(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let order = 0..ORDERS;
    let state = prop_oneof![
        Just(OrderState::Expired),
        Just(OrderState::Cancelled),
        Just(OrderState::Failed),
        Just(OrderState::Refunded)
    ];
    let forward = prop_oneof![
        Just(None),
        Just(Some(OrderState::PendingPayment)),
        Just(Some(OrderState::Paid)),
        Just(Some(OrderState::Refunded))
    ];
    let refund =
        prop_oneof![Just(Refund::None), (1..4_u32).prop_map(Refund::Due), (1..4_u32).prop_map(Refund::Done)];
    prop_oneof![
        6 => prop::collection::vec((order.clone(), 0..4_usize, prop::bool::weighted(0.1)), 1..6)
            .prop_map(Step::Reserve),
        3 => (order.clone(), state).prop_map(|(order, state)| Step::Release(order, state)),
        2 => (order, forward, refund).prop_map(|(order, state, refund)| Step::Settle(order, state, refund)),
        1 => (0..4_u8, 0..SKUS.len(), -3..4_i64).prop_map(|(change, sku, n)| Step::Adjust(change, sku, n)),
        1 => any::<bool>().prop_map(Step::Pause),
    ]
}

/// The lines that an order may be asked with: one SKU, more of it, both, the other.
const LINES: [&str; 4] = ["a=1", "a=2", "a=1,b=1", "b=2"];

#[derive(Debug, Clone)]
struct Order {
    state: char,
    held: bool,
    seq: u64,
    refund: Refund,
    lines: String,
    user: usize,
}

/// What the scripts promise, in plain Rust.
#[derive(Debug, Default)]
struct Model {
    left: BTreeMap<String, u64>,
    orders: BTreeMap<usize, Order>,
    journal: Vec<u64>,
    changes: BTreeMap<u8, u64>,
    seq: u64,
    paused: bool,
}

fn lines(text: &str) -> Vec<(String, u64)> {
    Lines::parse(text).unwrap().iter().map(|(sku, n)| (sku.to_string(), u64::from(n))).collect()
}

impl Model {
    fn held(&self, user: usize, sku: &str) -> u64 {
        let mine = self.orders.values().filter(|order| order.held && order.user == user);
        mine.flat_map(|order| lines(&order.lines)).filter(|(name, _)| name == sku).map(|(_, n)| n).sum()
    }

    fn reserve(&mut self, order: usize, text: &str, expired: bool) -> &'static str {
        let user = order % USERS;
        if let Some(known) = self.orders.get(&order) {
            return match (known.held, known.lines == text) {
                (false, _) => "spent",
                (true, true) => "replay",
                (true, false) => "reused",
            };
        }
        let wanted = lines(text);
        if self.paused {
            return "paused";
        }
        if expired {
            return "expired";
        }
        if wanted.iter().any(|(sku, n)| self.held(user, sku) + n > LIMIT) {
            return "limit";
        }
        if wanted.iter().any(|(sku, n)| self.left[sku] < *n) {
            return "sold out";
        }
        for (sku, n) in &wanted {
            *self.left.get_mut(sku).unwrap() -= n;
        }
        self.seq += 1;
        self.journal.push(self.seq);
        let (seq, lines) = (self.seq, text.to_owned());
        self.orders.insert(order, Order { state: 'A', held: true, seq, refund: Refund::None, lines, user });
        "ok"
    }

    fn release(&mut self, order: usize, state: OrderState) -> &'static str {
        let Some(known) = self.orders.get_mut(&order) else {
            let (state, lines) = (state.letter(), LINES[0].to_owned());
            let tomb = Order { state, held: false, seq: 0, refund: Refund::None, lines, user: order % USERS };
            self.orders.insert(order, tomb);
            return "tombstone";
        };
        if !known.held {
            return "already";
        }
        (known.held, known.state) = (false, state.letter());
        for (sku, n) in lines(&known.lines) {
            *self.left.get_mut(&sku).unwrap() += n;
        }
        "released"
    }

    fn settle(&mut self, order: usize, state: Option<OrderState>, refund: Refund) -> &'static str {
        let rank = |letter| "AP?D".find(letter).unwrap_or(2);
        let Some(known) = self.orders.get_mut(&order) else { return "unknown" };
        let mut moved = false;
        if let Some(letter) = state.map(OrderState::letter).filter(|to| rank(*to) > rank(known.state)) {
            (known.state, moved) = (letter, true);
        }
        if refund.rank() > known.refund.rank() {
            (known.refund, moved) = (refund, true);
        }
        if moved { "settled" } else { "already" }
    }

    fn adjust(&mut self, change: u8, sku: &str, delta: i64) -> &'static str {
        if self.changes.contains_key(&change) {
            return "already";
        }
        let left = self.left.get_mut(sku).unwrap();
        let Some(after) = left.checked_add_signed(delta) else { return "insufficient" };
        *left = after;
        self.changes.insert(change, after);
        "adjusted"
    }

    fn whole(&self, asks: &[Ask]) -> Whole {
        let mut whole = Whole { stock: self.left.clone(), seq: self.seq, ..Whole::default() };
        for (at, order) in &self.orders {
            let (epoch, units) = (if order.seq > 0 { 7 } else { 0 }, if order.held { 'h' } else { 'r' });
            let (state, refund) = (order.state, order.refund);
            let (seq, lines, user) = (order.seq, &order.lines, &asks[*at].user);
            let record = format!("{state}{units}|{epoch}|{seq}|0|0|0|{refund}|{lines}|{user}");
            whole.orders.insert(hex::encode(asks[*at].uuid), record);
            if order.seq > 0 {
                whole.journal.push((format!("7-{seq}"), hex::encode(asks[*at].uuid)));
            }
        }
        whole.journal.sort_by_key(|(id, _)| id[2..].parse::<u64>().unwrap());
        for user in 0..USERS {
            let marks: Vec<String> = SKUS
                .iter()
                .filter(|sku| self.held(user, sku) > 0)
                .map(|sku| format!("{sku}={}", self.held(user, sku)))
                .collect();
            if !marks.is_empty() {
                whole.marks.insert(format!("user-{user}"), marks.join(","));
            }
        }
        whole
    }
}

/// Marks list their SKUs in order of purchase; the model in order of name.
fn sorted(mut whole: Whole) -> Whole {
    for mark in whole.marks.values_mut() {
        let mut parts: Vec<&str> = mark.split(',').collect();
        parts.sort_unstable();
        *mark = parts.join(",");
    }
    whole
}

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Ok(_) => "ok",
        Answer::Replay(_) => "replay",
        Answer::Spent => "spent",
        Answer::Reused => "reused",
        Answer::Paused => "paused",
        Answer::TokenExpired => "expired",
        Answer::Limit { .. } => "limit",
        Answer::SoldOut(_) => "sold out",
        other => panic!("{other:?}"),
    }
}

async fn apply(sale: &Sale, model: &mut Model, asks: &[Ask], cfg: &mut u64, step: &Step) {
    match step {
        Step::Reserve(batch) => {
            let orders: Vec<Ask> = batch
                .iter()
                .map(|(at, lines, expired)| Ask {
                    lines: Lines::parse(LINES[*lines]).unwrap(),
                    expired: *expired,
                    ..asks[*at].clone()
                })
                .collect();
            let said: Vec<_> = sale.answers(&orders).await.answers.iter().map(word).collect();
            let due: Vec<_> = batch
                .iter()
                .map(|(at, lines, expired)| model.reserve(*at, LINES[*lines], *expired))
                .collect();
            assert_eq!(said, due);
        }
        Step::Release(at, state) => {
            let said = match sale.release(&asks[*at], *state).await {
                Released::Released(_) => "released",
                Released::Already(_) => "already",
                Released::Tombstone(_) => "tombstone",
                Released::Corrupt(what) => panic!("{what}"),
            };
            assert_eq!(said, model.release(*at, *state));
        }
        Step::Settle(at, state, refund) => {
            let settle = Settle { uuid: asks[*at].uuid, state: *state, pay_before: None, refund: *refund };
            let said = match &sale.scripts.settle(&sale.redis, &[settle]).await.unwrap().unwrap()[0] {
                Settled::Settled(_) => "settled",
                Settled::Already(_) => "already",
                Settled::Unknown => "unknown",
                Settled::Corrupt(what) => panic!("{what}"),
            };
            assert_eq!(said, model.settle(*at, *state, *refund));
        }
        Step::Adjust(change, at, delta) => {
            let (name, redis) = (SKUS[*at], &sale.redis);
            let said = sale.scripts.adjust(redis, &change.to_string(), &sku(name), *delta).await.unwrap();
            let said = match said {
                Adjusted::Adjusted(_) => "adjusted",
                Adjusted::Already(_) => "already",
                Adjusted::Insufficient(_) => "insufficient",
                other => panic!("{other:?}"),
            };
            assert_eq!(said, model.adjust(*change, name, *delta));
        }
        Step::Pause(paused) => {
            let to = if *paused { SaleStep::Paused } else { SaleStep::Open };
            (*cfg, model.paused) = (*cfg + 1, *paused);
            sale.step(*cfg, to, 0, i64::MAX / 2).await;
        }
    }
    assert_eq!(sorted(sale.whole().await), model.whole(asks), "after {step:?}");
}

#[test]
fn scripts_and_model_agree_on_every_answer_and_the_whole_state() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sale = runtime.block_on(Sale::open(&[("a", 1, 1)]));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let runs = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
        runtime.block_on(async {
            let sale = fresh(&sale).await;
            let asks: Vec<Ask> =
                (0..ORDERS).map(|at| ask(&format!("user-{}", at % USERS), LINES[0])).collect();
            let left = SKUS.iter().map(|sku| ((*sku).to_owned(), 5)).collect();
            let (mut model, mut cfg) = (Model { left, ..Model::default() }, 2);
            for step in &steps {
                apply(&sale, &mut model, &asks, &mut cfg, step).await;
            }
        });
        Ok(())
    });
    runs.unwrap();
}

/// The same server, emptied: starting one for each of the runs would be most of the test's time.
async fn fresh(used: &Sale) -> Sale {
    used.redis.run::<String>("test", &sluice_shared::redis::cmd("FLUSHALL")).await.unwrap();
    used.again(&[("a", 5, 3), ("b", 5, 3)]).await
}
