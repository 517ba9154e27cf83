//! What a directive's arguments must be, by the kind of value that the table gives it.

use crate::problem::Problem;
use crate::table::{Rule, Value};
use crate::tree::{Directive, Word};
use crate::value::{number, offset, size, time};

pub(super) fn check(rule: &Rule, directive: &Directive) -> Result<(), Problem> {
    let name = rule.name.to_owned();
    let text = directive.args().first().map(Word::text).unwrap_or_default();
    let of_time = |whole| time(&text, whole).map(drop).ok_or(Problem::Value(name.clone()));
    match &rule.value {
        Value::Flag if ["on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word)) => Ok(()),
        Value::Flag => Err(Problem::Flag { name, value: text.into_owned() }),
        Value::Number(least, most) => match number(&text) {
            None => Err(Problem::Number(name)),
            Some(given) => within(given, *least, *most),
        },
        Value::TextOfSize if text.contains('$') => Ok(()),
        Value::Size | Value::TextOfSize => size(&text).map(drop).ok_or(Problem::Value(name)),
        Value::SizeOf(words) => match size(&text) {
            None => Err(Problem::Value(name)),
            given if words.iter().any(|word| size(word) == given) => Ok(()),
            _ => Err(Problem::SizeOf { name, sizes: listed(words) }),
        },
        Value::Offset => offset(&text).map(drop).ok_or(Problem::Value(name)),
        Value::Milliseconds => of_time(false),
        Value::Seconds => of_time(true),
        Value::Buffers => {
            let bytes = directive.args().get(1).and_then(|word| size(&word.text()));
            let some = |count: Option<i64>| count.is_some_and(|count| count > 0);
            if some(number(&text)) && some(bytes) { Ok(()) } else { Err(Problem::Value(name)) }
        }
        Value::OneOf(words) => known(&text, words),
        Value::SomeOf(words) => directive.args().iter().try_for_each(|word| known(&word.text(), words)),
        Value::Access => directive.args().iter().try_for_each(|word| access(&word.text())),
        Value::Path => directive.args().iter().skip(1).try_for_each(|word| match number(&word.text()) {
            Some(1..=3) => Ok(()),
            _ => Err(Problem::Value(name.clone())),
        }),
        Value::Own | Value::Entries => variable(rule.name, directive),
        Value::Text | Value::Block(_) | Value::Lua => Ok(()),
    }
}

/// `a, b, or c`.
fn listed(words: &[&str]) -> String {
    match words {
        [rest @ .., last] => format!("{}, or {last}", rest.join(", ")),
        [] => String::new(),
    }
}

fn within(given: i64, least: i64, most: Option<i64>) -> Result<(), Problem> {
    match most {
        Some(most) if !(least..=most).contains(&given) => Err(Problem::Between(least, most)),
        None if given < least => Err(Problem::AtLeast(least)),
        _ => Ok(()),
    }
}

fn known(text: &str, words: &[&str]) -> Result<(), Problem> {
    let found = words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if found { Ok(()) } else { Err(Problem::NoSuchValue(text.to_owned())) }
}

fn access(text: &str) -> Result<(), Problem> {
    let right = ["user:", "group:", "all:"].iter().find_map(|who| text.strip_prefix(who));
    if matches!(right, Some("r" | "rw")) { Ok(()) } else { Err(Problem::NoSuchValue(text.to_owned())) }
}

/// The variable that a directive defines must look like one.
fn variable(name: &str, directive: &Directive) -> Result<(), Problem> {
    let word = match name {
        "map" | "geo" | "split_clients" => directive.args().last(),
        "set" | "auth_request_set" => directive.args().first(),
        _ => None,
    };
    match word {
        Some(word) if word.value.first() != Some(&b'$') || (name == "set" && word.value.len() < 2) => {
            Err(Problem::VariableName(word.text().into_owned()))
        }
        _ => Ok(()),
    }
}
