//! How much of its time Redis has spent on the commands with which an audit reads.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::environment::Environment;

/// What an audit sends. Edges and wardens send some of them too, so what is counted is a little more.
const READING: [&str; 7] = ["hscan", "xrange", "hgetall", "hkeys", "exists", "pttl", "time"];
/// How long Redis may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Redis' time on reading commands since it was started.
pub fn reading(environment: &Environment) -> Result<Duration> {
    let stream = TcpStream::connect(environment.redis).context("connecting to redis")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let url = environment.values().find(|(name, _)| *name == "SLUICE_REDIS_URL").map(|(_, url)| url);
    let login = url.and_then(login).context("SLUICE_REDIS_URL is not redis://USER:PASSWORD@HOST:PORT")?;
    let mut redis = BufReader::new(stream);
    ask(&mut redis, &["AUTH", login.0, login.1]).context("logging in to redis")?;
    let stats = ask(&mut redis, &["INFO", "commandstats"])?;
    Ok(Duration::from_micros(total(&stats)))
}

fn login(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("redis://")?.rsplit_once('@')?.0.split_once(':')
}

/// Sends a command; its answer is a line or one text.
fn ask(redis: &mut BufReader<TcpStream>, words: &[&str]) -> Result<String> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    redis.get_mut().write_all(bytes.as_bytes())?;
    let mut line = String::new();
    redis.read_line(&mut line)?;
    match line.trim_end().split_at_checked(1) {
        Some(("+", words)) => Ok(words.to_owned()),
        Some(("$", length)) => {
            let mut text = vec![0; length.parse::<usize>().context("an answer without a length")? + 2];
            redis.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        _ => bail!("redis answered {line:?} to {}", words[0]),
    }
}

/// Microseconds of the reading commands in the text of `INFO commandstats`.
fn total(stats: &str) -> u64 {
    let spent = |line: &str| {
        let (command, numbers) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let micros = numbers.split(',').find_map(|number| number.strip_prefix("usec="))?;
        READING.contains(&command).then(|| micros.parse::<u64>().ok())?
    };
    stats.lines().filter_map(spent).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_commands_are_counted() {
        let stats = "# Commandstats\r\n\
            cmdstat_hscan:calls=40,usec=128098,usec_per_call=3202.45,rejected_calls=0,failed_calls=0\r\n\
            cmdstat_evalsha:calls=9,usec=363,usec_per_call=40.33,rejected_calls=0,failed_calls=0\r\n\
            cmdstat_script|exists:calls=1,usec=7,usec_per_call=7.00,rejected_calls=0,failed_calls=0\r\n\
            cmdstat_time:calls=2,usec=2,usec_per_call=1.00,rejected_calls=0,failed_calls=0\r\n";
        assert_eq!(total(stats), 128_100);
    }

    #[test]
    fn the_login_is_read_from_the_url() {
        assert_eq!(login("redis://reader:s3:cret@127.0.0.1:6480"), Some(("reader", "s3:cret")));
        assert_eq!(login("redis://127.0.0.1:6480"), None);
    }
}
