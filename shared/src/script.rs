//! The Lua scripts, bound to Rust: what goes in, and a closed enum of what may come out.
//!
//! The texts are embedded by the compiler. Scripts that judge by the stock carry a fence (see `lua/README.md`):
//! [`SegmentScripts`] holds the names that Redis knows them by for one segment and epoch, and only
//! [`SegmentScripts::load`], called by the warden, makes Redis know them.

mod adjust;
mod delay;
mod release;
mod reserve;
mod settle;
mod warden;

pub use adjust::Adjusted;
pub use delay::DelayQueue;
pub use release::{Release, Released};
pub use reserve::{Answer, Answers, Ask, Reserved, fitting, mark_work};
pub use settle::{Settle, Settled};
pub use warden::{Control, Leased, Preload, Preloaded, Raised, WardenScripts};

use std::sync::LazyLock;

use crate::keys::Segment;
use crate::redis::{Fault, Redis, Value, cmd};

macro_rules! script {
    ($name:literal, $($lib:literal),*) => {
        Script {
            name: $name,
            body: concat!($(include_str!(concat!("../../lua/lib/", $lib, ".lua")),)*
                include_str!(concat!("../../lua/", $name, ".lua"))),
        }
    };
}

/// One file of `lua/` with the libraries that it uses.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// The file's name without its ending.
    pub name: &'static str,
    body: &'static str,
}

const RESERVE: Script = script!("reserve", "clock", "fetch", "lines", "lines_of_many", "refusal");
const RELEASE: Script = script!("release", "clock", "lines", "record");
const SETTLE: Script = script!("settle", "clock", "record");
const ADJUST: Script = script!("adjust",);
const PRELOAD: Script = script!("preload",);
const CONTROL: Script = script!("control",);
const LEASE: Script = script!("lease", "clock");
const RAISE: Script = script!("raise",);
const RESTORE: Script = script!("restore",);
const LEAD: Script = script!("lead",);
const SCHEDULE: Script = script!("schedule",);
const CLAIM: Script = script!("claim", "clock");
const FINISH: Script = script!("finish",);
const RECOVER: Script = script!("recover", "clock");

impl Script {
    /// Every script there is.
    pub const ALL: [Self; 14] = [
        RESERVE, RELEASE, SETTLE, ADJUST, PRELOAD, CONTROL, LEASE, RAISE, RESTORE, LEAD, SCHEDULE, CLAIM,
        FINISH, RECOVER,
    ];

    /// The text that Redis runs. The fence is the only thing that is ever formatted into a script,
    /// and its parts come from [`Segment::fence`], whose alphabet cannot leave the quotes.
    fn text(self, fence: Option<&str>) -> String {
        let flags = if self.name == "release" { " flags=allow-oom" } else { "" };
        let fence = fence.map(|fence| format!("local FENCE = '{fence}'\n")).unwrap_or_default();
        format!("#!lua{flags}\n{fence}{}", compact(self.body))
    }

    fn sha(text: &str) -> String {
        sha1_smol::Sha1::from(text).digest().to_string()
    }
}

/// A text without what Redis need not keep: comments, empty lines, indentation.
fn compact(body: &str) -> String {
    let lines = body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A script that Redis is asked to run by its name only.
#[derive(Debug, Clone)]
struct Loaded {
    script: Script,
    fence: Option<Box<str>>,
    sha: String,
}

impl Loaded {
    fn new(script: Script, fence: Option<&str>) -> Self {
        Self { sha: Script::sha(&script.text(fence)), script, fence: fence.map(Into::into) }
    }

    async fn load(&self, redis: &Redis) -> Result<(), Fault> {
        let (doing, text) = ("loading a script", self.script.text(self.fence.as_deref()));
        let sha: String = redis.run(doing, cmd("SCRIPT").arg("LOAD").arg(text)).await?;
        if sha == self.sha {
            return Ok(());
        }
        Err(Fault::Unreadable { doing, why: format!("redis calls it {sha}, we {}", self.sha) })
    }

    fn call(&self, keys: &[&str]) -> redis::Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.sha).arg(keys.len());
        for key in keys {
            call.arg(*key);
        }
        call
    }
}

/// Those that follow the books are one text for all segments, and are told the fence.
static FOLLOWING: LazyLock<[Loaded; 2]> =
    LazyLock::new(|| [RELEASE, SETTLE].map(|script| Loaded::new(script, None)));

