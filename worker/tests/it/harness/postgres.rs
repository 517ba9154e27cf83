//! A PostgreSQL of one test's own, for what cannot be done to one that others use: its disk fills up, its
//! clock jumps.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_testkit::{free_port, required};
use sluice_worker::store::Store;

use super::database::config_of;

/// In a mount namespace, so that nobody else sees the disk, which ends with the server. It may not be root.
/// What it writes ahead is made in small pieces: a disk of this size would be full of some of the usual. A
/// server that ends by itself is started again, as a machine's supervisor does.
const START: &str = r#"
set -eu
bin=$1 port=$2 size=$3; shift 3
mount -t tmpfs -o "size=$size,mode=700,uid=$(id -u postgres)" postgres /mnt
cd /mnt
setpriv --reuid=postgres --clear-groups "$bin/initdb" -D /mnt/data -U postgres -A trust --no-sync \
  --wal-segsize=1 --encoding=UTF8 --locale=C.UTF-8 >&2
while :; do
  setpriv --reuid=postgres --clear-groups env "$@" "$bin/postgres" -D /mnt/data -p "$port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=32MB -c max_wal_size=8MB \
    -c min_wal_size=2MB -c timezone=UTC || sleep 0.1
done
"#;
/// Its whole disk, of which a new cluster with a migrated database takes a half.
const SIZE: &str = "128m";
const PATIENCE: Duration = Duration::from_secs(60);

/// The server; gone with its disk when dropped.
pub struct PrivatePostgres {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl PrivatePostgres {
    /// Starts one with these variables in its environment.
    pub fn start(environment: &[(&str, String)]) -> Self {
        let port = free_port();
        let log =
            std::env::temp_dir().join(format!("sluice-test-postgres-{}-{port}.log", std::process::id()));
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"])
            .args([&required("SLUICE_TEST_POSTGRES_BIN"), &port.to_string(), SIZE])
            .args(environment.iter().map(|(name, value)| format!("{name}={value}")))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut server = Self { child, port, log };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none() && Instant::now() < end, "{}", server.told());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Its port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A migrated database there.
    pub async fn database(&self) -> super::TestDatabase {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let store = Store::connect(&config_of(&url)).await.unwrap_or_else(|e| panic!("{e}: {}", self.told()));
        store.migrate().await.unwrap();
        store.close().await;
        super::TestDatabase::whole(url).await
    }

    /// Leaves no room on its disk.
    pub fn fill_disk(&self) {
        let mut ballast = OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        let mut block = vec![0; 1 << 20];
        while !block.is_empty() {
            // Ever smaller pieces, until not a byte more fits.
            if ballast.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    }

    /// Makes room again.
    pub fn clear_disk(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    /// A file on its disk, as seen by those who may see it.
    fn ballast(&self) -> String {
        format!("/proc/{}/root/mnt/ballast", self.child.id())
    }

    /// What it has told so far.
    pub fn told(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // At once, with whoever starts it again. What fails here leaves a process of a test behind.
        let _ = Command::new("kill").args(["-QUIT", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}
