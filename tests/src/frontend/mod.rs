//! The in-process vhost-user front end: what a VMM does (control messages, guest memory) and what the guest's
//! virtio-fs driver does (virtqueues), so that a test or benchmark can send any request, and any bytes that
//! are no request, without a VM.
//!
//! - [`messages`]: the vhost-user socket, message by message, and raw.
//! - [`memory`]: guest memory in memfds.
//! - [`ring`]: one split virtqueue, and raw access to its three parts.
//! - [`queue`]: requests in flight on one ring.
//! - [`device`]: negotiation, start and stop in the order of QEMU, dirty log, device state.
//!
//! Two copies of knowledge are on purpose: the daemon is built on the rust-vmm crates, this on none of them.
//!
//! Every wait is bounded; a daemon that doesn't answer is an [`Error::Timeout`].

pub mod device;
pub mod memory;
pub mod messages;
pub mod queue;
pub mod ring;

pub use device::{Device, DeviceConfig};
pub use memory::{GuestBuffer, GuestMemory};
pub use messages::Connection;
pub use queue::{Completion, Queue, Shape, Wait};
pub use ring::SplitRing;

use std::io;
use std::time::Duration;

/// What can go wrong between this front end and a daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of ours failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The daemon closed the connection.
    #[error("the daemon closed the connection while we {doing}")]
    Disconnected {
        /// What we did.
        doing: &'static str,
    },
    /// The daemon did nothing in time.
    #[error("the daemon did not answer within {limit:?} while we {doing}")]
    Timeout {
        /// What we did.
        doing: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The daemon acknowledged a message (REPLY_ACK) with a failure.
    #[error("the daemon refused {request:?} with status {status}")]
    Refused {
        /// Which message.
        request: messages::Request,
        /// Its status.
        status: u64,
    },
    /// The daemon broke the protocol.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
    /// The daemon lacks something that was asked for.
    #[error("the daemon does not offer {0}")]
    NotOffered(String),
}

impl Error {
    fn system(what: &'static str) -> impl Fn(nix::Error) -> Error {
        move |errno| Error::System { what, source: errno.into() }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
