//! Which request may come when: the one table that the broker's gate reads.
//!
//! Nothing is allowed by default: a request that no row lets through in the present phase, with this many fds, by
//! the enabled services, is a violation, and a violation ends the worker.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::MAX_FDS;
use super::message::ToBroker;

/// How far the worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It has been given [`super::ToWorker::Start`] and confines itself.
    Starting,
    /// It waits for the front end.
    Listening,
    /// A front end is connected: from here on the worker counts as hostile.
    Serving,
}

/// What the broker serves beyond start-up, each for its own reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Seal and reopen: the broker has `CAP_DAC_READ_SEARCH`, the share a mount of its own.
    pub handles: bool,
    /// `--modcaps=+mknod`
    pub make_device: bool,
    /// `--modcaps=+sys_admin`
    pub trusted_xattr: bool,
}

/// A field of [`Services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Any of them: all work on the share's mounts.
    Mounts,
    /// [`Services::handles`]
    Handles,
    /// [`Services::make_device`]
    MakeDevice,
    /// [`Services::trusted_xattr`]
    TrustedXattr,
}

impl Services {
    /// Whether `service` is on.
    pub fn has(self, service: Service) -> bool {
        match service {
            Service::Mounts => self != Services::default(),
            Service::Handles => self.handles,
            Service::MakeDevice => self.make_device,
            Service::TrustedXattr => self.trusted_xattr,
        }
    }
}

/// A request without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`ToBroker::Confined`]
    Confined,
    /// [`ToBroker::Attached`]
    Attached,
    /// [`ToBroker::Seal`]
    Seal,
    /// [`ToBroker::Reopen`]
    Reopen,
    /// [`ToBroker::MakeDevice`]
    MakeDevice,
    /// [`ToBroker::TrustedXattr`]
    TrustedXattr,
}

impl ToBroker {
    /// Which request this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Confined(_) => Kind::Confined,
            Self::Attached => Kind::Attached,
            Self::Seal => Kind::Seal,
            Self::Reopen(_) => Kind::Reopen,
            Self::MakeDevice(_) => Kind::MakeDevice,
            Self::TrustedXattr(_) => Kind::TrustedXattr,
        }
    }
}

/// One row: the request may come in this phase, and in no phase that no row names.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The request.
    pub kind: Kind,
    /// The phase in which it may come.
    pub phase: Phase,
    /// The phase after it.
    pub next: Phase,
    /// Fewest fds with it.
    pub min_fds: usize,
    /// Most fds with it.
    pub max_fds: usize,
    /// The service it needs.
    pub service: Option<Service>,
}

/// Every request that may come at all.
pub const RULES: [Rule; 6] = [
    row(Kind::Confined, Phase::Starting, Phase::Listening, 0, 0, None),
    row(Kind::Attached, Phase::Listening, Phase::Serving, 0, 0, None),
    row(Kind::Seal, Phase::Serving, Phase::Serving, 1, MAX_FDS, Some(Service::Mounts)),
    row(Kind::Reopen, Phase::Serving, Phase::Serving, 0, 0, Some(Service::Handles)),
    row(Kind::MakeDevice, Phase::Serving, Phase::Serving, 1, 1, Some(Service::MakeDevice)),
    row(Kind::TrustedXattr, Phase::Serving, Phase::Serving, 1, 1, Some(Service::TrustedXattr)),
];

const fn row(
    kind: Kind,
    phase: Phase,
    next: Phase,
    min_fds: usize,
    max_fds: usize,
    service: Option<Service>,
) -> Rule {
    Rule { kind, phase, next, min_fds, max_fds, service }
}

/// The worker broke the protocol. It is killed for it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// A request out of its phase.
    #[error("request {kind:?} in phase {phase:?}")]
    Phase {
        /// The request.
        kind: Kind,
        /// When it came.
        phase: Phase,
    },
    /// A request that the options did not enable.
    #[error("request {0:?}, which is not enabled")]
    NotEnabled(Kind),
    /// Too few or too many fds.
    #[error("request {kind:?} with {fds} file descriptors")]
    FdCount {
        /// The request.
        kind: Kind,
        /// How many came with it.
        fds: usize,
    },
    /// A handle that this broker did not seal.
    #[error("a file handle that was not sealed here")]
    ForgedHandle,
}

/// Lets a request through, or not; gives the phase after it.
///
/// # Errors
/// A [`Violation`] when no row of [`RULES`] matches.
pub fn gate(kind: Kind, phase: Phase, services: Services, fds: usize) -> Result<Phase, Violation> {
    let rule = RULES
        .iter()
        .find(|rule| rule.kind == kind && rule.phase == phase)
        .ok_or(Violation::Phase { kind, phase })?;
    if rule.service.is_some_and(|service| !services.has(service)) {
        return Err(Violation::NotEnabled(kind));
    }
    if fds < rule.min_fds || fds > rule.max_fds {
        return Err(Violation::FdCount { kind, fds });
    }
    Ok(rule.next)
}

#[cfg(test)]
mod tests;
