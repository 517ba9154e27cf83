//! Our trees beside those of crossplane 0.5.8, nginx Inc.'s own parser in Python.

use std::collections::HashMap;

use serde_json::{Value, json};
use sluice_nginx_compat::tree::{Comment, Config, Directive, File, Item, Word};
use sluice_nginx_compat::{Options, load};

use crate::files::{shipped, trees};
use crate::peers;

#[test]
fn a_tree_is_what_crossplane_reads() {
    let mut paths = trees("crossplane");
    paths.extend(shipped());
    let theirs = peers::crossplane(&paths);
    assert_eq!(theirs.len(), paths.len());
    for (path, theirs) in paths.iter().zip(theirs) {
        let config = load(path, &Options::default()).unwrap();
        let missing: usize = config.files.iter().map(|file| missing(&file.items)).sum();
        let errors = theirs["errors"].as_array().unwrap();
        assert_eq!(errors.len(), missing, "{}: {errors:?}", path.display());
        let theirs: HashMap<String, Value> = theirs["config"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| (file["file"].as_str().unwrap().to_owned(), without_indices(&file["parsed"])))
            .collect();
        assert_eq!(config.files.len(), theirs.len(), "{}", path.display());
        for file in &config.files {
            let name = file.path.to_str().unwrap();
            let ours = Value::Array(items(&config, file, &file.items));
            assert_eq!(ours, theirs[name], "{name}");
        }
    }
}

/// Included files that are not there: a snippet of Debian's includes another by a name that is right in
/// the folder of nginx.conf alone.
fn missing(items: &[Item]) -> usize {
    let of = |item: &Item| match item {
        Item::Comment(_) => 0,
        Item::Directive(directive) => {
            let inner = directive.block.as_ref().map_or(0, |block| missing(&block.items));
            inner + usize::from(directive.include.problem.is_some())
        }
    };
    items.iter().map(of).sum()
}

/// Their tree, with included files counted: they number files in another order.
fn without_indices(parsed: &Value) -> Value {
    let mut parsed = parsed.clone();
    for statement in parsed.as_array_mut().unwrap() {
        if let Some(block) = statement.get("block") {
            statement["block"] = without_indices(block);
        }
        if let Some(files) = statement.get("includes") {
            statement["includes"] = json!(files.as_array().unwrap().len());
        }
    }
    parsed
}

fn items(config: &Config, file: &File, items: &[Item]) -> Vec<Value> {
    let mut values = Vec::new();
    for item in items {
        match item {
            Item::Comment(comment) => values.push(of_comment(file, comment, comment.line)),
            Item::Directive(directive) => {
                values.push(of_directive(config, file, directive));
                let line = directive.line();
                values.extend(directive.comments.iter().map(|comment| of_comment(file, comment, line)));
            }
        }
    }
    values
}

fn of_comment(file: &File, comment: &Comment, line: u32) -> Value {
    let text = String::from_utf8_lossy(&file.text[comment.span.start + 1..comment.span.end]);
    json!({"directive": "#", "line": line, "args": [], "comment": text.trim_end_matches('\r')})
}

fn of_directive(config: &Config, file: &File, directive: &Directive) -> Value {
    let mut args: Vec<String> = directive.args().iter().map(|word| of_word(file, word)).collect();
    let name = of_word(file, &directive.words[0]);
    if name == "if" {
        without_parentheses(&mut args);
    }
    let mut value = json!({"directive": name, "line": directive.line(), "args": args});
    if let Some(block) = &directive.block {
        if let Some(code) = &block.lua {
            let code = String::from_utf8_lossy(&file.text[code.clone()]).into_owned();
            value["args"].as_array_mut().unwrap().push(json!(code));
        } else {
            value["block"] = Value::Array(items(config, file, &block.items));
        }
    }
    if name == "include" {
        value["includes"] = json!(directive.include.files.len());
    }
    value
}

/// A word as crossplane shows it: escapes stay, but for that of the quote around it.
fn of_word(file: &File, word: &Word) -> String {
    let raw = String::from_utf8_lossy(&file.text[word.span.clone()]).replace("\r\n", "\n");
    match word.quote.map(char::from) {
        Some(quote) => raw[1..raw.len() - 1].replace(&format!("\\{quote}"), &quote.to_string()),
        None => raw,
    }
}

fn without_parentheses(args: &mut Vec<String>) {
    let first = args.first_mut().unwrap();
    *first = first.strip_prefix('(').unwrap().trim_start().to_owned();
    let last = args.last_mut().unwrap();
    *last = last.strip_suffix(')').unwrap().trim_end().to_owned();
    if args.last().is_some_and(String::is_empty) {
        args.pop();
    }
    if args.first().is_some_and(String::is_empty) {
        args.remove(0);
    }
}
