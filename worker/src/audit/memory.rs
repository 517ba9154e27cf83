//! How much memory the process takes.

use std::time::Duration;

/// Between two looks: at most some ten MiB are read meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until the process takes more than so many bytes; for ever, where nobody says how many it takes.
pub(super) async fn over(most: u64) {
    // A thread of its own would see it no earlier: the reading that takes the memory waits for others.
    loop {
        match tokio::fs::read_to_string("/proc/self/status").await.ok().as_deref().and_then(resident) {
            Some(taken) if taken > most => return,
            Some(_) => tokio::time::sleep(LOOK).await,
            None => std::future::pending().await,
        }
    }
}

/// Bytes that are in memory.
fn resident(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_process_takes_is_known() {
        let taken = resident(&std::fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        assert!((1 << 20..1 << 34).contains(&taken), "{taken}");
        over(1 << 20).await;
        let early = tokio::time::timeout(Duration::from_millis(300), over(1 << 40)).await;
        assert!(early.is_err());
    }
}
