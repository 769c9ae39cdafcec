//! What broker and worker say to each other: one enum per direction over `SOCK_SEQPACKET`, fds by `SCM_RIGHTS`.
//!
//! - [`message`]: [`ToWorker`] and [`ToBroker`], with every limit beside its field;
//! - [`bounded`], [`name`], [`handle`], [`errno`]: the types that make decoding the only check of form;
//! - [`codec`]: bytes ↔ messages, total in both directions;
//! - [`channel`]: messages ↔ socket, with their fds;
//! - [`phase`]: which request may come when, with how many fds, as a table;
//! - [`metrics`]: the counters in shared memory, which only the worker writes.
//!
//! Both sides use the same code; neither trusts the other's use of it. What is absent: paths, authority that is
//! not an fd or a sealed handle, and anything on the hot path of a guest's request.

use std::ffi::CStr;
use std::os::fd::RawFd;

#[cfg(test)]
pub(crate) mod arbitrary;
pub mod bounded;
pub mod channel;
pub mod codec;
pub mod errno;
pub mod handle;
pub mod log_line;
pub mod message;
pub mod metrics;
pub mod name;
pub mod phase;

pub use channel::{BrokerEnd, ChannelError, WorkerEnd};
pub use errno::Errno;
pub use handle::{FileHandle, SealedHandle};
pub use message::{ToBroker, ToWorker};
pub use phase::{Phase, Services, Violation};

/// The worker's `argv[0]`, and its only argument: how `main` knows its role. It gives nothing to somebody who
/// starts the program with it by hand: without the channel at [`CHANNEL_FD`] the worker ends at once.
pub const WORKER_ARGV0: &CStr = c"virtiofsd-worker";

/// The worker's fd of the write end of the log pipe: standard error, so that a panic's message arrives too.
/// (Fds 0 and 1 are `/dev/null`; every fd but these four comes by [`ToWorker::Start`].)
pub const LOG_FD: RawFd = 2;

/// The worker's fd of the channel.
pub const CHANNEL_FD: RawFd = 3;

/// The exporter's `argv[0]`; its one argument are its instructions. As with the worker, it gives nothing to somebody
/// who starts it by hand.
pub const EXPORTER_ARGV0: &CStr = c"virtiofsd-exporter";

/// The exporter's fd of the listening socket for metrics.
pub const EXPORTER_SOCKET_FD: RawFd = 3;

/// The exporter's fd of the memory with the counters, opened to read.
pub const EXPORTER_MEMORY_FD: RawFd = 4;

/// The follower's `argv[0]`; its one argument are its instructions. Its log pipe is at [`LOG_FD`]. As with the worker,
/// it gives nothing to somebody who starts it by hand.
pub const FOLLOWER_ARGV0: &CStr = c"virtiofsd-follower";

/// The follower's fd of the host's shared directory.
pub const FOLLOWER_SHARE_FD: RawFd = 3;

/// The follower's fd of the worker's copy of it.
pub const FOLLOWER_COPY_FD: RawFd = 4;

/// The follower's fd of the worker's mount namespace.
pub const FOLLOWER_NAMESPACE_FD: RawFd = 5;

/// The follower's fd of the write end of a pipe: one byte for each mount that it has detached. It says nothing else.
pub const FOLLOWER_DETACHED_FD: RawFd = 6;

/// The follower's fd of the worker's user namespace, if ids are mapped on the copy.
pub const FOLLOWER_IDS_FD: RawFd = 7;

/// Most fds that one message can carry: the kernel's `SCM_MAX_FD`.
pub const MAX_FDS: usize = 253;
