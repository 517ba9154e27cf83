//! What a buyer holds: his mark in a segment's order map, or what it should be.

use std::fmt;

use sluice_shared::ids::SkuId;
use sluice_shared::lines::Lines;

/// SKU → units, in the order of SKUs. Hardly anybody holds more than two, and there is one for each buyer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark(Vec<(SkuId, u64)>);

impl Mark {
    /// Reads `sku=n,sku=n` as [`fmt::Display`] writes it, in any order of the SKUs, each of them once; `None`
    /// for anything else. `#=n`, how many orders of the buyer have ended, may stand among them: it is no
    /// part of what he holds.
    pub fn parse(text: &str) -> Option<Self> {
        let unit = |part: &str| {
            let (sku, n) = part.split_once('=')?;
            Some((SkuId::parse(sku).ok()?, n.parse().ok().filter(|n| *n > 0)?))
        };
        let ended = |part: &&str| part.strip_prefix("#=").is_some_and(|n| n.parse::<u64>().is_ok());
        let parts = text.split(',').filter(|part| !ended(part));
        let mut units: Vec<(SkuId, u64)> = parts.map(unit).collect::<Option<_>>()?;
        units.sort_unstable();
        let doubles = units.windows(2).any(|pair| pair[0].0 == pair[1].0);
        (!doubles).then_some(Self(units))
    }

    /// The units of an order besides.
    pub fn add(&mut self, lines: &Lines) {
        lines.iter().for_each(|(sku, n)| self.add_units(sku, u64::from(n)));
    }

    /// The units of another mark besides.
    pub fn join(&mut self, other: &Self) {
        other.iter().for_each(|(sku, n)| self.add_units(sku, n));
    }

    fn add_units(&mut self, sku: &SkuId, n: u64) {
        match self.0.binary_search_by(|(other, _)| other.cmp(sku)) {
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(n),
            Err(at) => self.0.insert(at, (sku.clone(), n)),
        }
    }

    /// Units of an SKU.
    pub fn get(&self, sku: &SkuId) -> u64 {
        self.iter().find(|(other, _)| *other == sku).map_or(0, |(_, n)| n)
    }

    /// Whether the buyer holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each SKU with its units.
    pub fn iter(&self) -> impl Iterator<Item = (&SkuId, u64)> {
        self.0.iter().map(|(sku, n)| (sku, *n))
    }
}

/// `sku=n,sku=n`, as the scripts write it.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (sku, n)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{sku}={n}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_sum_of_orders_whatever_their_order() {
        let mut mark = Mark::default();
        for lines in ["b=1", "a=2,c=1", "b=3"] {
            mark.add(&Lines::parse(lines).unwrap());
        }
        assert_eq!(mark.to_string(), "a=2,b=4,c=1");
        assert_eq!(Mark::parse("b=4,a=2,c=1"), Some(mark.clone()));
        assert_eq!(Mark::parse("b=4,#=12,a=2,c=1"), Some(mark.clone()));
        assert_eq!(Mark::parse("#=1"), Some(Mark::default()));
        assert_eq!((mark.get(&SkuId::parse("b").unwrap()), mark.get(&SkuId::parse("d").unwrap())), (4, 0));
    }

    #[test]
    fn what_is_no_mark_is_not_read() {
        for torn in ["", "a", "a=", "a=0", "a=-1", "a=1,", "a b=1", "a=1,a=2", "#", "#=x"] {
            assert_eq!(Mark::parse(torn), None, "{torn}");
        }
    }
}
