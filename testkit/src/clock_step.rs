//! A clock that jumps, for one process.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock_step.c");

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Steps the wall clock of the processes that have its [`environment`](Self::environment); deleted when
/// dropped.
#[derive(Debug)]
pub struct ClockStep {
    directory: PathBuf,
}

#[allow(clippy::expect_used)]
impl ClockStep {
    /// A clock that goes right.
    ///
    /// # Panics
    /// When there is no C compiler.
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-clock-{}-{number}", std::process::id());
        let clock = Self { directory: std::env::temp_dir().join(name) };
        std::fs::create_dir_all(&clock.directory).expect("a directory for the clock");
        // Servers may run as other users.
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&clock.directory, all).expect("a directory that all may read");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.library()).arg(SOURCE);
        assert!(cc.status().expect("cc runs").success(), "clock_step.c cannot be compiled");
        std::fs::write(clock.step(), 0_i64.to_ne_bytes()).expect("the file of the step");
        clock
    }

    fn library(&self) -> PathBuf {
        self.directory.join("clock_step.so")
    }

    fn step(&self) -> PathBuf {
        self.directory.join("step")
    }

    /// What a process needs in its environment to have this clock.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.display().to_string();
        [("LD_PRELOAD", text(&self.library())), ("CLOCK_STEP", text(&self.step()))]
    }

    /// It goes by so many seconds wrong from now on.
    ///
    /// # Panics
    /// When the file of the step cannot be written.
    pub fn set(&self, seconds: i64) {
        // In place: the page is mapped.
        let file = std::fs::OpenOptions::new().write(true).open(self.step()).expect("the file of the step");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the step");
    }
}

impl Default for ClockStep {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ClockStep {
    fn drop(&mut self) {
        // Whatever fails here leaves only a directory in the temporary folder behind.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
