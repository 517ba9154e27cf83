//! How far a stop has come: told by one, waited for by everybody.

use tokio::sync::watch;

/// The stages of a stop, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is no stop.
    Serving,
    /// Readiness says "draining" and each answer closes its connection; new connections are taken, by
    /// whoever has not noticed yet.
    Draining,
    /// No connection is taken any more, idle ones are closed; requests under way are served.
    Closing,
    /// What is under way is cut off.
    Cutting,
}

#[derive(Debug, Clone, Copy)]
struct Now {
    stage: Stage,
    handed: bool,
}

/// Says how far it is.
#[derive(Debug)]
pub struct Teller(watch::Sender<Now>);

/// Hears how far it is.
#[derive(Debug, Clone)]
pub struct Phase(watch::Receiver<Now>);

/// Both ends, of an edge that serves.
pub fn phase() -> (Teller, Phase) {
    let (teller, phase) = watch::channel(Now { stage: Stage::Serving, handed: false });
    (Teller(teller), Phase(phase))
}

impl Teller {
    /// A stop goes on; never back.
    pub fn reach(&self, stage: Stage) {
        self.0.send_if_modified(|now| {
            let further = stage > now.stage;
            now.stage = now.stage.max(stage);
            further
        });
    }

    /// A successor has the listeners: new connections are its own.
    pub fn hand_over(&self) {
        self.0.send_modify(|now| *now = Now { stage: now.stage.max(Stage::Draining), handed: true });
    }
}

impl Phase {
    /// Whether a stop has come so far.
    pub fn is(&self, stage: Stage) -> bool {
        self.0.borrow().stage >= stage
    }

    /// Whether a successor has the listeners.
    pub fn is_handed(&self) -> bool {
        self.0.borrow().handed
    }

    /// Waits until a stop has come so far.
    pub async fn reached(&mut self, stage: Stage) {
        self.until(|now| now.stage >= stage).await;
    }

    /// Waits until a successor has the listeners.
    pub async fn handed(&mut self) {
        self.until(|now| now.handed).await;
    }

    /// Waits until new connections go elsewhere.
    pub async fn moved(&mut self) {
        self.until(|now| now.handed || now.stage >= Stage::Closing).await;
    }

    async fn until(&mut self, is: impl Fn(&Now) -> bool) {
        if self.0.wait_for(is).await.is_err() {
            // Nobody is left who could tell: the process is ending by itself.
            std::future::pending::<()>().await;
        }
    }
}
