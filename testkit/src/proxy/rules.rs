//! What a proxy does with the bytes that it carries, and how it is said in words.

use std::net::SocketAddrV4;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::frames::Frame;
use super::way::Way;

/// What becomes of the bytes of one direction, until something else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// They are delivered.
    #[default]
    Pass,
    /// They are swallowed while the connection stays open. TCP delivers no stream with a gap: a
    /// connection that lost any is reset when this ends.
    Drop,
    /// They are kept, and delivered when this ends; what is more than the buffer waits at the sender.
    Hold,
    /// Each piece is delivered so much later, between the two.
    Delay(Duration, Duration),
    /// So many bytes a second.
    Throttle(u32),
}

/// Where in the stream of one direction a trap springs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// When so many bytes went through one connection since the trap was set.
    Bytes(u64),
    /// At the end of these bytes.
    Text(Vec<u8>),
    /// At the next whole frame of this kind.
    Frame(Frame),
}

/// What is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The connection is reset before the piece that sprang the trap is delivered.
    Lose,
    /// The piece is delivered, then the connection is cut: nobody learns what came of it.
    Cut,
    /// The piece is delivered twice. Upwards the connection is cut afterwards, for answers would no
    /// longer belong to their questions.
    Twice,
}

/// One thing that happens once, on whichever connection comes to it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// The direction that is watched.
    pub way: Way,
    /// Where it springs.
    pub moment: Moment,
    /// What it does.
    pub deed: Deed,
}

/// A trap that was set, and whether it has sprung.
#[derive(Debug)]
pub(super) struct Armed {
    pub(super) trap: Trap,
    sprung: AtomicBool,
}

impl Armed {
    pub(super) fn new(trap: Trap) -> Arc<Self> {
        Arc::new(Self { trap, sprung: AtomicBool::new(false) })
    }

    /// Whether it was this call that sprang it.
    pub(super) fn spring(&self) -> bool {
        !self.sprung.swap(true, Ordering::AcqRel)
    }

    pub(super) fn has_sprung(&self) -> bool {
        self.sprung.load(Ordering::Acquire)
    }
}

/// Everything that is said to a proxy; its connections follow every change.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) target: SocketAddrV4,
    pub(super) flow: [Flow; 2],
    pub(super) refuse: bool,
    pub(super) trap: Option<Arc<Armed>>,
    /// How often every connection was reset.
    pub(super) resets: u64,
    /// How often a direction of every connection was closed.
    pub(super) closes: [u64; 2],
}

impl Rules {
    pub(super) fn new(target: SocketAddrV4) -> Self {
        Self { target, flow: Default::default(), refuse: false, trap: None, resets: 0, closes: [0; 2] }
    }
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            other => bail!("{other:?} is no direction: up, down"),
        }
    }
}

impl FromStr for Flow {
    type Err = anyhow::Error;

    /// `pass`, `drop`, `hold`, `delay MS`, `delay MS-MS`, `throttle BYTES`.
    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["pass"] => Ok(Self::Pass),
            ["drop"] => Ok(Self::Drop),
            ["hold"] => Ok(Self::Hold),
            ["delay", time] => {
                let (least, most) = time.split_once('-').unwrap_or((time, time));
                let millis =
                    |text: &str| text.parse().map(Duration::from_millis).context("delay takes milliseconds");
                let (least, most) = (millis(least)?, millis(most)?);
                if least > most {
                    bail!("delay {time}: the first is the least");
                }
                Ok(Self::Delay(least, most))
            }
            ["throttle", rate] => match rate.parse() {
                Ok(rate) if rate > 0 => Ok(Self::Throttle(rate)),
                _ => bail!("throttle takes bytes a second, at least 1"),
            },
            _ => bail!("{text:?} is no flow: pass, drop, hold, delay MS[-MS], throttle BYTES"),
        }
    }
}

impl FromStr for Trap {
    type Err = anyhow::Error;

    /// `up|down lose|cut|twice bytes N|text T|frame F`.
    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.trim().splitn(4, ' ');
        let mut next = |what: &str| words.next().with_context(|| format!("a trap needs {what}"));
        let way = next("a direction: up, down")?.parse()?;
        let deed = match next("a deed: lose, cut, twice")? {
            "lose" => Deed::Lose,
            "cut" => Deed::Cut,
            "twice" => Deed::Twice,
            other => bail!("{other:?} is no deed: lose, cut, twice"),
        };
        let kind = next("a moment: bytes N, text T, frame F")?;
        let what = next("what its moment is")?;
        let moment = match kind {
            "bytes" => Moment::Bytes(what.parse().context("bytes takes a number")?),
            "text" => Moment::Text(what.as_bytes().to_vec()),
            "frame" => Moment::Frame(what.parse()?),
            other => bail!("{other:?} is no moment: bytes N, text T, frame F"),
        };
        Ok(Self { way, moment, deed })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn flows_and_traps_are_read_from_words() {
        let ms = Duration::from_millis;
        assert_eq!("delay 5-20".parse::<Flow>().unwrap(), Flow::Delay(ms(5), ms(20)));
        assert_eq!("delay 7".parse::<Flow>().unwrap(), Flow::Delay(ms(7), ms(7)));
        assert_eq!("throttle 9".parse::<Flow>().unwrap(), Flow::Throttle(9));
        for bad in ["", "delay", "delay 9-3", "delay x", "throttle 0", "passed"] {
            assert!(bad.parse::<Flow>().is_err(), "{bad}");
        }
        let trap: Trap = "up cut text COMMIT WORK".parse().unwrap();
        let moment = Moment::Text(b"COMMIT WORK".to_vec());
        assert_eq!(trap, Trap { way: Way::Up, moment, deed: Deed::Cut });
        let trap: Trap = "down lose frame confirm".parse().unwrap();
        assert_eq!((trap.moment, trap.deed), (Moment::Frame(Frame::Confirm), Deed::Lose));
        for bad in ["", "up", "up cut", "up cut bytes", "up cut bytes x", "up cut frame x", "by cut bytes 1"]
        {
            assert!(bad.parse::<Trap>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trap_springs_once() {
        let armed = Armed::new("up cut bytes 1".parse().unwrap());
        assert!(!armed.has_sprung());
        assert!(armed.spring());
        assert!(!armed.spring());
        assert!(armed.has_sprung());
    }
}
