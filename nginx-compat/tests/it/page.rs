//! docs/nginx-compat.md is written from the table.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use sluice_nginx_compat::table::{Count, Inherits, Module, Rule, Table, Value, Verdict};

const RENEW: &str = "SLUICE_WRITE_DOCS=1 cargo test --release -p sluice-nginx-compat --test it page";

const INTRODUCTION: &str = "\
# Directives of nginx

Sluice reads an nginx configuration as nginx 1.22.1 does, the one in Debian 12. This page lists each directive of
that nginx, of the modules that Debian packages for it, and the two of Sluice's own. It is written from the table
in `nginx-compat/directives/`, by:

    RENEW

The verdict says what becomes of a directive:

| verdict | meaning |
|---|---|
| exact | it does what it does in nginx |
| changed | it has its effect, with the difference that is given |
| ignored | it has no effect, and nobody misses it |
| lost | it has no effect, and the configuration means something else without it: a start is refused |
| lost (later) | the same, and planned for a later version |

**Nothing is executed yet** but `include`: a verdict with *planned* is where the work goes, not what runs today.

In the column of arguments, `1 2` is one or two, `1+` one or more. Inheritance is what a block has of a directive
in the block around it: the *value* unless it sets its own; the whole *list* unless it has an entry of its own
(one `proxy_set_header` in a location drops all those of the server); *adds* to it; *own*: nothing, it holds where
it stands. A directive marked *once* may not stand twice in a block.

Errors have nginx's words and name nginx's line. There are differences:

- Every module is known, whether `load_module` names it or not.
- A directive's own parameters (those of `listen`, say) and everything that nginx opens or looks up (certificates,
  hosts, users, regular expressions) are not checked yet.
- Code in a `*_by_lua_block` may hold strings and comments longer than nginx's buffer of 4,096 bytes.
- A file has 16 MiB at the most, and a configuration 4,096 files; blocks stand 64 deep in a file at the most, files
  include each other 32 deep, both together 100 deep; what is included counts 1,048,576 directives at the most. A file
  that includes itself is refused.
";

fn count(rule: &Rule) -> String {
    match rule.count {
        Count::AtLeast(0) => "any".to_owned(),
        Count::AtLeast(least) => format!("{least}+"),
        Count::Of(bits) => {
            let allowed: Vec<String> =
                (0..8).filter(|n| (bits >> n) & 1 == 1).map(|n: u8| n.to_string()).collect();
            allowed.join(" ")
        }
    }
}

fn inherits(rule: &Rule) -> &'static str {
    match rule.inherits {
        Inherits::Nothing => "–",
        Inherits::Value => "value",
        Inherits::List => "list",
        Inherits::Adds => "adds",
        Inherits::Own => "own",
    }
}

fn contexts(rule: &Rule) -> String {
    if rule.name == "include" {
        return "any".to_owned();
    }
    let names: Vec<&str> = rule
        .contexts
        .iter()
        .map(|context| match context.name() {
            "server-if" => "if in server",
            "location-if" => "if in location",
            name => name,
        })
        .collect();
    names.join(", ")
}

fn row(rule: &Rule) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let verdict = match (rule.verdict, rule.built) {
        (verdict @ (Verdict::Exact | Verdict::Changed), false) => format!("{} (planned)", verdict.word()),
        (verdict, _) => verdict.word().to_owned(),
    };
    let block =
        if matches!(rule.value, Value::Block(_) | Value::Entries | Value::Lua) { " `{}`" } else { "" };
    let once = if rule.repeat == sluice_nginx_compat::table::Repeat::Once { ", once" } else { "" };
    let default = rule.default.map_or_else(|| "–".to_owned(), |text| format!("`{}`", cell(text)));
    let (contexts, count, inherits) = (contexts(rule), count(rule), inherits(rule));
    let reason = cell(rule.reason);
    format!(
        "| `{}` | {contexts} | {count}{block}{once} | {default} | {inherits} | {verdict} | {reason} |",
        rule.name
    )
}

fn totals(rules: &[Rule]) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for rule in rules {
        *counts.entry(rule.verdict.word()).or_default() += 1;
    }
    let words = ["exact", "changed", "ignored", "lost (later)", "lost"];
    let parts: Vec<String> = words.iter().map(|word| format!("{} {word}", counts[word])).collect();
    format!("{} directives: {}.", rules.len(), parts.join(", "))
}

fn page() -> String {
    let rules = &Table::get().rules;
    let mut page = INTRODUCTION.replace("RENEW", RENEW);
    writeln!(page, "\n{}", totals(rules)).unwrap();
    let mut module: Option<Module> = None;
    for rule in rules {
        if module != Some(rule.module) {
            module = Some(rule.module);
            let file = match rule.module.file {
                "nginx" => String::new(),
                "sluice" => " (Sluice's own)".to_owned(),
                file => format!(" (in `{file}`)"),
            };
            writeln!(page, "\n## {}{file}\n", rule.module.name).unwrap();
            page.push_str(
                "| directive | contexts | arguments | default | inheritance | verdict | reason |\n",
            );
            page.push_str("|---|---|---|---|---|---|---|\n");
        }
        writeln!(page, "{}", row(rule)).unwrap();
    }
    page
}

#[test]
fn the_page_of_directives_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nginx-compat.md");
    let page = page();
    if std::env::var_os("SLUICE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let line = written.lines().zip(page.lines()).position(|(old, new)| old != new);
    assert!(written == page, "docs/nginx-compat.md is out of date (line {line:?}); renew it:\n  {RENEW}");
}
