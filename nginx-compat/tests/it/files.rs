//! Configurations that are right: trees of files written for these tests, and what Debian ships.

use std::path::{Path, PathBuf};

use sluice_nginx_compat::table::Context;
use sluice_nginx_compat::{Options, check, load};

use crate::peers::{folder, nginx_says};

/// Writes all trees into a folder. Each is given by the file that nginx is started with.
pub(crate) fn trees(name: &str) -> Vec<PathBuf> {
    let root = folder(name);
    let mut trees = Vec::new();
    for file in [include_str!("../data/trees/apps.txt"), include_str!("../data/trees/gates.txt")] {
        for tree in file.split("\n=== ").skip(1) {
            let (name, files) = tree.split_once('\n').unwrap();
            for (place, file) in files.split("--- ").skip(1).enumerate() {
                let (path, text) = file.split_once('\n').unwrap();
                let path = root.join(name).join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let text = text.replace("<cr>", "\r").replace("<tab>", "\t");
                std::fs::write(&path, text).unwrap();
                if place == 0 {
                    trees.push(path);
                }
            }
        }
    }
    assert!(trees.len() >= 40, "{}", trees.len());
    trees
}

/// The configuration of Debian's nginx, and every file beside it that it does not include.
pub(crate) fn shipped() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::from("/etc/nginx")];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder).expect("Debian's nginx is installed: ./dev test does it");
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if is_nginx(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    files
}

/// Other languages lie in that folder too.
fn is_nginx(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    !["modsecurity.conf", "modsecurity_includes.conf", "unicode.mapping"].contains(&&*name)
}

/// What nginx cannot find on the machine of a test is no fault of the language.
fn is_of_this_machine(words: &str) -> bool {
    [
        "cannot load certificate",
        "host not found",
        "dlopen()",
        "mkdir()",
        "sluice_config",
        "getpwnam(",
        "bind()",
        "open() \"/",
        "unknown directive \"lua_",
        "unknown directive \"stream\"",
        "SSL_CTX_load_verify_locations(",
    ]
    .iter()
    .any(|known| words.contains(known))
}

#[test]
fn what_is_right_is_right_here_and_in_nginx() {
    for path in trees("right") {
        let config = load(&path, &Options::default()).unwrap();
        let checked = check(&config);
        let errors: Vec<String> = checked.errors.iter().map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        assert!(!checked.found.is_empty());
        let _ = std::fs::create_dir_all(path.parent().unwrap().join("logs"));
        if let Some(words) = nginx_says(&path) {
            assert!(is_of_this_machine(&words), "nginx: {words}");
        }
    }
}

