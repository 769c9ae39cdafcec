//! What can go wrong with a guest, and the logs that belong to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::Output;

/// Why a guest could not be booted or used.
#[derive(Error)]
pub enum GuestError {
    /// The fetch script failed; it says why on standard error.
    #[error("{script} failed ({status}); its messages above say why")]
    Fetch {
        /// The script that was run.
        script: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A system call on the host failed.
    #[error("cannot {step}: {source}")]
    Host {
        /// What was tried, on what.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program ended that had to stay.
    #[error("{what} ended early ({status}){log}")]
    Ended {
        /// Which program.
        what: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it and the guest's console said.
        log: Log,
    },
    /// Nothing came in time.
    #[error("waited {after:?} in vain for {what}{log}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The limit.
        after: Duration,
        /// What QEMU and the guest's console said.
        log: Log,
    },
    /// The guest's agent did not keep to the protocol that `tests/guest/init.sh` describes.
    #[error("the guest's agent said {message:?}, but {expected} was due{log}")]
    Agent {
        /// What arrived.
        message: String,
        /// What should have.
        expected: &'static str,
        /// What QEMU and the guest's console said.
        log: Log,
    },
    /// A script of [`Guest::check`](super::Guest::check) ended with another status than 0.
    #[error("in the guest, this script ended with status {}:\n{script}\n--- its output:\n{}{}", output.status,
        output.stdout_lossy(), output.stderr_lossy())]
    Script {
        /// The script.
        script: String,
        /// Its status and output.
        output: Output,
    },
    /// QEMU refused a command on its monitor.
    #[error("QEMU refused {command}: {reason}")]
    Qmp {
        /// The command's name.
        command: String,
        /// QEMU's description, or what was wrong with its answer.
        reason: String,
    },
    /// A migration did not complete.
    #[error("migration ended as {status:?}: {reason}{log}")]
    Migration {
        /// QEMU's name for the final state.
        status: String,
        /// The reason, as far as QEMU gives one.
        reason: String,
        /// What the source QEMU and the guest's console said.
        log: Log,
    },
    /// An earlier time-out left the guest with a script that may still run.
    #[error("this guest timed out before and takes no more scripts")]
    Stuck,
}

/// As for people: a test that returns an error has it printed this way, and logs with `\n` in place of line
/// ends are hard to read.
impl fmt::Debug for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl GuestError {
    /// For `map_err`: the step that an `io::Error` belongs to.
    pub(super) fn host(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Host { step, source }
    }
}

/// The end of the log files that belong to a failure; prints as nothing when they are empty.
#[derive(Debug, Clone, Default)]
pub struct Log(String);

impl Log {
    /// How much of each file is worth reading after a failure, in bytes.
    const TAIL: usize = 8192;

    /// Reads the ends of the files; one that cannot be read counts as empty, for another failure is being
    /// reported.
    pub(super) fn of(files: &[(&str, &Path)]) -> Self {
        let mut text = String::new();
        for (title, path) in files {
            let bytes = std::fs::read(path).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(Self::TAIL)..]).into_owned();
            if !tail.trim().is_empty() {
                text.push_str(&format!("\n--- {title}:\n{}", tail.trim_end()));
            }
        }
        Self(text)
    }

    /// Both.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(format!("{self}{other}"))
    }
}

/// Reads the logs when a failure asks for them.
pub(super) type LogSource<'a> = &'a dyn Fn() -> Log;

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
