//! Finds the frames in a stream of bytes, as far as faults are aimed at frames.

use std::str::FromStr;

use anyhow::bail;
use bytes::{Bytes, BytesMut};

use super::way::Way;

/// A frame longer than this is carried on as it comes.
const LONGEST: usize = 4 * 1024 * 1024;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Protocol {
    /// Bytes.
    #[default]
    Plain,
    /// RESP: commands of clients.
    Redis,
    /// AMQP 0-9-1: frames, a message with all of its own.
    Amqp,
}

/// A frame that a fault can be aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A call of a script (`EVALSHA`).
    Script,
    /// A message on its way to the broker (`basic.publish`).
    Publish,
    /// The broker has it (`basic.ack` from the broker).
    Confirm,
    /// A message on its way to a consumer (`basic.deliver`).
    Deliver,
    /// The consumer is done with it (`basic.ack` from a client).
    Ack,
}

impl FromStr for Frame {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> anyhow::Result<Self> {
        match word {
            "script" => Ok(Self::Script),
            "publish" => Ok(Self::Publish),
            "confirm" => Ok(Self::Confirm),
            "deliver" => Ok(Self::Deliver),
            "ack" => Ok(Self::Ack),
            other => bail!("{other:?} is no frame: script, publish, confirm, deliver, ack"),
        }
    }
}

/// A piece of the stream: a whole frame, or bytes of no known shape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    pub(super) frame: Option<Frame>,
}

/// Cuts one direction of one connection into pieces.
#[derive(Debug)]
pub(super) struct Framer {
    protocol: Protocol,
    way: Way,
    buffer: BytesMut,
    begun: bool,
}

/// What the beginning of a buffer is.
enum Found {
    /// A frame of so many bytes.
    Whole(usize, Option<Frame>),
    /// The beginning of one.
    Part,
    /// Not what this protocol sends.
    Strange,
}

impl Framer {
    pub(super) fn new(protocol: Protocol, way: Way) -> Self {
        // Nothing is aimed at answers of Redis.
        let plain = protocol == Protocol::Redis && way == Way::Down;
        let protocol = if plain { Protocol::Plain } else { protocol };
        Self { protocol, way, buffer: BytesMut::new(), begun: false }
    }

    /// Takes bytes and hands out the pieces that are whole.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.protocol == Protocol::Plain {
            pieces.push(Piece { bytes: Bytes::copy_from_slice(bytes), frame: None });
            return pieces;
        }
        self.buffer.extend_from_slice(bytes);
        while !self.buffer.is_empty() {
            match self.find() {
                Found::Whole(length, frame) => {
                    self.begun = true;
                    pieces.push(Piece { bytes: self.buffer.split_to(length).freeze(), frame });
                }
                Found::Part if self.buffer.len() <= LONGEST => break,
                Found::Part | Found::Strange => {
                    self.protocol = Protocol::Plain;
                    pieces.push(Piece { bytes: self.buffer.split().freeze(), frame: None });
                }
            }
        }
        pieces
    }

    /// What is left when the stream ends within a frame.
    pub(super) fn finish(&mut self) -> Option<Piece> {
        let rest = self.buffer.split().freeze();
        (!rest.is_empty()).then_some(Piece { bytes: rest, frame: None })
    }

    fn find(&self) -> Found {
        match self.protocol {
            Protocol::Redis => command(&self.buffer),
            Protocol::Amqp if !self.begun && self.way == Way::Up => header(&self.buffer),
            Protocol::Amqp => unit(&self.buffer, self.way),
            Protocol::Plain => Found::Strange,
        }
    }
}

/// `*N\r\n` and N times `$LENGTH\r\n…\r\n`.
fn command(bytes: &[u8]) -> Found {
    let Some((count, mut at)) = number(bytes, 0, b'*') else { return part_or_strange(bytes, b'*') };
    let mut name = None;
    for _ in 0..count {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((length, from)) = number(bytes, at, b'$') else { return part_or_strange(rest, b'$') };
        let Some(word) = bytes.get(from..from + length) else { return Found::Part };
        name.get_or_insert(word);
        at = from + length + 2;
    }
    if bytes.len() < at {
        return Found::Part;
    }
    let script = name.is_some_and(|name| name.eq_ignore_ascii_case(b"EVALSHA"));
    Found::Whole(at, script.then_some(Frame::Script))
}

