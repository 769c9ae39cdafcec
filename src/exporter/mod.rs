//! Shows a device's counters: a process of its own with no privilege at all, that has two things, the memory with
//! the worker's counters, to read, and a listening socket. So the broker parses nothing that somebody sends to the
//! metrics socket, and the worker nothing either.
//!
//! - [`snapshot`]: memory → one consistent-enough set of numbers, which is also what `/stat` gives as JSON;
//! - [`openmetrics`]: the same for `/metrics`;
//! - `http`: requests and replies; `serve`: the loop over connections.
//!
//! What is absent: writing, waiting for a slow client, and more than 16 clients at a time.

mod http;
pub mod openmetrics;
mod serve;
pub mod snapshot;

use std::os::fd::OwnedFd;

use sandbox::capabilities::{self, CapabilitySet};
use sandbox::landlock;
use sandbox::mounts;
use sandbox::seccomp::{self, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{SandboxMode, SeccompMode};
use crate::protocol::metrics::{MetricsMemoryError, Region};
use snapshot::Subject;

/// What the broker tells it, as its one argument, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instructions {
    /// `--sandbox`: whether it starts in namespaces of its own.
    pub sandbox: SandboxMode,
    /// `--seccomp`
    pub seccomp: SeccompMode,
    /// What the numbers are about.
    pub subject: Subject,
}

/// Why it ended. (Nobody sees the text; the exit status is not 0, and the broker says that it ended.)
#[derive(Debug, Error)]
pub enum ExporterError {
    /// Started by hand.
    #[error("no instructions: only the broker starts this")]
    Instructions,
    /// The counters can't be read.
    #[error(transparent)]
    Memory(#[from] MetricsMemoryError),
    /// A step of confinement.
    #[error("cannot enter an empty root directory: {0}")]
    Root(#[from] mounts::MountError),
    /// A step of confinement.
    #[error(transparent)]
    Limits(#[from] sandbox::rlimits::RlimitError),
    /// A step of confinement.
    #[error(transparent)]
    Capabilities(#[from] capabilities::CapabilityError),
    /// A step of confinement.
    #[error(transparent)]
    Landlock(#[from] landlock::LandlockError),
    /// A step of confinement.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// Waiting or accepting.
    #[error("cannot {0}: {1}")]
    Serve(&'static str, nix::errno::Errno),
}

/// The exporter's whole life: confined first, then requests until the broker ends it.
///
/// # Errors
/// [`ExporterError`]; it never ends otherwise.
pub fn run(instructions: &str, listener: OwnedFd, memory: OwnedFd) -> Result<(), ExporterError> {
    let instructions: Instructions =
        serde_json::from_str(instructions).map_err(|_| ExporterError::Instructions)?;
    let region = Region::read_only(&memory)?;
    drop(memory);
    serve::prepare(&listener)?;
    confine(&instructions)?;
    serve::serve(&listener, &region, &instructions.subject)
}

fn confine(instructions: &Instructions) -> Result<(), ExporterError> {
    match instructions.sandbox {
        SandboxMode::Namespace => mounts::enter_empty_root()?,
        SandboxMode::Chroot => mounts::enter_empty_root_by_chroot()?,
        SandboxMode::None => {}
    }
    sandbox::rlimits::forbid_core_dumps()?;
    capabilities::forbid_new_privileges()?;
    capabilities::limit_to(CapabilitySet::EMPTY)?;
    landlock::restrict(landlock::Mode::Free, None)?;
    let mode = match instructions.seccomp {
        SeccompMode::None => seccomp::Mode::None,
        SeccompMode::Kill => seccomp::Mode::Kill,
        SeccompMode::Log => seccomp::Mode::Log,
        SeccompMode::Trap => seccomp::Mode::Trap,
    };
    seccomp::apply(Policy::Exporter, mode, &[])?;
    Ok(())
}
