//! CPU time of processes, and which cores they may use.
//!
//! CPU time per request is what benchmarks compare: on a shared machine it hardly moves, while
//! requests per second swing by half.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// CPU time that the calling thread has used.
pub fn of_this_thread() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_THREAD)
        .map(|usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
    Duration::from_micros(used.ok().and_then(|micros| u64::try_from(micros).ok()).unwrap_or(0))
}

/// CPU time that processes have used, all their threads together.
pub fn of(pids: &[i32]) -> Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        ticks += ticks_in(&stat).with_context(|| format!("/proc/{pid}/stat is not as expected"))?;
    }
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|hz| u32::try_from(hz).ok()).unwrap_or(100);
    Ok(Duration::from_secs(ticks) / per_second)
}

/// User and system ticks; the command's name may hold spaces and parentheses.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// How many cores this machine has.
pub fn cores() -> usize {
    std::fs::read_to_string("/proc/cpuinfo")
        .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count().max(1))
}

/// Lets the calling thread run on these cores only.
pub fn pin_this_thread(cores: &[usize]) -> Result<()> {
    sched_setaffinity(Pid::from_raw(0), &set(cores)?).context("choosing cores")
}

/// Lets every thread of a process run on these cores only.
pub fn pin(pid: i32, cores: &[usize]) -> Result<()> {
    let set = set(cores)?;
    let tasks =
        std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
    for task in tasks {
        let name = task?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread that has just ended needs no core.
        match sched_setaffinity(Pid::from_raw(thread), &set) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("choosing cores"),
        }
    }
    Ok(())
}

fn set(cores: &[usize]) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("core {core}"))?;
    }
    Ok(set)
}

/// Pins processes to cores for as long as it lives, then lets them use all again.
#[derive(Debug)]
pub struct Pinned(Vec<i32>);

impl Pinned {
    /// Pins processes.
    pub fn new(pids: &[i32], cores: &[usize]) -> Result<Self> {
        let pinned = Self(pids.to_vec());
        for pid in pids {
            pin(*pid, cores)?;
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..cores()).collect();
        for pid in &self.0 {
            // One that is gone needs no cores.
            pin(*pid, &all).ok();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_in(stat), Some(42));
        assert_eq!(ticks_in("7 a S"), None);
    }

    #[test]
    fn work_is_seen() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (before, thread) = (of(&[pid]).unwrap(), of_this_thread());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while of(&[pid]).unwrap() < before + Duration::from_millis(50) {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(of_this_thread() > thread);
    }
}
