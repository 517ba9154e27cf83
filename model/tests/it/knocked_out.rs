//! With one mechanism switched off the model finds what goes wrong: it would find a bug as well.

use sluice_model::explore::Exploration;
use sluice_model::faults::Faults;
use sluice_model::judge::Violation::{self, AcceptedLost, AcceptedThenRefused, Leak, Ledger, Phantom, Stuck};
use sluice_model::rules::{AcceptAfter, ONE_BUYER, ONE_ORDER, REPLAY, Raises, Rules, Shape, TWO_BUYERS};

use crate::explore;

const WHOLE: Rules = Rules::whole(AcceptAfter::Journal);
const STALE: Faults = Faults { stale: 1, ..Faults::NONE };
const WIPE: Faults = Faults { wipe: 1, ..Faults::NONE };
const SEQUENCE: Rules = Rules { one_after_another: true, ..WHOLE };

fn breaks(rules: Rules, shape: Shape, faults: Faults, wanted: &[Violation]) {
    let found = explore(Exploration { shape, rules, faults }, wanted.contains(&Stuck));
    let (violation, _) = found.violation.unwrap_or_else(|| panic!("nothing in {} states", found.states));
    assert!(wanted.contains(&violation), "{violation:?}, not one of {wanted:?}");
}

macro_rules! knock_outs {
    ($($name:ident: { $($off:tt)* }, $base:expr, $shape:expr, $faults:expr, $wanted:expr;)*) => {
        $(#[test]
        fn $name() {
            breaks(Rules { $($off)*, ..$base }, $shape, $faults, &$wanted);
        })*
    };
}

knock_outs! {
    an_edge_must_remember: { memory: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    what_is_sent_is_not_confirmed: { until_confirmed: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    frozen_is_no_reason_to_forget: { holds_frozen: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    what_is_confirmed_must_be_kept: { copies: false }, WHOLE, ONE_BUYER,
        Faults { broker: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    a_frozen_edge_must_publish: { publishes_frozen: false }, WHOLE, TWO_BUYERS, STALE, [Stuck];
    a_replay_must_be_held: { holds_replays: false }, WHOLE, REPLAY, STALE, [AcceptedLost];
    an_old_replay_must_be_held: { holds_old_replays: false, copies: false }, SEQUENCE, REPLAY,
        Faults { broker: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    a_closed_epoch_must_stay_closed: { gate: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    edges_must_be_asked: { collects: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    edges_must_be_waited_for: { waits: false }, WHOLE, TWO_BUYERS, STALE, [AcceptedLost];
    the_register_must_survive_redis: { register: false }, WHOLE, TWO_BUYERS, WIPE, [AcceptedLost];
    time_proves_nobody_dead: { strikes_carefully: false }, WHOLE, ONE_BUYER,
        Faults { pause: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    the_script_must_refuse_first: { refuses_first: false }, WHOLE, ONE_BUYER,
        Faults { pause: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    what_a_silent_edge_left_must_be_gone: { leaves_nothing: false }, WHOLE, ONE_BUYER,
        Faults { pause: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    an_order_is_of_the_epoch_of_its_reply: { stamps_reply: false }, WHOLE, ONE_BUYER,
        Faults { pause: 1, stale: 1, ..Faults::NONE }, [Phantom, AcceptedThenRefused, AcceptedLost];
    a_warden_ends_what_it_asked_for: { ends_asked: false }, WHOLE, ONE_BUYER,
        Faults { restart: 1, rival: 1, ..Faults::NONE }, [AcceptedLost, Phantom, AcceptedThenRefused];
    a_question_that_is_gone_must_be_asked_again: { asks_again: false }, WHOLE, ONE_BUYER,
        Faults { restart: 1, rival: 1, ..Faults::NONE }, [Stuck];
    a_stranger_must_not_sell: { membership: false }, WHOLE, ONE_BUYER,
        Faults { pause: 1, stale: 1, ..Faults::NONE }, [AcceptedLost];
    redis_must_write_to_disk_first: { always: false }, WHOLE, TWO_BUYERS,
        Faults { machine: 1, ..Faults::NONE }, [AcceptedLost];
    what_has_no_row_must_be_published: { reconciles: false }, WHOLE, TWO_BUYERS,
        Faults { broker: 1, ..Faults::NONE }, [AcceptedLost, Leak];
    what_a_dead_edge_left_must_be_published: { sweep: false, reconciles_journal: false }, WHOLE, TWO_BUYERS,
        Faults { kill: 1, ..Faults::NONE }, [Leak, Stuck];
    a_lost_reply_must_not_keep_a_unit: { sweep: false, reconciles: false }, WHOLE, TWO_BUYERS, Faults::NONE, [Leak];
    messages_of_an_old_epoch_must_be_fenced: { fence: false }, WHOLE, TWO_BUYERS, STALE,
        [Phantom, AcceptedThenRefused];
    accepted_orders_must_be_drained: { drains: false }, WHOLE, TWO_BUYERS,
        Faults { machine: 1, ..Faults::NONE }, [AcceptedLost];
    every_reopening_raises_the_epoch: { raises: Raises::UnlessBooksAgree }, WHOLE, TWO_BUYERS, STALE,
        [Phantom, AcceptedThenRefused];
    edges_do_not_know_enough_to_spare_an_epoch: { raises: Raises::UnlessEdgesAgree }, WHOLE, TWO_BUYERS, STALE,
        [Phantom, AcceptedThenRefused];
    nobody_else_loads_scripts: { loads_alone: false }, WHOLE, TWO_BUYERS, STALE,
        [Phantom, AcceptedThenRefused, AcceptedLost];
    scripts_are_loaded_once: { loads_once: false }, SEQUENCE, TWO_BUYERS,
        Faults { restart: 1, stale: 1, ..Faults::NONE }, [Phantom, AcceptedThenRefused, AcceptedLost];
    a_journal_entry_is_the_second_line: { erases_confirmed: false, reconciles: false }, WHOLE, TWO_BUYERS,
        Faults { kill: 1, ..Faults::NONE }, [AcceptedLost, Leak];
    deleting_an_entry_must_leave_the_record: { erase_keeps_record: false }, WHOLE, TWO_BUYERS, Faults::NONE,
        [Ledger, AcceptedLost, Phantom];
    a_release_that_is_told_the_fence_must_be_told_again:
        { fences_release: false, tells_releases_again: false }, WHOLE, ONE_ORDER,
        Faults { restart: 1, ..Faults::NONE }, [Leak];
    units_of_no_row_must_not_be_released: { releases_rows: false }, WHOLE, TWO_BUYERS, Faults::NONE,
        [Phantom, AcceptedThenRefused, AcceptedLost];
}

#[test]
fn two_faults_at_once_may_lose_an_order_and_nothing_else() {
    let faults = Faults { kill: 1, stale: 1, ..Faults::NONE };
    breaks(WHOLE, TWO_BUYERS, faults, &[AcceptedLost]);
}
