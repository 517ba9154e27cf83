//! The rules of this repository: who may import whom, how long a file may grow, what a script's
//! header must say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sluice_shared::script::Script;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below these folders with this ending, as (path from the root, text).
fn files(folders: &[&str], ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} file in {folders:?}");
    found
}

/// The crates of the workspace.
pub(crate) const CRATES: [&str; 8] =
    ["protocol", "shared", "testkit", "edge", "worker", "nginx-compat", "bench", "model"];

pub(crate) fn rust() -> Vec<(String, String)> {
    files(&CRATES, ".rs")
}

#[test]
fn each_library_is_named_where_it_belongs_and_nowhere_else() {
    let rules: [(&str, &[&str]); 6] = [
        ("redis", &["shared/src/redis.rs", "shared/src/script"]),
        ("lapin", &["shared/src/amqp.rs"]),
        ("sqlx", &["worker/src/store", "worker/tests/"]),
        (
            "pingora",
            &[
                "edge/src/server.rs",
                "edge/src/signals.rs",
                "edge/src/session.rs",
                "edge/src/exchange.rs",
                "edge/src/respond.rs",
                "edge/src/upstream.rs",
                "edge/src/events.rs",
                "edge/src/status.rs",
                "edge/src/front.rs",
                "edge/src/listeners.rs",
                "edge/src/express.rs",
                "edge/src/hops.rs",
                "edge/src/guarded.rs",
                "edge/src/books.rs",
                "edge/tests/",
            ],
        ),
        ("axum", &["worker/src/api", "worker/src/role/api.rs", "worker/src/status.rs", "worker/tests/"]),
        ("governor", &["edge/src/buckets.rs", "edge/src/filter/rate.rs"]),
    ];
    let mut wrong = Vec::new();
    for (name, text) in rust() {
        for (library, homes) in rules {
            let named = text.lines().any(|line| {
                let code = line.trim_start();
                !code.starts_with("//")
                    && (code.starts_with(&format!("use {library}::"))
                        || code.starts_with(&format!("pub use {library}::"))
                        || code.contains(&format!(" {library}_core::"))
                        || code.contains(&format!(" {library}_proxy::")))
            });
            if named && !homes.iter().any(|home| name.starts_with(home)) {
                wrong.push(format!("{name} names {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The names under `[dependencies]` and the like of a manifest.
fn named_under(manifest: &str, section: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let name = |line: &str| Some(line.split(['.', ' ', '=']).next()?.to_owned());
    lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())).filter_map(name).collect()
}

#[test]
fn every_dependency_is_used() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for krate in CRATES {
        let manifest = read(&format!("{krate}/Cargo.toml"));
        for (section, folder) in [("[dependencies]", "src"), ("[dev-dependencies]", "")] {
            let sources = files(&[&format!("{krate}/{folder}")], ".rs");
            for name in named_under(&manifest, section) {
                let path = name.replace('-', "_");
                let named = |text: &str| {
                    let found = |end: &str| text.contains(&format!("{path}{end}"));
                    found("::") || found("!") || found(";") || found(" as ")
                };
                if !sources.iter().any(|(_, text)| named(text)) {
                    wrong.push(format!("{krate}: {name} of {section} is not used in {krate}/{folder}"));
                }
                used.insert(name);
            }
        }
    }
    let workspace = named_under(&read("Cargo.toml"), "[workspace.dependencies]");
    wrong.extend(
        workspace.into_iter().filter(|name| !used.contains(name)).map(|name| format!("no crate uses {name}")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What is explored exhaustively, and may one day run in a simulation, does no I/O.
#[test]
fn the_protocol_does_no_io() {
    let manifest = std::fs::read_to_string(root().join("protocol/Cargo.toml")).unwrap();
    let known = ["ahash", "hex", "serde", "serde_json", "thiserror", "time", "uuid"];
    assert_eq!(named_under(&manifest, "[dependencies]"), known, "protocol's dependencies");
    for (name, text) in files(&["protocol/src"], ".rs") {
        let code = text.split("#[cfg(test)]").next().unwrap();
        let machine = name.starts_with("protocol/src/edge") || name.starts_with("protocol/src/warden");
        if !machine || name.ends_with("/tests.rs") {
            continue;
        }
        for clock in ["Instant::now", "SystemTime::now", "Millis::now", "std::net", "std::fs", "std::thread"]
        {
            assert!(!code.contains(clock), "{name}: {clock}");
        }
    }
}

#[test]
fn edge_and_worker_never_import_each_other() {
    for (name, text) in rust() {
        let other = match name.split('/').next() {
            Some("edge") => "sluice_worker",
            Some("worker") => "sluice_edge",
            Some("bench") => "sluice_edge::",
            _ => continue,
        };
        assert!(!text.contains(other), "{name} imports {other}");
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    let mut long = Vec::new();
    for (name, text) in rust() {
        let most = if name.ends_with("/main.rs") && !name.contains("/tests/") { 60 } else { 600 };
        if text.lines().count() > most {
            long.push(format!("{name}: {} lines, {most} at the most", text.lines().count()));
        }
    }
    for (name, text) in files(&["lua"], ".lua") {
        let code = text.lines().filter(|line| !line.starts_with("--") && !line.trim().is_empty()).count();
        if code > 90 {
            long.push(format!("{name}: {code} lines of code, 90 at the most"));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn modules_are_files_beside_their_folder() {
    for (name, _) in rust() {
        assert!(!name.ends_with("/mod.rs"), "{name}");
    }
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    let marks =
        ["#[ignore", concat!("FIX", "ME"), concat!("TO", "DO"), concat!("todo", "!("), "unimplemented!("];
    let mut all = rust();
    all.extend(files(&["lua"], ".lua"));
    all.extend(files(&["ops", "docs"], "").into_iter().filter(|(name, _)| !name.contains(".png")));
    for (name, text) in all {
        for mark in marks {
            let own = name == "shared/tests/it/tidy.rs";
            assert!(own || !text.contains(mark), "{name} contains {mark}");
        }
    }
}

/// The longest sleep of a test, in milliseconds. What takes longer is waited for: `eventually`, a count of
/// rounds or of signs of life, a paused clock.
const LONGEST_SLEEP: u64 = 200;

/// How long a line sleeps, in milliseconds, where it says so.
fn sleep_of(line: &str) -> Option<u64> {
    let (_, span) = line.split_once("sleep(")?;
    let (unit, rest) = span.split_once("Duration::from_")?.1.split_once('(')?;
    let factor = match unit {
        "micros" => return Some(0),
        "millis" => 1,
        "secs" => 1_000,
        _ => 60_000,
    };
    let digits: String = rest.chars().filter(|c| *c != '_').take_while(char::is_ascii_digit).collect();
    Some(digits.parse::<u64>().ok()? * factor)
}

#[test]
fn no_test_sleeps_for_long() {
    assert_eq!(sleep_of("tokio::time::sleep(Duration::from_millis(2_500)).await;"), Some(2_500));
    assert_eq!(sleep_of("sleep(Duration::from_secs(4).saturating_sub(began));"), Some(4_000));
    let mut long = Vec::new();
    for (name, text) in rust() {
        let is_test = name.contains("/tests/") || name.ends_with("tests.rs");
        let mut marked = false;
        for (at, line) in (1..).zip(text.lines()) {
            marked |= line.trim() == "#[cfg(test)]";
            let code = !line.trim_start().starts_with("//") && name != "shared/tests/it/tidy.rs";
            if (is_test || marked) && code && sleep_of(line).is_some_and(|span| span > LONGEST_SLEEP) {
                long.push(format!("{name}:{at}: {}", line.trim()));
            }
        }
    }
    assert!(long.is_empty(), "longer than {LONGEST_SLEEP} ms: {long:#?}");
}

#[test]
fn every_script_has_its_header_sections_and_binding() {
    let mut on_disk = BTreeSet::new();
    for (name, text) in files(&["lua"], ".lua").into_iter().filter(|(name, _)| !name.contains("/lib/")) {
        let script = name.trim_start_matches("lua/").trim_end_matches(".lua");
        on_disk.insert(script.to_owned());
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("--")).collect();
        let header = header.join("\n");
        assert!(header.starts_with(&format!("-- {script}: ")), "{name}: first line says what it is for");
        assert!(header.contains("-- Reply: {'"), "{name}: header lists its replies");
        for section in ["-- inputs", "-- checks", "-- effects"] {
            assert!(text.contains(section), "{name}: {section}");
        }
        keys_are_named_once(&name, &header, &text);
        words_are_decoded(&name, &text);
        assert!(!text.contains("'sluice:"), "{name} builds a key");
    }
    let bound: BTreeSet<String> = Script::ALL.iter().map(|script| script.name.to_owned()).collect();
    assert_eq!(on_disk, bound);
}

fn keys_are_named_once(name: &str, header: &str, text: &str) {
    let listed = (1..).take_while(|n| header.contains(&format!("-- KEYS[{n}] "))).count();
    let body = text.split("-- inputs").nth(1).unwrap();
    let (inputs, rest) = body.split_once("-- checks").unwrap();
    let used = (1..).take_while(|n| inputs.contains(&format!("KEYS[{n}]"))).count();
    assert_eq!(listed, used, "{name}: keys of the header and of the inputs");
    assert!(!rest.contains("KEYS["), "{name}: keys have names after the inputs");
}

/// Every reply word of the script stands in a binding.
fn words_are_decoded(name: &str, text: &str) {
    let bindings: String = files(&["shared/src"], ".rs")
        .into_iter()
        .filter(|(name, _)| name.starts_with("shared/src/script"))
        .map(|(_, text)| text)
        .collect();
    for line in text.lines().filter(|line| line.contains("return {'")) {
        let word = line.split("return {'").nth(1).unwrap().split('\'').next().unwrap();
        assert!(bindings.contains(&format!("\"{word}\"")), "{name}: nobody decodes {word}");
    }
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut all = rust();
    let texts = files(&["docs", "ops", "lua", "migrations", "examples"], "");
    all.extend(texts.into_iter().filter(|(name, _)| !name.ends_with(".png")));
    let strangers = [concat!("/wo", "rk/"), concat!("farm", "-studio"), concat!("anch", "ors/")];
    for (name, text) in all {
        for stranger in strangers {
            assert!(!text.contains(stranger), "{name} contains {stranger}");
        }
    }
}
