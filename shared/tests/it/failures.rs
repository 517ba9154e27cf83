//! `docs/failures.md` says the truth: every fault has its row, every row a test that exists or a reason
//! why there is none, and every failpoint is passed somewhere.

use std::collections::{BTreeMap, BTreeSet};

use sluice_shared::failpoint::POINTS;

use crate::tidy::{root, rust};

/// Functions below an attribute that makes them tests, by crate.
fn tests() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (file, text) in rust() {
        let mut marked = false;
        for line in text.lines().map(str::trim_start) {
            let name = line.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next());
            match name {
                Some(name) if marked && !line.starts_with("//") => {
                    let member = file.split('/').next().unwrap();
                    found.insert((member.to_owned(), name.to_owned()));
                    marked = false;
                }
                _ => marked = line.starts_with("#[") && (marked || line.contains("test")),
            }
        }
    }
    found
}

/// The rows of the page: number, then the cells for what happens and for the tests.
fn rows() -> Vec<(u32, String, String)> {
    let page = std::fs::read_to_string(root().join("docs/failures.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| F") && !line.starts_with("| F |"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(!cells[1].is_empty() && !cells[2].is_empty(), "{row}");
        (cells[0][1..].parse().unwrap(), cells[2].to_owned(), cells[3].to_owned())
    })
    .collect()
}

#[test]
fn every_fault_has_a_test_that_exists() {
    let (tests, mut wrong) = (tests(), Vec::new());
    let mut numbers = BTreeMap::new();
    for (number, happens, named) in rows() {
        *numbers.entry(number).or_insert(0) += 1;
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        let reason = happens.strip_prefix("not on one machine: ").is_some_and(|why| why.len() > 20);
        if names.is_empty() != reason {
            wrong.push(format!("F{number}: either tests, or why there is none"));
        }
        for name in names {
            let there = match name.split_once("::") {
                Some((member, test)) => tests.contains(&(member.to_owned(), test.to_owned())),
                None => name.strip_prefix("drill ").is_some_and(|drill| {
                    root().join(format!("bench/src/drill/{}.rs", drill.replace('-', "_"))).exists()
                }),
            };
            if !there {
                wrong.push(format!("F{number}: there is no test {name}"));
            }
        }
    }
    let all: BTreeMap<u32, i32> = (1..=87).map(|number| (number, 1)).collect();
    assert_eq!(numbers, all, "each fault has one row");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_failpoint_is_passed_and_belongs_to_a_fault() {
    let code: Vec<_> = rust().into_iter().filter(|(file, _)| file.contains("/src/")).collect();
    let faults: BTreeSet<u32> = rows().into_iter().map(|(number, ..)| number).collect();
    let mut passed = BTreeSet::new();
    for (_, text) in &code {
        let mut places = text.split("failpoint::reach(\"").skip(1);
        passed.extend(places.by_ref().filter_map(|rest| rest.split('"').next()));
    }
    assert_eq!(passed, BTreeSet::from(POINTS));
    for point in POINTS {
        let fault = point.trim_start_matches('F').split('.').next().unwrap().parse().unwrap();
        assert!(faults.contains(&fault), "{point}");
    }
}

#[test]
fn f39_nothing_is_read_from_a_replica() {
    for (file, text) in rust().into_iter().filter(|(file, _)| file.contains("/src/")) {
        for word in ["read_from_replicas", "\"READONLY\")", "cluster_async", "sentinel::"] {
            assert!(!text.contains(word), "{file}: {word}");
        }
    }
}
