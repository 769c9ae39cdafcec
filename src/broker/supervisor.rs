//! The service manager (systemd): readiness, status, stop and watchdog, as `sd_notify(3)` has them.
//!
//! Written here, in a few lines, rather than by a crate: the ones there are open the socket at each message, which
//! a confined broker can't. The socket is opened once, before confinement; messages are written to it with write(2),
//! which the broker's filter allows anyway. A manager that does not read loses messages; the broker never waits.
//!
//! Keep-alives come from the broker's loop alone, so that a broker that hangs is noticed; they stop when the worker
//! has begun to end, so that a worker that can't end is noticed too.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The worker is confined and listens.
    Ready,
    /// A front end is connected.
    Serving,
    /// The daemon ends.
    Stopping,
}

impl State {
    fn message(self) -> &'static str {
        match self {
            Self::Ready => "READY=1\nSTATUS=Waiting for a front end",
            Self::Serving => "STATUS=Serving a front end",
            Self::Stopping => "STOPPING=1\nSTATUS=Ending",
        }
    }
}

/// Our line to the service manager; without one, nothing is told.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    /// Half of what the manager waits for.
    every: Duration,
    next: Instant,
}

impl Supervisor {
    /// From the environment of process `pid`. A socket that can't be reached is logged, and told nothing.
    pub fn from_environment(pid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let Some(address) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&address) {
            Ok(socket) => socket,
            Err(error) => {
                log::warn!("cannot reach the service manager at {}: {error}", address.display());
                return Self::default();
            }
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
        let limit = number("WATCHDOG_USEC").filter(|limit| ours && *limit > 0);
        let watchdog = limit.map(|limit| {
            let every = Duration::from_micros(limit.div_ceil(2));
            Watchdog { every, next: Instant::now() + every }
        });
        Self { socket: Some(socket), watchdog }
    }

    /// Tells how things stand.
    pub fn tell(&self, state: State) {
        self.send(state.message());
    }

    /// Sends a keep-alive if it is time for one.
    pub fn keep_alive(&mut self, now: Instant) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| now >= watchdog.next) else { return };
        watchdog.next = now + watchdog.every;
        self.send("WATCHDOG=1");
    }

    /// When the next keep-alive is due.
    pub fn next(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(errno) = nix::unistd::write(socket, message.as_bytes())
        {
            log::debug!("the service manager takes no message: {errno}");
        }
    }
}

/// A path, or, behind an `@`, a name in the abstract namespace.
fn connect(address: &OsString) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor(address: &str, watchdog: &[(&str, &str)]) -> Supervisor {
        Supervisor::from_environment(7, |name| match name {
            "NOTIFY_SOCKET" => Some(address.into()),
            _ => watchdog.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()),
        })
    }

    fn received(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        std::iter::from_fn(|| {
            let len = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
        })
        .collect()
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let supervisor_there = supervisor(path.to_str().unwrap(), &[]);
        supervisor_there.tell(State::Ready);
        supervisor_there.tell(State::Stopping);
        let messages = received(&by_path);
        assert!(messages[0].starts_with("READY=1\nSTATUS=") && messages[1].starts_with("STOPPING=1\n"));

        let name = format!("virtiofsd-test-{}", std::process::id());
        let abstract_one = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_one).unwrap();
        supervisor(&format!("@{name}"), &[]).tell(State::Serving);
        assert_eq!(received(&by_name), ["STATUS=Serving a front end"]);
    }

    #[test]
    fn keep_alives_come_at_half_the_limit_and_only_when_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let path = path.to_str().unwrap();
        for none in [&[][..], &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "8")], &[("WATCHDOG_USEC", "0")]]
        {
            assert_eq!(supervisor(path, none).next(), None);
        }
        let mut watched = supervisor(path, &[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")]);
        let first = watched.next().unwrap();
        watched.keep_alive(first - Duration::from_millis(1));
        assert!(received(&manager).is_empty());
        watched.keep_alive(first);
        assert_eq!(received(&manager), ["WATCHDOG=1"]);
        assert_eq!(watched.next(), Some(first + Duration::from_millis(1500)));
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_holds_nothing_up() {
        let gone = supervisor("/nowhere/at/all", &[("WATCHDOG_USEC", "1")]);
        gone.tell(State::Ready);
        assert_eq!(gone.next(), None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let deaf = supervisor(path.to_str().unwrap(), &[]);
        for _ in 0..100_000 {
            deaf.tell(State::Ready);
        }
        assert!(received(&manager).len() < 100_000);
    }
}
