//! The register of edges, as a state machine without I/O: heartbeats in, what to write out.
//!
//! A heartbeat is an edge's application. It sells only once PostgreSQL has it, and it leaves the
//! register only when it is proven to hold nothing: a later start of its lock file lives, or it said
//! good-bye with nothing held. Silence proves nothing; but of a silent one an operator's word counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::clock::Millis;
use crate::ids::InstanceId;
use crate::sale::Heartbeat;

/// An edge in the register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// This start of it.
    pub instance: InstanceId,
    /// Its configured name.
    pub name: String,
    /// Its lock file.
    pub lock: String,
    /// Which start of that lock file.
    pub start: u64,
    /// Since when it stands here.
    pub since: Millis,
}

/// An edge that has not been heard of for so long is called silent.
const SILENT_MS: i64 = 2_000;

/// An edge's configured name and its instance.
type Named = (String, InstanceId);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write it into PostgreSQL; then tell [`Register::registered`].
    Register(Box<Heartbeat>),
    /// Strike it off in PostgreSQL, then in Redis; then tell [`Register::struck`].
    Strike(InstanceId, Reason),
    /// Its heartbeat is a dead edge's; remove it from Redis.
    Bury(InstanceId),
}

/// Why an edge is struck off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is proven dead, and never comes back.
    Dead(String),
    /// It is only silent, and nothing can be lost with it: heard again, it is registered again.
    Silent(String),
}

impl Reason {
    /// In words.
    pub fn text(&self) -> &str {
        match self {
            Self::Dead(why) | Self::Silent(why) => why,
        }
    }
}

/// The leading warden's knowledge of edges.
#[derive(Debug, Default)]
pub struct Register {
    edges: BTreeMap<InstanceId, Edge>,
    refused: BTreeSet<InstanceId>,
    /// Since when, as far as this warden knows.
    silent: BTreeMap<InstanceId, Millis>,
}

#[derive(Debug, Clone)]
struct Edge {
    name: String,
    lock: String,
    start: u64,
    last: Option<Heartbeat>,
}

impl Register {
    /// What PostgreSQL says at the take-over.
    pub fn of(rows: Vec<Registered>) -> Self {
        let edge = |row: Registered| {
            (row.instance, Edge { name: row.name, lock: row.lock, start: row.start, last: None })
        };
        Self { edges: rows.into_iter().map(edge).collect(), ..Self::default() }
    }

    /// Who stands in the register.
    pub fn instances(&self) -> Vec<InstanceId> {
        self.edges.keys().cloned().collect()
    }

    /// Redis is another one: a heartbeat that is gone was not taken away by its edge.
    pub fn forget_heartbeats(&mut self) {
        self.edges.values_mut().for_each(|edge| edge.last = None);
    }

    /// Looks at the heartbeats in Redis; says what to do.
    pub fn look(&mut self, heartbeats: &HashMap<InstanceId, Heartbeat>) -> Vec<Command> {
        let mut latest: HashMap<&str, (u64, &InstanceId)> = HashMap::new();
        for beat in heartbeats.values() {
            let known = latest.entry(&beat.lock).or_insert((beat.start, &beat.instance));
            if beat.start > known.0 {
                *known = (beat.start, &beat.instance);
            }
        }
        let mut commands = Vec::new();
        for (instance, edge) in &self.edges {
            let successor = latest.get(edge.lock.as_str()).filter(|(start, _)| *start > edge.start);
            if let Some((_, successor)) = successor {
                let why = format!("its successor {successor} holds the lock");
                commands.push(Command::Strike(instance.clone(), Reason::Dead(why)));
            } else if heartbeats.get(instance).is_some_and(|last| last.gone) {
                let why = Reason::Dead("stopped with nothing held".to_owned());
                commands.push(Command::Strike(instance.clone(), why));
            }
        }
        for (instance, beat) in heartbeats {
            if let Some(edge) = self.edges.get_mut(instance) {
                edge.last = Some(beat.clone());
            } else if beat.gone
                || latest.get(beat.lock.as_str()).is_some_and(|(start, _)| *start > beat.start)
                || self.refused.contains(instance)
            {
                commands.push(Command::Bury(instance.clone()));
            } else {
                commands.push(Command::Register(Box::new(beat.clone())));
            }
        }
        commands
    }

    /// PostgreSQL has it, or refuses it because it is proven dead.
    pub fn registered(&mut self, beat: &Heartbeat, stands: bool) {
        if stands {
            let edge = Edge {
                name: beat.name.clone(),
                lock: beat.lock.clone(),
                start: beat.start,
                last: Some(beat.clone()),
            };
            self.edges.insert(beat.instance.clone(), edge);
        } else {
            self.refused.insert(beat.instance.clone());
        }
    }

    /// It is out.
    pub fn struck(&mut self, instance: &InstanceId) {
        self.edges.remove(instance);
        self.silent.remove(instance);
    }

    /// Edges that fell silent, and edges that are heard again, since the last look: name and instance.
    pub fn silence(&mut self, now: Millis) -> (Vec<Named>, Vec<Named>) {
        let (mut fell, mut back) = (Vec::new(), Vec::new());
        for (instance, edge) in &self.edges {
            // One from the future was given before Redis' clock went back.
            let quiet = edge.last.as_ref().is_none_or(|last| (now.0 - last.at.0).abs() > SILENT_MS);
            if quiet && !self.silent.contains_key(instance) {
                self.silent.insert(instance.clone(), now);
                fell.push((edge.name.clone(), instance.clone()));
            } else if !quiet && self.silent.remove(instance).is_some() {
                back.push((edge.name.clone(), instance.clone()));
            }
        }
        (fell, back)
    }

