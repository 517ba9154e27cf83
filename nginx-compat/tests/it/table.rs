//! The table beside nginx: where each directive may stand and how many arguments it takes.

use std::collections::HashSet;
use std::path::Path;

use sluice_nginx_compat::table::{Context, Count, Rule, Table, Value, Verdict};
use sluice_nginx_compat::{Options, check, load};

use crate::peers::{folder, nginx_says};

#[test]
fn every_row_is_read_and_says_why() {
    let table = Table::get();
    assert!(table.faults.is_empty(), "{:#?}", table.faults);
    assert!(table.rules.len() > 1200, "{}", table.rules.len());
    let mut places = HashSet::new();
    for rule in &table.rules {
        let why = (rule.verdict == Verdict::Exact) == rule.reason.is_empty();
        assert!(why, "{}: a verdict other than exact has a reason", rule.name);
        for context in rule.contexts.iter() {
            let own = rule.name == "include" || places.insert((rule.name, rule.module.name, context.name()));
            assert!(own, "{} stands twice in {}", rule.name, rule.module.name);
        }
        // Nothing is executed yet but the include of a file.
        let today = rule.built && matches!(rule.verdict, Verdict::Exact | Verdict::Changed);
        assert_eq!(today, rule.name == "include", "{}", rule.name);
    }
}

/// A block of this kind around a text.
fn around(context: Context, text: &str) -> String {
    let server = |inner: &str| format!("events {{ }} http {{ server {{ {inner} }} }}");
    match context {
        Context::Main => format!("events {{ }} {text}"),
        Context::Events => format!("events {{ {text} }}"),
        Context::Http => format!("events {{ }} http {{ {text} }}"),
        Context::Server => server(text),
        Context::Location => server(&format!("location / {{ {text} }}")),
        Context::Upstream => format!("events {{ }} http {{ upstream u {{ {text} }} }}"),
        Context::ServerIf => server(&format!("if ($host) {{ {text} }}")),
        Context::LocationIf => server(&format!("location / {{ if ($host) {{ {text} }} }}")),
        _ => server(&format!("location / {{ limit_except GET {{ {text} }} }}")),
    }
}

const PLACES: [Context; 9] = [
    Context::Main,
    Context::Events,
    Context::Http,
    Context::Server,
    Context::Location,
    Context::Upstream,
    Context::ServerIf,
    Context::LocationIf,
    Context::LimitExcept,
];

/// A number of arguments that the directive does not take, if there is one.
fn wrong_count(rule: &Rule) -> Option<usize> {
    match rule.count {
        Count::AtLeast(least) => least.checked_sub(1),
        Count::Of(_) => (0..8).find(|count| !rule.count.takes(*count)),
    }
}

/// What is wrong with a directive that has too few arguments, or stands where it may not.
fn said(path: &Path, place: Context, rule: &Rule, count: usize) -> (Option<String>, Option<String>) {
    let end = if matches!(rule.value, Value::Block(_) | Value::Entries) { "{ }" } else { ";" };
    let text = format!("{}{}{end}", rule.name, " a".repeat(count));
    std::fs::write(path, around(place, &text)).unwrap();
    let config = load(path, &Options::default()).unwrap();
    let ours = check(&config).errors.first().map(ToString::to_string);
    (nginx_says(path), ours)
}

/// Each directive that is built into nginx: once in a place where it may stand, with a number of arguments
/// that it does not take, and once in a place where it may not, both by turns of the places.
#[test]
fn each_directive_of_nginx_has_its_places_and_its_number_of_arguments() {
    let path = folder("table").join("nginx.conf");
    let rules = Table::get().rules.iter().filter(|rule| rule.module.file == "nginx");
    let (mut asked, mut wrong) = (0, Vec::new());
    for (turn, rule) in rules.enumerate() {
        let (may, may_not): (Vec<_>, Vec<_>) = PLACES
            .iter()
            .partition(|place| Table::get().named(rule.name).any(|rule| rule.contexts.has(**place)));
        let mut cases = Vec::new();
        let own: Vec<Context> = may.into_iter().copied().filter(|place| rule.contexts.has(*place)).collect();
        if let (Some(count), Some(place)) = (wrong_count(rule), own.get(turn % own.len().max(1))) {
            cases.push((*place, count));
        }
        if let Some(place) = may_not.get(turn % may_not.len().max(1)) {
            cases.push((**place, 1));
        }
        for (place, count) in cases {
            let (nginx, ours) = said(&path, place, rule, count);
            asked += 1;
            if nginx.is_none() || nginx != ours {
                wrong.push(format!(
                    "{} in {}:\n  nginx {nginx:?}\n  we    {ours:?}",
                    rule.name,
                    place.name()
                ));
            }
        }
    }
    assert!(asked > 1000, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Arguments that a kind of value takes; none where only the module knows.
fn right(rule: &Rule) -> Option<String> {
    Some(match &rule.value {
        Value::Flag => "on".to_owned(),
        Value::Number(least, _) => least.max(&4).to_string(),
        Value::Size | Value::Offset | Value::TextOfSize => "64k".to_owned(),
        Value::SizeOf(words) => words.first()?.to_string(),
        Value::Milliseconds | Value::Seconds => "1s".to_owned(),
        Value::Buffers => "4 4k".to_owned(),
        Value::OneOf(words) | Value::SomeOf(words) => words.first()?.to_string(),
        Value::Access => "user:rw".to_owned(),
        Value::Path => "/nowhere/else".to_owned(),
        _ => return None,
    })
}

/// Each directive whose value is of a known kind: with a wrong one, and twice with a right one.
#[test]
fn each_value_and_each_second_directive_is_refused_as_nginx_does() {
    let path = folder("values").join("nginx.conf");
    let rules = Table::get().rules.iter().filter(|rule| rule.module.file == "nginx");
    let (mut asked, mut wrong) = (0, Vec::new());
    for rule in rules {
        let Some(right) = right(rule) else { continue };
        let place = PLACES.into_iter().find(|place| rule.contexts.has(*place)).unwrap();
        let name = rule.name;
        let mistaken = if rule.value == Value::Path {
            "a x"
        } else if rule.value == Value::Buffers {
            "x y"
        } else {
            "x"
        };
        for text in [format!("{name} {mistaken};"), format!("{name} {right};\n{name} {right};")] {
            std::fs::write(&path, around(place, &text)).unwrap();
            let config = load(&path, &Options::default()).unwrap();
            let ours = check(&config).errors.first().map(ToString::to_string);
            let nginx = nginx_says(&path);
            asked += 1;
            if nginx != ours {
                wrong.push(format!("{text}\n  nginx {nginx:?}\n  we    {ours:?}"));
            }
        }
    }
    assert!(asked > 500, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
}
