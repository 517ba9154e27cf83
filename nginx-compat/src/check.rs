//! A configuration beside the table of directives: what `nginx -t` would say of it, and what becomes of
//! each directive.
//!
//! The walk goes through the directives in nginx's order, and into a file once for each `include` of it. It
//! goes on after an error, so that all are found; the first is the one at which nginx stops.

mod entries;
mod locations;
mod values;

use std::collections::HashSet;
use std::ops::ControlFlow;

use self::locations::Location;
use crate::problem::{Error, Problem};
use crate::table::{Context, Repeat, Rule, Table, Value};
use crate::tree::{Block, Config, Directive, Item, Word};

/// Directives walked at the most, each as often as it is included.
const MOST_DIRECTIVES: usize = 1 << 20;
/// How deep blocks and includes together may stand in each other.
const MOST_DEPTH: usize = 100;

/// What was found in a configuration.
#[derive(Debug, Default)]
pub struct Checked<'c> {
    /// What is wrong, in nginx's order.
    pub errors: Vec<Error>,
    /// The directives that may stand where they stand.
    pub found: Vec<Found<'c>>,
}

/// A directive and its rule.
#[derive(Debug, Clone, Copy)]
pub struct Found<'c> {
    /// Its file: an index into [`Config::files`].
    pub file: usize,
    /// The directive.
    pub directive: &'c Directive,
    /// The block that it stands in.
    pub context: Context,
    /// What the table says of it, verdict and all.
    pub rule: &'static Rule,
}

/// Checks a configuration with all that it includes.
pub fn check(config: &Config) -> Checked<'_> {
    let mut walk = Walk { config, checked: Checked::default(), count: 0, depth: 0, postponed: Vec::new() };
    let mut main = Level::new(Place::Directives(Context::Main), None);
    let whole = walk.file(0, &mut main).is_continue();
    if whole
        && !main.names.contains("events")
        && let Some(file) = config.files.first()
    {
        let error = Error { problem: Problem::NoEvents, file: file.path.clone(), line: 0 };
        walk.checked.errors.push(error);
    }
    walk.checked
}

/// What the items of a block are.
#[derive(Clone, Copy)]
enum Place {
    Directives(Context),
    /// Entries of the block of this name.
    Entries(&'static str),
}

/// A block while it is walked. What is included in it belongs to it.
struct Level {
    place: Place,
    /// The location that it is.
    location: Option<Location>,
    /// The directives in it.
    names: HashSet<&'static str>,
    /// The zones of `limit_req` and its like, and what is `off`, as `name zone` and `name off`.
    words: HashSet<String>,
    /// The locations in it, by kind and name.
    locations: HashSet<Location>,
    /// The groups of servers in it, by their names in lower case.
    upstreams: HashSet<String>,
}

impl Level {
    fn new(place: Place, location: Option<Location>) -> Self {
        let (names, words, locations, upstreams) = Default::default();
        Self { place, location, names, words, locations, upstreams }
    }

    /// Adds a directive. False if nginx says that it is there already.
    fn add(&mut self, rule: &'static Rule, directive: &Directive) -> bool {
        let first = self.names.insert(rule.name);
        let args = directive.args();
        let word = |text: &str| format!("{} {text}", rule.name);
        match rule.repeat {
            Repeat::Adds => true,
            Repeat::Once => first,
            Repeat::UnlessOff if args.first().is_some_and(|arg| args.len() == 1 && arg.value == b"off") => {
                self.words.insert(word("off"));
                first
            }
            Repeat::UnlessOff => !self.words.contains(&word("off")),
            Repeat::ByZone => {
                let zone = args.iter().find(|arg| arg.value.starts_with(b"zone=")).or(args.first());
                self.words.insert(word(&zone.map(Word::text).unwrap_or_default().replacen("zone=", "", 1)))
            }
        }
    }
}

struct Walk<'c> {
    config: &'c Config,
    checked: Checked<'c>,
    count: usize,
    depth: usize,
    /// What nginx finds at the end of `http` alone: file, line, problem.
    postponed: Vec<(usize, u32, Problem)>,
}

/// `Break` after an error that hides what follows.
type Step = ControlFlow<()>;

impl<'c> Walk<'c> {
    fn report(&mut self, file: usize, line: u32, problem: Problem) {
        let Some(file) = self.config.files.get(file) else { return };
        self.checked.errors.push(Error { problem, file: file.path.clone(), line });
    }

    /// Ends the walk if the file cannot be read further than here.
    fn unless_broken(&mut self, file: usize) -> Step {
        let Some(error) = self.config.files.get(file).and_then(|file| file.broken.clone()) else {
            return Step::Continue(());
        };
        self.checked.errors.push(error);
        Step::Break(())
    }

