//! With every mechanism at work nothing goes wrong, and the sale always comes to rest.

use sluice_model::explore::Exploration;
use sluice_model::rules::{AcceptAfter, Faults, GREEDY, ONE_ORDER, REPLAY, Rules, Shape, TWO_BUYERS};

use crate::{each_alone, explore};

/// One fault of each kind; answers how many states there are.
fn holds(shape: Shape, rules: Rules) -> usize {
    let mut states = 0;
    for faults in each_alone() {
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

#[test]
fn an_order_that_waits_for_the_broker_survives_any_single_fault() {
    let shape = Shape { cancels: None, ..ONE_ORDER };
    assert!(holds(shape, Rules::whole(AcceptAfter::Broker)) > 10_000);
}

#[test]
fn an_order_that_is_cancelled_before_it_is_written_survives_any_single_fault() {
    let shape = Shape { cancels: None, ..ONE_ORDER };
    let rules = Rules { early_cancel: true, ..Rules::whole(AcceptAfter::Journal) };
    assert!(holds(shape, rules) > 10_000);
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

#[test]
fn two_faults_one_after_the_other_are_survived() {
    let shape = Shape { cancels: None, ..ONE_ORDER };
    let rules = Rules { one_after_another: true, ..Rules::whole(AcceptAfter::Journal) };
    let (kinds, mut states) = (each_alone(), 0);
    for (at, first) in kinds.iter().enumerate() {
        for second in &kinds[at..] {
            let faults = Faults {
                kill: first.kill + second.kill,
                pause: first.pause + second.pause,
                restart: first.restart + second.restart,
                stale: first.stale + second.stale,
                wipe: first.wipe + second.wipe,
                broker: first.broker + second.broker,
                machine: first.machine + second.machine,
                warden: 0,
            };
            let found = explore(Exploration { shape, rules, faults }, true);
            assert!(found.violation.is_none(), "{faults:?}");
            states += found.states;
        }
    }
    assert!(states > 1_000_000, "{states}");
}
