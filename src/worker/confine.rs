//! The worker takes away from itself what it won't need, in an order in which each step still can be done.
//!
//! The broker has done its part before: namespaces, id maps, resource limits, and only four open fds. From here
//! on nothing is gained any more. A step that fails ends the worker, unless the user asked for less
//! (`--sandbox`, `--seccomp`, `--landlock`); everything that is less than the most is reported to the broker,
//! which logs it.

use std::os::fd::BorrowedFd;

use sandbox::capabilities::{self, CapabilitySet};
use sandbox::credentials::Baseline;
use sandbox::landlock::{self, LandlockError};
use sandbox::mounts;
use sandbox::seccomp::{self, SeccompError};
use thiserror::Error;

use crate::config::{LandlockMode, Limits, Locks, Negotiate, SandboxMode, SeccompMode, WorkerConfig};
use crate::protocol::message::{Layer, LayerReport, LayerState, Start};

/// Which step of confinement failed.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The empty root directory.
    #[error("cannot enter an empty root directory: {0}")]
    Root(#[from] mounts::MountError),
    /// Capabilities, `no_new_privs`.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] capabilities::CapabilityError),
    /// Core dumps, tracing.
    #[error("cannot limit resources: {0}")]
    Limits(#[from] sandbox::rlimits::RlimitError),
    /// The credentials that are left.
    #[error("cannot read its own credentials: {0}")]
    Credentials(#[from] sandbox::credentials::CredentialsError),
    /// Landlock.
    #[error("cannot restrict file access: {0}")]
    Landlock(#[from] LandlockError),
    /// The system-call filter.
    #[error("cannot filter system calls: {0}")]
    Seccomp(#[from] SeccompError),
}

/// Everything but the system-call filter, for the calling process, which must have one thread. Returns the
/// credentials that are left, and what is missing.
///
/// # Errors
/// The step that failed; the worker must end then.
pub fn confine(start: &Start, share: BorrowedFd<'_>) -> Result<(Baseline, Vec<LayerReport>), ConfineError> {
    let mut missing = Vec::new();
    match start.sandbox {
        SandboxMode::Namespace => {
            mounts::enter_empty_root()?;
            mounts::attach_over_root(share)?;
        }
        SandboxMode::Chroot => mounts::enter_empty_root_by_chroot()?,
        SandboxMode::None => {
            missing.push(LayerReport::new(Layer::EmptyRoot, LayerState::Missing, "--sandbox=none"));
        }
    }
    sandbox::rlimits::forbid_core_dumps()?;
    capabilities::forbid_new_privileges()?;
    let keep = start.capabilities.iter().map(|capability| 1u64 << capability.number());
    let keep = CapabilitySet::from_bits(keep.fold(0, std::ops::BitOr::bitor));
    capabilities::limit_to(keep)?;
    let baseline = Baseline::capture()?;
    restrict_files(start, share, &mut missing)?;
    Ok((baseline, missing))
}

fn restrict_files(
    start: &Start,
    share: BorrowedFd<'_>,
    missing: &mut Vec<LayerReport>,
) -> Result<(), ConfineError> {
    let mode = match start.landlock {
        LandlockMode::Off => {
            missing.push(LayerReport::new(Layer::Landlock, LayerState::Missing, "--landlock=off"));
            return Ok(());
        }
        LandlockMode::Free => landlock::Mode::Free,
        LandlockMode::Full => landlock::Mode::Full,
    };
    let status = landlock::restrict(mode, Some(share))?;
    log::debug!("Landlock: {status}");
    if !status.missing.is_empty() {
        missing.push(LayerReport::new(Layer::Landlock, LayerState::Weakened, &status.to_string()));
    }
    Ok(())
}

/// The last step: filters the system calls of all threads, which must all have been made, as must everything that
/// only a start needs.
///
/// # Errors
/// [`ConfineError::Seccomp`]; the worker must end then.
pub fn filter_system_calls(start: &Start, missing: &mut Vec<LayerReport>) -> Result<(), ConfineError> {
    let (mode, weakened) = match start.seccomp {
        SeccompMode::None => {
            missing.push(LayerReport::new(Layer::Seccomp, LayerState::Missing, "--seccomp=none"));
            (seccomp::Mode::None, None)
        }
        SeccompMode::Kill => (seccomp::Mode::Kill, None),
        SeccompMode::Trap => (seccomp::Mode::Trap, None),
        SeccompMode::Log => (seccomp::Mode::Log, Some("--seccomp=log only logs")),
    };
    if let Some(reason) = weakened {
        missing.push(LayerReport::new(Layer::Seccomp, LayerState::Weakened, reason));
    }
    seccomp::apply(seccomp::Policy::Worker, mode, &widenings(&start.config))?;
    Ok(())
}

/// The parts of the policy that only these options need.
fn widenings(config: &WorkerConfig) -> Vec<&'static str> {
    let fs = &config.fs;
    let limits = config.device.limits != Limits::default();
    let posix_acl = fs.posix_acl != Negotiate::Never;
    let locks = fs.locks != Locks::default();
    let all = [
        ("locks", locks),
        ("ioctl", fs.ioctl),
        ("limits", limits),
        ("xattr", fs.xattr),
        ("posix-acl", posix_acl),
        ("set-id", fs.killpriv_v2 || posix_acl),
    ];
    all.into_iter().filter(|(_, needed)| *needed).map(|(name, _)| name).collect()
}
