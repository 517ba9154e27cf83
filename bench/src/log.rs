//! The log of every request and its answer: what the oracle believes.
//!
//! Text, one line a request, tab-separated: due, sent, done (µs since the load began), kind, buyer,
//! order of the token, order that the answer names, units, status, outcome. A thread of its own
//! writes it and syncs it every 100 ms, so that the log outlives a crash of the drill.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sluice_shared::ids::OrderId;

use crate::client::outcome::Outcome;
use crate::client::{Entry, Kind};

const SYNC_EVERY: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;

/// What the writing thread is handed.
#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>),
    Settle(Sender<()>),
}

/// Writes a log.
#[derive(Debug)]
pub struct Writer {
    buffer: Vec<u8>,
    chunks: Option<Sender<Chunk>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    path: PathBuf,
}

impl Writer {
    /// Begins a log; one that is there is replaced.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let (chunks, receiver) = channel();
        let thread = std::thread::spawn(move || write_chunks(file, &receiver));
        Ok(Self {
            buffer: Vec::with_capacity(CHUNK),
            chunks: Some(chunks),
            thread: Some(thread),
            path: path.to_owned(),
        })
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes an entry.
    pub fn note(&mut self, entry: &Entry) {
        // Writing into memory cannot fail.
        write_entry(&mut self.buffer, entry).ok();
        if self.buffer.len() >= CHUNK - 512 {
            self.flush();
        }
    }

    /// Hands what is buffered to the writing thread.
    pub fn flush(&mut self) {
        if !self.buffer.is_empty() {
            let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
            if let Some(chunks) = &self.chunks {
                // Refused only when the thread has failed, which `finish` tells.
                chunks.send(Chunk::Bytes(chunk)).ok();
            }
        }
    }

    /// Waits until everything noted is in the file.
    pub fn settle(&mut self) -> Result<()> {
        self.flush();
        let (done, wait) = channel();
        if let Some(chunks) = &self.chunks {
            chunks.send(Chunk::Settle(done)).map_err(|_| anyhow!("the log's thread has failed"))?;
        }
        wait.recv().map_err(|_| anyhow!("the log's thread has failed"))
    }

    /// Writes and syncs everything.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.flush();
        self.chunks = None;
        let thread = self.thread.take().ok_or_else(|| anyhow!("the log was finished before"))?;
        let ended = thread.join().map_err(|_| anyhow!("the log's thread panicked"))?;
        ended.with_context(|| format!("writing {}", self.path.display()))?;
        Ok(self.path.clone())
    }
}

fn write_chunks(mut file: File, chunks: &Receiver<Chunk>) -> std::io::Result<()> {
    let mut synced = Instant::now();
    while let Ok(chunk) = chunks.recv() {
        match chunk {
            Chunk::Bytes(bytes) => file.write_all(&bytes)?,
            // Nobody waits any more when it cannot be told.
            Chunk::Settle(done) => done.send(()).unwrap_or_default(),
        }
        if synced.elapsed() >= SYNC_EVERY {
            file.sync_data()?;
            synced = Instant::now();
        }
    }
    file.sync_all()
}

fn write_entry(out: &mut Vec<u8>, entry: &Entry) -> std::io::Result<()> {
    let Entry { due, sent, done, buyer, units, status, .. } = *entry;
    write!(out, "{due}\t{sent}\t{done}\t{}\t{buyer}\t", entry.kind.as_str())?;
    for order in [entry.order, entry.named] {
        match order {
            Some(order) => write!(out, "{order}\t")?,
            None => out.extend_from_slice(b"-\t"),
        }
    }
    writeln!(out, "{units}\t{status}\t{}", entry.outcome.0)
}

/// Reads a log back.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut entries = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let entry = read_entry(&line?);
        entries.push(entry.with_context(|| format!("{}:{}: not a line of a log", path.display(), at + 1))?);
    }
    Ok(entries)
}

fn read_entry(line: &str) -> Option<Entry> {
    let mut fields = line.split('\t');
    let order = |text: &str| match text {
        "-" => Some(None),
        text => OrderId::parse(text).map(Some),
    };
    let entry = Entry {
        due: fields.next()?.parse().ok()?,
        sent: fields.next()?.parse().ok()?,
        done: fields.next()?.parse().ok()?,
        kind: Kind::parse(fields.next()?)?,
        buyer: fields.next()?.parse().ok()?,
        order: order(fields.next()?)?,
        named: order(fields.next()?)?,
        units: fields.next()?.parse().ok()?,
        status: fields.next()?.parse().ok()?,
        outcome: Outcome::parse(fields.next()?)?,
    };
    fields.next().is_none().then_some(entry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::client::outcome::{ACCEPTED, CUT};

    #[test]
    fn a_log_reads_back_what_was_noted() {
        let order = OrderId::mint(40, 0);
        let bought = Entry {
            due: 1,
            sent: 2,
            done: 30,
            kind: Kind::Buy,
            buyer: 7,
            order: Some(order),
            named: Some(order),
            units: 2,
            status: 202,
            outcome: ACCEPTED,
        };
        let lost = Entry { kind: Kind::Again, order: None, named: None, status: 0, outcome: CUT, ..bought };
        let path = std::env::temp_dir().join(format!("sluice-bench-log-{}", std::process::id()));
        let mut writer = Writer::create(&path).unwrap();
        for _ in 0..2_000 {
            writer.note(&bought);
            writer.note(&lost);
        }
        writer.finish().unwrap();
        let entries = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(entries.len(), 4_000);
        assert_eq!((entries[3_998], entries[3_999]), (bought, lost));
    }

    #[test]
    fn what_is_no_line_is_told() {
        assert_eq!(read_entry("1\t2\t3\tbuy\t7\t-\t-\t1\t202\tfine"), None);
        assert_eq!(read_entry("1\t2\t3\tbuy\t7\t-\t-\t1\t202\taccepted\tmore"), None);
        assert_eq!(read_entry(""), None);
    }
}
