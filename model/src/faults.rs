//! Which faults may strike, and how often.

/// How often each fault may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    /// An edge dies, and its memory with it.
    pub kill: u8,
    /// An edge stops for longer than its heartbeat, and wakes later.
    pub pause: u8,
    /// Redis starts anew with what it has on disk.
    pub restart: u8,
    /// A replica that lags takes over, or the tail of the AOF is lost.
    pub stale: u8,
    /// Redis is empty.
    pub wipe: u8,
    /// RabbitMQ is empty.
    pub broker: u8,
    /// Power cut of edges, Redis and RabbitMQ together.
    pub machine: u8,
    /// The warden dies between two of its steps.
    pub warden: u8,
    /// The lease lapses: the wardens were away for too long.
    pub lapse: u8,
    /// Another warden comes to lead while the first one still believes that it does.
    pub rival: u8,
    /// How many of all these may strike together, the warden's death aside; `None`: each as often as it
    /// may by itself.
    pub most: Option<u8>,
}

impl Faults {
    /// No fault.
    pub const NONE: Self = Self {
        kill: 0,
        pause: 0,
        restart: 0,
        stale: 0,
        wipe: 0,
        broker: 0,
        machine: 0,
        warden: 0,
        lapse: 0,
        rival: 0,
        most: None,
    };

    /// These and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            kill: self.kill + other.kill,
            pause: self.pause + other.pause,
            restart: self.restart + other.restart,
            stale: self.stale + other.stale,
            wipe: self.wipe + other.wipe,
            broker: self.broker + other.broker,
            machine: self.machine + other.machine,
            warden: self.warden + other.warden,
            lapse: self.lapse + other.lapse,
            rival: self.rival + other.rival,
            most: self.most.or(other.most),
        }
    }

    /// What may still strike after one has: where only some may strike together, it is all the same which
    /// it was.
    #[must_use]
    pub(crate) fn after(mut self, used: impl Fn(&mut Self)) -> Self {
        used(&mut self);
        let Some(most) = self.most.map(|most| most - 1) else { return self };
        self.most = Some(most);
        let kinds = [
            &mut self.kill,
            &mut self.pause,
            &mut self.restart,
            &mut self.stale,
            &mut self.wipe,
            &mut self.broker,
            &mut self.machine,
            &mut self.lapse,
            &mut self.rival,
        ];
        kinds.into_iter().for_each(|kind| *kind = most.min(*kind));
        self
    }

    /// All of it as one number.
    pub(crate) fn packed(&self) -> u64 {
        let kinds = [
            self.kill,
            self.pause,
            self.restart,
            self.stale,
            self.wipe,
            self.broker,
            self.machine,
            self.warden,
            self.lapse,
            self.rival,
            self.most.map_or(0, |most| most + 1),
        ];
        pack(0, 3, kinds)
    }

    /// Whether the data of Redis may fall back, where `always` says that it is on disk before each answer.
    pub fn need_a_replica(self, always: bool) -> bool {
        self.stale > 0 || (!always && (self.restart > 0 || self.machine > 0))
    }
}

/// Small numbers side by side after others, so many bits each.
///
/// # Panics
/// When one does not fit: two moments would look like one.
#[inline]
pub(crate) fn pack<const N: usize>(others: u64, bits: u32, parts: [u8; N]) -> u64 {
    let too_large = parts.iter().fold(0, |all, part| all | u64::from(*part) >> bits);
    assert!(too_large == 0, "one of {parts:?} does not fit into {bits} bits");
    parts.iter().fold(others, |all, part| all << bits | u64::from(*part))
}
