//! The host's side of the shell agent in the guest; `tests/guest/init.sh` describes the protocol.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::error::LogSource;
use super::process::readable_within;
use super::{GuestError, Process};

/// The longest line of the protocol, in bytes.
const MAX_LINE: usize = 256;
/// The most that a script may print on each of its two outputs, in bytes. The guest keeps it in memory.
const MAX_OUTPUT: usize = 64 << 20;

/// What a script of the guest left.
#[derive(Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as the shell gives it: 128 + n after signal n.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, for people.
    #[must_use]
    pub fn stdout_lossy(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text, for people.
    #[must_use]
    pub fn stderr_lossy(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("status", &self.status)
            .field("stdout", &self.stdout_lossy())
            .field("stderr", &self.stderr_lossy())
            .finish()
    }
}

/// The connection to the guest's agent port.
#[derive(Debug)]
pub(super) struct Agent(UnixStream);

impl Agent {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Waits for the guest's first words after a boot and returns its kernel release.
    pub(super) fn ready(&mut self, limit: Duration, log: LogSource<'_>) -> Result<String, GuestError> {
        let mut reader = Reader { stream: &self.0, deadline: Instant::now() + limit, limit, log };
        let line = reader.line("the guest's boot")?;
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["ready", release, _uptime] => Ok(release.to_owned()),
            _ => Err(reader.unexpected(&line, "ready RELEASE UPTIME")),
        }
    }

    /// Sends a script and waits for its end.
    pub(super) fn run(
        &mut self,
        script: &str,
        limit: Duration,
        log: LogSource<'_>,
    ) -> Result<Output, GuestError> {
        let mut message = format!("run {}\n", script.len());
        message.push_str(script);
        let deadline = Instant::now() + limit;
        self.0
            .set_write_timeout(Some(limit))
            .and_then(|()| (&self.0).write_all(message.as_bytes()))
            .map_err(GuestError::host("send the guest a script"))?;
        let mut reader = Reader { stream: &self.0, deadline, limit, log };
        let line = reader.line("a script's end in the guest")?;
        let numbers: Vec<Option<usize>> =
            line.split_ascii_whitespace().skip(1).map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [Some(status @ 0..=255), Some(out @ 0..=MAX_OUTPUT), Some(err @ 0..=MAX_OUTPUT)]
                if line.starts_with("done ") =>
            {
                let what = "a script's output";
                let (stdout, stderr) = (reader.bytes(out, what)?, reader.bytes(err, what)?);
                Ok(Output { status: status as i32, stdout, stderr })
            }
            _ => Err(reader.unexpected(&line, "done STATUS OUT_LENGTH ERR_LENGTH")),
        }
    }
}

/// Reads with one deadline for everything.
struct Reader<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
    limit: Duration,
    log: LogSource<'a>,
}

impl Reader<'_> {
    fn line(&mut self, what: &str) -> Result<String, GuestError> {
        let mut line = Vec::new();
        // One byte at a time, so that what follows the line stays in the socket.
        while line.last() != Some(&b'\n') && line.len() < MAX_LINE {
            line.append(&mut self.bytes(1, what)?);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn bytes(&mut self, count: usize, what: &str) -> Result<Vec<u8>, GuestError> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            if !readable_within(&[self.stream.as_fd()], self.deadline)?[0] {
                return Err(GuestError::TimedOut {
                    what: what.to_owned(),
                    after: self.limit,
                    log: (self.log)(),
                });
            }
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(self.unexpected("(end of the connection)", "an answer")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(GuestError::host("read from the guest's agent")(e)),
            }
        }
        Ok(bytes)
    }

    fn unexpected(&self, message: &str, expected: &'static str) -> GuestError {
        GuestError::Agent { message: message.to_owned(), expected, log: (self.log)() }
    }
}

/// Accepts QEMU's connection to one of its chardevs; fails at once when QEMU ends instead.
pub(super) fn accept(
    listener: &UnixListener,
    process: &mut Process,
    limit: Duration,
    log: LogSource<'_>,
) -> Result<UnixStream, GuestError> {
    let ready = readable_within(&[listener.as_fd(), process.as_fd()], Instant::now() + limit)?;
    if ready[0] {
        return listener
            .accept()
            .map(|(stream, _)| stream)
            .map_err(GuestError::host("accept QEMU's connection"));
    }
    match process.wait_within(Duration::ZERO)? {
        Some(status) => Err(GuestError::Ended { what: "QEMU".to_owned(), status, log: log() }),
        None => Err(GuestError::TimedOut { what: "QEMU's start".to_owned(), after: limit, log: log() }),
    }
}
