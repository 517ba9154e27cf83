//! A broken file of each kind, through `nginx -t` and through the check: the same words, the same line.

use std::path::Path;

use sluice_nginx_compat::{Options, check, load};

use crate::peers::{folder, nginx_says};

/// Each kind with its file. `{}` at the beginning stands for an empty `events` block.
fn kinds() -> Vec<(&'static str, String)> {
    let mut kinds = Vec::new();
    for file in [
        include_str!("../data/broken/syntax.txt"),
        include_str!("../data/broken/places.txt"),
        include_str!("../data/broken/values.txt"),
    ] {
        for part in file.split("\n=== ").skip(1) {
            let (name, text) = part.split_once('\n').unwrap();
            kinds.push((name, written(text)));
        }
    }
    kinds
}

/// The text of a kind, with what a text file of many cannot hold.
fn written(text: &str) -> String {
    let text = text.trim_end_matches('\n');
    let text = if let Some(cut) = text.strip_suffix("<end>") { cut.to_owned() } else { format!("{text}\n") };
    text.replace("<bom>", "\u{feff}")
        .replace("<cr>", "\r")
        .replace("<tab>", "\t")
        .replace("<3000>", &"w".repeat(3000))
        .replace("<4096>", &"x".repeat(4096))
        .replace("<5000>", &"y".repeat(5000))
}

fn we_say(path: &Path) -> Option<String> {
    let config = load(path, &Options::default()).unwrap();
    check(&config).errors.first().map(ToString::to_string)
}

#[test]
fn a_broken_file_of_each_kind_is_refused_in_nginx_s_words_at_nginx_s_line() {
    let folder = folder("broken");
    std::fs::write(folder.join("half.conf"), "server {\n  listen 80;\n").unwrap();
    std::fs::write(folder.join("more.conf"), "listen 80;\n}\n").unwrap();
    std::fs::write(folder.join("odd.conf"), "gzip on;\n\nstrange on;\n").unwrap();
    let kinds = kinds();
    assert!(kinds.len() >= 60, "{}", kinds.len());
    let mut wrong = Vec::new();
    for (name, text) in &kinds {
        let path = folder.join(format!("{}.conf", name.replace(' ', "_")));
        std::fs::write(&path, text).unwrap();
        let (nginx, we) = (nginx_says(&path), we_say(&path));
        if nginx.is_none() || nginx != we {
            wrong.push(format!("{name}\n  nginx: {nginx:?}\n  we:    {we:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
}
