//! The same bytes to the edge, nginx and HAProxy: where one sees a request, none may see two, nor another
//! body. `SLUICE_FUZZ_SECONDS` lets it run for long, `SLUICE_FUZZ_SEED` begins elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fuzz_peers::{Heard, Peers, See, Seen, own, own_seen, send, shop_seen};
use crate::harness::{Edge, bearer};

/// Cases where nobody asks for more, of each kind.
const CASES: u64 = 1500;
const THREADS: u64 = 6;

/// Chance that can be had again (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const HOSTS: [&str; 9] = [
    "Host: gate\r\n",
    "Host: gate\r\n",
    "Host: gate\r\n",
    "Host: gate\r\n",
    "Host: gate\r\n",
    "host:gate\r\n",
    "Host: gate\r\nHost: gate\r\n",
    "Host: a b\r\n",
    "",
];
const ODD: [&str; 16] = [
    "Connection: keep-alive\r\n",
    "Connection: close\r\n",
    "Connection: Content-Length\r\n",
    "Connection: Transfer-Encoding\r\n",
    "X-Folded: a\r\n Content-Length: 9\r\n",
    "X-Bare: a\n",
    "X\rY: a\r\n",
    "Content-Length : 3\r\n",
    " Content-Length: 3\r\n",
    "X: a\r\n\tTransfer-Encoding: chunked\r\n",
    "No colon\r\n",
    "Content_Length: 3\r\n",
    "X: \0\r\n",
    "X: \u{b}a\r\n",
    "TE: trailers\r\n",
    "Trailer: X-Sum\r\n",
];
const LENGTHS: [&str; 8] =
    ["{}, {}", "+{}", " {}\t", "0{}", "{}\r\nContent-Length: {}", "0x{}", "{}.0", "-{}"];
const CODINGS: [&str; 18] = [
    "chunked",
    "chunked",
    "Chunked",
    " chunked",
    "chunked ",
    "\tchunked",
    "chunked, chunked",
    "gzip, chunked",
    "chunked, gzip",
    "identity",
    "chunked,",
    ",chunked",
    "\"chunked\"",
    "chunked;q=1",
    "xchunked",
    "chunked\r\nTransfer-Encoding: chunked",
    "gzip\r\nTransfer-Encoding: chunked",
    "\u{b}chunked",
];
const SIZES: [&str; 14] = [
    "{}",
    "{}",
    "{}",
    "{}",
    "0{}",
    "00000000{}",
    "{};a=b",
    "{} ;a",
    "{} ",
    " {}",
    "0x{}",
    "+{}",
    "{};a\nb",
    "",
];
const ENDS: [&str; 8] = ["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", ""];
const LASTS: [&str; 10] = [
    "0\r\n\r\n",
    "0\r\n\r\n",
    "0\r\n\r\n",
    "00\r\n\r\n",
    "0;a\r\n\r\n",
    "0\r\nX-Sum: 1\r\n\r\n",
    "0\n\n",
    "0\r\n",
    "0\r\nContent-Length: 9\r\n\r\n",
    "\r\n",
];

/// What a case asks for, and how.
pub(crate) struct Kind {
    fields: String,
    path: fn(at: usize) -> String,
    last: &'static str,
    see: See,
}

/// What our side makes of a case.
type Ours<'a> = &'a (dyn Fn(u64, &[Vec<u8>]) -> Vec<Heard> + Sync);

/// A body within its frame, which may be broken: fields, and bytes.
fn framed(dice: &mut Dice, body: &str) -> (String, String) {
    match dice.below(8) {
        0 => (String::new(), String::new()),
        1..3 => (format!("Content-Length: {}\r\n", body.len()), body.to_owned()),
        3 => {
            let length = dice.pick(&LENGTHS).replace("{}", &body.len().to_string());
            (format!("Content-Length: {length}\r\n"), body.to_owned())
        }
        4 => {
            let (fields, chunks) = chunked(dice, body);
            let length = format!("Content-Length: {}\r\n", dice.pick(&["0", "2", "5", "40"]));
            (if dice.one_in(2) { length + &fields } else { fields + &length }, chunks)
        }
        _ => chunked(dice, body),
    }
}

