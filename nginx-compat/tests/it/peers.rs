//! The real nginx and crossplane. A test that needs one fails without it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of this test's own, empty.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What `nginx -t` says of a configuration: its first error as `words in file:line`. None if it has none.
pub(crate) fn nginx_says(path: &Path) -> Option<String> {
    let prefix = path.parent().unwrap();
    let output = Command::new("nginx")
        .args(["-t", "-e", "stderr", "-p"])
        .arg(prefix)
        .arg("-c")
        .arg(path)
        .output()
        .expect("nginx is installed: apt-get install nginx libnginx-mod-http-lua, or ./dev test");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return None;
    }
    // nginx may fail without a word: it has faults of its own.
    let (_, words) = said.split_once("[emerg] ").unwrap_or_default();
    // A word with a line feed in it goes on over lines. The last two lines say that the test failed.
    let words = words.split("\nnginx: ").next().unwrap_or_default().trim_end();
    // "12#12: " stands before the words once the log is open.
    let numbered =
        words.split_once(": ").filter(|(id, _)| id.bytes().all(|byte| b"0123456789#".contains(&byte)));
    Some(numbered.map_or(words, |(_, words)| words).to_owned())
}

/// What crossplane reads: its JSON, for each of these configurations.
pub(crate) fn crossplane(paths: &[PathBuf]) -> Vec<serde_json::Value> {
    let python = std::env::var_os("SLUICE_TEST_CROSSPLANE").expect(
        "SLUICE_TEST_CROSSPLANE names a Python that has crossplane 0.5.8: run ./dev test, or \
         python3 -m venv V && V/bin/pip install crossplane==0.5.8, and V/bin/python is it",
    );
    let script = "import sys, json, crossplane\n\
                  for path in sys.argv[1:]:\n\
                  \x20   print(json.dumps(crossplane.parse(path, comments=True, check_ctx=False, check_args=False)))";
    let output = Command::new(python).args(["-c", script]).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
