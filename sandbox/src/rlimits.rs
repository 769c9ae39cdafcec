//! Resource limits of the calling process (getrlimit(2)); what it starts inherits them.
//!
//! A process in a user namespace of its own can lower limits but not raise them, so whoever starts a confined
//! process raises them before.

use std::fmt;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What `RLIMIT_NOFILE` is set to when nobody says otherwise, unless `fs.nr_open` is lower.
pub const DEFAULT_NOFILE: u64 = 1_000_000;

/// Why a limit could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RlimitError {
    /// getrlimit failed.
    #[error("cannot read {resource:?}: {errno}")]
    Get {
        /// Which limit.
        resource: Resource,
        /// The kernel's reason.
        errno: Errno,
    },
    /// setrlimit failed.
    #[error("cannot set {resource:?} to {soft} (hard limit {hard}): {errno}")]
    Set {
        /// Which limit.
        resource: Resource,
        /// The soft limit that was asked for.
        soft: u64,
        /// The hard limit that was asked for.
        hard: u64,
        /// The kernel's reason.
        errno: Errno,
    },
    /// `fs.nr_open` could not be read.
    #[error("cannot read /proc/sys/fs/nr_open, the system's limit of open files: {0}")]
    NrOpen(io::Error),
    /// `fs.nr_open` makes no sense.
    #[error("/proc/sys/fs/nr_open is not a number: \"{0}\"")]
    NrOpenNumber(String),
    /// The process would still leave a core dump.
    #[error("cannot make the process undumpable: {0}")]
    Dumpable(Errno),
}

/// What `RLIMIT_NOFILE` has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NofileApplied {
    /// The soft limit now in force.
    pub soft: u64,
    /// Set when it is less than what was asked for.
    pub warning: Option<NofileWarning>,
}

/// `RLIMIT_NOFILE` is lower than asked for. Its `Display` is a line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NofileWarning {
    /// What was asked for.
    pub wanted: u64,
    /// What it is instead: the hard limit.
    pub applied: u64,
    /// Why not more.
    pub errno: Errno,
}

impl fmt::Display for NofileWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, applied, errno } = self;
        write!(
            f,
            "the limit of open files is {applied}, not {wanted}: raising the hard limit failed ({errno}); it \
             needs CAP_SYS_RESOURCE, and at most fs.nr_open is possible"
        )
    }
}

/// The default for [`set_nofile`]: the lower of [`DEFAULT_NOFILE`] and `fs.nr_open`.
///
/// # Errors
///
/// [`RlimitError::NrOpen`], [`RlimitError::NrOpenNumber`].
pub fn default_nofile() -> Result<u64, RlimitError> {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").map_err(RlimitError::NrOpen)?;
    let number: u64 = text.trim_end().parse().map_err(|_| RlimitError::NrOpenNumber(text))?;
    Ok(number.min(DEFAULT_NOFILE))
}

/// Sets soft and hard `RLIMIT_NOFILE` to `wanted`; where that is more than may be had, the soft limit becomes
/// the hard limit, and the result carries a warning.
///
/// # Errors
///
/// [`RlimitError::Get`], [`RlimitError::Set`].
pub fn set_nofile(wanted: u64) -> Result<NofileApplied, RlimitError> {
    let resource = Resource::RLIMIT_NOFILE;
    let (_, hard) = get(resource)?;
    match setrlimit(resource, wanted, wanted) {
        Ok(()) => Ok(NofileApplied { soft: wanted, warning: None }),
        Err(errno @ Errno::EPERM) if hard < wanted => {
            set(resource, hard, hard)?;
            Ok(NofileApplied { soft: hard, warning: Some(NofileWarning { wanted, applied: hard, errno }) })
        }
        Err(errno) => Err(RlimitError::Set { resource, soft: wanted, hard: wanted, errno }),
    }
}

/// Lowers soft and hard limit to `most`, for good. Limits that are lower already stay.
///
/// # Errors
///
/// [`RlimitError::Get`], [`RlimitError::Set`].
pub fn lower(resource: Resource, most: u64) -> Result<(), RlimitError> {
    let (soft, hard) = get(resource)?;
    set(resource, soft.min(most), hard.min(most))
}

/// No core dumps, whatever `kernel.core_pattern` is, and no tracing by processes of the same user: sets
/// `RLIMIT_CORE` to 0 and makes the process undumpable (a core pattern that pipes into a program ignores the
/// limit 0). Executing another program makes a process dumpable again, so the program calls this itself.
///
/// # Errors
///
/// [`RlimitError::Get`], [`RlimitError::Set`], [`RlimitError::Dumpable`].
pub fn forbid_core_dumps() -> Result<(), RlimitError> {
    lower(Resource::RLIMIT_CORE, 0)?;
    prctl::set_dumpable(false).map_err(RlimitError::Dumpable)
}

fn get(resource: Resource) -> Result<(u64, u64), RlimitError> {
    getrlimit(resource).map_err(|errno| RlimitError::Get { resource, errno })
}

fn set(resource: Resource, soft: u64, hard: u64) -> Result<(), RlimitError> {
    setrlimit(resource, soft, hard).map_err(|errno| RlimitError::Set { resource, soft, hard, errno })
}
