//! A virtio-fs daemon of any make, started as its users start it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::peers::Implementation;

use super::{GuestError, Log, Process, TempDir};

/// From a daemon's start to its listening socket.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at the table of sockets; the wait itself is for the daemon's end.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A running daemon that listens on a socket of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    dir: TempDir,
}

impl Daemon {
    /// The daemon under test: this source tree's, or the one that `VIRTIOFSD_TEST_DAEMON` names.
    pub fn program() -> PathBuf {
        Implementation::under_test().binary()
    }

    /// Starts `program --socket-path S --shared-dir SHARED OPTIONS…` and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started, ends, or does not listen in time; its messages are in the error.
    pub fn start(program: &Path, shared: &Path, options: &[&str]) -> Result<Self, GuestError> {
        let dir = TempDir::new("daemon")?;
        let log = dir.path().join("log");
        let stderr =
            std::fs::File::create(&log).map_err(GuestError::host(format!("make {}", log.display())))?;
        let mut command = Command::new(program);
        command.arg("--socket-path").arg(dir.path().join("socket"));
        command.arg("--shared-dir").arg(shared).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = Process::spawn("the daemon", command)?;
        let mut this = Self { process, dir };
        this.wait_listening()?;
        Ok(this)
    }

    /// The daemon serves one connection, and a connection made to find out whether it listens would be that
    /// one. So this reads the kernel's table of sockets.
    fn wait_listening(&mut self) -> Result<(), GuestError> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        let socket = self.socket();
        while !is_listening(&socket)? {
            if let Some(status) = self.process.wait_within(LOOK_INTERVAL)? {
                return Err(GuestError::Ended { what: "the daemon".to_owned(), status, log: self.log() });
            }
            if Instant::now() > deadline {
                let what = format!("the daemon to listen on {}", socket.display());
                return Err(GuestError::TimedOut { what, after: LISTEN_TIMEOUT, log: self.log() });
            }
        }
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Waits for its end; `None` when it still runs after `limit`.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn wait_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>, GuestError> {
        self.process.wait_within(limit)
    }

    /// The process that was started: in our daemon the broker.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The end of what it said on standard error.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::of(&[("the daemon", &self.dir.path().join("log"))])
    }
}

/// Is a UNIX socket with that path listening, in this network namespace? The columns of the table are
/// documented in proc_net_unix(5); flag 0x10000 is `__SO_ACCEPTCON`.
fn is_listening(path: &Path) -> Result<bool, GuestError> {
    const FLAGS: usize = 3;
    const PATH: usize = 7;
    let table = std::fs::read("/proc/net/unix").map_err(GuestError::host("read /proc/net/unix"))?;
    Ok(String::from_utf8_lossy(&table).lines().any(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        columns.get(PATH).is_some_and(|p| Path::new(p) == path) && columns.get(FLAGS) == Some(&"00010000")
    }))
}
