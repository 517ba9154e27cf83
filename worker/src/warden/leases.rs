//! Leadership and the right to sell: the one task that must never wait for anything but Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_protocol::warden::lead::{Lead, Turn};
use sluice_shared::ids::InstanceId;
use sluice_shared::keys::{REGISTER, REOPENING, Segment};
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::script::Leased;
use tokio::sync::watch;

use super::Warden;
use crate::process::Stop;

/// How soon Redis is asked again when it did not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// Leases renewed in one go: other commands have their turn between two of them.
const PAGE: usize = 200;
/// A lease is renewed when a part in so many of it has passed.
const PARTS: u32 = 6;

/// Asks for the leadership and renews leases while it has it, until told to stop; `leading` tells.
pub async fn run(warden: Arc<Warden>, leading: watch::Sender<bool>, mut stop: Stop) {
    let token = format!("{} {}", warden.context.who, uuid::Uuid::now_v7());
    let span = warden.context.config.reconcile.leader;
    let (mut lead, mut renewed) = (Lead::new(span), None::<Instant>);
    while !*stop.borrow() {
        let asked = Instant::now();
        let answer = warden.ask_to_lead(&token, span).await.ok();
        match lead.heard(answer, asked, Instant::now()) {
            Turn::Gained => {
                tracing::info!(who = %warden.context.who, "leads the wardens");
                renewed = None;
                warden.look_around().await;
                warden.metrics().leading.set(1);
                leading.send_replace(true);
            }
            Turn::Lost => {
                tracing::warn!(who = %warden.context.who, "leads the wardens no longer");
                warden.metrics().follows();
                leading.send_replace(false);
                warden.floor(|floor| *floor = super::Floor::default());
            }
            Turn::Same => {}
        }
        // A lease that is renewed in good time needs it no sooner, whatever the leader's own span is.
        if *leading.borrow() && renewed.is_none_or(|at| at.elapsed() >= warden.lease_span() / PARTS) {
            let now = Instant::now();
            renewed = warden.renew_all().await.then_some(now);
        }
        let pause = if answer.is_some() { lead.pause() } else { AGAIN.min(lead.pause()) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The sender lives as long as the process.
            _ = stop.changed() => {}
        }
    }
    leading.send_replace(false);
    warden.metrics().follows();
    if let Err(fault) = warden.ask_to_lead(&token, Duration::ZERO).await {
        tracing::debug!(%fault, "could not step down; the lock runs out by itself");
    }
}

impl Warden {
    async fn ask_to_lead(&self, token: &str, span: Duration) -> Result<bool, Fault> {
        let (scripts, redis) = (&self.scripts, self.redis());
        match scripts.lead(redis, token, span).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.lead(redis, token, span).await
            }
            answer => answer,
        }
    }

    /// A new leader goes on with the leases of the last one, before it knows anything else. What it
    /// cannot read now, the other tasks will find.
    async fn look_around(&self) {
        self.floor(|floor| *floor = super::Floor::default());
        let asked: Vec<String> = match self.redis().run("reading", cmd("HKEYS").arg(REOPENING)).await {
            Ok(asked) => asked,
            Err(fault) => return tracing::warn!(%fault, "cannot see what is being re-opened"),
        };
        let known: Result<Vec<String>, Fault> = self.redis().run("reading", cmd("HKEYS").arg(REGISTER)).await;
        let admitted = known.unwrap_or_default();
        let admitted = admitted.iter().filter_map(|name| InstanceId::parse(name).ok()).collect();
        let Ok(views) = self.views().await else { return };
        let mut serving = std::collections::BTreeMap::new();
        for view in views {
            for (segment, epoch) in (0..).zip(&view.epochs) {
                let segment = Segment::new(view.sale.clone(), segment);
                if *epoch > 0 && !asked.contains(&segment.name()) {
                    serving.insert(segment, *epoch);
                }
            }
        }
        self.floor(|floor| (floor.serving, floor.admitted) = (serving, admitted));
    }

    /// Renews every lease; each renewal admits every registered edge again, which mends whatever was
    /// missed. Answers whether all of them were asked for.
    async fn renew_all(&self) -> bool {
        let _renewing = self.renewing.lock().await;
        let (serving, admitted) = self.floor(|floor| {
            let admitted: Vec<InstanceId> = floor.admitted.iter().cloned().collect();
            (floor.serving.clone(), admitted)
        });
        self.metrics().serving.set(i64::try_from(serving.len()).unwrap_or(i64::MAX));
        let serving: Vec<(Segment, u64)> = serving.into_iter().collect();
        let mut asked = true;
        for page in serving.chunks(PAGE) {
            match self.leases(page, &admitted, &[]).await {
                Err(fault) => {
                    tracing::warn!(segments = page.len(), %fault, "no leases");
                    asked = false;
                }
                Ok(answers) => {
                    for ((segment, _), answer) in page.iter().zip(answers) {
                        match answer {
                            Ok(Ok(_)) => {}
                            Ok(Err(frozen)) => {
                                tracing::warn!(segment = segment.name(), ?frozen, "no lease for a segment");
                            }
                            Err(fault) => {
                                tracing::warn!(segment = segment.name(), %fault, "no lease for a segment")
                            }
                        }
                    }
                }
            }
        }
        asked
    }

    /// Leases of segments in one go.
    async fn leases(
        &self,
        page: &[(Segment, u64)],
        admit: &[InstanceId],
        strike: &[InstanceId],
    ) -> Result<Vec<Result<Leased, Fault>>, Fault> {
        let (scripts, redis, span) = (&self.scripts, self.redis(), self.lease_span());
        let answers = scripts.leases(redis, page, span, admit, strike).await?;
        if !answers.iter().any(|answer| matches!(answer, Err(Fault::NoScript { .. }))) {
            return Ok(answers);
        }
        scripts.load(redis).await?;
        scripts.leases(redis, page, span, admit, strike).await
    }

    /// Admits edges in every segment that serves, and strikes others off there.
    pub(super) async fn admit(&self, admit: &[InstanceId], strike: &[InstanceId]) -> Result<(), Fault> {
        let serving: Vec<(Segment, u64)> = self.floor(|floor| floor.serving.clone()).into_iter().collect();
        for page in serving.chunks(PAGE) {
            for ((segment, _), answer) in page.iter().zip(self.leases(page, admit, strike).await?) {
                if let Err(frozen) = answer? {
                    tracing::debug!(
                        segment = segment.name(),
                        ?frozen,
                        "admitted when the segment is open again"
                    );
                }
            }
        }
        Ok(())
    }
}
