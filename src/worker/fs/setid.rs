//! Set-id bits of files whose contents change.
//!
//! Who clears them is the guest's decision: its kernel does so before a change by a user without `CAP_FSETID`, or
//! asks for it (`--killpriv-v2`). The host's kernel clears them at each change by a process that has no `CAP_FSETID`
//! in the host's own user namespace, and the worker has none: so that a write by the guest's root leaves them, as
//! on any file system, they are put back.
//!
//! A write past its page cache is cleared by no guest's kernel without killpriv-v2, and a kernel that can map ids
//! doesn't even tell who writes. Such a write keeps them only when root is known to be the writer.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use super::sys::{self, Result};
use super::{FileSystem, Inode, Thread};
use crate::worker::fuse::operation::{Context, Write};
use crate::worker::fuse::wire::{InitFlags, OpenReplyFlags};

/// What becomes of the set-id bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetId {
    /// The guest wants them cleared.
    Clear,
    /// The guest has cleared them if need be.
    Keep,
    /// The host's kernel decides: it clears set-user-id, and set-group-id of what a group may execute. (Without
    /// that, set-group-id stays for members of the group only. A request doesn't tell the groups; it stays.)
    Host,
}

/// Set-user-id and set-group-id.
const SET_ID: u16 = 0o6000;

impl Inode {
    /// The mode was set, or seen.
    pub(super) fn saw_mode(&self, mode: u16) {
        if mode & SET_ID != 0 && !self.may_have_set_id.load(Ordering::Relaxed) {
            self.may_have_set_id.store(true, Ordering::Relaxed);
        }
    }
}

impl FileSystem {
    /// What becomes of them in a WRITE.
    pub(super) fn set_id_of_write(
        &self,
        thread: &Thread,
        ctx: &Context,
        write: &Write,
        opened: u32,
    ) -> SetId {
        let direct = !write.from_cache && self.file_cache_flags(opened).contains(OpenReplyFlags::DIRECT_IO);
        let told = thread.session().has(InitFlags::HANDLE_KILLPRIV_V2) || ctx.uid.0 == 0;
        match (write.kill_suidgid, direct) {
            (true, _) => SetId::Clear,
            (false, true) if !told => SetId::Host,
            (false, _) => SetId::Keep,
        }
    }

    /// What becomes of them in a request that can't say: with killpriv-v2 the guest's kernel doesn't clear them.
    pub(super) fn set_id_unsaid(&self, thread: &Thread, ctx: &Context) -> SetId {
        let left_to_us = thread.session().has(InitFlags::HANDLE_KILLPRIV_V2);
        if left_to_us && ctx.uid.0 != 0 { SetId::Host } else { SetId::Keep }
    }

    /// Runs a call that changes the contents of a regular file.
    pub(super) fn changing<T>(
        &self,
        thread: &mut Thread,
        inode: &Inode,
        fd: BorrowedFd<'_>,
        set_id: SetId,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if set_id == SetId::Clear {
            return thread.without_fsetid(call);
        }
        if set_id == SetId::Host || !inode.may_have_set_id.load(Ordering::Relaxed) {
            return call();
        }
        let before = sys::statx_fd(fd)?.stx_mode;
        if before & SET_ID == 0 {
            inode.may_have_set_id.store(false, Ordering::Relaxed);
            return call();
        }
        let result = call();
        let after = sys::statx_fd(fd)?.stx_mode;
        let lost = before & !after & SET_ID;
        if lost != 0 {
            thread.become_root();
            sys::chmod_fd(self.fd_directory(), fd, u32::from((after | lost) & 0o7777))?;
        }
        result
    }
}
