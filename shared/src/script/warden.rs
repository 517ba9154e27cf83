//! `preload.lua`, `control.lua`, `lease.lua`, `raise.lua`, `restore.lua`: what only the warden does to a
//! segment; and `lead.lua`, by which wardens agree on who does it.

use std::time::Duration;

use super::{CONTROL, Frozen, LEAD, LEASE, Loaded, PRELOAD, RAISE, RESTORE, Words};
use crate::clock::Millis;
use crate::ids::{InstanceId, SkuId};
use crate::keys::{Segment, WARDEN};
use crate::redis::{Cmd, Fault, Redis, Value};
use crate::sale::SaleStep;

/// A segment as it is put on the shelf.
#[derive(Debug, Clone)]
pub struct Preload {
    /// Its first epoch.
    pub epoch: u64,
    /// Preloaded, or what the sale is already.
    pub step: SaleStep,
    /// When selling starts.
    pub starts_at: Millis,
    /// When it ends.
    pub ends_at: Millis,
    /// Configuration version.
    pub cfg: u64,
    /// Journal entries at the most; beyond it orders are refused as `overloaded`.
    pub journal_max: u64,
    /// SKU, units of this segment, units a user may hold.
    pub items: Vec<(SkuId, u64, u32)>,
}

/// What became of a preload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preloaded {
    /// On the shelf.
    Preloaded,
    /// There was one already, under this fence; nothing changed.
    Exists(String),
    /// Keys without a fence; nothing changed.
    Corrupt(String),
}

/// A newer configuration of a segment.
#[derive(Debug, Clone)]
pub struct Control {
    /// The version; older ones change nothing.
    pub cfg: u64,
    /// Preloaded, open, paused or closed.
    pub step: SaleStep,
    /// When selling starts.
    pub starts_at: Millis,
    /// When it ends.
    pub ends_at: Millis,
    /// SKU and units a user may hold.
    pub limits: Vec<(SkuId, u32)>,
}

const RENEWING: &str = "renewing a lease";

/// Until when a segment may sell.
pub type Leased = Result<Millis, Frozen>;

/// What became of a raise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raised {
    /// Now, or already, under the next epoch.
    Raised,
    /// Nothing was done.
    Frozen(Frozen),
}

/// The warden's own scripts. They carry no fence in their text; they are told one and compare it.
#[derive(Debug)]
pub struct WardenScripts {
    preload: Loaded,
    control: Loaded,
    lease: Loaded,
    raise: Loaded,
    restore: Loaded,
    lead: Loaded,
}

impl Default for WardenScripts {
    fn default() -> Self {
        let named = |script| Loaded::new(script, None);
        Self {
            preload: named(PRELOAD),
            control: named(CONTROL),
            lease: named(LEASE),
            raise: named(RAISE),
            restore: named(RESTORE),
            lead: named(LEAD),
        }
    }
}

impl WardenScripts {
    /// Makes Redis know them; needed again after it restarted.
    pub async fn load(&self, redis: &Redis) -> Result<(), Fault> {
        let Self { preload, control, lease, raise, restore, lead } = self;
        for script in [preload, control, lease, raise, restore, lead] {
            script.load(redis).await?;
        }
        Ok(())
    }

    /// Puts a new segment on the shelf; what is there is never written over.
    pub async fn preload(&self, redis: &Redis, segment: &Segment, new: &Preload) -> Result<Preloaded, Fault> {
        self.preload_as(redis, segment, &[segment.meta(), segment.stock(), segment.orders()], new).await
    }

    /// Makes a segment anew beside the shelf, without orders; [`Self::restore`] puts it there.
    pub async fn stage(&self, redis: &Redis, segment: &Segment, new: &Preload) -> Result<Preloaded, Fault> {
        let [meta, stock, orders, _] = segment.staged(new.epoch);
        self.preload_as(redis, segment, &[meta, stock, orders], new).await
    }

    async fn preload_as(
        &self,
        redis: &Redis,
        segment: &Segment,
        [meta, stock, orders]: &[String; 3],
        new: &Preload,
    ) -> Result<Preloaded, Fault> {
        let mut call = self.preload.call(&[meta, stock, orders]);
        call.arg(segment.fence(new.epoch)).arg(new.epoch).arg(new.step.as_str());
        call.arg(new.starts_at.0).arg(new.ends_at.0).arg(new.cfg).arg(new.journal_max);
        for (sku, units, per_user) in &new.items {
            call.arg(sku.as_str()).arg(*units).arg(*per_user);
        }
        let doing = "preloading";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        Ok(match words.text()?.as_str() {
            "PRELOADED" => Preloaded::Preloaded,
            "EXISTS" => Preloaded::Exists(words.text()?),
            "CORRUPT" => Preloaded::Corrupt(words.text()?),
            other => return Err(words.unknown(other)),
        })
    }

