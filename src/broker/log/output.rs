//! Where log lines go: stderr, the journal, or the local syslog socket in the form of RFC 3164, facility user.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::clock;
use super::journal::Journal;
use crate::broker::sys;
use crate::protocol::log_line::severity;

/// Where syslogd and journald listen.
pub const SYSLOG_SOCKET: &str = "/dev/log";

/// How long one line may wait for an output that takes none, in milliseconds; while it goes on not taking any, the
/// next lines wait no more.
const MAX_WAIT_MS: u16 = 100;

/// How often, a millisecond apart, the end of the process waits for the journal to read what it was sent.
const MAX_FLUSH_PAUSES: u16 = 500;

/// RFC 3164's facility "user-level messages".
const FACILITY_USER: u8 = 1;

/// The process that a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This one.
    Broker,
    /// The confined one.
    Worker,
    /// The one that follows mounts.
    Follower,
}

/// An open destination.
pub struct Output {
    destination: Destination,
    /// The last line could not be written.
    stalled: AtomicBool,
    /// Lines lost since the last that was written.
    lost: AtomicU64,
}

enum Destination {
    Stderr,
    Syslog { socket: UnixDatagram, pid: u32, failed: AtomicBool },
    Journal { journal: Journal, failed: AtomicBool },
}

impl Output {
    /// Standard error.
    pub fn stderr() -> Self {
        Self::to(Destination::Stderr)
    }

    /// The local syslog. Connects now, since a confined broker can't.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn syslog() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG_SOCKET)?;
        // The C library reads the time zone now, while files can be opened.
        clock::syslog_stamp();
        Ok(Self::to(Destination::Syslog { socket, pid: std::process::id(), failed: AtomicBool::new(false) }))
    }

    /// The journal.
    pub fn journal(journal: Journal) -> Self {
        Self::to(Destination::Journal { journal, failed: AtomicBool::new(false) })
    }

    fn to(destination: Destination) -> Self {
        Self { destination, stalled: AtomicBool::new(false), lost: AtomicU64::new(0) }
    }

    /// Writes one line of text that has no control characters, or counts it as lost.
    pub fn write(&self, level: Level, origin: Origin, text: &str) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 && !self.try_write(Level::Warn, Origin::Broker, &format!("{lost} log lines lost")) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
            return;
        }
        if !self.try_write(level, origin, text) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Before the process ends: waits, but not long, until the journal has read what it was sent. It asks the kernel
    /// which unit a line is from by the process id of its writer; a line whose writer is gone by then belongs to no
    /// unit, and `journalctl -u` would not show why the daemon failed.
    pub fn flush(&self) {
        let Destination::Journal { journal, failed } = &self.destination else { return };
        if failed.load(Ordering::Relaxed) {
            return;
        }
        for _ in 0..MAX_FLUSH_PAUSES {
            let read = !sys::unread(journal.socket.as_fd()).is_ok_and(|bytes| bytes > 0);
            // Once it has read, it has yet to ask: one pause more.
            let _ = poll(&mut [], PollTimeout::from(1u8));
            if read {
                return;
            }
        }
    }

    fn try_write(&self, level: Level, origin: Origin, text: &str) -> bool {
        let daemon = match &self.destination {
            Destination::Stderr => None,
            Destination::Syslog { socket, pid, failed } => {
                Some((socket, failed, syslog_line(*pid, level, origin, text)))
            }
            Destination::Journal { journal, failed } => {
                Some((&journal.socket, failed, journal.entry(level, origin, text)))
            }
        };
        if let Some((socket, failed, line)) = daemon.filter(|(_, failed, _)| !failed.load(Ordering::Relaxed))
        {
            let write = || nix::unistd::write(socket, line.as_bytes()).map_err(io::Error::from);
            match self.when_writable(socket.as_fd(), write) {
                Written::Yes => return true,
                Written::Full => return false,
                // The daemon went away, and there is no connecting again from here.
                Written::Failed => failed.store(true, Ordering::Relaxed),
            }
        }
        let line = stderr_line(level, origin, text);
        let stderr = io::stderr();
        let write = || nix::unistd::write(&stderr, line.as_bytes()).map_err(io::Error::from);
        matches!(self.when_writable(stderr.as_fd(), write), Written::Yes)
    }

    /// Calls `write` once `fd` takes data, or not at all if it doesn't in good time.
    fn when_writable(&self, fd: BorrowedFd<'_>, write: impl FnOnce() -> io::Result<usize>) -> Written {
        let wait = if self.stalled.load(Ordering::Relaxed) { 0 } else { MAX_WAIT_MS };
        let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::from(wait)).is_ok_and(|ready| ready > 0);
        self.stalled.store(!ready, Ordering::Relaxed);
        if !ready {
            return Written::Full;
        }
        match write() {
            Ok(_) => Written::Yes,
            Err(_) => Written::Failed,
        }
    }
}

enum Written {
    Yes,
    Full,
    Failed,
}

fn origin_prefix(origin: Origin) -> &'static str {
    match origin {
        Origin::Broker => "",
        Origin::Worker => "worker: ",
        Origin::Follower => "mounts: ",
    }
}

fn stderr_line(level: Level, origin: Origin, text: &str) -> String {
    format!("[{} {level:<5} virtiofsd] {}{text}\n", clock::utc_stamp(), origin_prefix(origin))
}

fn syslog_line(pid: u32, level: Level, origin: Origin, text: &str) -> String {
    let priority = FACILITY_USER * 8 + severity(level);
    format!("<{priority}>{} virtiofsd[{pid}]: {}{text}", clock::syslog_stamp(), origin_prefix(origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::log::Subject;

    #[test]
    fn lines_have_their_documented_form() {
        let line = stderr_line(Level::Info, Origin::Worker, "text");
        assert!(line.starts_with("[2") && line.ends_with("Z INFO  virtiofsd] worker: text\n"), "{line}");
        let line = syslog_line(42, Level::Error, Origin::Broker, "text");
        assert!(line.starts_with("<11>") && line.ends_with(" virtiofsd[42]: text"), "{line}");
    }

    #[test]
    fn the_end_waits_until_the_journal_has_read() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let output = Output::journal(Journal::over(ours, &Subject::default()));
        output.write(Level::Error, Origin::Broker, "why");
        let reader = std::thread::spawn(move || {
            // By then the other thread waits, most likely; if it doesn't yet, the test passes all the same.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let read = std::time::Instant::now();
            let mut buffer = [0; 4096];
            theirs.recv(&mut buffer).unwrap();
            (read, theirs)
        });
        output.flush();
        let flushed = std::time::Instant::now();
        let (read, _theirs) = reader.join().unwrap();
        assert!(flushed >= read, "it ended before the line was read");
    }

    /// One end of a socket pair that nobody reads from.
    #[test]
    fn a_reader_that_stalls_costs_one_wait_and_is_told() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let failed = AtomicBool::new(false);
        let output = Output::to(Destination::Syslog { socket: ours, pid: 1, failed });
        let mut written = 0;
        while output.lost.load(Ordering::Relaxed) < 5 {
            output.write(Level::Info, Origin::Broker, "x");
            written += 1;
            assert!(written < 100_000, "a socket of this size never fills");
        }
        let mut buffer = [0; 4096];
        while theirs.recv(&mut buffer).is_ok() {}
        output.write(Level::Info, Origin::Broker, "after");
        let mut next = || {
            let len = theirs.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        assert!(next().ends_with("5 log lines lost"));
        assert!(next().ends_with("after"));
        assert_eq!(output.lost.load(Ordering::Relaxed), 0);
    }
}
