//! Where the system under load is, and its secrets: the file that `./dev up` writes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A running system.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The directory of the file: pids, logs and programs are beside it.
    pub directory: PathBuf,
    /// The gate's public listener.
    pub edge: SocketAddrV4,
    /// The public listeners of every gate, that one among them.
    pub edges: Vec<SocketAddrV4>,
    /// The gate's private listener.
    pub edge_admin: SocketAddrV4,
    /// The back office.
    pub api: SocketAddrV4,
    /// The AMQP listener.
    pub amqp: SocketAddrV4,
    /// Redis.
    pub redis: SocketAddrV4,
    /// Bearer token of the administrator.
    pub admin_token: String,
    /// Signs buyers' JWTs.
    pub jwt_secret: String,
    /// Signs sale tokens.
    pub token_secret: String,
    /// Signs payment notices.
    pub payment_secret: String,
    values: BTreeMap<String, String>,
}

impl Environment {
    /// Reads the file; a name that it lacks is looked up in the process's environment. Addresses that
    /// are not of this machine's loopback are refused: this is a tool that breaks what it aims at.
    pub fn load(file: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        let mut values = parse(&text).with_context(|| format!("in {}", file.display()))?;
        for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
            values.entry(name).or_insert(value);
        }
        let need = |name: &str| {
            values.get(name).cloned().with_context(|| {
                format!("{name} is neither in {} nor in the environment: is `./dev up` done?", file.display())
            })
        };
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self {
            directory: parent.unwrap_or(Path::new(".")).to_owned(),
            edge: loopback(&need("SLUICE_EDGE_URL")?)?,
            edges: vec![loopback(&need("SLUICE_EDGE_URL")?)?],
            edge_admin: loopback(&need("SLUICE_EDGE_ADMIN_URL")?)?,
            api: loopback(&need("SLUICE_API_URL")?)?,
            amqp: loopback(&need("SLUICE_AMQP_URL")?)?,
            redis: loopback(&need("SLUICE_REDIS_URL")?)?,
            admin_token: need("SLUICE_ADMIN_TOKEN")?,
            jwt_secret: need("SLUICE_JWT_SECRET")?,
            token_secret: need("SLUICE_TOKEN_SECRET")?,
            payment_secret: need("SLUICE_PAYMENT_SECRET")?,
            values,
        })
    }

    /// The value of a name.
    pub fn value(&self, name: &str) -> Result<&str> {
        self.values.get(name).map(String::as_str).with_context(|| format!("{name} is not known"))
    }

    /// Gives a name another value, for programs that are started.
    pub fn set(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
    }

    /// All names and values, for programs that are started.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A program of ours: linked beside the file, or built beside this one.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let linked = self.directory.join("bin").join(name);
        let own = std::env::current_exe().context("where is this program")?;
        let beside = own.with_file_name(name);
        [linked, beside].into_iter().find(|path| path.exists()).with_context(|| {
            format!("{name} is neither in {}/bin nor beside {}", self.directory.display(), own.display())
        })
    }
}

/// Reads lines `NAME='value'`; empty ones and comments are skipped.
fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { bail!("line {}: not NAME='value'", at + 1) };
        let value = ['\'', '"']
            .iter()
            .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
            .unwrap_or(value);
        let name = name.strip_prefix("export ").unwrap_or(name);
        values.insert(name.to_owned(), value.to_owned());
    }
    Ok(values)
}

/// The address in a URL, which must be one of IPv4's loopback.
fn loopback(url: &str) -> Result<SocketAddrV4> {
    let (_, rest) = url.split_once("://").with_context(|| format!("not a URL: {url}"))?;
    let authority = rest.split('/').next().unwrap_or(rest);
    // Not the whole URL in the error: it may hold a password.
    let host = authority.rsplit('@').next().unwrap_or(authority).replace("localhost", "127.0.0.1");
    let address: SocketAddr = host.parse().with_context(|| format!("not an address with a port: {host}"))?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ok(SocketAddrV4::new(ip, address.port())),
        IpAddr::V6(ip) if ip.is_loopback() => Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port())),
        ip => bail!("{ip} is not loopback: drills and load are for a system on this machine only"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_dev_up_is_read() {
        let values = parse("# by ./dev up\nA='one=1'\n\nB=\"two\"\nexport C=three\n").unwrap();
        assert_eq!(values["A"], "one=1");
        assert_eq!(values["B"], "two");
        assert_eq!(values["C"], "three");
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn only_this_machine_is_aimed_at() {
        assert_eq!(loopback("http://127.0.0.1:8080").unwrap().port(), 8080);
        assert_eq!(loopback("http://localhost:8080/x").unwrap().port(), 8080);
        assert_eq!(loopback("amqp://user:p@127.0.0.1:5680/sluice").unwrap().port(), 5680);
        assert_eq!(loopback("http://[::1]:8080").unwrap().port(), 8080);
        for bad in ["http://192.0.2.1:80", "http://0.0.0.0:80", "http://shop.example:80", "127.0.0.1:80"] {
            assert!(loopback(bad).is_err(), "{bad}");
        }
    }
}