    /// Brings a segment to a newer configuration; answers the version that it has then.
    pub async fn control(
        &self,
        redis: &Redis,
        segment: &Segment,
        epoch: u64,
        new: &Control,
    ) -> Result<Result<u64, Frozen>, Fault> {
        let mut call = self.control.call(&[&segment.meta()]);
        call.arg(segment.fence(epoch)).arg(new.cfg).arg(new.step.as_str());
        call.arg(new.starts_at.0).arg(new.ends_at.0);
        for (sku, per_user) in &new.limits {
            call.arg(sku.as_str()).arg(*per_user);
        }
        let doing = "controlling a sale";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        Ok(match words.text()?.as_str() {
            "SET" | "STALE" => Ok(words.number()?),
            other => Err(words.frozen(other)?),
        })
    }

    /// Renews the right to sell of a segment, and admits or strikes off edges there.
    pub async fn lease(
        &self,
        redis: &Redis,
        segment: &Segment,
        epoch: u64,
        span: Duration,
        admit: &[InstanceId],
        strike: &[InstanceId],
    ) -> Result<Leased, Fault> {
        let call = self.lease_call(segment, epoch, span, admit, strike);
        leased(redis.run(RENEWING, &call).await?)
    }

    /// The same of many segments in one go; each has an answer of its own.
    pub async fn leases(
        &self,
        redis: &Redis,
        segments: &[(Segment, u64)],
        span: Duration,
        admit: &[InstanceId],
        strike: &[InstanceId],
    ) -> Result<Vec<Result<Leased, Fault>>, Fault> {
        let call = |(segment, epoch): &(Segment, u64)| self.lease_call(segment, *epoch, span, admit, strike);
        let answers = redis.run_each(RENEWING, segments.iter().map(call)).await?;
        Ok(answers.into_iter().map(|answer| leased(answer?)).collect())
    }

    fn lease_call(
        &self,
        segment: &Segment,
        epoch: u64,
        span: Duration,
        admit: &[InstanceId],
        strike: &[InstanceId],
    ) -> Cmd {
        let mut call = self.lease.call(&[&segment.meta()]);
        call.arg(segment.fence(epoch)).arg(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        for instance in admit {
            call.arg(format!("+{instance}"));
        }
        for instance in strike {
            call.arg(format!("-{instance}"));
        }
        call
    }

    /// Puts verified data under the epoch after `epoch`; `seq` is the highest that the books know.
    pub async fn raise(
        &self,
        redis: &Redis,
        segment: &Segment,
        epoch: u64,
        seq: u64,
    ) -> Result<Raised, Fault> {
        let next = epoch + 1;
        let mut call = self.raise.call(&[&segment.meta()]);
        call.arg(segment.fence(epoch)).arg(segment.fence(next)).arg(next).arg(seq);
        let doing = "raising an epoch";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        Ok(match words.text()?.as_str() {
            "RAISED" | "ALREADY" => Raised::Raised,
            other => Raised::Frozen(words.frozen(other)?),
        })
    }

    /// Puts what was staged for `epoch` on the shelf; what was there is kept for `keep`.
    pub async fn restore(
        &self,
        redis: &Redis,
        segment: &Segment,
        epoch: u64,
        keep: Duration,
    ) -> Result<Raised, Fault> {
        let (staged, lost) = (segment.staged(epoch), segment.lost());
        let present = [segment.meta(), segment.stock(), segment.orders(), segment.journal()];
        let keys: Vec<&str> = present.iter().chain(&staged).chain(&lost).map(String::as_str).collect();
        let mut call = self.restore.call(&keys);
        call.arg(segment.fence(epoch)).arg(epoch).arg(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        let doing = "restoring a segment";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        Ok(match words.text()?.as_str() {
            "RESTORED" | "ALREADY" => Raised::Raised,
            other => Raised::Frozen(words.frozen(other)?),
        })
    }

    /// Becomes or stays the leading warden for `span`, or steps down when it is zero; answers whether
    /// `token` leads now.
    pub async fn lead(&self, redis: &Redis, token: &str, span: Duration) -> Result<bool, Fault> {
        let mut call = self.lead.call(&[WARDEN]);
        call.arg(token).arg(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let doing = "asking who leads";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        match words.text()?.as_str() {
            "LEADER" => Ok(true),
            "FOLLOWER" => Ok(false),
            other => Err(words.unknown(other)),
        }
    }
}

fn leased(answer: Value) -> Result<Leased, Fault> {
    let mut words = Words::new(RENEWING, answer)?;
    Ok(match words.text()?.as_str() {
        "RENEWED" => Ok(Millis(words.number()?)),
        other => Err(words.frozen(other)?),
    })
}
