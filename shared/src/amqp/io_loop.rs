//! The client library runs a connection in a thread of its own. When that thread panics, which an answer
//! of the broker that it does not expect can bring about (4.12.3: a confirm for an unknown message while
//! many others are open), the connection goes on looking alive, and what waits for it waits for ever. Only
//! the panic hook gets to know.

use std::panic;
use std::sync::LazyLock;
use std::thread;

use tokio::sync::watch;

/// What the library calls the thread.
const NAME: &str = "lapin-io-loop";

/// How many of these threads have panicked in this process.
static DEATHS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| {
    let (deaths, _) = watch::channel(0);
    let (tell, before) = (deaths.clone(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some(NAME) {
            tell.send_modify(|deaths| *deaths += 1);
        }
        before(info);
    }));
    deaths
});

/// Changes when such a thread has panicked. Nobody knows whose it was, so every connection that there was
/// counts as broken.
pub(super) fn deaths() -> watch::Receiver<u64> {
    DEATHS.subscribe()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_of_the_library_counts() {
        let deaths = deaths();
        let panics = |name: &str| {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(|| panic!("as it was asked to"));
            assert!(thread.unwrap().join().is_err());
        };
        panics("another");
        assert!(!deaths.has_changed().unwrap());
        panics(NAME);
        assert!(deaths.has_changed().unwrap());
    }
}
