//! The table of directives as files: one directive a line, columns apart by tabs.
//!
//! | column | words |
//! |---|---|
//! | name | |
//! | contexts | of the module's family, as [`Context::ALL`] has them; `any` |
//! | number of arguments | `flag` (one), digits of which each is allowed, `1+`, `2+`, `any` |
//! | value | `own` (read by code of its own), `flag num num:A-B size size:A\|B off msec sec bufs access path str strs pair text vsize types enum:A\|B mask:A\|B lua`, `{block}`, `{entries}` |
//! | twice in one block | `once` (an error), `adds`, `unless-off` (an error beside `off`), `by-zone` (an error for one zone) |
//! | default | `-` if there is none |
//! | inheritance | `-` (one level alone), `value`, `list`, `adds`, `own` (never) |
//! | verdict | `exact changed ignored lost later`; `planned` before it: not built |
//! | reason | `-`: that of the module |

use crate::rule::{Context, Contexts, Count, Inherits, Module, Repeat, Rule, Value, Verdict};

const FILES: [&str; 9] = [
    include_str!("../directives/sluice.tsv"),
    include_str!("../directives/core.tsv"),
    include_str!("../directives/http.tsv"),
    include_str!("../directives/http_upstream.tsv"),
    include_str!("../directives/http_dynamic.tsv"),
    include_str!("../directives/mail.tsv"),
    include_str!("../directives/stream.tsv"),
    include_str!("../directives/nchan.tsv"),
    include_str!("../directives/rtmp.tsv"),
];

/// The module of the rows that follow, with its family and the reason of those that give none.
#[derive(Clone, Copy)]
struct Head {
    module: Module,
    family: &'static str,
    reason: &'static str,
}

/// The rules, and the lines that are none.
pub(crate) fn read() -> (Vec<Rule>, Vec<String>) {
    let (mut rules, mut faults) = (Vec::new(), Vec::new());
    for file in FILES {
        let mut head = None;
        for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(module) = line.strip_prefix('@') {
                head = head_of(module);
                continue;
            }
            match head.and_then(|head| rule(line, head)) {
                Some(rule) => rules.push(rule),
                None => faults.push(line.to_owned()),
            }
        }
    }
    (rules, faults)
}

fn head_of(line: &'static str) -> Option<Head> {
    let mut columns = line.split('\t');
    let (name, family, file) = (columns.next()?, columns.next()?, columns.next()?);
    Some(Head { module: Module { name, file }, family, reason: columns.next().unwrap_or_default() })
}

fn rule(line: &'static str, head: Head) -> Option<Rule> {
    let columns: Vec<&'static str> = line.split('\t').collect();
    let [name, contexts, count, value, repeat, default, inherits, verdict, reason] = columns[..] else {
        return None;
    };
    let (built, word) = match verdict.strip_prefix("planned ") {
        Some(word) => (false, word),
        None => (true, verdict),
    };
    let verdict = verdict_of(word)?;
    let given = if reason == "-" { head.reason } else { reason };
    let reason = if verdict == Verdict::Exact { "" } else { given };
    Some(Rule {
        name,
        module: head.module,
        contexts: contexts_of(contexts, head.family)?,
        count: count_of(count)?,
        value: value_of(value)?,
        repeat: match repeat {
            "once" => Repeat::Once,
            "adds" => Repeat::Adds,
            "unless-off" => Repeat::UnlessOff,
            "by-zone" => Repeat::ByZone,
            _ => return None,
        },
        default: (default != "-").then_some(default),
        inherits: match inherits {
            "-" => Inherits::Nothing,
            "value" => Inherits::Value,
            "list" => Inherits::List,
            "adds" => Inherits::Adds,
            "own" => Inherits::Own,
            _ => return None,
        },
        verdict,
        built,
        reason,
    })
}

fn verdict_of(word: &str) -> Option<Verdict> {
    Some(match word {
        "exact" => Verdict::Exact,
        "changed" => Verdict::Changed,
        "ignored" => Verdict::Ignored,
        "lost" => Verdict::Lost { later: false },
        "later" => Verdict::Lost { later: true },
        _ => return None,
    })
}

fn contexts_of(words: &str, family: &str) -> Option<Contexts> {
    if words == "any" {
        return Some(Contexts::ANY);
    }
    words.split(' ').try_fold(Contexts::default(), |set, word| {
        let (context, ..) = Context::ALL.iter().find(|(_, home, name)| *home == family && *name == word)?;
        Some(set.with(*context))
    })
}

fn count_of(word: &str) -> Option<Count> {
    Some(match word {
        "any" => Count::AtLeast(0),
        "flag" => Count::Of(0b10),
        "1+" => Count::AtLeast(1),
        "2+" => Count::AtLeast(2),
        digits => {
            Count::Of(digits.chars().try_fold(0, |bits, digit| Some(bits | (1 << digit.to_digit(8)?)))?)
        }
    })
}

fn value_of(word: &'static str) -> Option<Value> {
    if let Some(block) = word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        return Some(if block == "entries" { Value::Entries } else { Value::Block(block) });
    }
    Some(match word.split_once(':') {
        Some(("enum", words)) => Value::OneOf(words.split('|').collect()),
        Some(("mask", words)) => Value::SomeOf(words.split('|').collect()),
        Some(("size", words)) => Value::SizeOf(words.split('|').collect()),
        Some(("num", bounds)) => {
            let (least, most) = bounds.split_once('-')?;
            Value::Number(least.parse().ok()?, most.parse().ok())
        }
        Some(_) => return None,
        None => match word {
            "own" => Value::Own,
            "flag" => Value::Flag,
            "num" => Value::Number(0, None),
            "size" => Value::Size,
            "off" => Value::Offset,
            "msec" => Value::Milliseconds,
            "sec" => Value::Seconds,
            "bufs" => Value::Buffers,
            "access" => Value::Access,
            "path" => Value::Path,
            "str" | "strs" | "pair" | "text" | "types" => Value::Text,
            "vsize" => Value::TextOfSize,
            "lua" => Value::Lua,
            _ => return None,
        },
    })
}
