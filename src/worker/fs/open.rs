//! OPEN, RELEASE, OPENDIR, RELEASEDIR, FLUSH.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::handles::Handle;
use super::seats::HandleSeat;
use super::setid::SetId;
use super::sys::{self, Result};
use super::{FileSystem, Inode, Thread};
use crate::config::CachePolicy;
use crate::worker::fuse::negotiate::Negotiated;
use crate::worker::fuse::operation::{Context, HandleId, Open};
use crate::worker::fuse::wire::{InitFlags, OpenReplyFlags};

/// The guest's open flags that the host's open gets. Not among them: `O_CREAT` and `O_EXCL` (CREATE's own),
/// `O_APPEND` (each write says whether it appends), `O_PATH`, `O_NOFOLLOW`, `O_CLOEXEC`, `O_ASYNC`.
const KEPT_FLAGS: u32 =
    (libc::O_ACCMODE | libc::O_TRUNC | libc::O_NONBLOCK | libc::O_DSYNC | libc::O_SYNC | libc::O_LARGEFILE)
        as u32;

/// An open file or directory, and what the guest may do with its caches.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The new handle.
    pub handle: HandleId,
    /// `FOPEN_*`
    pub flags: OpenReplyFlags,
}

impl Handle {
    /// Was the host's file opened for writing?
    pub(super) fn may_write(&self) -> bool {
        self.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY
    }
}

impl FileSystem {
    /// OPEN
    pub fn open(&self, thread: &mut Thread, ctx: &Context, open: Open) -> Result<Opened> {
        let inode = self.inode(ctx.node)?;
        // A device, FIFO or socket belongs to the guest's kernel; on the host it is never opened.
        match inode.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::EISDIR),
            _ => return Err(Errno::EBADF),
        }
        self.open_inode(thread, inode, open)
    }

    /// Opens a regular file that is already known.
    pub(super) fn open_inode(&self, thread: &mut Thread, inode: Arc<Inode>, open: Open) -> Result<Opened> {
        let flags = self.host_flags(thread.session(), open.flags);
        if self.config.readonly && writes(flags) {
            return Err(Errno::EROFS);
        }
        thread.become_root();
        let seat = self.handle_seat()?;
        let file = {
            let fd = self.fd(&inode)?;
            let reopen = || self.reopen_fd(fd.as_fd(), flags);
            if flags & libc::O_TRUNC != 0 {
                let set_id = if open.kill_suidgid { SetId::Clear } else { SetId::Keep };
                self.changing(thread, &inode, fd.as_fd(), set_id, reopen)?
            } else if let Some(file) = self.open_by_name(thread, &inode, fd.as_fd(), flags) {
                file
            } else {
                reopen()?
            }
        };
        if flags & libc::O_TRUNC != 0 {
            self.drop_renamed_capability(&inode)?;
        }
        Ok(self.opened(thread, inode, open, file, seat))
    }

    /// The handle of a regular file that has just been opened.
    pub(super) fn opened(
        &self,
        thread: &mut Thread,
        inode: Arc<Inode>,
        open: Open,
        file: OwnedFd,
        seat: HandleSeat,
    ) -> Opened {
        let mut flags = self.file_cache_flags(open.flags);
        if !self.needs_flush(thread, open.flags, &inode, file.as_fd()) {
            flags |= OpenReplyFlags::NOFLUSH;
        }
        Opened { handle: self.handles.insert(inode, open.flags, file, seat), flags }
    }

    /// Does the guest need to send FLUSH when one of its descriptors of this file is closed? Those that know `FOPEN_NOFLUSH`
    /// (protocol 7.35, Linux 5.16) and have no write-back cache leave it out if not.
    ///
    /// FLUSH asks what the host's file system has to say at a `close`, and has the guest write back what it changed
    /// through mappings first, and report errors of that. Neither can come of a descriptor that was opened for reading
    /// alone, nor of one for writing alone on a file system that does nothing at a `close`: such can't be mapped for
    /// writing. With both, the guest may have mapped it.
    fn needs_flush(&self, thread: &mut Thread, opened: u32, inode: &Inode, file: BorrowedFd<'_>) -> bool {
        // The owner's byte-range locks end with FLUSH.
        if self.locks.is_some() {
            return true;
        }
        match opened as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => false,
            libc::O_WRONLY => !thread.last_mount.kind(&inode.identity, file).is_plain,
            _ => true,
        }
    }

    /// What the host's open gets for the guest's flags.
    pub(in crate::worker) fn host_flags(&self, session: &Negotiated, guest: u32) -> i32 {
        let mut flags = guest & KEPT_FLAGS;
        if self.config.allow_direct_io {
            flags |= guest & libc::O_DIRECT as u32;
        }
        if self.config.preserve_noatime {
            flags |= guest & libc::O_NOATIME as u32;
        }
        // The guest's page cache reads the rest of a page that a program only writes a part of.
        if session.has(InitFlags::WRITEBACK_CACHE) && flags as i32 & libc::O_ACCMODE == libc::O_WRONLY {
            flags = (flags & !(libc::O_ACCMODE as u32)) | libc::O_RDWR as u32;
        }
        flags as i32
    }

    /// What the guest may cache of an open file.
    pub(super) fn file_cache_flags(&self, guest: u32) -> OpenReplyFlags {
        match self.config.cache {
            CachePolicy::Never | CachePolicy::Metadata => OpenReplyFlags::DIRECT_IO,
            CachePolicy::Always => OpenReplyFlags::KEEP_CACHE,
            CachePolicy::Auto if self.config.allow_direct_io && guest & libc::O_DIRECT as u32 != 0 => {
                OpenReplyFlags::DIRECT_IO
            }
            CachePolicy::Auto => OpenReplyFlags::empty(),
        }
    }

    /// OPENDIR
    pub fn opendir(&self, thread: &mut Thread, ctx: &Context, open: Open) -> Result<Opened> {
        let inode = self.dir_inode(ctx.node)?;
        thread.become_root();
        let seat = self.handle_seat()?;
        let file = sys::openat(self.fd(&inode)?.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let flags = match self.config.cache {
            CachePolicy::Always | CachePolicy::Metadata => {
                OpenReplyFlags::KEEP_CACHE | OpenReplyFlags::CACHE_DIR
            }
            CachePolicy::Auto | CachePolicy::Never => OpenReplyFlags::empty(),
        };
        let handle = self.handles.insert(inode, open.flags, file, seat);
        Ok(Opened { handle, flags })
    }

    /// RELEASE and RELEASEDIR
    pub fn release(&self, ctx: &Context, handle: HandleId) -> Result<()> {
        self.handles.close(handle, ctx.node)?;
        if self.locks.is_some() {
            self.release_whole(handle);
            self.lock_may_be_free();
        }
        Ok(())
    }

    /// FLUSH: reports what the host's file system has to say when a descriptor is closed, and gives up the
    /// owner's byte-range locks.
    pub fn flush(&self, ctx: &Context, handle: HandleId, lock_owner: u64) -> Result<()> {
        let handle = self.handles.get(handle, ctx.node)?;
        self.release_owner(&handle.inode, lock_owner);
        sys::flush(handle.fd())
    }
}

/// Do these host flags change the file, now or later?
pub(in crate::worker) fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}
