//! Conformance to a native file system in real guests, kernels 6.1 and 6.12: what the suites `differential` and
//! `conformance` do through the host's kernel, and what only a guest can do (an overlay of its own).
//!
//! Needs `tests/guest/fetch.sh` and `fetch-peers`.

mod core;
mod overlay;
mod pjdfstest;

use std::path::Path;
use std::time::Duration;

use tests::guest::{self, Daemon, Guest, GuestError};
use tests::share::Share;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// From the front end's disconnection to the daemon's end.
const DAEMON_EXIT: Duration = Duration::from_secs(20);

/// A share, and the daemon that serves it to a guest under this tag.
struct Served {
    tag: String,
    share: Share,
    daemon: Daemon,
}

impl Served {
    fn new(tag: &str, options: &[&str]) -> Result<Served, GuestError> {
        let share = Share::new();
        let daemon = Daemon::start(&Daemon::program(), share.path(), options)?;
        Ok(Served { tag: tag.to_owned(), share, daemon })
    }

    fn device(&self) -> guest::Share {
        guest::Share::new(&self.tag, &self.daemon.socket())
    }

    fn path(&self) -> &Path {
        self.share.path()
    }

    /// The daemon has to outlive every guest's deeds, and to end with status 0 when the front end is gone.
    fn ends_well(mut self) -> TestResult {
        let status = self.daemon.wait_within(DAEMON_EXIT)?;
        let clean = status.is_some_and(|status| status.success());
        assert!(clean, "the daemon's end after the disconnection: {status:?}{}", self.daemon.log());
        Ok(())
    }
}

/// Runs a command in the guest that has to succeed; what it wrote to stdout.
fn succeed(guest: &mut Guest, served: &Served, command: &str, limit: Duration) -> Result<String, GuestError> {
    let output = guest.run_within(command, limit)?;
    let log = served.daemon.log();
    assert_eq!(output.status, 0, "{command}: {}{log}", output.stderr_lossy());
    Ok(output.stdout_lossy())
}
