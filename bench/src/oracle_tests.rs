use sluice_shared::clock::Millis;

use super::*;
use crate::client::outcome::{ACCEPTED, CUT, FROZEN, OK, Outcome, REPLAYED};

const RULES: Rules = Rules { stock: 2, per_user: 1, returns: false, taken: None };

fn entry(buyer: u32, order: OrderId, sent: Micros, outcome: Outcome) -> Entry {
    Entry {
        due: sent,
        sent,
        done: sent + 5,
        kind: Kind::Buy,
        buyer,
        order: Some(order),
        named: outcome.is_held().then_some(order),
        units: 1,
        status: 202,
        outcome,
    }
}

fn row(buyer: u32, id: OrderId, state: OrderState) -> Row {
    Row {
        id,
        user: format!("b-{buyer}"),
        state,
        units: 1,
        refund: None,
        pay_before: None,
        accepted: Millis(0),
        written: None,
    }
}

fn rules_broken(log: &[Entry], rows: &[Row], rules: &Rules) -> Vec<&'static str> {
    let buyer = |user: &str| user.strip_prefix("b-")?.parse().ok();
    judge(log, rows, buyer, rules).into_iter().map(|contradiction| contradiction.rule).collect()
}

fn ids() -> (OrderId, OrderId, OrderId) {
    (OrderId::mint(1, 0), OrderId::mint(1, 0), OrderId::mint(1, 0))
}

#[test]
fn a_sound_sale_has_no_contradiction() {
    let (a, b, c) = ids();
    let log = [
        entry(0, a, 0, ACCEPTED),
        entry(1, b, 1, CUT),
        entry(0, a, 20, REPLAYED),
        entry(1, b, 20, REPLAYED),
        entry(2, c, 30, SOLD_OUT),
        entry(0, a, 40, FROZEN),
    ];
    let rows = [row(0, a, OrderState::Paid), row(1, b, OrderState::PendingPayment)];
    let rules = Rules { taken: Some(2), ..RULES };
    assert_eq!(rules_broken(&log, &rows, &rules), Vec::<&str>::new());
}

#[test]
fn an_accepted_order_without_a_row_is_caught() {
    let (a, ..) = ids();
    assert_eq!(rules_broken(&[entry(0, a, 0, ACCEPTED)], &[], &RULES), ["A1 every accepted order is a row"]);
    let failed = [row(0, a, OrderState::Failed)];
    assert_eq!(
        rules_broken(&[entry(0, a, 0, REPLAYED)], &failed, &RULES),
        ["A1 every accepted order is a row"]
    );
    assert!(rules_broken(&[entry(0, a, 0, CUT)], &[], &RULES).is_empty());
}

#[test]
fn a_row_that_nobody_asked_for_is_caught() {
    let (a, ..) = ids();
    let rows = [row(0, a, OrderState::PendingPayment)];
    assert_eq!(rules_broken(&[], &rows, &RULES), ["A5 an order was asked for"]);
    let frozen = [entry(0, a, 0, FROZEN)];
    assert_eq!(rules_broken(&frozen, &rows, &RULES), ["A5 a refusal takes nothing"]);
    assert_eq!(rules_broken(&[entry(1, a, 0, ACCEPTED)], &rows, &RULES), ["A1 an order is its buyer's"]);
    let two = [Entry { units: 2, ..entry(0, a, 0, ACCEPTED) }];
    assert_eq!(rules_broken(&two, &rows, &RULES), ["A1 an order is what was asked for"]);
}

#[test]
fn a_row_listed_twice_is_caught() {
    let (a, ..) = ids();
    let rows = [row(0, a, OrderState::Expired), row(0, a, OrderState::Expired)];
    assert_eq!(rules_broken(&[entry(0, a, 0, ACCEPTED)], &rows, &RULES), ["A1 an order has one row"]);
}

#[test]
fn two_orders_for_one_token_are_caught() {
    let (a, b, _) = ids();
    let rows = [row(0, a, OrderState::Paid)];
    let other = Entry { named: Some(b), ..entry(0, a, 20, REPLAYED) };
    assert_eq!(
        rules_broken(&[entry(0, a, 0, ACCEPTED), other], &rows, &RULES),
        ["A4 a token names one order"]
    );
    let twice = [entry(0, a, 0, ACCEPTED), entry(0, a, 20, ACCEPTED)];
    assert_eq!(rules_broken(&twice, &rows, &RULES), ["A4 a token takes units once"]);
}

#[test]
fn accepted_then_refused_is_caught() {
    let (a, ..) = ids();
    let rows = [row(0, a, OrderState::Paid)];
    for refusal in ["sold_out", "purchase_limit", "ended", "token_expired"] {
        let refused = Outcome::parse(refusal).unwrap();
        let log = [entry(0, a, 0, ACCEPTED), entry(0, a, 20, refused)];
        let rules = Rules { returns: true, ..RULES };
        assert_eq!(rules_broken(&log, &rows, &rules), ["A4 accepted is never followed by a refusal"]);
        // Asked before the acceptance was there: the two may have met on the way.
        let log = [entry(0, a, 0, ACCEPTED), entry(0, a, 3, refused)];
        assert!(rules_broken(&log, &rows, &rules).is_empty());
    }
}

