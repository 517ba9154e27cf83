//! No module imports itself by way of others: the floors of each crate are in an order.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{CRATES, rust};

/// A module's path inside its crate, `warden::reopen`; the root's is empty.
type Module = String;

/// The modules of a crate with what each imports, apart from its own children: a parent names them.
fn imports(krate: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let prefix = format!("{krate}/src/");
    let sources: Vec<(Module, String)> = rust()
        .into_iter()
        .filter_map(|(name, text)| Some((module(name.strip_prefix(&prefix)?), code(&text))))
        .collect();
    let known: BTreeSet<Module> = sources.iter().map(|(module, _)| module.clone()).collect();
    sources
        .into_iter()
        .map(|(module, code)| {
            let named = paths(&code).into_iter().filter_map(|path| resolve(&module, &path, &known));
            let named = named.filter(|other| *other != module && !is_below(other, &module));
            let named = named.filter(|other| !other.is_empty());
            (module.clone(), named.collect())
        })
        .collect()
}

fn module(file: &str) -> Module {
    let path = file.trim_end_matches(".rs").replace('/', "::");
    if path == "lib" || path == "main" { String::new() } else { path }
}

fn is_below(module: &str, parent: &str) -> bool {
    parent.is_empty() || module.strip_prefix(parent).is_some_and(|rest| rest.starts_with("::"))
}

/// Without comments, texts and the tests at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that begins with `crate`, `self` or `super`, with the branches of `{…}` told apart.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            branches("", &code[at..], &mut found);
        }
    }
    found
}

/// Reads one tree of a path from the start of `text`; what is behind it is returned.
fn branches<'t>(prefix: &str, text: &'t str, found: &mut Vec<String>) -> &'t str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, mut rest) = text.split_at(end);
    let path = format!("{prefix}{path}");
    if !path.ends_with("::") || !rest.starts_with('{') {
        found.push(path);
        return rest;
    }
    loop {
        rest = rest[1..].trim_start();
        if !rest.starts_with('}') {
            rest = branches(&path, rest, found).trim_start();
            if let Some(renamed) = rest.strip_prefix("as ") {
                rest = renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').trim_start();
            }
        }
        match rest.chars().next() {
            Some(',') => {}
            Some('}') => return &rest[1..],
            _ => return rest,
        }
    }
}

/// The module that a path names, or whose item it names.
fn resolve(from: &str, path: &str, known: &BTreeSet<Module>) -> Option<Module> {
    let mut base: Vec<&str> = from.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.peek().copied() {
        match part {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        parts.next();
    }
    base.extend(parts);
    (0..=base.len()).rev().map(|n| base[..n].join("::")).find(|module| known.contains(module))
}

/// Groups of modules that reach each other.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|module| (module.as_str(), reached(imports, module))).collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for module in reach.keys() {
        if seen.contains(module) || !reach[module].contains(module) {
            continue;
        }
        let circle: Vec<&str> = reach
            .keys()
            .copied()
            .filter(|other| reach[module].contains(other) && reach[other].contains(module))
            .collect();
        seen.extend(circle.iter().copied());
        circles.push(circle.into_iter().map(str::to_owned).collect());
    }
    circles
}

fn reached<'i>(imports: &'i BTreeMap<Module, BTreeSet<Module>>, from: &str) -> BTreeSet<&'i str> {
    let mut open: Vec<&str> = vec![from];
    let mut reached = BTreeSet::new();
    while let Some(module) = open.pop() {
        for other in imports.get(module).into_iter().flatten() {
            if reached.insert(other.as_str()) {
                open.push(other);
            }
        }
    }
    reached
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for krate in CRATES {
        let imports = imports(krate);
        assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 3, "{krate}: no imports were found");
        for circle in circles(&imports) {
            let arrows = circle.iter().map(|module| {
                let to: Vec<&str> = imports[module]
                    .iter()
                    .map(String::as_str)
                    .filter(|other| circle.iter().any(|one| one == other))
                    .collect();
                format!("{module} -> {}", to.join(", "))
            });
            wrong.push((krate, arrows.collect::<Vec<_>>()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_circle_is_found() {
    let known: BTreeSet<Module> = ["", "a", "a::b", "c"].map(str::to_owned).into();
    let named = paths("use crate::{a::{self, b::B}, c};\nfn f() { super::c::run() }\nuse other_crate::a;");
    let named: BTreeSet<_> = named.iter().filter_map(|path| resolve("a::b", path, &known)).collect();
    assert_eq!(named, ["a", "a::b", "c"].map(str::to_owned).into());
    let of = |module: &str, named: &[&str]| {
        (module.to_owned(), named.iter().map(|&other| other.to_owned()).collect::<BTreeSet<_>>())
    };
    let imports = [of("a", &["c"]), of("a::b", &["a"]), of("c", &["a::b"]), of("d", &["a"])].into();
    assert_eq!(circles(&imports), [["a", "a::b", "c"]]);
    assert_eq!(circles(&[of("a", &["c"]), of("c", &[])].into()), Vec::<Vec<Module>>::new());
}