#[test]
fn what_debian_ships_is_right() {
    let config = load(Path::new("/etc/nginx/nginx.conf"), &Options::default()).unwrap();
    let checked = check(&config);
    assert!(checked.errors.is_empty(), "{:?}", checked.errors);
    assert!(checked.found.iter().any(|found| found.context == Context::Location), "its sites are included");
    for path in shipped() {
        let config = load(&path, &Options::default()).unwrap();
        let file = config.files.first().unwrap();
        assert!(file.broken.is_none(), "{:?}", file.broken);
        assert_eq!(file.print(), std::fs::read(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn an_include_that_leads_to_itself_is_refused() {
    let folder = folder("cycle");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("nginx.conf", "events {}\nhttp {\n  include a.conf;\n}\n");
    write("a.conf", "gzip on;\ninclude b.*;\n");
    write("b.conf", "\n\ninclude a.conf;\n");
    let says = first_error(&folder.join("nginx.conf"), &Options::default());
    let expected = format!("\"{0}/a.conf\" includes itself in {0}/b.conf:3", folder.display());
    assert_eq!(says.as_deref(), Some(&*expected));
}

#[test]
fn files_that_include_each_other_are_bounded_in_depth_and_in_number() {
    let folder = folder("bounds");
    for level in 0..40 {
        let text = format!("include {}.conf;\n", level + 1);
        std::fs::write(folder.join(format!("{level}.conf")), text).unwrap();
    }
    let says = first_error(&folder.join("0.conf"), &Options::default()).unwrap();
    assert!(says.starts_with("files include each other more than 32 deep"), "{says}");
    // In the innermost block of each file: two thousand blocks and files in each other.
    for level in 0..32 {
        let text = format!("{}include d{}.conf;{}", "a {".repeat(64), level + 1, "}".repeat(64));
        std::fs::write(folder.join(format!("d{level}.conf")), text).unwrap();
    }
    std::fs::write(folder.join("d32.conf"), "a b;").unwrap();
    let config = load(&folder.join("d0.conf"), &Options::default()).unwrap();
    assert_eq!(config.files.len(), 33);
    assert!(check(&config).errors[0].to_string().starts_with("unknown directive \"a\""));
    let deep = format!(
        "events {{}}\nhttp {{ server {{ {} include l0.conf; }} }}",
        "location / {".repeat(40) + &"}".repeat(40)
    );
    std::fs::write(folder.join("l.conf"), deep).unwrap();
    for level in 0..3 {
        let text = format!("{}include l{}.conf;{}", "location / {".repeat(40), level + 1, "}".repeat(40));
        std::fs::write(folder.join(format!("l{level}.conf")), text).unwrap();
    }
    std::fs::write(folder.join("l3.conf"), "").unwrap();
    let says = first_error(&folder.join("l.conf"), &Options::default()).unwrap();
    assert!(says.starts_with("blocks stand in each other more than 100 deep"), "{says}");
    // Twice in each file: a million and more times the last.
    for level in 0..24 {
        let text = format!("include w{0}.conf;\ninclude w{0}.conf;\n", level + 1);
        std::fs::write(folder.join(format!("w{level}.conf")), text).unwrap();
    }
    std::fs::write(folder.join("w24.conf"), "pcre_jit on;\n").unwrap();
    let config = load(&folder.join("w0.conf"), &Options::default()).unwrap();
    let last = check(&config).errors.last().unwrap().to_string();
    assert!(last.starts_with("more than 1048576 directives"), "{last}");
}

#[test]
fn nothing_outside_of_a_given_folder_is_opened() {
    let folder = folder("within");
    std::fs::create_dir_all(folder.join("conf")).unwrap();
    std::fs::write(folder.join("secret"), "s3cret;\n").unwrap();
    std::os::unix::fs::symlink(folder.join("secret"), folder.join("conf/link.conf")).unwrap();
    for name in ["/etc/shadow", "../secret", "link.conf", "l*.conf"] {
        let path = folder.join("conf/nginx.conf");
        std::fs::write(&path, format!("events {{}}\ninclude {name};\n")).unwrap();
        let options = Options { within: Some(folder.join("conf")) };
        let says = first_error(&path, &options).unwrap();
        assert!(says.contains("is outside of") && says.ends_with("nginx.conf:2"), "{name}: {says}");
        assert!(!says.contains("s3cret"), "{says}");
    }
}

#[test]
fn a_device_is_empty_and_a_folder_is_no_file() {
    let folder = folder("devices");
    let path = folder.join("nginx.conf");
    std::fs::write(&path, "events {}\ninclude /dev/zero;\n").unwrap();
    assert_eq!(first_error(&path, &Options::default()), None);
    std::fs::write(&path, "events {}\ninclude /etc;\n").unwrap();
    let says = first_error(&path, &Options::default()).unwrap();
    assert!(says.contains("failed (21: Is a directory)"), "{says}");
    let missing = load(&folder.join("none.conf"), &Options::default()).unwrap_err().to_string();
    assert!(missing.ends_with("none.conf\" failed (2: No such file or directory)"), "{missing}");
}

fn first_error(path: &Path, options: &Options) -> Option<String> {
    let config = load(path, options).unwrap();
    check(&config).errors.first().map(ToString::to_string)
}
