//! Tells a proxy what to do, a line at a time over TCP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Proxy;
use super::way::Way;

/// What can be said.
const WORDS: &str = "\
up|down|both FLOW             FLOW: pass, drop, hold, delay MS[-MS], throttle BYTES
trap up|down DEED MOMENT      DEED: lose, cut, twice; MOMENT: bytes N, text T, frame F
                              F: script, publish, confirm, deliver, ack
reset                         every open connection, at both ends
half-close up|down            the receivers of this direction are told that no more comes
refuse on|off                 new connections are reset at once
target ADDRESS:PORT           where new connections go
heal                          ends everything that lasts
status                        what the proxy has seen";

/// How long a silent controller is listened to, for others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Listens for commands until the process ends. Each line is answered by one that begins with `ok` or
/// `error`.
pub fn serve(proxy: &Proxy, listen: SocketAddrV4) -> Result<()> {
    let listener =
        TcpListener::bind(listen).with_context(|| format!("the control cannot listen on {listen}"))?;
    for stream in listener.incoming().flatten() {
        // A controller that goes away in the middle has said what it had to say.
        talk(proxy, stream).ok();
    }
    Ok(())
}

fn talk(proxy: &Proxy, mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        let answer = match obey(proxy, line?.trim()) {
            Ok(answer) if answer.is_empty() => "ok\n".to_owned(),
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {error:#}\n"),
        };
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Does what a line says; what there is to answer.
fn obey(proxy: &Proxy, line: &str) -> Result<String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "up" | "down" => proxy.flow(word.parse()?, rest.parse()?),
        "both" => proxy.flow_both(rest.parse()?),
        "trap" => proxy.set(rest.parse()?),
        "reset" => proxy.reset(),
        "half-close" => proxy.half_close(rest.parse::<Way>()?),
        "refuse" => proxy.refuse(match rest {
            "on" => true,
            "off" => false,
            _ => bail!("refuse on, or refuse off"),
        }),
        "target" => proxy.aim(rest.parse().context("target takes ADDRESS:PORT")?),
        "heal" => proxy.heal(),
        "status" => return Ok(status(proxy)),
        "help" => return Ok(format!("what can be said:\n{WORDS}")),
        other => bail!("{other:?} is nothing that can be said: help"),
    }
    Ok(String::new())
}

fn status(proxy: &Proxy) -> String {
    let status = proxy.status();
    let target = proxy.target().map(|target| target.to_string()).unwrap_or_default();
    format!(
        "target={target} connections={} open={} carried={} swallowed={} cut={} sprung={}",
        status.connections,
        status.open,
        status.carried,
        status.swallowed,
        status.cut,
        proxy.has_sprung()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::proxy::frames::Protocol;

    #[test]
    fn a_proxy_does_what_it_is_told_and_says_what_it_cannot() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let proxy = Proxy::start(any, any, Protocol::Plain, 1).unwrap();
        for good in ["up drop", "both delay 3", "trap up cut text COMMIT", "reset", "half-close down", "heal"]
        {
            assert_eq!(obey(&proxy, good).unwrap(), "", "{good}");
        }
        obey(&proxy, "target 127.0.0.1:9").unwrap();
        assert!(obey(&proxy, "status").unwrap().starts_with("target=127.0.0.1:9 connections=0 open=0"));
        for bad in ["", "up", "up fly", "trap up", "refuse", "target 9", "half-close", "jump"] {
            assert!(obey(&proxy, bad).is_err(), "{bad}");
        }
    }
}
