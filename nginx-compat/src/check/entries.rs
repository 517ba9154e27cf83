//! Blocks whose lines are no directives: `types`, `map`, `geo` and their like.

use super::{Level, Step, Walk};
use crate::problem::Problem;
use crate::tree::Directive;

impl<'c> Walk<'c> {
    pub(super) fn entry(
        &mut self,
        file: usize,
        entry: &'c Directive,
        block: &'static str,
        level: &mut Level,
    ) -> Step {
        let line = entry.end_line;
        if entry.block.is_some() {
            self.report(file, line, Problem::Unexpected('{'));
            return Step::Continue(());
        }
        if let Err(problem) = read(block, entry) {
            self.report(file, line, problem);
        } else if entry.name() == "include" && matches!(block, "types" | "map" | "geo" | "charset_map") {
            return self.include(file, entry, level);
        }
        Step::Continue(())
    }
}

fn read(block: &'static str, entry: &Directive) -> Result<(), Problem> {
    let name = entry.name();
    let args = entry.args().len();
    match block {
        "types" if name == "include" && args != 1 => Err(Problem::Count(name.into_owned())),
        "map" if args == 0 && matches!(&*name, "hostnames" | "volatile") => Ok(()),
        "geo" if args == 0 && matches!(&*name, "ranges" | "proxy_recursive") => Ok(()),
        "map" | "geo" if args != 1 => Err(Problem::EntryCount(block)),
        "charset_map" if args != 1 => Err(Problem::PairCount),
        "split_clients" if name != "*" && !is_percentage(&name) => Err(Problem::Percent(name.into_owned())),
        _ => Ok(()),
    }
}

/// A number of percent, with up to two digits after the point, and not 0.
fn is_percentage(text: &str) -> bool {
    let Some(number) = text.strip_suffix('%') else { return false };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let some = number.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    !whole.is_empty() && digits(whole) && digits(part) && part.len() <= 2 && some
}
