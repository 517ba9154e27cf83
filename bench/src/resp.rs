//! A few words with a Redis server, as one of its users.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::environment::Environment;

/// How long Redis may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is logged in.
#[derive(Debug)]
pub struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    /// As this user.
    pub fn login(address: SocketAddrV4, user: &str, password: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connecting to redis")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Self { stream: BufReader::new(stream) };
        session.ask(&["AUTH", user, password]).context("logging in to redis")?;
        Ok(session)
    }

    /// As the worker of `./dev up`.
    pub fn of(environment: &Environment) -> Result<Self> {
        let url = environment.value("SLUICE_REDIS_URL")?;
        let (user, password) =
            login(url).context("SLUICE_REDIS_URL is not redis://USER:PASSWORD@HOST:PORT")?;
        Self::login(environment.redis, user, password)
    }

    /// Sends a command; its answer is a line, a number or one text.
    pub fn ask(&mut self, words: &[&str]) -> Result<String> {
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(bytes.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.trim_end().split_at_checked(1) {
            Some(("+" | ":", words)) => Ok(words.to_owned()),
            Some(("$", length)) => {
                let mut text = vec![0; length.parse::<usize>().context("a text without a length")? + 2];
                self.stream.read_exact(&mut text)?;
                Ok(String::from_utf8_lossy(&text).trim_end_matches("\r\n").to_owned())
            }
            Some(("-", why)) => bail!("{}: {why}", words[0]),
            _ => bail!("redis answered {line:?} to {}", words[0]),
        }
    }
}

fn login(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("redis://")?.rsplit_once('@')?.0.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_read_from_the_url() {
        assert_eq!(login("redis://reader:s3:cret@127.0.0.1:6480"), Some(("reader", "s3:cret")));
        assert_eq!(login("redis://127.0.0.1:6480"), None);
    }
}
