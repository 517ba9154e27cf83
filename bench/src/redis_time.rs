//! How much of its time Redis has spent on the commands with which an audit reads.

use std::time::Duration;

use anyhow::Result;

use crate::environment::Environment;
use crate::resp::Session;

/// What an audit sends. Edges and wardens send some of them too.
const READING: [&str; 7] = ["hscan", "xrange", "hgetall", "hkeys", "exists", "pttl", "time"];

/// Redis' time on reading commands since it was started.
pub fn reading(environment: &Environment) -> Result<Duration> {
    let stats = Session::of(environment)?.ask(&["INFO", "commandstats"])?;
    Ok(Duration::from_micros(total(&stats)))
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
}
