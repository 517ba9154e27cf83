//! The lines of an order: which SKUs, how many of each.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::ids::SkuId;

/// One line as a buyer may send it, at the most.
pub const QUANTITY_MAX: u32 = 10_000;
/// Lines an order may have as sent.
pub const LINES_MAX: usize = 20;

/// Lines after merging: each SKU once, sorted, so that equal orders have equal texts. Clones share them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lines(Arc<[(SkuId, u32)]>);

/// Why lines are not lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLines {
    /// None, or more than [`LINES_MAX`].
    #[error("an order has 1 to {LINES_MAX} lines")]
    Count,
    /// A quantity outside 1…[`QUANTITY_MAX`]; carries the line's index.
    #[error("lines[{0}].quantity must be 1 to {QUANTITY_MAX}")]
    Quantity(usize),
    /// A text that no `Display` of ours wrote.
    #[error("not the text of lines")]
    Text,
}

impl Lines {
    /// Judges lines as sent, then merges equal SKUs.
    pub fn merge(sent: Vec<(SkuId, u32)>) -> Result<Self, BadLines> {
        if sent.is_empty() || sent.len() > LINES_MAX {
            return Err(BadLines::Count);
        }
        if let Some(at) = sent.iter().position(|(_, n)| !(1..=QUANTITY_MAX).contains(n)) {
            return Err(BadLines::Quantity(at));
        }
        let mut merged: Vec<(SkuId, u32)> = sent;
        merged.sort_by(|a, b| a.0.cmp(&b.0));
        merged.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        Ok(Self(merged.into()))
    }

    /// Reads `sku=n,sku=n` as [`fmt::Display`] writes it.
    pub fn parse(text: &str) -> Result<Self, BadLines> {
        let line = |part: &str| {
            let (sku, n) = part.split_once('=')?;
            let n = n.parse().ok().filter(|n| *n > 0)?;
            Some((SkuId::parse(sku).ok()?, n))
        };
        let lines: Option<Vec<_>> = text.split(',').map(line).collect();
        let lines = lines.ok_or(BadLines::Text)?;
        if lines.len() > LINES_MAX || !lines.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(BadLines::Text);
        }
        Ok(Self(lines.into()))
    }

    /// Each SKU with its units.
    pub fn iter(&self) -> impl Iterator<Item = (&SkuId, u32)> {
        self.0.iter().map(|(sku, n)| (sku, *n))
    }

    /// How many different SKUs.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// So many texts are kept.
const POOLED: usize = 10_000;

/// Whoever reads many orders reads few different texts: each is parsed once, and shared.
#[derive(Debug, Default)]
pub struct LinesPool(HashMap<Box<str>, Lines>);

impl LinesPool {
    /// As [`Lines::parse`].
    pub fn parse(&mut self, text: &str) -> Result<Lines, BadLines> {
        if let Some(lines) = self.0.get(text) {
            return Ok(lines.clone());
        }
        let lines = Lines::parse(text)?;
        if self.0.len() < POOLED {
            self.0.insert(text.into(), lines.clone());
        }
        Ok(lines)
    }
}

/// `sku=n,sku=n`, the form of records, messages and scripts.
impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (sku, n)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{sku}={n}")?;
        }
        Ok(())
    }
}

impl serde::Serialize for Lines {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lines {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sku(text: &str) -> SkuId {
        SkuId::parse(text).unwrap()
    }

    #[test]
    fn equal_skus_are_merged_and_sorted() {
        let lines = Lines::merge(vec![(sku("b"), 1), (sku("a"), 2), (sku("b"), 3)]).unwrap();
        assert_eq!(lines.to_string(), "a=2,b=4");
        assert_eq!(Lines::parse("a=2,b=4"), Ok(lines));
    }

    #[test]
    fn lines_are_judged_as_sent() {
        assert_eq!(Lines::merge(vec![]), Err(BadLines::Count));
        assert_eq!(Lines::merge(vec![(sku("a"), 1); 21]), Err(BadLines::Count));
        assert_eq!(Lines::merge(vec![(sku("a"), 1), (sku("a"), 0)]), Err(BadLines::Quantity(1)));
        assert_eq!(Lines::merge(vec![(sku("a"), 10_001)]), Err(BadLines::Quantity(0)));
        assert!(Lines::merge(vec![(sku("a"), 10_000); 20]).is_ok());
    }

    #[test]
    fn a_pool_reads_as_anybody_does_and_shares_what_it_read() {
        let mut pool = LinesPool::default();
        let (one, other) = (pool.parse("a=2").unwrap(), pool.parse("a=2").unwrap());
        assert_eq!(Ok(&one), Lines::parse("a=2").as_ref());
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert_eq!(pool.parse("a=0"), Err(BadLines::Text));
        assert_eq!(pool.parse("a=0"), Err(BadLines::Text));
    }

    #[test]
    fn a_text_of_nobodys_is_refused() {
        for bad in ["", "a", "a=0", "a=-1", "b=1,a=1", "a=1,a=1", "a=1,", "a=1e2"] {
            assert_eq!(Lines::parse(bad), Err(BadLines::Text), "{bad}");
        }
    }
}
