//! The lock file that makes an edge's name its own, and proves its earlier starts dead.
//!
//! The kernel lets the lock go when the process dies, however it dies. So whoever holds it may say
//! that no earlier start of the same file lives, and the warden need not wait for those. The file is
//! written in place: a renamed one would be another file, with another lock.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sluice_shared::ids::InstanceId;

/// One start of one edge; holds the lock as long as it lives.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Which start this is.
    pub(crate) instance: InstanceId,
    /// Identity of the lock file.
    pub(crate) lock: String,
    /// How many starts the file has seen, this one among them.
    pub(crate) start: u64,
    _file: Flock<File>,
}

impl Seat {
    /// Takes the lock of `<directory>/<name>.lock` and counts the start.
    pub(crate) fn take(directory: &Path, name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("state_dir {} cannot be made", directory.display()))?;
        let path = directory.join(format!("{name}.lock"));
        let mut file = lock(&path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("{} cannot be read", path.display()))?;
        let (lock, start) = match text.split_once(' ') {
            Some((lock, count)) if lock.len() == 32 => match count.trim().parse::<u64>() {
                Ok(before) => (lock.to_owned(), before + 1),
                Err(_) => fresh(),
            },
            // Empty, or torn by a power cut: a new identity proves nothing about earlier starts.
            _ => fresh(),
        };
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.set_len(0))
            .and_then(|()| file.write_all(format!("{lock} {start}\n").as_bytes()))
            .and_then(|()| file.sync_all())
            .with_context(|| format!("{} cannot be written", path.display()))?;
        let instance = format!("{name}.{start}.{:08x}", rand::random::<u32>());
        let instance = InstanceId::parse(&instance).map_err(|why| anyhow!("name {name:?}: {why}"))?;
        Ok(Self { instance, lock, start, _file: file })
    }
}

fn fresh() -> (String, u64) {
    (uuid::Uuid::now_v7().simple().to_string(), 1)
}

/// A process that was killed lets go of its lock only when the last of its threads has ended.
const PATIENCE: Duration = Duration::from_secs(3);

fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let began = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(file),
            Err((file, Errno::EWOULDBLOCK)) if began.elapsed() < PATIENCE => file,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "{} is locked by another running edge: stop that one, or give this one another `name`",
                path.display()
            ),
            Err((_, why)) => return Err(why).with_context(|| format!("{} cannot be locked", path.display())),
        };
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A directory of one test's own.
    struct Directory(PathBuf);

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn directory(name: &str) -> Directory {
        Directory(std::env::temp_dir().join(format!("sluice-seat-{name}-{}", std::process::id())))
    }

    #[test]
    fn each_start_counts_under_one_identity_and_is_a_new_instance() {
        let directory = directory("count");
        let first = Seat::take(&directory.0, "edge").unwrap();
        let (lock, instance) = (first.lock.clone(), first.instance.clone());
        assert_eq!(first.start, 1);
        assert!(instance.as_str().starts_with("edge.1."));
        drop(first);
        let second = Seat::take(&directory.0, "edge").unwrap();
        assert_eq!((second.start, &second.lock), (2, &lock));
        assert_ne!(second.instance, instance);
    }

    #[test]
    fn a_second_edge_of_the_same_name_is_refused_with_a_remedy() {
        let directory = directory("twice");
        let _first = Seat::take(&directory.0, "edge").unwrap();
        let why = Seat::take(&directory.0, "edge").unwrap_err().to_string();
        assert!(why.contains("edge.lock") && why.contains("another `name`"), "{why}");
        assert!(Seat::take(&directory.0, "other").is_ok());
    }

    #[test]
    fn a_torn_file_gets_a_new_identity() {
        let directory = directory("torn");
        let lock = Seat::take(&directory.0, "edge").unwrap().lock;
        std::fs::write(directory.0.join("edge.lock"), &lock[..10]).unwrap();
        let seat = Seat::take(&directory.0, "edge").unwrap();
        assert_eq!(seat.start, 1);
        assert_ne!(seat.lock, lock);
    }
}
