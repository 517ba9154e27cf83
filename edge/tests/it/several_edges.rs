//! Edges of one gate with different files, keys and clocks; and one that takes another's place.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sluice_testkit::ClockStep;

use crate::client::Connection;
use crate::harness::{Edge, Process, bearer, binary, eventually};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;

/// An edge on a machine whose clock is so many seconds off.
fn wrong_clock(seconds: i32) -> Command {
    let library = glob_one("/usr/lib", "faketime/libfaketime.so.1");
    let mut command = binary();
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("{seconds:+}s"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// The file below one of the folders of `folder`.
fn glob_one(folder: &str, file: &str) -> std::path::PathBuf {
    let folders = std::fs::read_dir(folder).unwrap().flatten();
    let found = folders.map(|entry| entry.path().join(file)).find(|path| path.exists());
    found.expect("the package faketime; ./dev test installs it")
}

#[test]
fn a_wrong_clock_opens_and_closes_nothing() {
    let mut edge = Edge::selling(&[]);
    let soon = crate::harness::Sale { id: "soon", starts: 200, ends: 3600, ..Default::default() };
    let ending = crate::harness::Sale { id: "ending", starts: -60, ends: 200, ..Default::default() };
    edge.put(&soon);
    edge.put(&ending);
    for seconds in [300, -300] {
        let wrong = edge.another(wrong_clock(seconds), &[("name", "\"wrong\"")]);
        for id in ["demo", "soon", "ending"] {
            assert_eq!(wrong.sale(id)["state"], edge.sale(id)["state"], "{id} at {seconds}");
        }
        let early =
            wrong.connect().call("POST", "/v1/sales/soon/token", &[("Authorization", &bearer("a"))], "");
        assert_eq!(early.code(), "not_started", "at {seconds}");
        // A token and a ticket of either is good with the other, and so is a JWT of a right clock.
        let user = format!("user{seconds}");
        for (from, to, id) in [(&wrong, &*edge, "demo"), (&*edge, &wrong, "ending")] {
            let bought = to.buy(id, &user, &from.token(id, &user), ONE);
            assert_eq!(bought.status, 202, "{id} at {seconds}: {bought:?}");
            let body = bought.json();
            let mut events = from.connect();
            events.ask("GET", body["events_url"].as_str().unwrap(), &[], "");
            assert_eq!(events.head().unwrap().0, 200, "{id} at {seconds}");
        }
        let ready = wrong.ready();
        assert_eq!(ready.status, 200);
        assert!(ready.json()["reasons"].to_string().contains("clock"), "{:?}", ready.json());
        let skew = wrong.metric("sluice_clock_skew_seconds");
        assert!((skew - f64::from(seconds)).abs() < 2.0, "{skew} at {seconds}");
    }
    assert!(edge.metric("sluice_clock_skew_seconds").abs() < 2.0);
    assert!(!edge.ready().json()["reasons"].to_string().contains("clock"));
}

#[test]
fn clocks_that_are_too_far_apart_judge_nobody() {
    let (edge, clock) = (Edge::selling(&[]), ClockStep::new());
    let mut command = binary();
    command.envs(clock.environment());
    let wrong = edge.another(command, &[("name", "\"wrong\"")]);
    let token =
        || wrong.connect().call("POST", "/v1/sales/demo/token", &[("Authorization", &bearer("a"))], "");
    for seconds in [3600, -3600] {
        assert_eq!(token().status, 200);
        clock.set(seconds);
        eventually("it is a reason", || {
            wrong.ready().json()["reasons"].to_string().contains("no jwt is judged")
        });
        assert_eq!(token().code(), "unavailable");
        assert_eq!(wrong.sale("demo")["state"], "open");
        clock.set(0);
        eventually("it is right again", || token().status == 200);
    }
}

#[test]
fn stock_rules_are_those_of_redis_whatever_an_edge_was_told() {
    let mut edge = Edge::selling(&[]);
    let other = [
        ("name", "\"other\""),
        ("token.lead_seconds", "3600"),
        ("token.max_seconds", "30"),
        ("rate.user.per_second", "5"),
        ("rate.user.burst", "50"),
        ("reserve.batch_max", "1"),
        ("relay.shards", "4"),
    ];
    let other = edge.another(binary(), &other);
    // Both lists still say two; the script says one.
    edge.limit_in_secret("demo", 1);
    for (first, second, user) in [(&*edge, &other, "alice"), (&other, &*edge, "bob")] {
        assert_eq!(first.sale("demo")["items"][0]["per_user"], 2);
        assert_eq!(first.buy("demo", user, &first.token("demo", user), ONE).status, 202);
        let refused = second.buy("demo", user, &second.token("demo", user), ONE);
        assert_eq!(refused.code(), "purchase_limit");
        assert_eq!((&refused.json()["held"], &refused.json()["limit"]), (&1.into(), &1.into()));
    }
    // The whole shelf through both at once: not one unit more than there are.
    let sold = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (at, process) in [&*edge, &other, &*edge, &other].into_iter().enumerate() {
            let sold = &sold;
            scope.spawn(move || {
                for buyer in 0..40 {
                    let user = format!("crowd-{at}-{buyer}");
                    let answer = process.buy("demo", &user, &process.token("demo", &user), ONE);
                    match answer.status {
                        202 => sold.fetch_add(1, Ordering::Relaxed),
                        _ => u64::from(answer.code() != "sold_out") * 1_000_000,
                    };
                }
            });
        }
    });
    assert_eq!(sold.load(Ordering::Relaxed) + 2, 100);
}

