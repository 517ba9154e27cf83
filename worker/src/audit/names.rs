//! Names of what is not as it should be: all are counted, and enough of them kept.

/// Names that are kept: differences that come and go are told from those that stay by them.
const KEPT: usize = 10_000;

/// Some names, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    count: usize,
    kept: Vec<String>,
}

impl Names {
    /// One more.
    pub fn push(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.kept.len() < KEPT {
            self.kept.push(name());
        }
    }

    /// Others besides.
    pub fn join(&mut self, others: &Self) {
        self.count = self.count.saturating_add(others.count);
        let room = KEPT - self.kept.len();
        self.kept.extend(others.kept.iter().take(room).cloned());
    }

    /// So many more that nobody knows by name.
    pub fn nameless(&mut self, count: usize) {
        self.count = self.count.saturating_add(count);
    }

    /// Whether it is one of them.
    pub fn has(&self, name: &str) -> bool {
        self.kept.iter().any(|kept| kept == name)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those that are kept, in their order.
    pub fn into_sorted(mut self) -> Vec<String> {
        self.kept.sort_unstable();
        self.kept
    }
}

impl FromIterator<String> for Names {
    fn from_iter<T: IntoIterator<Item = String>>(all: T) -> Self {
        let mut names = Self::default();
        all.into_iter().for_each(|name| names.push(|| name));
        names
    }
}
