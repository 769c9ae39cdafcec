//! INIT, DESTROY and device reset: what was negotiated, and how it begins and ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::inodes::Identity;
use super::sys::{self, Result};
use super::{FileSystem, Thread};
use crate::worker::fuse::negotiate::Negotiated;

/// What the guest and we agreed on. Queue threads keep a copy and look here only when `version` changed.
pub(super) struct Session {
    version: AtomicU64,
    negotiated: Mutex<Negotiated>,
    /// `announce_submounts` of `negotiated`.
    submounts: AtomicBool,
}

impl Session {
    pub(super) fn new() -> Self {
        Session {
            version: AtomicU64::new(1),
            negotiated: Mutex::new(Negotiated::default()),
            submounts: AtomicBool::new(false),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn negotiated(&self) -> Negotiated {
        *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is the guest told where other file systems begin?
    pub(super) fn announces_submounts(&self) -> bool {
        self.submounts.load(Ordering::Relaxed)
    }

    fn set(&self, negotiated: Negotiated) {
        let mut current = self.negotiated.lock().unwrap_or_else(PoisonError::into_inner);
        *current = negotiated;
        self.submounts.store(negotiated.announce_submounts, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl FileSystem {
    /// INIT: a new session; what an earlier one left is forgotten.
    pub fn begin_session(&self, thread: &mut Thread, negotiated: Negotiated) -> Result<()> {
        self.forget_everything()?;
        self.session.set(negotiated);
        thread.refresh(self);
        Ok(())
    }

    /// DESTROY and device reset.
    ///
    /// # Errors
    /// What `statx` on the share says.
    pub fn end_session(&self) -> Result<()> {
        self.session.set(Negotiated::default());
        self.forget_everything()
    }

    /// Drops all nodes and handles; the root is there again.
    pub(super) fn forget_everything(&self) -> Result<()> {
        self.handles.clear();
        let st = sys::statx_fd(super::borrow(&self.resources.share))?;
        let fd = self.resources.share.try_clone().map_err(|_| Errno::last())?;
        self.keeper.reset();
        let root = self.keeper.seat(fd);
        self.inodes.reset(Identity::of(&st), u32::from(st.stx_mode) & libc::S_IFMT, root);
        Ok(())
    }

    /// Brings the thread's copy of the session up to date.
    pub(super) fn session_of(&self, seen: u64) -> Option<(u64, Negotiated)> {
        let version = self.session.version();
        (version != seen).then(|| (version, self.session.negotiated()))
    }
}
