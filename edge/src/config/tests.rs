use super::*;

const LEAST: &str = "[identity]\njwt_secret = \"0123456789abcdef\"\n[token]\nkeys = [\"k1:0123456789abcdef\"]\n\
    [api]\nsecret = \"0123456789abcdef\"\n";

fn read(file: &str) -> Result<Config, Problems> {
    Config::read(Settings::merge(DEFAULTS, Some(file), []), None)
}

#[test]
fn the_defaults_lack_only_secrets() {
    let config = read(LEAST).unwrap();
    assert_eq!((config.limits.body_bytes, config.rate.address.burst), (4096, 2000));
    assert!(config.upstream.is_none());
    let keys: Vec<String> = read("").unwrap_err().0;
    let keys: Vec<&str> = keys.iter().map(|problem| problem.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["identity.jwt_secret", "token.keys", "api.secret"]);
}

#[test]
fn every_example_is_a_good_file() {
    for example in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).unwrap() {
        let path = example.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let loaded = Config::load(Some(&path), None);
            assert!(loaded.is_ok(), "{}: {}", path.display(), loaded.unwrap_err());
        }
    }
}

#[test]
fn each_wrong_value_is_named() {
    let wrong = [
        ("[listen]\npublic = [\"8080\"]", "listen.public"),
        ("[listen]\nadmin = \"127.0.0.1:8080\"", "listen.admin"),
        ("[limits]\nhead_fields = 1000", "limits.head_fields"),
        ("[trusted_proxies]\naddresses = [\"10.0.0.0/33\"]", "trusted_proxies.addresses"),
        ("[cors]\nallowed_origins = [\"shop.example\"]", "cors.allowed_origins"),
        ("[redis]\nurl = \"http://x\"", "redis.url"),
        ("[amqp]\nurl = \"rabbit\"", "amqp.url"),
        ("[upstream]\naddress = \"shop\"", "upstream.address"),
        ("[upstream]\naddress = \"shop:443\"\ntls = true", "upstream.host"),
        ("[receipt]\nkeys = [\"r1\"]", "receipt.keys"),
        ("[receipt]\nkeys = [\"r1:AAECAwQFBgcICQoLDA0ODw\"]", "receipt.keys"),
        ("name = \"a b\"", "name"),
    ];
    for (text, key) in wrong {
        let file = if text.starts_with('[') { format!("{LEAST}{text}") } else { format!("{text}\n{LEAST}") };
        let problems = read(&file).unwrap_err().0;
        assert!(problems.len() == 1 && problems[0].starts_with(key), "{text}: {problems:?}");
    }
}

#[test]
fn a_receipt_fits_into_a_body_and_no_seed_is_told() {
    let seed = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let receipts = format!("{LEAST}[receipt]\nkeys = [\"r1:{seed}\"]\n");
    let config = read(&receipts).unwrap();
    assert!(!config.receipts.is_empty() && !format!("{config:?}").contains(seed));
    let problems = read(&format!("{receipts}[limits]\nbody_bytes = 4095\n")).unwrap_err().0;
    assert!(problems.len() == 1 && problems[0].starts_with("limits.body_bytes"), "{problems:?}");
    let short = format!("{LEAST}[receipt]\nkeys = [\"r1:{seed}\", \"r2:short\"]\n");
    let problems = read(&short).unwrap_err().0;
    assert!(problems.len() == 1 && problems[0].starts_with("receipt.keys: key 2"), "{problems:?}");
    assert!(!problems[0].contains("short"), "{problems:?}");
}