/// Buys once with a token of each edge at the other one; whoever is refused is a buyer lost.
fn cross(edges: [&Process; 2], round: &str) {
    for (at, (from, to)) in [(edges[0], edges[1]), (edges[1], edges[0])].into_iter().enumerate() {
        let user = format!("{round}-{at}");
        let bought = to.buy("demo", &user, &from.token("demo", &user), ONE);
        assert_eq!(bought.status, 202, "{user}: {bought:?}");
    }
}

#[test]
fn keys_are_rotated_under_load_and_nobody_is_turned_away() {
    let (old, new) = ("\"k1:the old secret of the tests\"", "\"k2:the new secret of the tests\"");
    let edge = Edge::selling(&[("token.keys", &format!("[{old}]"))]);
    let second = edge.another(binary(), &[("name", "\"second\""), ("token.keys", &format!("[{old}]"))]);
    let reload = |process: &Process, from: &str, to: &str| {
        process.edit(from, to);
        let told = Connection::open(process.admin).call("POST", "/-/reload", &[], "");
        assert_eq!(told.status, 200, "{told:?}");
    };
    cross([&edge, &second], "before");
    let (early, kept) = (edge.token("demo", "early"), edge.token("demo", "kept"));
    let stop = AtomicBool::new(false);
    let bought = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for at in 0..2 {
            let (edges, stop, bought) = ([&*edge, &second], &stop, &bought);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) || round > 18 {
                        break;
                    }
                    cross(edges, &format!("load-{at}-{round}"));
                    bought.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        // Known everywhere first, then signed with, then the only one; the two edges never at once.
        for (from, to) in
            [(old.to_owned(), format!("{old}, {new}")), (format!("{old}, {new}"), format!("{new}, {old}"))]
        {
            for process in [&*edge, &second] {
                let before = bought.load(Ordering::Relaxed);
                reload(process, &from, &to);
                eventually("some more have bought", || bought.load(Ordering::Relaxed) >= before + 2);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(second.buy("demo", "early", &early, ONE).status, 202);
    for process in [&*edge, &second] {
        reload(process, &format!(", {old}"), "");
    }
    cross([&edge, &second], "after");
    assert_eq!(second.buy("demo", "kept", &kept, ONE).code(), "token_invalid");
}

#[test]
fn a_jwt_secret_is_replaced_by_a_reload_and_a_bad_file_changes_nothing() {
    let edge = Edge::selling(&[]);
    edge.edit("jwt secret of the tests", "short");
    let told = Connection::open(edge.admin).call("POST", "/-/reload", &[], "");
    assert_eq!((told.status, told.code().as_str()), (400, "bad_request"));
    assert!(told.json()["detail"].as_str().unwrap().contains("identity.jwt_secret"));
    edge.token("demo", "alice");
    edge.edit("short", "another secret, long enough");
    assert_eq!(Connection::open(edge.admin).call("POST", "/-/reload", &[], "").status, 200);
    let old = edge.connect().call("POST", "/v1/sales/demo/token", &[("Authorization", &bearer("alice"))], "");
    assert_eq!(old.code(), "unauthenticated");
}

/// Asks on and on over kept connections, as a balancer does: anew after `Connection: close`, and once
/// more when a kept connection had been closed before anything of an answer came.
fn ask_on(edge: &Edge, stop: &AtomicBool, asked: &AtomicU64) {
    let bearer = bearer("crowd");
    let (mut connection, mut kept) = (edge.connect(), false);
    while !stop.load(Ordering::Relaxed) {
        connection.ask("POST", "/v1/sales/demo/token", &[("Authorization", &bearer)], "");
        match connection.answer() {
            Some(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                asked.fetch_add(1, Ordering::Relaxed);
                kept = answer.field("connection") != Some("close");
            }
            None => {
                assert!(kept, "a fresh connection was cut");
                kept = false;
            }
        }
        if !kept {
            connection = edge.connect();
        }
    }
}

#[test]
fn a_successor_takes_the_place_and_no_request_notices() {
    let unlimited = [("rate.address.per_second", "0"), ("rate.user.per_second", "0")];
    let mut edge = Edge::selling(&unlimited);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut successors: Vec<Process> = Vec::new();
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| ask_on(&edge, &stop, &asked))).collect();
        for round in 0..6 {
            let (former, name) = (["edge", "next"][round % 2], ["next", "edge"][round % 2]);
            let next = edge.successor(former, name, &unlimited);
            eventually("the successor serves", || {
                edge.admit();
                next.log().contains("listening") && edge.state().join(format!("{name}.sock")).exists()
            });
            let before = asked.load(Ordering::Relaxed);
            eventually("it is asked", || asked.load(Ordering::Relaxed) > before + 20);
            assert_eq!(edge.ready().json()["state"], "ready");
            if let Some(former) = successors.last_mut() {
                assert!(former.ended(Duration::from_secs(20)).is_some_and(|status| status.success()));
            }
            successors.push(next);
        }
        stop.store(true, Ordering::Relaxed);
        for asking in asking {
            asking.join().unwrap();
        }
    });
    assert!(edge.ended(Duration::from_secs(20)).is_some_and(|status| status.success()));
    assert_eq!(edge.buy("demo", "alice", &edge.token("demo", "alice"), ONE).status, 202);
}

#[test]
fn a_successor_that_fails_costs_nothing() {
    let edge = Edge::selling(&[]);
    let mut never_admitted = edge.successor("edge", "next", &[]);
    eventually("it has the listeners", || never_admitted.log().contains("listening"));
    never_admitted.signal("TERM");
    assert!(never_admitted.ended(Duration::from_secs(10)).is_some_and(|status| !status.success()));
    eventually("the former says so", || edge.log().contains("this edge goes on"));
    assert_eq!(edge.ready().json()["state"], "ready");
    edge.token("demo", "alice");
    let same = binary().args(["--name", "edge", "--take-over", "edge"]).output().unwrap();
    assert_eq!(same.status.code(), Some(64));
}