    /// Edges that have been silent for at least so long.
    pub fn silent_for(&self, now: Millis, span: Duration) -> Vec<InstanceId> {
        let long = self.silent.iter().filter(|(_, since)| since.after(span) <= now);
        long.map(|(instance, _)| instance.clone()).collect()
    }

    /// Edges that an operator says are dead, with the reason: those that are silent are struck off. One
    /// that is heard lives, whatever anybody says.
    pub fn condemned(&self, said: &[(InstanceId, String)]) -> Vec<Command> {
        let silent = said.iter().filter(|(instance, _)| self.silent.contains_key(instance));
        let why = |why: &str| Reason::Dead(format!("an operator says that it is dead: {why}"));
        silent.map(|(instance, text)| Command::Strike(instance.clone(), why(text))).collect()
    }

    /// How many are silent.
    pub fn silent(&self) -> usize {
        self.silent.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn beat(instance: &str, lock: &str, start: u64) -> Heartbeat {
        Heartbeat {
            instance: InstanceId::parse(instance).unwrap(),
            name: "edge".to_owned(),
            lock: lock.to_owned(),
            start,
            at: Millis(10_000),
            generation: 0,
            held: 0,
            draining: false,
            gone: false,
            closed: BTreeMap::new(),
            broker: true,
        }
    }

    fn beats(list: &[&Heartbeat]) -> HashMap<InstanceId, Heartbeat> {
        list.iter().map(|beat| (beat.instance.clone(), (*beat).clone())).collect()
    }

    fn strikes(commands: &[Command]) -> Vec<String> {
        commands
            .iter()
            .filter_map(|command| match command {
                Command::Strike(instance, _) => Some(instance.to_string()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_heartbeat_is_an_application_and_postgresql_decides() {
        let (mut register, a) = (Register::default(), beat("a", "l", 1));
        assert_eq!(register.look(&beats(&[&a])), [Command::Register(Box::new(a.clone()))]);
        register.registered(&a, true);
        assert_eq!(register.look(&beats(&[&a])), []);
        assert_eq!(register.instances(), [a.instance]);
    }

    #[test]
    fn a_successor_on_the_same_lock_file_proves_death() {
        let (a, b, c) = (beat("a", "l", 1), beat("b", "l", 2), beat("c", "other", 9));
        let mut register = Register::default();
        [&a, &c].into_iter().for_each(|beat| register.registered(beat, true));
        let commands = register.look(&beats(&[&a, &b, &c]));
        assert_eq!(strikes(&commands), ["a"]);
        assert!(commands.contains(&Command::Register(Box::new(b))));
    }

    #[test]
    fn a_dead_edges_heartbeat_never_gets_it_into_the_register() {
        let (a, b) = (beat("a", "l", 1), beat("b", "l", 2));
        let mut register = Register::default();
        register.registered(&b, true);
        assert_eq!(register.look(&beats(&[&a, &b])), [Command::Bury(a.instance.clone())]);
        let mut register = Register::default();
        register.registered(&a, false);
        assert_eq!(register.look(&beats(&[&a])), [Command::Bury(a.instance)]);
    }

    #[test]
    fn only_a_good_bye_is_a_good_bye_and_a_later_warden_reads_it_too() {
        for (draining, gone, there, struck) in
            [(true, true, true, true), (true, false, true, false), (true, false, false, false)]
        {
            let mut a = beat("a", "l", 1);
            let mut register = Register::default();
            register.registered(&a, true);
            (a.draining, a.gone) = (draining, gone);
            let there = if there { beats(&[&a]) } else { beats(&[]) };
            assert_eq!(!strikes(&register.look(&there)).is_empty(), struck, "{draining} {gone}");
        }
        let gone = Heartbeat { gone: true, ..beat("b", "m", 1) };
        assert_eq!(Register::default().look(&beats(&[&gone])), [Command::Bury(gone.instance.clone())]);
    }

    #[test]
    fn a_heartbeat_from_the_future_is_silence() {
        let a = beat("a", "l", 1);
        let mut register = Register::default();
        register.registered(&a, true);
        assert!(register.silence(Millis(a.at.0 - 1_000)).0.is_empty());
        assert_eq!(register.silence(Millis(a.at.0 - 60_000)).0.len(), 1);
    }

    #[test]
    fn a_wiped_redis_strikes_nobody_off() {
        let mut a = beat("a", "l", 1);
        let mut register = Register::default();
        register.registered(&a, true);
        a.draining = true;
        register.look(&beats(&[&a]));
        register.forget_heartbeats();
        assert_eq!(register.look(&beats(&[])), []);
    }

    #[test]
    fn silence_is_told_once_and_changes_nothing() {
        let a = beat("a", "l", 1);
        let mut register = Register::default();
        register.registered(&a, true);
        assert!(register.silence(Millis(12_000)).0.is_empty());
        assert_eq!(register.silence(Millis(12_001)).0.len(), 1);
        assert!(register.silence(Millis(13_000)).0.is_empty());
        assert_eq!(register.instances(), std::slice::from_ref(&a.instance));
        let mut late = a;
        late.at = Millis(13_000);
        register.look(&beats(&[&late]));
        assert_eq!(register.silence(Millis(13_001)).1.len(), 1);
    }
}
