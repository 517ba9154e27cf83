//! Configuration: the commented default file, then the operator's file, then `SLUICE__SECTION__KEY`
//! from the environment. Every problem is reported at once, and nothing starts with one.
//!
//! The default file is the reference: a key that it does not have is a typing error, and each value
//! has the type of its default.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

/// Exit code for a configuration or command line that cannot be used (`EX_USAGE`, sysexits.h).
pub const EXIT_USAGE: i32 = 64;

/// A text that prints as `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever signs or connects with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The merged settings, read key by key; problems pile up until [`Settings::finish`].
#[derive(Debug)]
pub struct Settings {
    merged: Table,
    problems: Vec<String>,
}

impl Settings {
    /// Merges the embedded defaults, a file and the process environment.
    pub fn load(defaults: &str, file: Option<&Path>) -> Self {
        let mut problems = Vec::new();
        let text = file.map(|path| (path, std::fs::read_to_string(path)));
        let text = match text {
            Some((path, Err(error))) => {
                problems.push(format!("{}: {error}", path.display()));
                None
            }
            Some((_, Ok(text))) => Some(text),
            None => None,
        };
        let mut settings = Self::merge(defaults, text.as_deref(), std::env::vars());
        problems.append(&mut settings.problems);
        settings.problems = problems;
        settings
    }

    /// The same from texts: what tests use.
    pub fn merge(
        defaults: &str,
        file: Option<&str>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut settings = Self { merged: Table::new(), problems: Vec::new() };
        settings.merged = settings.parse("the built-in defaults", defaults);
        let over = file.map(|text| settings.parse("the file", text)).unwrap_or_default();
        let mut merged = std::mem::take(&mut settings.merged);
        settings.lay("", &mut merged, over);
        for (name, value) in environment {
            let Some(path) = name.strip_prefix("SLUICE__") else { continue };
            let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
            let over = path.iter().rev().fold(Value::String(value), |inner, key| {
                Value::Table(Table::from_iter([(key.clone(), inner)]))
            });
            if let Value::Table(over) = over {
                settings.lay("", &mut merged, over);
            }
        }
        settings.merged = merged;
        settings
    }

    fn parse(&mut self, what: &str, text: &str) -> Table {
        text.parse::<Table>().unwrap_or_else(|error| {
            self.problems.push(format!("{what}: {}", error.to_string().trim_end().replace('\n', " ")));
            Table::new()
        })
    }

    fn lay(&mut self, prefix: &str, base: &mut Table, over: Table) {
        for (key, value) in over {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let Some(there) = base.get_mut(&key) else {
                let near = nearest(&key, base.keys());
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                self.problems.push(format!("{path}: there is no such key{hint}"));
                continue;
            };
            match (there, value) {
                (Value::Table(inner), Value::Table(value)) => self.lay(&path, inner, value),
                (there, value) => match fit(there, value) {
                    Some(value) => *there = value,
                    None => {
                        let kind = there.type_str();
                        self.problems.push(format!("{path}: must be of type {kind}"));
                    }
                },
            }
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.merged.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        let found = self.value(key).and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok());
        match found {
            Some(n) if range.contains(&n) => n,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.problem(key, &format!("must be a whole number from {low} to {high}"));
                *range.start()
            }
        }
    }

    /// A span in milliseconds; the key ends in `_ms`.
    pub fn millis(&mut self, key: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.integer(key, range))
    }

    /// A span in seconds; the key ends in `_seconds`.
    pub fn seconds(&mut self, key: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.integer(key, range))
    }

    /// A text, which may be empty.
    pub fn text(&mut self, key: &str) -> String {
        let text = self.value(key).and_then(Value::as_str).map(str::to_owned);
        text.unwrap_or_else(|| {
            self.problem(key, "must be a text");
            String::new()
        })
    }

    /// A secret text, at least 16 bytes long.
    pub fn secret(&mut self, key: &str) -> Secret {
        let text = self.text(key);
        if text.len() < 16 {
            self.problem(key, "must be set, with at least 16 bytes");
        }
        Secret::new(text)
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        let list = self.value(key).and_then(Value::as_array).cloned();
        let texts: Option<Vec<String>> =
            list.and_then(|list| list.iter().map(|one| one.as_str().map(str::to_owned)).collect());
        texts.unwrap_or_else(|| {
            self.problem(key, "must be a list of texts");
            Vec::new()
        })
    }

    /// True or false.
    pub fn flag(&mut self, key: &str) -> bool {
        self.value(key).and_then(Value::as_bool).unwrap_or_else(|| {
            self.problem(key, "must be true or false");
            false
        })
    }

    /// A text read as `T`; the error says what it must be.
    pub fn parsed<T: std::str::FromStr>(&mut self, key: &str, must: &str) -> Option<T> {
        let text = self.text(key);
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.problem(key, &format!("{text:?} {must}"));
        }
        parsed
    }

    /// Notes a problem with a key.
    pub fn problem(&mut self, key: &str, what: &str) {
        self.problems.push(format!("{key}: {what}"));
    }

    /// All problems, or none.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }
}

/// The value as the type of its default; the environment has texts only.
fn fit(default: &Value, value: Value) -> Option<Value> {
    if default.same_type(&value) {
        return Some(value);
    }
    let text = value.as_str()?;
    match default {
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Some(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
        }
        _ => None,
    }
}

/// The key that differs least, if it differs by two letters at the most.
fn nearest<'a>(key: &str, keys: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    keys.map(|other| (distance(key, other), other.as_str()))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, other)| other)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DEFAULTS: &str = "[redis]\nurl = \"redis://x\"\ndeadline_ms = 150\n[cors]\nallowed = []\n";

    #[test]
    fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
        let environment = [("SLUICE__REDIS__DEADLINE_MS", "250"), ("SLUICE__CORS__ALLOWED", "a, b")];
        let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let file = "[redis]\nurl = \"redis://y\"\ndeadline_ms = 200\n";
        let mut settings = Settings::merge(DEFAULTS, Some(file), environment);
        assert_eq!(settings.text("redis.url"), "redis://y");
        assert_eq!(settings.millis("redis.deadline_ms", 1..=1000), Duration::from_millis(250));
        assert_eq!(settings.texts("cors.allowed"), ["a", "b"]);
        assert_eq!(settings.finish(), Ok(()));
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let file = "[redis]\nurll = \"x\"\ndeadline_ms = \"soon\"\n[coors]\nx = 1\n";
        let mut settings = Settings::merge(DEFAULTS, Some(file), []);
        settings.secret("redis.url");
        let problems = settings.finish().unwrap_err().0;
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.contains(&"redis.urll: there is no such key; did you mean url?".to_owned()));
        assert!(problems.contains(&"redis.deadline_ms: must be of type integer".to_owned()));
        assert!(problems.iter().any(|problem| problem.starts_with("coors: there is no such key")));
    }

    #[test]
    fn a_secret_never_prints() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }
}