/// The scripts of one sale segment in one epoch.
#[derive(Debug, Clone)]
pub struct SegmentScripts {
    /// The segment.
    pub segment: Segment,
    /// The epoch that the scripts are fenced by.
    pub epoch: u64,
    fence: String,
    keys: [String; 4],
    reserve: Loaded,
    release: Loaded,
    settle: Loaded,
    adjust: Loaded,
}

impl SegmentScripts {
    /// Names the scripts; Redis need not know them yet.
    pub fn new(segment: Segment, epoch: u64) -> Self {
        let fence = segment.fence(epoch);
        let fenced = |script| Loaded::new(script, Some(&fence));
        Self {
            keys: [segment.meta(), segment.stock(), segment.orders(), segment.journal()],
            reserve: fenced(RESERVE),
            release: FOLLOWING[0].clone(),
            settle: FOLLOWING[1].clone(),
            adjust: fenced(ADJUST),
            segment,
            epoch,
            fence,
        }
    }

    /// Makes Redis know the scripts. The warden alone does this, once per raised epoch, after it has
    /// looked at the data: loading is what re-opens a frozen sale.
    pub async fn load(&self, redis: &Redis) -> Result<(), Fault> {
        for script in [&self.release, &self.settle, &self.adjust, &self.reserve] {
            script.load(redis).await?;
        }
        Ok(())
    }

    /// The names that Redis knows the scripts by.
    pub fn names(&self) -> Vec<String> {
        [&self.reserve, &self.release, &self.settle, &self.adjust].map(|script| script.sha.clone()).into()
    }

    /// Whether Redis knows all of the scripts.
    pub async fn loaded(&self, redis: &Redis) -> Result<bool, Fault> {
        let names = self.names();
        let exists = cmd("SCRIPT").arg("EXISTS").arg(&names).to_owned();
        let there: Vec<bool> = redis.run("looking for the scripts", &exists).await?;
        Ok(there.len() == names.len() && there.into_iter().all(|one| one))
    }
}

/// Why a fenced script did nothing at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// The segment is in another epoch.
    Fenced(u64),
    /// Data is missing or the lease has lapsed; says what.
    Because(String),
}

/// What a fenced script gives for a batch: an answer each, or nothing was done.
pub type Batch<T> = Result<Vec<T>, Frozen>;

/// An answer as the words that it is made of.
struct Words {
    doing: &'static str,
    words: std::vec::IntoIter<Value>,
}

impl Words {
    fn new(doing: &'static str, value: Value) -> Result<Self, Fault> {
        match value {
            Value::Array(words) => Ok(Self { doing, words: words.into_iter() }),
            other => Err(Fault::Unreadable { doing, why: format!("not a list: {other:?}") }),
        }
    }

    fn text(&mut self) -> Result<String, Fault> {
        match self.words.next() {
            Some(Value::BulkString(bytes)) => {
                String::from_utf8(bytes).map_err(|_| self.unreadable("not UTF-8"))
            }
            Some(Value::Int(n)) => Ok(n.to_string()),
            Some(Value::SimpleString(text)) => Ok(text),
            other => Err(self.unreadable(&format!("{other:?} where a word should be"))),
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, Fault> {
        let text = self.text()?;
        text.parse().map_err(|_| self.unreadable(&format!("{text:?} is no number")))
    }

    fn unreadable(&self, why: &str) -> Fault {
        Fault::Unreadable { doing: self.doing, why: why.to_owned() }
    }

    fn unknown(&self, word: &str) -> Fault {
        self.unreadable(&format!("unknown word {word:?}"))
    }

    /// `{'ANSWERS', answer…}` or one of the refusals that every fenced batch script has.
    fn batch<T>(mut self, decode: impl Fn(&str) -> Option<T>) -> Result<Batch<T>, Fault> {
        let first = self.text()?;
        if first != "ANSWERS" {
            return self.frozen(&first).map(Err);
        }
        let mut answers = Vec::with_capacity(self.words.len());
        while self.words.len() > 0 {
            let word = self.text()?;
            answers.push(decode(&word).ok_or_else(|| self.unknown(&word))?);
        }
        Ok(Ok(answers))
    }

    fn frozen(&mut self, first: &str) -> Result<Frozen, Fault> {
        match first {
            "FENCED" => Ok(Frozen::Fenced(self.number()?)),
            "FROZEN" => Ok(Frozen::Because(self.text()?)),
            other => Err(self.unknown(other)),
        }
    }
}
