//! The delay queue: what falls due when, in two sorted sets and a hash of owners.

use std::time::Duration;

use super::{CLAIM, FINISH, Loaded, RECOVER, SCHEDULE, Words};
use crate::clock::Millis;
use crate::keys;
use crate::redis::{Fault, Redis};

/// One delay queue. It only wakes work up: what is due is decided by the books, and the queue can be
/// rebuilt from them at any time, so whoever finds its scripts gone loads them and rebuilds it.
#[derive(Debug)]
pub struct DelayQueue {
    keys: [String; 3],
    schedule: Loaded,
    claim: Loaded,
    finish: Loaded,
    recover: Loaded,
}

impl DelayQueue {
    /// The queue of this number.
    pub fn new(n: u16) -> Self {
        let named = |script| Loaded::new(script, None);
        Self {
            keys: keys::delay(n),
            schedule: named(SCHEDULE),
            claim: named(CLAIM),
            finish: named(FINISH),
            recover: named(RECOVER),
        }
    }

    /// Makes Redis know the scripts.
    pub async fn load(&self, redis: &Redis) -> Result<(), Fault> {
        for script in [&self.schedule, &self.claim, &self.finish, &self.recover] {
            script.load(redis).await?;
        }
        Ok(())
    }

    /// Notes when tasks fall due.
    pub async fn schedule(&self, redis: &Redis, tasks: &[(Millis, String)]) -> Result<(), Fault> {
        if tasks.is_empty() {
            return Ok(());
        }
        let mut call = self.schedule.call(&[&self.keys[0], &self.keys[1]]);
        for (due, task) in tasks {
            call.arg(due.0).arg(task);
        }
        count("scheduling", "SCHEDULED", redis, &call).await.map(|_| ())
    }

    /// Takes due tasks under a lease; `token` must be new for each claim.
    pub async fn claim(
        &self,
        redis: &Redis,
        token: &str,
        lease: Duration,
        most: u32,
    ) -> Result<Vec<String>, Fault> {
        let mut call = self.claim.call(&[&self.keys[0], &self.keys[1], &self.keys[2]]);
        call.arg(token).arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)).arg(most);
        let doing = "claiming due tasks";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        let first = words.text()?;
        if first != "CLAIMED" {
            return Err(words.unknown(&first));
        }
        let mut tasks = Vec::with_capacity(words.words.len());
        while words.words.len() > 0 {
            tasks.push(words.text()?);
        }
        Ok(tasks)
    }

    /// Removes tasks that are done; answers how many were still owned by `token`.
    pub async fn finish(&self, redis: &Redis, token: &str, tasks: &[String]) -> Result<u64, Fault> {
        let mut call = self.finish.call(&[&self.keys[1], &self.keys[2]]);
        call.arg(token);
        for task in tasks {
            call.arg(task);
        }
        count("finishing tasks", "FINISHED", redis, &call).await
    }

    /// Makes tasks ready again whose lease ran out; answers how many.
    pub async fn recover(&self, redis: &Redis, most: u32) -> Result<u64, Fault> {
        let mut call = self.recover.call(&[&self.keys[0], &self.keys[1], &self.keys[2]]);
        call.arg(most);
        count("recovering tasks", "RECOVERED", redis, &call).await
    }
}

async fn count(
    doing: &'static str,
    word: &str,
    redis: &Redis,
    call: &crate::redis::Cmd,
) -> Result<u64, Fault> {
    let mut words = Words::new(doing, redis.run(doing, call).await?)?;
    let first = words.text()?;
    if first != word {
        return Err(words.unknown(&first));
    }
    words.number()
}
