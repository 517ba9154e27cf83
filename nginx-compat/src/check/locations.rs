//! Locations: how each is written, which may stand in which, and which are there twice.

use super::{Level, Walk};
use crate::problem::Problem;
use crate::tree::{Directive, Word};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum How {
    Exact,
    /// With `^~` or without.
    Prefix,
    Regex,
    Named,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Location {
    how: How,
    name: String,
}

impl Location {
    fn new(how: How, name: &str) -> Self {
        Self { how, name: name.to_owned() }
    }

    fn read(args: &[Word]) -> Result<Self, Problem> {
        let texts: Vec<_> = args.iter().map(Word::text).collect();
        match texts.iter().map(|text| &**text).collect::<Vec<&str>>()[..] {
            ["=", name] => Ok(Self::new(How::Exact, name)),
            ["^~", name] => Ok(Self::new(How::Prefix, name)),
            ["~" | "~*", name] => Ok(Self::new(How::Regex, name)),
            [other, _] => Err(Problem::LocationModifier(other.to_owned())),
            [name] => Ok(Self::in_one_word(name)),
            _ => Ok(Self::new(How::Prefix, "")),
        }
    }

    fn in_one_word(word: &str) -> Self {
        let forms = [("=", How::Exact), ("^~", How::Prefix), ("~*", How::Regex), ("~", How::Regex)];
        for (mark, how) in forms {
            if let Some(name) = word.strip_prefix(mark) {
                return Self::new(how, name);
            }
        }
        Self::new(if word.starts_with('@') { How::Named } else { How::Prefix }, word)
    }

    fn may_stand_in(&self, outer: &Location) -> Result<(), Problem> {
        let (inner, name) = (self.name.clone(), outer.name.clone());
        match (outer.how, self.how) {
            (How::Exact, _) => Err(Problem::InExactLocation(inner, name)),
            (How::Named, _) => Err(Problem::InNamedLocation(inner, name)),
            (_, How::Named) => Err(Problem::NamedInLocation(inner)),
            (_, How::Exact | How::Prefix) if !inner.starts_with(&name) => {
                Err(Problem::OutsideLocation(inner, name))
            }
            _ => Ok(()),
        }
    }
}

impl Walk<'_> {
    /// The location that a directive begins. A second of the same name is reported after the block of
    /// `http`, as nginx does.
    pub(super) fn location(
        &mut self,
        file: usize,
        directive: &Directive,
        level: &mut Level,
    ) -> Option<Location> {
        let read = Location::read(directive.args()).and_then(|location| match &level.location {
            Some(outer) => location.may_stand_in(outer).map(|()| location),
            None => Ok(location),
        });
        match read {
            Ok(location) => {
                let twice = !level.locations.insert(location.clone());
                if twice && matches!(location.how, How::Exact | How::Prefix) {
                    let problem = Problem::DuplicateLocation(location.name.clone());
                    self.postponed.push((file, directive.end_line, problem));
                }
                Some(location)
            }
            Err(problem) => {
                self.report(file, directive.end_line, problem);
                None
            }
        }
    }
}