fn part_or_strange(bytes: &[u8], mark: u8) -> Found {
    let line = bytes.len() < 24 && !bytes.contains(&b'\n');
    if bytes.first().is_none_or(|first| *first == mark) && line { Found::Part } else { Found::Strange }
}

/// The number after a mark, and where its line ends.
fn number(bytes: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let line = bytes.get(at..)?.strip_prefix(&[mark])?;
    let length = line.iter().take(20).position(|byte| *byte == b'\r')?;
    let digits = std::str::from_utf8(&line[..length]).ok()?;
    let end = at + 1 + length + 2;
    (bytes.len() >= end).then_some((digits.parse().ok()?, end))
}

/// `AMQP` and the version, which a client begins with.
fn header(bytes: &[u8]) -> Found {
    match bytes.len() {
        0..8 => Found::Part,
        _ if bytes.starts_with(b"AMQP") => Found::Whole(8, None),
        _ => Found::Strange,
    }
}

struct AmqpFrame<'a> {
    kind: u8,
    channel: u16,
    payload: &'a [u8],
    end: usize,
}

/// Type, channel, length, payload, 0xCE.
fn amqp_frame(bytes: &[u8], at: usize) -> Result<AmqpFrame<'_>, Found> {
    let head = bytes.get(at..at + 7).ok_or(Found::Part)?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let length = usize::try_from(length).map_err(|_| Found::Strange)?;
    let (from, to) = (at + 7, at + 7 + length);
    if length > LONGEST || bytes.get(to).is_some_and(|end| *end != 0xCE) {
        return Err(Found::Strange);
    }
    let payload = bytes.get(from..to).ok_or(Found::Part)?;
    bytes.get(to).ok_or(Found::Part)?;
    Ok(AmqpFrame { kind: head[0], channel: u16::from_be_bytes([head[1], head[2]]), payload, end: to + 1 })
}

/// A frame, or a method with its header and the bodies that belong to it.
fn unit(bytes: &[u8], way: Way) -> Found {
    let first = match amqp_frame(bytes, 0) {
        Ok(frame) => frame,
        Err(found) => return found,
    };
    let (frame, with_content) = method(&first, way);
    if !with_content {
        return Found::Whole(first.end, frame);
    }
    // Other channels may put frames between: then it is carried, but is nobody's target.
    let (mut at, mut left, mut mixed) = (first.end, None::<u64>, false);
    while left != Some(0) {
        let next = match amqp_frame(bytes, at) {
            Ok(next) => next,
            Err(found) => return found,
        };
        at = next.end;
        match (next.kind, next.channel == first.channel) {
            (2, true) => left = body_length(next.payload),
            (3, true) => left = left.map(|left| left.saturating_sub(next.payload.len() as u64)),
            (_, false) => mixed = true,
            // A method in the place of content.
            (_, true) => return Found::Whole(at, None),
        }
    }
    Found::Whole(at, frame.filter(|_| !mixed))
}

fn body_length(header: &[u8]) -> Option<u64> {
    header.get(4..12)?.try_into().ok().map(u64::from_be_bytes)
}

/// What a method is, and whether content follows.
fn method(frame: &AmqpFrame<'_>, way: Way) -> (Option<Frame>, bool) {
    let id = match frame.payload {
        [a, b, c, d, ..] if frame.kind == 1 => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        _ => return (None, false),
    };
    match (id, way) {
        ((60, 40), Way::Up) => (Some(Frame::Publish), true),
        ((60, 60), Way::Down) => (Some(Frame::Deliver), true),
        // basic.return and basic.get-ok
        ((60, 50 | 71), Way::Down) => (None, true),
        ((60, 80), Way::Up) => (Some(Frame::Ack), false),
        ((60, 80), Way::Down) => (Some(Frame::Confirm), false),
        _ => (None, false),
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
