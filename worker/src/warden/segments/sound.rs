//! Whether Redis is the one that a warden opened, asked of many segments in one go.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::SaleStep;
use sluice_shared::script::SegmentScripts;

use super::{Segments, Standing};
use crate::store::segments::Projection;
use crate::warden::Trouble;
use crate::warden::image::{NUMBERS, TYPES, is_number};

/// Segments that are asked for in one go: Redis answers it in a few milliseconds.
const PAGE: usize = 100;
/// What Redis calls the type of a key that is not there.
const MISSING: &str = "none";

/// Whether a segment is as a warden left it, or why that cannot be told.
pub(super) type Sound = BTreeMap<Segment, Result<bool, Fault>>;

impl Segments {
    /// Looks at the segments of sales. One that is known not to be as it was left is not looked at again
    /// in the same epoch: only a re-opening mends it.
    pub(super) async fn look(&mut self, turn: &[Arc<Projection>]) -> Result<Sound, Trouble> {
        let mut sound = Sound::new();
        let mut asked = Vec::new();
        for rows in turn {
            for (segment, row) in rows.segments.iter().enumerate() {
                let segment = rows.segment(segment);
                let place = self.places.get(&segment);
                let reopens = place.is_some_and(|place| place.standing == Standing::Reopening);
                let unsound =
                    place.and_then(|place| place.unsound).is_some_and(|(_, in_epoch)| in_epoch == row.epoch);
                if unsound {
                    sound.insert(segment, Ok(false));
                } else if !reopens {
                    asked.push((segment, row.epoch));
                }
            }
        }
        for page in asked.chunks(PAGE) {
            self.look_at(page, &mut sound).await?;
        }
        Ok(sound)
    }

    /// Whether Redis holds these segments in their epochs, with every key that they must have, and knows
    /// their scripts.
    async fn look_at(&mut self, page: &[(Segment, u64)], sound: &mut Sound) -> Result<(), Fault> {
        let names = page.iter().map(|(segment, epoch)| self.scripts(segment, *epoch)).collect::<Vec<_>>();
        let redis = self.warden.redis();
        // The sequence before the keys: what was sold by then has left its orders and its journal, and a
        // first order that comes between the two looks is not taken for a loss.
        let read = page.iter().map(|(segment, _)| {
            cmd("HMGET").arg(segment.meta()).arg(&["fence", "state", "seq"]).arg(&NUMBERS).to_owned()
        });
        let fields: Vec<Result<Vec<Option<String>>, Fault>> = redis.run_each("reading fences", read).await?;
        let keys = |segment: &Segment| [segment.meta(), segment.stock(), segment.orders(), segment.journal()];
        let types =
            page.iter().flat_map(|(segment, _)| keys(segment)).map(|key| cmd("TYPE").arg(key).to_owned());
        let types: Vec<Result<String, Fault>> = redis.run_each("looking at keys", types).await?;
        let exist = names.iter().map(|names| cmd("SCRIPT").arg("EXISTS").arg(names).to_owned());
        let loaded: Vec<Result<Vec<bool>, Fault>> = redis.run_each("looking for scripts", exist).await?;
        let found = page.iter().zip(types.chunks(TYPES.len())).zip(loaded).zip(fields);
        for ((((segment, epoch), types), loaded), fields) in found {
            let types: Result<Vec<String>, Fault> = types.iter().cloned().collect();
            let is = match (types, loaded) {
                (Err(fault), _) | (_, Err(fault)) => Err(fault),
                (Ok(types), Ok(loaded)) if are_right(&types) && loaded.iter().all(|one| *one) => {
                    fields.map(|fields| is_whole(segment, *epoch, &types, &fields))
                }
                _ => Ok(false),
            };
            sound.insert(segment.clone(), is);
        }
        Ok(())
    }

    /// The names of a segment's scripts: a text of 17 KB has to be hashed for each.
    fn scripts(&mut self, segment: &Segment, epoch: u64) -> Vec<String> {
        let place = self.place(segment);
        match &place.scripts {
            Some((known, names)) if *known == epoch => names.clone(),
            _ => {
                let names = SegmentScripts::new(segment.clone(), epoch).names();
                place.scripts = Some((epoch, names.clone()));
                names
            }
        }
    }
}

/// What must be there is, and nothing of another type.
fn are_right(types: &[String]) -> bool {
    let right = |(found, right): (&String, &&str)| found == right || found == MISSING;
    types.iter().zip(&TYPES).all(right) && !types[..2].iter().any(|found| found == MISSING)
}

/// Whether `meta` says what it must, and every key is there that it speaks of.
fn is_whole(segment: &Segment, epoch: u64, types: &[String], fields: &[Option<String>]) -> bool {
    let [fence, state, seq, numbers @ ..] = fields else { return false };
    let is = |field: &Option<String>, good: &dyn Fn(&str) -> bool| field.as_deref().is_some_and(good);
    let numbers = NUMBERS.iter().zip(numbers).all(|(name, field)| is(field, &|text| is_number(name, text)));
    let sold = is(seq, &|seq| seq != "0");
    is(fence, &|fence| fence == segment.fence(epoch))
        && is(state, &|word| SaleStep::parse(word).is_some())
        && is(seq, &|text| is_number("seq", text))
        && numbers
        && !(sold && types.iter().any(|found| found == MISSING))
}
