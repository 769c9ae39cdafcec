//! What the worker sees of the host's files: the share, and its own fds by their numbers.
//!
//! Where the broker may clone mounts, both came with the start message, each on a mount of its own. Where it may
//! not, as an ordinary user's, a worker in namespaces of its own may: over the copies of the host's mounts that
//! its mount namespace began with. It must be done before the root is left.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sandbox::mounts::{self, MountError, ShareAttrs};
use thiserror::Error;

use super::broker_client::StartFds;
use crate::config::SandboxMode;
use crate::protocol::message::{ShareKind, ShareMount, Start};

/// Which part of the view can't be made.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The working directory, which is the share.
    #[error("cannot open the shared directory: {0}")]
    Open(nix::errno::Errno),
    /// Its mount namespace.
    #[error("{0}")]
    Namespace(MountError),
    /// The clone of the share.
    #[error("cannot make a mount of the share in the worker's own namespace: {0}")]
    Share(MountError),
    /// The clone of the fd directory.
    #[error("cannot make a mount of /proc/self/fd in the worker's own namespace: {0}")]
    FdDirectory(MountError),
}

/// The view, and the listening socket that came along.
#[derive(Debug)]
pub struct View {
    /// The root of the share (`O_PATH`).
    pub share: OwnedFd,
    /// `..` can't lead out of it.
    pub share_is_mount_root: bool,
    /// The worker's own `/proc/self/fd`.
    pub fd_directory: OwnedFd,
    /// The listening vhost-user socket.
    pub listener: OwnedFd,
}

impl View {
    /// Takes over what the broker passed, and replaces what is still on the host's mounts.
    ///
    /// # Errors
    /// [`ViewError`]; the worker must end then.
    pub fn new(start: &Start, fds: StartFds) -> Result<Self, ViewError> {
        let StartFds { share, listener, fd_directory, metrics: _ } = fds;
        let (share_is_mount_root, can_clone) = match (start.share_mount, start.sandbox) {
            (ShareMount::Idmapped | ShareMount::Detached, _) => (true, false),
            (ShareMount::Host, SandboxMode::Namespace) => (false, true),
            (ShareMount::Host, SandboxMode::Chroot | SandboxMode::None) => (false, false),
        };
        let mut view = Self { share, share_is_mount_root, fd_directory, listener };
        if can_clone {
            // A single file leads nowhere, so its fd may stay on the host's mount.
            let directory = (start.share == ShareKind::Directory).then(working_directory).transpose()?;
            mounts::enter_own_namespace().map_err(ViewError::Namespace)?;
            view.fd_directory = mounts::clone_own_fd_directory().map_err(ViewError::FdDirectory)?;
            if let Some(directory) = directory {
                view.share = clone_directory(&directory, start.config.fs.readonly)?;
                view.share_is_mount_root = true;
            }
        }
        Ok(view)
    }
}

fn working_directory() -> Result<OwnedFd, ViewError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(".", flags, Mode::empty()).map_err(ViewError::Open)
}

/// A clone of the share, which the broker made our working directory: only a directory opened in this mount namespace
/// can be cloned here.
fn clone_directory(directory: &OwnedFd, read_only: bool) -> Result<OwnedFd, ViewError> {
    let attrs = ShareAttrs { read_only, ..ShareAttrs::default() };
    mounts::clone_share(directory.as_fd(), attrs, None).map_err(ViewError::Share)
}