fn chunked(dice: &mut Dice, body: &str) -> (String, String) {
    let name =
        dice.pick(&["Transfer-Encoding", "Transfer-Encoding", "transfer-encoding", "Transfer_Encoding"]);
    let fields = format!("{name}: {}\r\n", if dice.one_in(2) { "chunked" } else { dice.pick(&CODINGS) });
    let (cut, plain) = (dice.below(body.len() + 1), dice.one_in(2));
    let mut chunks = String::new();
    for part in [&body[..cut], &body[cut..]].into_iter().filter(|part| !part.is_empty()) {
        let off = if !plain && dice.one_in(8) { dice.below(3) } else { 0 };
        let size = format!("{:x}", part.len() + off);
        let line = if plain { "{}" } else { dice.pick(&SIZES) };
        let (first, second) = if plain { ("\r\n", "\r\n") } else { (dice.pick(&ENDS), dice.pick(&ENDS)) };
        chunks += &format!("{}{first}{part}{second}", line.replace("{}", &size));
    }
    (fields, chunks + if plain { "0\r\n\r\n" } else { dice.pick(&LASTS) })
}

/// Some requests behind each other, the last one plain; most of them somehow wrong. They say whose they
/// are by `name`.
pub(crate) fn case(kind: &Kind, number: u64, seed: u64, name: u64) -> Vec<Vec<u8>> {
    let mut dice = Dice(seed ^ (number << 20));
    let mut bytes = Vec::new();
    for at in 0..1 + dice.below(3) {
        let body = format!("{{\"m{at}\":{}}}", "1".repeat(1 + dice.below(12)));
        let (fields, body) = framed(&mut dice, &body);
        let host = dice.pick(&HOSTS);
        let odd = if dice.one_in(4) { dice.pick(&ODD) } else { "" };
        let version = dice.pick(&["1.1", "1.1", "1.1", "1.1", "1.1", "1.1", "1.0"]);
        let (space, end) = if dice.one_in(16) { (dice.pick(&["  ", "\t"]), "\n") } else { (" ", "\r\n") };
        let target = match dice.below(16) {
            0 => format!("http://gate{}", (kind.path)(at)),
            1 => format!("{}#x", (kind.path)(at)),
            _ => (kind.path)(at),
        };
        let blank = if dice.one_in(16) { dice.pick(&["\r\n", "\n", "\r\n\r\n"]) } else { "" };
        let line = format!("{blank}POST{space}{target} HTTP/{version}{end}");
        bytes.extend_from_slice(format!("{line}X-Case: {name}\r\nX-Request-Id: r{at}\r\n").as_bytes());
        let start = bytes.len();
        let rest = format!("{host}{}{odd}{fields}\r\n{body}", kind.fields);
        bytes.extend_from_slice(rest.as_bytes());
        // A byte anywhere behind what says whose request it is.
        if dice.one_in(6) {
            let at = start + dice.below(bytes.len() - start);
            let byte = dice.pick(&["\r", "\n", "\0", " ", "\t", ":", ";", "0", "a", ","]).as_bytes()[0];
            match dice.below(3) {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => {
                    bytes.remove(at);
                }
            }
        }
    }
    bytes.extend_from_slice(kind.last.replace("{case}", &name.to_string()).as_bytes());
    let mut parts = vec![bytes];
    while dice.one_in(2) && parts.len() < 4 {
        let last = parts.pop().unwrap();
        let cut = dice.below(last.len());
        let (head, tail) = last.split_at(cut);
        parts.extend([head.to_vec(), tail.to_vec()]);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Why what two of them made of a case is wrong, if it is.
fn wrong(ours: &Heard, theirs: &Heard) -> Option<&'static str> {
    let common = ours.seen.iter().zip(&theirs.seen);
    let differ = common.filter(|(one, other)| one != other).count() > 0;
    let (more, fewer) = (ours.seen.len() > theirs.seen.len(), ours.seen.len() < theirs.seen.len());
    match () {
        () if differ => Some("another request"),
        // Whoever refuses, or ends the connection, sees less; who waits takes it for a body.
        () if more && theirs.waits => Some("a request that is a body to the other"),
        () if fewer && ours.waits => Some("a body that is a request to the other"),
        () if more && theirs.ended_well => Some("a request that the other does not see"),
        () => None,
    }
}

/// One case to all; what is wrong about it.
fn judge(peers: &Peers, kind: &Kind, number: u64, seed: u64, name: u64, ours: Ours<'_>) -> Vec<String> {
    let parts = case(kind, number, seed, name);
    let ours = ours(name, &parts);
    let mut problems = Vec::new();
    for (name, heard) in peers.ask(name, &parts, kind.see) {
        for one in &ours {
            if let Some(what) = wrong(one, &heard) {
                problems.push(format!("{what} ({name})\nours {one:?}\n{name} {heard:?}"));
            }
        }
    }
    for pair in ours.windows(2) {
        if let Some(what) = wrong(&pair[0], &pair[1]).or_else(|| wrong(&pair[1], &pair[0])) {
            problems.push(format!("{what} (our two ways)\n{:?}\n{:?}", pair[0], pair[1]));
        }
    }
    let bytes: Vec<String> = parts.iter().map(|part| part.escape_ascii().to_string()).collect();
    problems.iter().map(|problem| format!("case {number} of seed {seed}: {problem}\n{bytes:#?}")).collect()
}

/// Many cases at once.
fn run(peers: &Peers, kind: &Kind, ours: Ours<'_>) {
    let number =
        |name: &str, other: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(other);
    let (seconds, seed) = (number("SLUICE_FUZZ_SECONDS", 0), number("SLUICE_FUZZ_SEED", 1));
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let goes_on = |case| case < CASES || began.elapsed() < Duration::from_secs(seconds);
    let suspects: Vec<u64> = std::thread::scope(|scope| {
        let worker = || {
            let mut suspects = Vec::new();
            loop {
                let case = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(case) || suspects.len() > 20 {
                    return suspects;
                }
                if !judge(peers, kind, case, seed, case, ours).is_empty() {
                    suspects.push(case);
                }
            }
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    // A busy machine may look like a peer that waits: alone, a case says the same again or is none.
    let again = |case: &u64| judge(peers, kind, *case, seed, *case + (1 << 40), ours);
    let problems: Vec<String> = suspects.iter().flat_map(again).collect();
    assert!(
        problems.is_empty(),
        "{} cases differ\n{}",
        problems.len(),
        problems[..problems.len().min(5)].join("\n\n")
    );
}

fn settings(shop: &str) -> Vec<(&'static str, String)> {
    vec![
        ("upstream.address", format!("\"{shop}\"")),
        ("limits.head_timeout_ms", "300".into()),
        ("limits.body_timeout_ms", "300".into()),
        ("limits.idle_timeout_ms", "1000".into()),
        ("rate.address.per_second", "0".into()),
        ("rate.user.per_second", "0".into()),
    ]
}

fn edge(peers: &Peers) -> Edge {
    let settings = settings(&peers.shop.address.to_string());
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Edge::selling(&settings)
}

#[test]
fn what_reaches_the_shop_is_what_other_proxies_pass_on() {
    let peers = Peers::start();
    let edge = edge(&peers);
    let kind = Kind {
        fields: String::new(),
        path: |at| format!("/cart/{at}"),
        last: "GET /end HTTP/1.1\r\nX-Case: {case}\r\nHost: gate\r\nConnection: close\r\n\r\n",
        see: shop_seen,
    };
    let public = edge.public;
    let ours = |name: u64, parts: &[Vec<u8>]| vec![peers.shop.through(public, name, parts, shop_seen)];
    run(&peers, &kind, &ours);
    assert!(peers.shop.count() > 500, "{} requests", peers.shop.count());
}

#[test]
fn what_our_own_calls_see_is_what_other_proxies_pass_on() {
    let peers = Peers::start();
    let edge = edge(&peers);
    let kind = Kind {
        fields: format!("Authorization: {}\r\n", bearer("alice")),
        path: |_| "/v1/sales/demo/token".to_owned(),
        last: "GET /v1/sales/demo HTTP/1.1\r\nX-Case: {case}\r\nX-Request-Id: end\r\nHost: gate\r\n\
               Connection: close\r\n\r\n",
        see: own_seen,
    };
    let public = edge.public;
    // In one piece the short way reads it, by its first bytes alone a session.
    let ours = |_: u64, parts: &[Vec<u8>]| {
        let whole = [parts.concat()];
        let (head, rest) = whole[0].split_at(9);
        let slow = [head.to_vec(), rest.to_vec()];
        [&whole[..], parts, &slow[..]].iter().map(|parts| own(&send(public, parts))).collect()
    };
    run(&peers, &kind, &ours);
}

#[test]
fn the_dice_fall_alike_for_a_seed() {
    let kind = Kind { fields: String::new(), path: |_| "/".into(), last: "x", see: shop_seen };
    let mut shapes: BTreeMap<usize, usize> = BTreeMap::new();
    for number in 0..200 {
        let parts = case(&kind, number, 7, 1);
        assert_eq!(parts, case(&kind, number, 7, 1));
        *shapes.entry(parts.len()).or_default() += 1;
    }
    assert!(shapes.len() >= 3, "{shapes:?}");
    let one = |name: &str| Heard { seen: vec![Seen(name.into(), "".into())], ..Heard::default() };
    assert_eq!(wrong(&one("a"), &one("b")), Some("another request"));
    assert_eq!(
        wrong(&one("a"), &Heard { waits: true, ..Heard::default() }),
        Some("a request that is a body to the other")
    );
    assert_eq!(wrong(&one("a"), &Heard::default()), None);
}
