//! What was told of the sale list since it was read: which sales have changed, generation by generation,
//! so that not every change makes every edge read all of it. No I/O and no clock.

use std::collections::BTreeSet;

/// Changes that are kept; after more of them the list is read as a whole.
const MOST: usize = 1000;

/// Changes that were told, and whether there may have been others.
#[derive(Debug, Default)]
pub(crate) struct Rung {
    changes: Vec<(u64, Vec<String>)>,
    lost: bool,
}

impl Rung {
    /// The bell says `GENERATION SALE…`: these sales have changed with it. One that names no sale says
    /// nothing of which have.
    pub(crate) fn ring(&mut self, payload: &str) {
        let mut words = payload.split_ascii_whitespace();
        let generation = words.next().and_then(|word| word.parse().ok());
        let names: Vec<String> = words.map(str::to_owned).collect();
        match generation {
            Some(generation) if !names.is_empty() && self.changes.len() < MOST => {
                self.changes.push((generation, names));
            }
            _ => self.lost(),
        }
    }

    /// There may have been others.
    pub(crate) fn lost(&mut self) {
        self.changes.clear();
        self.lost = true;
    }

    /// The present generation and the sales that have changed since this one; `None` where that is not
    /// known, and the list has to be read as a whole.
    pub(crate) fn since(mut self, generation: u64) -> Option<(u64, BTreeSet<String>)> {
        self.changes.sort_by_key(|(at, _)| *at);
        let (mut last, mut names) = (generation, BTreeSet::new());
        for (at, changed) in self.changes {
            match at {
                // In the list when it was read.
                at if at <= generation => continue,
                at if at == last + 1 => last = at,
                _ => return None,
            }
            names.extend(changed);
        }
        (!self.lost).then_some((last, names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since(generation: u64, told: &[&str]) -> Option<(u64, Vec<String>)> {
        let mut rung = Rung::default();
        told.iter().for_each(|told| rung.ring(told));
        rung.since(generation).map(|(last, names)| (last, names.into_iter().collect()))
    }

    #[test]
    fn changes_without_a_gap_are_known_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(since(4, &["5 a b", "6 c"]), Some((6, names(&["a", "b", "c"]))));
        assert_eq!(since(4, &["6 c", "5 a", "3 old"]), Some((6, names(&["a", "c"]))));
        assert_eq!(since(6, &["5 a"]), Some((6, Vec::new())));
    }

    #[test]
    fn whatever_may_have_been_missed_makes_the_whole_be_read() {
        for told in [&["6 c"][..], &["5"], &["5 a", ""], &["x y"], &["5 a", "7 b"]] {
            assert_eq!(since(4, told), None, "{told:?}");
        }
        let many: Vec<String> = (0..=MOST as u64).map(|n| format!("{} s", n + 5)).collect();
        assert_eq!(since(4, &many.iter().map(String::as_str).collect::<Vec<_>>()), None);
    }
}