#[test]
fn a_spent_token_that_holds_units_is_caught() {
    let (a, ..) = ids();
    let log = [entry(0, a, 0, ACCEPTED), entry(0, a, 20, TOKEN_SPENT)];
    let rule = "A4 a spent token gave its units back";
    assert_eq!(rules_broken(&log, &[row(0, a, OrderState::Paid)], &RULES), [rule]);
    assert!(rules_broken(&log, &[row(0, a, OrderState::Expired)], &RULES).is_empty());
}

#[test]
fn too_much_for_one_user_or_for_the_stock_is_caught() {
    let (a, b, c) = ids();
    let log = [entry(0, a, 0, ACCEPTED), entry(0, b, 0, ACCEPTED)];
    let rows = [row(0, a, OrderState::Paid), row(0, b, OrderState::PendingPayment)];
    assert_eq!(rules_broken(&log, &rows, &RULES), ["P2 no user holds more than the limit"]);
    let expired = [row(0, a, OrderState::Expired), row(0, b, OrderState::PendingPayment)];
    assert!(rules_broken(&log, &expired, &RULES).is_empty());

    let log = [entry(0, a, 0, ACCEPTED), entry(1, b, 0, ACCEPTED), entry(2, c, 0, ACCEPTED)];
    let rows = [row(0, a, OrderState::Paid), row(1, b, OrderState::Paid), row(2, c, OrderState::Paid)];
    assert_eq!(rules_broken(&log, &rows, &RULES), ["P1 no more is sold than there is"]);
    let rules = Rules { stock: 4, taken: Some(4), ..RULES };
    assert_eq!(rules_broken(&log, &rows, &rules), ["Z4 what can be sold is sold"]);
}

#[test]
fn sold_out_before_it_is_so_is_caught() {
    let (a, b, c) = ids();
    let rows = [row(0, a, OrderState::Paid), row(1, b, OrderState::Paid)];
    let told = entry(2, c, 10, SOLD_OUT);
    let early = [entry(0, a, 0, ACCEPTED), told, entry(1, b, 16, ACCEPTED)];
    assert_eq!(rules_broken(&early, &rows, &RULES), ["A3 sold out is said only when it is so"]);
    let meeting = [entry(0, a, 0, ACCEPTED), told, entry(1, b, 14, ACCEPTED)];
    assert!(rules_broken(&meeting, &rows, &RULES).is_empty());
    let returns = Rules { returns: true, ..RULES };
    assert!(rules_broken(&early, &rows, &returns).is_empty());
}

#[test]
fn money_for_an_order_that_is_not_paid_is_caught() {
    let (a, b, _) = ids();
    let paid = |order| Entry { kind: Kind::Pay, status: 200, ..entry(0, order, 0, OK) };
    let rows = [row(0, a, OrderState::Paid), row(1, b, OrderState::Expired)];
    assert!(judge_payments(&[paid(a)], &rows).is_empty());
    assert_eq!(judge_payments(&[paid(b)], &rows).len(), 1);
    let late = Row { refund: Some("due".to_owned()), ..row(1, b, OrderState::Expired) };
    assert!(judge_payments(&[paid(b)], &[late]).is_empty());
}

#[test]
fn an_order_that_is_not_what_its_buyer_is_told_is_caught() {
    let (a, ..) = ids();
    let (paid, unpaid) = (Some(OrderState::Paid), Some(OrderState::PendingPayment));
    assert_eq!(contradicts(a, paid, paid), None);
    assert_eq!(contradicts(a, None, None), None);
    for (told, row) in [(unpaid, paid), (None, unpaid), (Some(OrderState::Accepted), None)] {
        let rule = contradicts(a, told, row).map(|contradiction| contradiction.rule);
        assert_eq!(rule, Some("A2 an order asked for by its id is what its row is"), "{told:?} {row:?}");
    }
}

#[test]
fn only_orders_of_unknown_outcome_are_asked_for_again() {
    let (a, b, c) = ids();
    let log = [
        entry(0, a, 0, CUT),
        entry(0, a, 20, REPLAYED),
        entry(1, b, 0, ACCEPTED),
        entry(2, c, 0, FROZEN),
        Entry { kind: Kind::Look, ..entry(2, c, 1, CUT) },
    ];
    assert_eq!(unknown(&log).into_iter().collect::<Vec<_>>(), [(a, 0)]);
    let counts = judged(&log, &RULES).map(|(_, count)| count);
    assert_eq!(counts, [2, 0, 3, 1]);
}

#[test]
fn what_was_refused_for_the_moment_has_taken_nothing() {
    let (a, ..) = ids();
    let rows = [row(0, a, OrderState::PendingPayment)];
    for refusal in ["rate_limited", "overloaded", "frozen", "paused"] {
        let refused = entry(0, a, 0, Outcome::parse(refusal).unwrap());
        assert_eq!(rules_broken(&[refused], &rows, &RULES), ["A5 a refusal takes nothing"], "{refusal}");
        // Another attempt explains it.
        let explained = [refused, entry(0, a, 9, CUT)];
        assert!(rules_broken(&explained, &rows, &RULES).is_empty(), "{refusal}");
    }
}
