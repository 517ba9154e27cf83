//! Every directive of Debian's nginx 1.22.1 and of the modules beside it, by name.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::rows;
pub use crate::rule::{Context, Contexts, Count, Inherits, Module, Repeat, Rule, Value, Verdict};

/// All rules.
#[derive(Debug)]
pub struct Table {
    /// In the order of the table's files.
    pub rules: Vec<Rule>,
    /// Rows that could not be read; a test sees to it that there are none.
    pub faults: Vec<String>,
    by_name: HashMap<&'static str, Vec<usize>>,
}

impl Table {
    /// The table of this crate.
    pub fn get() -> &'static Table {
        static TABLE: LazyLock<Table> = LazyLock::new(|| {
            let (rules, faults) = rows::read();
            let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
            for (index, rule) in rules.iter().enumerate() {
                by_name.entry(rule.name).or_default().push(index);
            }
            Table { rules, faults, by_name }
        });
        &TABLE
    }

    /// The rules of all directives of this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Rule> {
        self.by_name.get(name).into_iter().flatten().filter_map(|index| self.rules.get(*index))
    }
}
