//! Whether traffic should come to this edge, and what is not well.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, Readiness, ReadyState};

/// How long Redis may be silent until it counts as gone.
const SILENT: Duration = Duration::from_secs(2);
/// How long a start may wait for its admission: the shop's traffic does not need one.
const ADMISSION: Duration = Duration::from_secs(10);
/// A wall clock that is further from Redis' is told.
const SKEWED_MS: i64 = 2_000;

impl Engine {
    /// Whether traffic should come here.
    pub fn readiness(&self) -> Readiness {
        let (core, sales) = (&self.core, self.book.now());
        let away = core.silence().is_none_or(|silence| silence > SILENT);
        let state = if core.draining.load(Ordering::Relaxed) {
            ReadyState::Draining
        } else if sales.generation.is_none() || (!self.has_started() && core.age() < ADMISSION) {
            ReadyState::Starting
        } else if away {
            ReadyState::NoRedis
        } else {
            ReadyState::Ready
        };
        let mut reasons = Vec::new();
        let mut say = |holds: bool, reason: &str| {
            if holds {
                reasons.push(reason.to_owned());
            }
        };
        say(away, "redis does not answer");
        say(!core.connected.load(Ordering::Relaxed), "rabbitmq is away: accepted orders are held");
        say(core.blocked.load(Ordering::Relaxed), "rabbitmq blocks publishers: accepted orders are held");
        say(!core.admitted.load(Ordering::Relaxed), "not admitted yet: no warden has registered this edge");
        if let Some(why) = core.refusal().as_deref() {
            reasons.push(refusal(why));
        }
        if self.doubts_clocks() {
            let what = "the clocks of this machine and of redis are too far apart: no jwt is judged";
            reasons.push(format!("{what} until one of them is put right (redis.skew_max_seconds)"));
        }
        if core.clock.skew_ms().abs() > SKEWED_MS {
            let seconds = core.clock.skew_ms() as f64 / 1000.0;
            let what = "sales and tokens go by redis' clock, not by it";
            reasons.push(format!("this machine's clock is {seconds:+.1} s from redis': {what}"));
        }
        let mut frozen: Vec<_> = sales.all().filter(|sale| sale.frozen()).collect();
        frozen.sort_by_key(|sale| sale.view.number);
        reasons.extend(frozen.iter().take(10).map(|sale| format!("sale {} is frozen", sale.view.sale)));
        if frozen.len() > 10 {
            reasons.push(format!("{} more sales are frozen", frozen.len() - 10));
        }
        Readiness { state, reasons }
    }
}

/// What it means that Redis refuses to write, for operators.
fn refusal(why: &str) -> String {
    let what = match why {
        why if why.contains("OOM") => "redis is out of memory: raise its maxmemory",
        why if why.contains("MISCONF") => "redis cannot write to its disk: see its log",
        _ => "redis refuses to write",
    };
    format!("{what} ({why})")
}
