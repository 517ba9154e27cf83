//! With every mechanism at work nothing goes wrong, and the sale always comes to rest.

use sluice_model::explore::Exploration;
use sluice_model::faults::Faults;
use sluice_model::rules::{
    AcceptAfter, GREEDY, ONE_BUYER, ONE_EDGE, ONE_ORDER, REPLAY, Rules, Shape, TWO_BUYERS,
};

use crate::{any_fault, explore};

/// Any single fault, and the warden may die besides; answers how many states there are.
fn holds(shape: Shape, rules: Rules) -> usize {
    let mut states = 0;
    for fault in any_fault() {
        let faults = Faults { warden: 1, ..fault };
        let found = explore(Exploration { shape, rules, faults }, true);
        assert!(found.violation.is_none(), "{faults:?}");
        println!("{} states with {faults:?}", found.states);
        states += found.states;
    }
    states
}

#[test]
fn one_order_survives_any_single_fault() {
    assert!(holds(ONE_ORDER, Rules::whole(AcceptAfter::Journal)) > 100_000);
}

/// Redis forgets scripts for all sales at once, and the first that is re-opened loads the common ones: a
/// release may meet data that nobody has looked at yet, or has read already to make it anew.
#[test]
fn a_release_may_be_told_the_fence_as_long_as_it_is_told_again() {
    let rules = Rules { fences_release: false, ..Rules::whole(AcceptAfter::Journal) };
    assert!(holds(ONE_ORDER, rules) > 100_000);
    let early = Rules { early_cancel: true, ..rules };
    assert!(holds(ONE_BUYER, early) > 10_000);
    assert!(holds(TWO_BUYERS, rules) > 100_000);
}

/// As it is with the fence in the script, the reconciler is its second line.
#[test]
fn a_release_with_the_fence_in_its_text_need_not_be_told_again() {
    let rules = Rules { tells_releases_again: false, ..Rules::whole(AcceptAfter::Journal) };
    assert!(holds(ONE_ORDER, rules) > 100_000);
}

#[test]
fn an_order_that_waits_for_the_broker_survives_any_single_fault() {
    let shape = Shape { cancels: None, ..ONE_ORDER };
    assert!(holds(shape, Rules::whole(AcceptAfter::Broker)) > 10_000);
}

#[test]
fn an_order_that_is_cancelled_before_it_is_written_survives_any_single_fault() {
    let rules = Rules { early_cancel: true, ..Rules::whole(AcceptAfter::Journal) };
    assert!(holds(ONE_BUYER, rules) > 10_000);
}

#[test]
fn two_buyers_of_one_unit_survive_any_single_fault() {
    assert!(holds(TWO_BUYERS, Rules::whole(AcceptAfter::Journal)) > 100_000);
}

#[test]
fn two_buyers_who_wait_for_the_broker_survive_any_single_fault() {
    assert!(holds(TWO_BUYERS, Rules::whole(AcceptAfter::Broker)) > 100_000);
}

#[test]
fn a_buyer_with_two_tokens_survives_any_single_fault() {
    assert!(holds(GREEDY, Rules::whole(AcceptAfter::Journal)) > 100_000);
}

#[test]
fn a_replay_through_another_edge_survives_any_single_fault() {
    assert!(holds(REPLAY, Rules::whole(AcceptAfter::Journal)) > 1_000_000);
}

/// The second time it is told from a copy, and nothing is published.
#[test]
fn a_replay_through_the_same_edge_survives_any_single_fault() {
    for accept_after in [AcceptAfter::Journal, AcceptAfter::Broker] {
        assert!(holds(ONE_EDGE, Rules::whole(accept_after)) > 10_000);
    }
    let redis = [Faults { stale: 1, ..Faults::NONE }, Faults { wipe: 1, ..Faults::NONE }];
    holds_with(ONE_EDGE, Faults { broker: 1, ..Faults::NONE }, &redis);
}

#[test]
fn a_pair_of_faults_one_after_the_other_is_survived() {
    let shape = Shape { cancels: None, ..ONE_ORDER };
    let rules = Rules { one_after_another: true, ..Rules::whole(AcceptAfter::Journal) };
    // A lease that lapses is over at once, and leaves nothing to a second fault.
    let faults = Faults {
        kill: 2,
        pause: 2,
        restart: 2,
        stale: 2,
        wipe: 2,
        broker: 2,
        machine: 2,
        most: Some(2),
        ..Faults::NONE
    };
    let found = explore(Exploration { shape, rules, faults }, true);
    assert!(found.violation.is_none(), "{faults:?}");
    assert!(found.states > 1_000_000, "{}", found.states);
}

/// A silent edge is struck off in two steps; it may wake at any moment, and Redis may fall back.
#[test]
fn a_paused_edge_loses_nothing_whatever_redis_loses() {
    let redis = [Faults { stale: 1, ..Faults::NONE }, Faults { wipe: 1, ..Faults::NONE }];
    holds_with(ONE_BUYER, Faults { pause: 1, ..Faults::NONE }, &redis);
}

/// RabbitMQ and Redis lose an order that has no row yet: its edge has a copy.
#[test]
fn redis_and_the_broker_may_both_lose_an_order() {
    let redis = [Faults { stale: 1, ..Faults::NONE }, Faults { wipe: 1, ..Faults::NONE }];
    holds_with(TWO_BUYERS, Faults { broker: 1, ..Faults::NONE }, &redis);
}

/// A Redis that lost its data has forgotten who leads; a warden that stood still leads on in its mind.
#[test]
fn two_wardens_at_once_lose_nothing() {
    let redis = [Faults { restart: 1, ..Faults::NONE }, Faults { wipe: 1, ..Faults::NONE }];
    holds_with(ONE_BUYER, Faults { rival: 1, ..Faults::NONE }, &redis);
}

/// Two faults of these kinds, whenever they like.
fn holds_with(shape: Shape, one: Faults, others: &[Faults]) {
    for other in others {
        let (rules, faults) = (Rules::whole(AcceptAfter::Journal), one.and(*other));
        let found = explore(Exploration { shape, rules, faults }, true);
        println!("{} states with {faults:?}", found.states);
        assert!(found.violation.is_none(), "{faults:?}");
    }
}
