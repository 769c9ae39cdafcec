//! Why the broker could not start or go on.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use sandbox::capabilities::CapabilityError;
use sandbox::id_maps::IdMapError;
use sandbox::mounts::MountError;
use sandbox::network::NetworkError;
use sandbox::process::{ProcessError, SpawnError};
use sandbox::rlimits::RlimitError;
use sandbox::seccomp::SeccompError;
use thiserror::Error;

use super::launch::lock_file::LockError;
use super::launch::socket::SocketError;
use crate::protocol::ChannelError;
use crate::protocol::metrics::MetricsMemoryError;

/// A step of the broker that failed. Each ends the daemon with status 1.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The shared directory can't be opened.
    #[error("cannot open the shared directory {}: {errno}. --shared-dir must name an existing directory", path.display())]
    OpenShare {
        /// `--shared-dir`
        path: PathBuf,
        /// The kernel's reason.
        errno: Errno,
    },
    /// It is something else.
    #[error("{} is neither a directory nor a regular file: name one with --shared-dir", path.display())]
    ShareType {
        /// `--shared-dir`
        path: PathBuf,
    },
    /// No listening socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No socket for metrics.
    #[error("the socket for metrics: {0}")]
    MetricsSocket(SocketError),
    /// Another instance, or no lock file.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Signals could not be taken over.
    #[error("cannot take signals as messages: {0}")]
    Signals(Errno),
    /// A resource limit.
    #[error(transparent)]
    Rlimit(#[from] RlimitError),
    /// The ids for the worker could not be worked out.
    #[error("cannot choose the worker's ids: {0}")]
    IdMaps(#[from] IdMapError),
    /// The memory for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsMemoryError),
    /// The worker's side of something could not be made.
    #[error("cannot make {what} for the worker: {source}")]
    Prepare {
        /// "the channel", "the log pipe".
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// This program can't be opened to start the worker from.
    #[error(
        "cannot open this program's own executable, /proc/self/exe, to start the worker: {0}. Is /proc mounted?"
    )]
    OwnExecutable(Errno),
    /// The worker did not start.
    #[error("cannot start the worker: {source}{}", no_namespaces_hint(source))]
    Spawn {
        /// Why.
        #[from]
        source: SpawnError,
    },
    /// Its network namespace.
    #[error("cannot start the worker in a network namespace of its own: {0}")]
    Network(#[from] NetworkError),
    /// Something about the running worker.
    #[error("the worker: {0}")]
    Process(#[from] ProcessError),
    /// The share's mount for the worker.
    #[error("cannot prepare the shared directory for the worker: {0}")]
    CloneShare(#[from] MountError),
    /// `--worker-ids=shifted` or `subids` where that can't be.
    #[error("--worker-ids={mode} is not possible here: {source}. Use --worker-ids=auto or identity")]
    ShiftedImpossible {
        /// "shifted", "subids".
        mode: &'static str,
        /// The kernel's reason.
        source: MountError,
    },
    /// One of these by an ordinary user.
    #[error(
        "--worker-ids={mode} needs CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID, as root has them. Without it an \
         ordinary user's worker gets the user's own id, and its sub-ids where it has some"
    )]
    ShiftedUnprivileged {
        /// "shifted", "subids".
        mode: &'static str,
    },
    /// `--follow-mounts=always` where that can't be.
    #[error("--follow-mounts=always is not possible here: {0}. Use auto or never")]
    FollowImpossible(&'static str),
    /// Something for the process that follows mounts.
    #[error("cannot open or make {what} for the process that follows mounts: {source}")]
    PrepareFollower {
        /// "the log pipe".
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The process that follows mounts.
    #[error("cannot start the process that follows mounts: {0}")]
    SpawnFollower(SpawnError),
    /// `--inode-file-handles=mandatory` where that can't be.
    #[error("--inode-file-handles=mandatory, but file handles cannot be used here: {0}. Use prefer or never")]
    HandlesMandatory(String),
    /// No key for sealed handles.
    #[error("cannot get random bytes for the key of sealed handles: {0}")]
    Key(Errno),
    /// Giving up capabilities.
    #[error("cannot give up the broker's privileges: {0}")]
    Capabilities(#[from] CapabilityError),
    /// The system-call filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// Another step of the broker's own confinement.
    #[error("cannot confine the broker ({step}): {errno}")]
    Confine {
        /// The system call.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The first message to the worker.
    #[error("cannot send the worker its configuration: {0}")]
    Start(ChannelError),
    /// Waiting for events.
    #[error("cannot wait for events: {0}")]
    Poll(Errno),
}

fn no_namespaces_hint(error: &SpawnError) -> &'static str {
    match error {
        SpawnError::Clone { .. } => {
            ". If this system can't give namespaces, --sandbox=chroot or none goes without, with less confinement"
        }
        _ => "",
    }
}