    fn file(&mut self, index: usize, level: &mut Level) -> Step {
        let config = self.config;
        let Some(file) = config.files.get(index) else { return Step::Continue(()) };
        self.items(index, &file.items, level)?;
        self.unless_broken(index)
    }

    fn items(&mut self, file: usize, items: &'c [Item], level: &mut Level) -> Step {
        for item in items {
            let Item::Directive(directive) = item else { continue };
            self.count += 1;
            if self.count > MOST_DIRECTIVES {
                self.report(file, directive.end_line, Problem::ManyDirectives(MOST_DIRECTIVES));
                return Step::Break(());
            }
            match level.place {
                Place::Directives(context) => self.directive(file, directive, context, level)?,
                Place::Entries(block) => self.entry(file, directive, block, level)?,
            }
        }
        Step::Continue(())
    }

    fn directive(
        &mut self,
        file: usize,
        directive: &'c Directive,
        context: Context,
        level: &mut Level,
    ) -> Step {
        let line = directive.end_line;
        let rule = match rule_of(directive, context) {
            Ok(rule) => rule,
            Err(problem) => {
                self.report(file, line, problem);
                return Step::Continue(());
            }
        };
        self.checked.found.push(Found { file, directive, context, rule });
        if !level.add(rule, directive) {
            let named = Problem::Duplicate(rule.name.to_owned());
            self.report(file, line, if rule.value == Value::Lua { Problem::DuplicateLua } else { named });
        } else if let Err(problem) = values::check(rule, directive) {
            self.report(file, line, problem);
        }
        if rule.name == "upstream"
            && let Some(name) = directive.args().first()
            && !level.upstreams.insert(name.text().to_lowercase())
        {
            self.report(file, line, Problem::DuplicateUpstream(name.text().into_owned()));
        }
        if rule.name == "include" {
            return self.include(file, directive, level);
        }
        let Some(block) = &directive.block else { return Step::Continue(()) };
        let place = match rule.value {
            Value::Block(name) => context.inside(name).map(Place::Directives),
            Value::Entries => Some(Place::Entries(rule.name)),
            _ => None,
        };
        let location = match rule.name {
            "location" => self.location(file, directive, level),
            _ => level.location.clone(),
        };
        match place {
            Some(place) => self.block(file, block, &mut Level::new(place, location)),
            None if block.close.is_none() => self.unless_broken(file),
            None => Step::Continue(()),
        }
    }

    fn block(&mut self, file: usize, block: &'c Block, level: &mut Level) -> Step {
        self.deeper(file, block.close.as_ref().map_or(0, |(_, line)| *line))?;
        self.items(file, &block.items, level)?;
        self.depth -= 1;
        let Some((_, line)) = block.close else { return self.unless_broken(file) };
        let empty = !level.names.contains("server");
        match level.place {
            Place::Directives(Context::Upstream | Context::StreamUpstream) if empty => {
                self.report(file, line, Problem::EmptyUpstream);
            }
            Place::Directives(Context::Http) => {
                for (file, line, problem) in std::mem::take(&mut self.postponed) {
                    self.report(file, line, problem);
                }
            }
            _ => {}
        }
        Step::Continue(())
    }

    fn include(&mut self, file: usize, directive: &'c Directive, level: &mut Level) -> Step {
        self.deeper(file, directive.end_line)?;
        for included in &directive.include.files {
            self.file(*included, level)?;
        }
        self.depth -= 1;
        if let Some(problem) = directive.include.problem.as_deref() {
            self.report(file, directive.end_line, problem.clone());
        }
        Step::Continue(())
    }

    fn deeper(&mut self, file: usize, line: u32) -> Step {
        self.depth += 1;
        if self.depth <= MOST_DEPTH {
            return Step::Continue(());
        }
        self.report(file, line, Problem::DeepBlocks(MOST_DEPTH));
        Step::Break(())
    }
}

/// The rule of a directive, if it may stand here with so many arguments.
fn rule_of(directive: &Directive, context: Context) -> Result<&'static Rule, Problem> {
    let name = directive.name();
    let mut known = false;
    let rule = Table::get().named(&name).find(|rule| {
        known = true;
        rule.contexts.has(context)
    });
    let name = name.into_owned();
    let Some(rule) = rule else {
        return Err(if known { Problem::NotAllowed(name) } else { Problem::Unknown(name) });
    };
    let wants_block = matches!(rule.value, Value::Block(_) | Value::Entries | Value::Lua);
    match (&directive.block, wants_block) {
        (Some(_), false) => Err(Problem::NoSemicolon(name)),
        (None, true) => Err(Problem::NoBlock(name)),
        _ if !rule.count.takes(directive.args().len()) => Err(Problem::Count(name)),
        _ => Ok(rule),
    }
}
