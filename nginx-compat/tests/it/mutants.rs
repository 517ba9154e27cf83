//! Configurations with random faults in them, through `nginx -t` and through the check. Whatever both look
//! at, both see at the same place in the same words.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sluice_nginx_compat::{Options, check, load};

use crate::files::trees;
use crate::peers::nginx_says;

const CASES: u32 = 600;

/// Words that nginx says of the language itself. Others are of things that the check does not look at: the
/// parameters of single directives, and what nginx opens, looks up and binds.
const OF_THE_LANGUAGE: [&str; 10] = [
    "unknown directive",
    "is not terminated by",
    "has no opening",
    "is not allowed here",
    "unexpected end of file",
    "too long parameter",
    "it must be \"on\" or \"off\"",
    "invalid number of arguments",
    "unexpected \"}\"",
    "directive is duplicate",
];

/// 0 where nginx names none: at the end of `http`, say.
fn line_of(said: &str) -> u32 {
    said.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).unwrap_or_default()
}

fn compare(path: &Path) -> Result<(), String> {
    let config = load(path, &Options::default()).unwrap();
    let ours = check(&config).errors.first().map(ToString::to_string);
    let nginx = nginx_says(path);
    if nginx == ours || nginx.as_deref() == Some("") {
        return Ok(());
    }
    let (line, text) = (ours.as_deref().map_or(u32::MAX, line_of), nginx.as_deref().unwrap_or_default());
    let of_the_language = OF_THE_LANGUAGE.iter().any(|words| text.contains(words));
    let earlier = !of_the_language && line_of(text) <= line;
    if earlier { Ok(()) } else { Err(format!("nginx: {nginx:?}\nwe:    {ours:?}")) }
}

#[test]
fn what_breaks_nginx_breaks_us_at_the_same_place() {
    // Of the trees, those that are one file and that nginx takes as they are.
    let known: Vec<Vec<u8>> = trees("mutants")
        .into_iter()
        .filter(|path| nginx_says(path).is_none() && path.parent().unwrap().read_dir().unwrap().count() == 1)
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(known.len() >= 20, "{}", known.len());
    let path = crate::peers::folder("mutant").join("nginx.conf");
    let change = (any::<Index>(), any::<Index>(), 0..5_u8, select(b"{};\"'\\$#\n ()x".to_vec()));
    let strategy = (any::<Index>(), change);
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let mut wrong = Vec::new();
    let wrongs = std::cell::RefCell::new(&mut wrong);
    let done = runner.run(&strategy, |(which, (first, second, what, byte))| {
        let text = mutated(&known[which.index(known.len())], first, second, what, byte);
        std::fs::write(&path, &text).unwrap();
        if let Err(difference) = compare(&path) {
            wrongs.borrow_mut().push(difference);
        }
        Ok(())
    });
    done.unwrap();
    assert!(wrong.is_empty(), "{} of {CASES}:\n{}", wrong.len(), wrong.join("\n"));
}

/// One byte more, one word less, one line twice, one line elsewhere, or everything after a point gone.
fn mutated(text: &[u8], first: Index, second: Index, what: u8, byte: u8) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let (a, b) = (first.index(lines.len()), second.index(lines.len()));
    match what {
        0 => {
            let at = first.index(text.len());
            return [&text[..at], &[byte], &text[at..]].concat();
        }
        1 => {
            let words: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b' ').collect();
            let gone = first.index(words.len());
            return [words[..gone].concat(), words[gone + 1..].concat()].concat();
        }
        2 => lines.insert(a, lines[a]),
        3 => {
            let line = lines.remove(a);
            lines.insert(b.min(lines.len()), line);
        }
        _ => return text[..first.index(text.len())].to_vec(),
    }
    lines.concat()
}
