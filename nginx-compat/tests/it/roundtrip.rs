//! Promises for any bytes: what is printed is what was read, between pieces there is white space alone,
//! and nothing panics.

use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sluice_nginx_compat::tree::{Config, Kind};
use sluice_nginx_compat::{check, parse};

use crate::files::trees;

fn holds(text: &[u8]) {
    let file = parse(PathBuf::from("nginx.conf"), text.to_vec());
    assert_eq!(file.print(), text);
    let mut end = 0;
    for (kind, span) in file.pieces() {
        assert!(end <= span.start && span.start <= span.end, "{kind:?} at {span:?} after {end}");
        if kind != Kind::Rest {
            let gap = &text[end..span.start];
            assert!(gap.iter().all(|byte| b" \t\r\n".contains(byte)), "{gap:?} before {kind:?}");
        }
        end = span.end;
    }
    if file.broken.is_none() {
        assert!(text[end..].iter().all(|byte| b" \t\r\n".contains(byte)));
    }
    let lines = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let config = Config { files: vec![file] };
    for error in check(&config).errors {
        assert!(usize::try_from(error.line).unwrap() <= lines, "{error}");
    }
}

/// Pieces of the language, so that a random text gets somewhere.
fn tokens() -> impl Strategy<Value = Vec<u8>> {
    let words = vec![
        "http",
        "server",
        "location",
        "events",
        "map",
        "types",
        "include",
        "if",
        "upstream",
        "gzip",
        "on",
        "/",
        "$host",
        "${host}",
        "\"",
        "'",
        "\\",
        "\\\"",
        "{",
        "}",
        ";",
        "{",
        "}",
        ";",
        "#",
        "\n",
        "\r\n",
        " ",
        "\t",
        "content_by_lua_block",
        "[[",
        "]]",
        "--",
        "--[==[",
        "]==]",
        "(",
        ")",
        "=",
        "~",
        "\u{feff}",
        "é",
    ];
    vec(select(words), 0..80).prop_map(|words| words.concat().into_bytes())
}

fn known() -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for path in trees("mutated") {
        texts.push(std::fs::read(path).unwrap());
    }
    texts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(text in vec(any::<u8>(), 0..2000)) {
        holds(&text);
    }

    #[test]
    fn any_tokens(text in tokens()) {
        holds(&text);
    }
}

#[test]
fn a_configuration_with_bytes_cut_put_in_or_moved() {
    let known = known();
    let change = (any::<Index>(), any::<Index>(), 0..4_u8, select(b"{};\"'\\$#\n ()[]-=x\0\xff".to_vec()));
    let strategy = (any::<Index>(), vec(change, 1..6));
    let config = ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let done = runner.run(&strategy, |(which, changes)| {
        let mut text = which.get(&known).clone();
        for (first, second, what, byte) in changes {
            let (a, b) = (first.index(text.len() + 1), second.index(text.len() + 1));
            match what {
                0 => text.insert(a, byte),
                1 => drop(text.drain(a.min(b)..a.max(b))),
                2 => text.truncate(a.max(1)),
                _ => {
                    let copy = text[a.min(b)..a.max(b)].to_vec();
                    text.splice(a..a, copy);
                }
            }
        }
        holds(&text);
        Ok(())
    });
    done.unwrap();
}

#[test]
fn what_is_long_or_deep_is_refused_and_costs_no_time() {
    let deep = "a {".repeat(1_000_000);
    let quotes = format!("x_by_lua_block {{ {}", "\\\"".repeat(500_000));
    let brackets = format!("x_by_lua_block {{ [={}", "]".repeat(1_000_000));
    let long = "x".repeat(8_000_000);
    let many = "gzip on; ".repeat(300_000);
    for text in [deep, quotes, brackets, long, many, "#".repeat(4_000_000), "$".repeat(4000) + "{"] {
        let begun = std::time::Instant::now();
        holds(text.as_bytes());
        let taken = begun.elapsed();
        assert!(taken.as_secs() < 10, "{taken:?} for {:?}…", &text[..20]);
    }
}
