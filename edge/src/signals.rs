//! What this process is told from outside, and the stages of its stop that follow.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::keys::Keyring;
use crate::listeners::Shared;
use crate::phase::{Phase, Stage, Teller};

/// SIGTERM and SIGQUIT drain, serve what is under way and stop; SIGINT stops at once; SIGHUP reloads
/// the keys. A successor that takes the listeners over is a stop, too.
#[derive(Debug)]
pub struct Signals {
    /// Tells everybody how far it is.
    pub teller: Arc<Teller>,
    /// How far it is, when somebody else told.
    pub phase: Phase,
    /// How long new connections are still taken.
    pub drain: Duration,
    /// What a reload replaces.
    pub keys: Arc<Keyring>,
    /// What no successor gets any more, once it closes.
    pub shared: Arc<Shared>,
    /// Ends the process at once.
    pub ended: mpsc::Sender<()>,
}

/// What this process is told from outside.
struct Mailbox {
    term: Option<Signal>,
    quit: Option<Signal>,
    int: Option<Signal>,
    hup: Option<Signal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stop,
    StopNow,
    Reload,
}

impl Mailbox {
    fn open() -> Self {
        let listen =
            |kind| signal(kind).map_err(|error| tracing::error!(%error, "signals cannot be received")).ok();
        Self {
            term: listen(SignalKind::terminate()),
            quit: listen(SignalKind::quit()),
            int: listen(SignalKind::interrupt()),
            hup: listen(SignalKind::hangup()),
        }
    }

    async fn wish(&mut self) -> Wish {
        tokio::select! {
            () = received(&mut self.term) => Wish::Stop,
            () = received(&mut self.quit) => Wish::Stop,
            () = received(&mut self.int) => Wish::StopNow,
            () = received(&mut self.hup) => Wish::Reload,
        }
    }
}

impl Signals {
    fn reload(&self) {
        if let Err(problems) = self.keys.reload() {
            tracing::warn!(%problems, "SIGHUP: not reloaded: the configuration is not good");
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut mailbox, mut phase) = (Mailbox::open(), self.phase.clone());
        loop {
            tokio::select! {
                wish = mailbox.wish() => match wish {
                    Wish::Stop => break,
                    Wish::StopNow => return ShutdownSignal::FastShutdown,
                    Wish::Reload => self.reload(),
                },
                () = phase.reached(Stage::Draining) => break,
            }
        }
        tracing::info!(drain = ?self.drain, "stopping: answers close their connections");
        self.teller.reach(Stage::Draining);
        let another = async {
            loop {
                match mailbox.wish().await {
                    Wish::Reload => self.reload(),
                    wish => return wish,
                }
            }
        };
        if let Ok(Wish::StopNow) = tokio::time::timeout(self.drain, another).await {
            return ShutdownSignal::FastShutdown;
        }
        tracing::info!("stopping: no new connections, requests under way are served");
        self.shared.withdraw();
        self.teller.reach(Stage::Closing);
        let (teller, ended) = (self.teller.clone(), self.ended.clone());
        tokio::spawn(async move {
            loop {
                match mailbox.wish().await {
                    Wish::Stop => teller.reach(Stage::Cutting),
                    Wish::StopNow => break,
                    Wish::Reload => {}
                }
            }
            // Everybody who listens is this process.
            let _ = ended.send(());
        });
        ShutdownSignal::GracefulTerminate
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
