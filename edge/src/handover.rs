//! One edge takes the listening sockets of another one over, so that none of their connections is
//! refused or lost: the queue of waiting connections belongs to the socket, not to a process.
//!
//! The running edge waits on `<state_dir>/<name>.sock`. A successor, which has a name of its own,
//! connects and gets the sockets; starts, is admitted, and once it would sell says [`TAKE`]. From then
//! on the former takes no connection, answers [`YOURS`] and stops; the successor opens its doors. Until
//! [`TAKE`] nothing has changed: a successor that fails costs nothing.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::engine::Engine;
use crate::listeners::Shared;
use crate::phase::{Phase, Stage, Teller};

/// Sockets in one hand-over, at the most.
const MOST: usize = 64;
/// What a successor says when it is ready.
const TAKE: u8 = b'T';
/// What the former answers.
const YOURS: u8 = b'Y';
/// How long a successor may take to become ready, and the other side to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a running edge of this name waits for its successor.
pub fn path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.sock"))
}

/// Waits on a thread of its own for a successor. Without it an edge works all the same, so its
/// failure is told, and no more.
pub fn offer(path: PathBuf, sockets: Arc<Shared>, teller: Arc<Teller>) {
    let wait = move || {
        if let Err(error) = wait(&path, &sockets, &teller) {
            tracing::warn!(%error, path = %path.display(), "no successor can take the listeners over");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("handover".to_owned()).spawn(wait) {
        tracing::warn!(%error, "no successor can take the listeners over");
    }
}

fn wait(path: &Path, sockets: &Shared, teller: &Teller) -> anyhow::Result<()> {
    ensure!(sockets.sockets().len() <= MOST, "more than {MOST} listeners");
    // The lock of this name is ours, so whoever made it is gone.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).context("a former socket cannot be removed");
    }
    let door = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (successor, _) = door.accept()?;
        match give(successor, sockets, teller) {
            Ok(true) => break,
            Ok(false) => tracing::warn!("a successor has given up; this edge goes on"),
            Err(error) => tracing::warn!(%error, "a hand-over has failed; this edge goes on"),
        }
    }
    // The next one waits elsewhere; a file that stays is removed by the next start of this name.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// Gives the sockets away; whether the successor took them.
fn give(mut successor: UnixStream, sockets: &Shared, teller: &Teller) -> anyhow::Result<bool> {
    successor.set_read_timeout(Some(PATIENCE + PATIENCE))?;
    successor.set_write_timeout(Some(PATIENCE))?;
    {
        let sockets = sockets.sockets();
        ensure!(!sockets.is_empty(), "this edge is stopping");
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        ensure!(message.push(SendAncillaryMessage::ScmRights(&descriptors)), "too many listeners");
        sendmsg(&successor, &[IoSlice::new(b"L")], &mut message, SendFlags::empty())?;
    }
    let mut word = [0];
    if successor.read(&mut word)? == 0 || word[0] != TAKE {
        return Ok(false);
    }
    tracing::info!("a successor takes the listeners over");
    teller.hand_over();
    // One that died this instant leaves its place to nobody: that is an edge's crash.
    let _ = successor.write_all(&[YOURS]);
    Ok(true)
}

/// The successor's end of a hand-over.
#[derive(Debug)]
pub struct TakeOver(UnixStream);

impl TakeOver {
    /// Asks the edge of this name for its sockets.
    pub fn ask(state_dir: &Path, name: &str) -> anyhow::Result<(Self, Vec<TcpListener>)> {
        let path = path(state_dir, name);
        let former = UnixStream::connect(&path).with_context(|| {
            format!("--take-over {name}: nobody waits on {}; does that edge run?", path.display())
        })?;
        former.set_read_timeout(Some(PATIENCE))?;
        former.set_write_timeout(Some(PATIENCE))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let (mut message, mut word) = (RecvAncillaryBuffer::new(&mut space), [0]);
        recvmsg(&former, &mut [IoSliceMut::new(&mut word)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
        let mut sockets = Vec::new();
        for part in message.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                sockets.extend(descriptors.map(|descriptor: OwnedFd| TcpListener::from(descriptor)));
            }
        }
        ensure!(!sockets.is_empty(), "--take-over {name}: it gave no listeners");
        Ok((Self(former), sockets))
    }

    /// Waits until this edge would sell, then tells the former that its listeners are taken.
    pub fn finish(mut self, engine: &Engine, phase: &Phase) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !engine.has_started() {
            ensure!(!phase.is(Stage::Draining), "stopped before it had taken over");
            if Instant::now() > end {
                bail!("not ready after {PATIENCE:?}: {}", engine.readiness().reasons.join("; "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.write_all(&[TAKE]).context("the former edge has gone")?;
        let mut word = [0];
        // A former that died this instant takes no connection either.
        let _ = self.0.read(&mut word);
        if word[0] != YOURS {
            tracing::warn!("the former edge went without a word");
        }
        Ok(())
    }
}
