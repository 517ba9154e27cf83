//! Failpoints: places at which a test makes a process die or stop dead, or one of its tasks break down,
//! named after the faults of `docs/failures.md`.
//!
//! They are in every build, so that what is tested is what is shipped, and do nothing unless
//! `SLUICE_FAILPOINTS` is set when the process starts: a place costs one load then. See
//! `docs/decisions/0008-failpoints-are-in-every-build.md`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, raise};

/// The environment variable: `F54.before-commit=kill@3,F85.drain=stop`. `kill` ends the process as
/// `kill -9` does, `stop` stops it until it is sent `SIGCONT`, `panic` breaks down the task that comes
/// there; `@3`: when it comes there the third time.
pub const VARIABLE: &str = "SLUICE_FAILPOINTS";

/// Every place, in the order in which an order and then a re-opening pass them.
pub const POINTS: [&str; 26] = [
    "F6.before-script",
    "F7.after-script",
    "F7.before-answer",
    "F7.before-publish",
    "F8.before-confirm",
    "F9.after-confirm",
    "F9.before-erase",
    "F9.after-erase",
    "F54.before-write",
    "F54.before-commit",
    "F54.before-ack",
    "F54.after-ack",
    "F69.before-mark",
    "F76.after-claim",
    "F76.before-finish",
    "F85.close",
    "F85.asked",
    "F85.listen",
    "F85.drain",
    "F85.push-barrier",
    "F85.watch-barrier",
    "F85.raise",
    "F85.books-raised",
    "F85.redis-raised",
    "F85.scripts-loaded",
    "F85.done",
];

static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Raise(Signal),
    Panic,
}

#[derive(Debug)]
struct Armed {
    point: &'static str,
    deed: Deed,
    /// Passages until it acts.
    left: AtomicU32,
}

/// Reads the environment, once, when the process starts.
///
/// # Errors
/// What is wrong with the variable's value.
pub fn arm() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let plan = read(&text).map_err(|why| format!("{VARIABLE}: {why}"))?;
    tracing::warn!(failpoints = text, "this process will die, stop or break down where a test wants it to");
    // Whoever asks twice is answered by the first.
    let _ = ARMED.set(plan);
    Ok(())
}

/// The process comes by one of [`POINTS`].
#[inline]
pub fn reach(point: &'static str) {
    if let Some(plan) = ARMED.get() {
        act(plan, point);
    }
}

#[cold]
#[allow(clippy::panic)]
fn act(plan: &[Armed], point: &str) {
    for armed in plan.iter().filter(|armed| armed.point == point) {
        if armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            match armed.deed {
                // By way of this thread, so that it goes no further; always allowed.
                Deed::Raise(signal) => drop(raise(signal)),
                Deed::Panic => std::panic::panic_any(armed.point),
            }
        }
    }
}

fn read(text: &str) -> Result<Vec<Armed>, String> {
    text.split(',').map(read_one).collect()
}

fn read_one(text: &str) -> Result<Armed, String> {
    let (point, action) = text.split_once('=').ok_or_else(|| format!("{text:?} is not POINT=ACTION"))?;
    let known = POINTS.into_iter().find(|known| *known == point);
    let point = known.ok_or_else(|| format!("there is no failpoint {point:?}"))?;
    let (word, left) = action.split_once('@').unwrap_or((action, "1"));
    let deed = match word {
        "kill" => Deed::Raise(Signal::SIGKILL),
        "stop" => Deed::Raise(Signal::SIGSTOP),
        "panic" => Deed::Panic,
        _ => return Err(format!("{word:?} is none of kill, stop and panic")),
    };
    match left.parse() {
        Ok(left @ 1..) => Ok(Armed { point, deed, left: AtomicU32::new(left) }),
        _ => Err(format!("{left:?} is no number of passages")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_known_places_and_what_happens_there() {
        let plan = read("F54.before-commit=kill@3,F85.drain=stop,F85.raise=panic").unwrap();
        let plan: Vec<_> = plan.iter().map(|a| (a.point, a.deed, a.left.load(Ordering::Relaxed))).collect();
        let [kill, stop] = [Signal::SIGKILL, Signal::SIGSTOP].map(Deed::Raise);
        let expected =
            [("F54.before-commit", kill, 3), ("F85.drain", stop, 1), ("F85.raise", Deed::Panic, 1)];
        assert_eq!(plan, expected);
        for (wrong, why) in [
            ("F54.before-comit=kill", "no failpoint"),
            ("F54.before-commit", "POINT=ACTION"),
            ("F54.before-commit=end", "none of kill, stop and panic"),
            ("F54.before-commit=kill@0", "no number of passages"),
            ("F85.drain=stop,", "POINT=ACTION"),
        ] {
            assert!(read(wrong).unwrap_err().contains(why), "{wrong}");
        }
    }
}
