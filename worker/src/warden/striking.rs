//! Strikes a silent edge off, in two steps, while every segment is served.
//!
//! First every segment refuses it: from that sequence on it takes nothing. Then, once no journal holds
//! an entry up to there, everything it ever accepted was confirmed by the broker, and nothing can be
//! held by it alone: it leaves the register, and no re-opening waits for it any more. Should Redis or
//! an epoch change between the two steps, they begin again.

use std::collections::BTreeMap;

use sluice_protocol::warden::register::{Command, Reason, Register};
use sluice_shared::clock::Millis;
use sluice_shared::ids::InstanceId;
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, cmd};

use super::Warden;

/// An entry of a journal: epoch and sequence.
type Place = (u64, u64);

/// The edges that every segment refuses, with the last entry of each journal at that time.
#[derive(Debug, Default)]
pub(super) struct Striking {
    refused: BTreeMap<InstanceId, BTreeMap<Segment, Place>>,
}

impl Striking {
    /// Redis is another one: what it refuses is not known.
    pub(super) fn forget(&mut self) {
        self.refused.clear();
    }

    /// One look at the silent edges; answers those that nothing can be lost with any more.
    pub(super) async fn look(
        &mut self,
        warden: &Warden,
        register: &Register,
        now: Millis,
    ) -> Result<Vec<Command>, Fault> {
        let Some(after) = warden.context.config.reconcile.strike_after else { return Ok(Vec::new()) };
        let silent = register.silent_for(now, after);
        self.readmit(warden, &silent).await?;
        if silent.is_empty() {
            return Ok(Vec::new());
        }
        let Some(serving) = all_served(warden).await? else { return Ok(Vec::new()) };
        let mut commands = Vec::new();
        for instance in silent {
            let fits = |places: &BTreeMap<Segment, Place>| {
                places.iter().map(|(segment, (epoch, _))| (segment, epoch)).eq(&serving)
            };
            match self.refused.get(&instance).filter(|places| fits(places)) {
                Some(places) if nothing_left(warden, places).await? => {
                    self.refused.remove(&instance);
                    let why = Reason::Silent(format!("silent for {} s, nothing left of it", after.as_secs()));
                    commands.push(Command::Strike(instance, why));
                }
                Some(_) => {}
                None => {
                    let places = refuse(warden, &instance, &serving).await?;
                    tracing::warn!(%instance, "a silent edge is refused until it is heard again");
                    self.refused.insert(instance, places);
                }
            }
        }
        Ok(commands)
    }

    /// Those that are heard again may sell again.
    async fn readmit(&mut self, warden: &Warden, silent: &[InstanceId]) -> Result<(), Fault> {
        let heard: Vec<InstanceId> =
            self.refused.keys().filter(|instance| !silent.contains(instance)).cloned().collect();
        if heard.is_empty() {
            return Ok(());
        }
        warden.floor(|floor| floor.admitted.extend(heard.iter().cloned()));
        warden.admit(&heard, &[]).await?;
        self.refused.retain(|instance, _| !heard.contains(instance));
        Ok(())
    }
}

/// The segments that are served and their epochs, when those are all there are.
async fn all_served(warden: &Warden) -> Result<Option<BTreeMap<Segment, u64>>, Fault> {
    let serving = warden.floor(|floor| floor.serving.clone());
    let segments: usize = warden.views().await?.iter().map(|view| view.epochs.len()).sum();
    Ok((segments == serving.len()).then_some(serving))
}

/// First step: nobody admits the edge any more; what it can have taken ends at the answered places.
async fn refuse(
    warden: &Warden,
    instance: &InstanceId,
    serving: &BTreeMap<Segment, u64>,
) -> Result<BTreeMap<Segment, Place>, Fault> {
    warden.floor(|floor| floor.admitted.remove(instance));
    // A renewal that is under way would admit it again.
    drop(warden.renewing.lock().await);
    warden.admit(&[], std::slice::from_ref(instance)).await?;
    let mut places = BTreeMap::new();
    for (segment, epoch) in serving {
        let read = cmd("HGET").arg(segment.meta()).arg("seq").to_owned();
        let seq: Option<u64> = warden.redis().run("reading the sequence", &read).await?;
        places.insert(segment.clone(), (*epoch, seq.unwrap_or(0)));
    }
    Ok(places)
}

/// Second step: whether every journal begins behind its place.
async fn nothing_left(warden: &Warden, places: &BTreeMap<Segment, Place>) -> Result<bool, Fault> {
    for (segment, (epoch, seq)) in places {
        let mut range = cmd("XRANGE");
        range.arg(segment.journal()).arg("-").arg(format!("{epoch}-{seq}")).arg("COUNT").arg(1);
        let left: Vec<(String, Vec<String>)> = warden.redis().run("reading a journal", &range).await?;
        if !left.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
