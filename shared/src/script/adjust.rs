//! `adjust.lua`: add or withdraw units, once per change.

use super::{Frozen, SegmentScripts, Words};
use crate::ids::SkuId;
use crate::redis::{Fault, Redis};

/// What became of a stock change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adjusted {
    /// Done now; units left.
    Adjusted(u64),
    /// Done before; units left then.
    Already(u64),
    /// Fewer units are left than shall be withdrawn; nothing changed.
    Insufficient(u64),
    /// The sale has no such SKU.
    UnknownSku,
    /// Nothing was done; the sale is frozen.
    Frozen(Frozen),
}

impl SegmentScripts {
    /// Adds `delta` units of a SKU (negative withdraws), once per `change`.
    pub async fn adjust(
        &self,
        redis: &Redis,
        change: &str,
        sku: &SkuId,
        delta: i64,
    ) -> Result<Adjusted, Fault> {
        let [meta, stock, _, _] = &self.keys;
        let mut call = self.adjust.call(&[meta, stock]);
        call.arg(change).arg(sku.as_str()).arg(delta);
        let doing = "adjusting stock";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        Ok(match words.text()?.as_str() {
            "ADJUSTED" => Adjusted::Adjusted(words.number()?),
            "ALREADY" => Adjusted::Already(words.number()?),
            "INSUFFICIENT" => Adjusted::Insufficient(words.number()?),
            "UNKNOWN_SKU" => Adjusted::UnknownSku,
            other => Adjusted::Frozen(words.frozen(other)?),
        })
    }
}
