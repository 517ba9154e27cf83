//! How many files this process may open: a connection is one, and so is everything behind the gate.

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::connections::leaving;

/// For listeners, Redis, RabbitMQ, the workers and the process itself.
const RESERVE: usize = 128;
/// Fewer connections than this are no gate.
const FEWEST: usize = 16;

/// Raises the limit of open files as far as it may go, and answers how many connections fit below it
/// beside `kept` ones to the shop. A proxied request takes another one while it is served: where they
/// run out, idle connections are closed.
pub fn prepare(connections: usize, kept: usize) -> anyhow::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files is not known")?;
    let limit =
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let beside = kept.saturating_add(RESERVE);
    let needed = connections.saturating_add(leaving(connections)).saturating_add(beside);
    if needed <= limit {
        return Ok(connections);
    }
    let remedy = "raise it (`ulimit -Hn`, LimitNOFILE= of systemd, --ulimit nofile= of docker), or lower \
                  limits.connections";
    let all = limit.saturating_sub(beside);
    // Those that are told to go need theirs until they have gone.
    let fit = all.saturating_sub(leaving(all));
    if fit < FEWEST {
        bail!(
            "limits.connections: {connections} of them need {needed} open files, and the system allows \
               {limit}: {remedy}"
        );
    }
    tracing::warn!(
        connections,
        needed,
        limit,
        fit,
        "the system allows too few open files: fewer connections are taken; {remedy}"
    );
    Ok(fit)
}
