//! GETATTR, STATX, SETATTR, ACCESS, STATFS.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::handles::Handle;
use super::setid::SetId;
use super::sys::{self, Result};
use super::{Attr, FileSystem, Thread};
use crate::worker::fuse::operation::{Context, HandleId, SetAttr, SetTime};

impl FileSystem {
    /// GETATTR. A handle says no more than the node does; an unknown one is still an error.
    pub fn getattr(&self, ctx: &Context, handle: Option<HandleId>) -> Result<Attr> {
        if let Some(handle) = handle {
            let handle = self.handles.get(handle, ctx.node)?;
            return Ok(self.plain_attr(sys::statx_fd(handle.fd())?, false));
        }
        let inode = self.inode(ctx.node)?;
        Ok(self.plain_attr(sys::statx_fd(self.fd(&inode)?.as_fd())?, false))
    }

    /// STATX: the attributes of `mask`, with the birth time where the host's file system has one. `flags` says how
    /// fresh a remote file system's answer is to be (`AT_STATX_FORCE_SYNC`, `AT_STATX_DONT_SYNC`).
    pub fn statx(&self, ctx: &Context, handle: Option<HandleId>, flags: u32, mask: u32) -> Result<Attr> {
        let ask = |fd: BorrowedFd<'_>| {
            let mask = mask & (libc::STATX_BASIC_STATS | libc::STATX_BTIME);
            sys::statx_raw(fd, c"", libc::AT_EMPTY_PATH | flags as i32, mask)
        };
        let st = match handle {
            Some(handle) => ask(self.handles.get(handle, ctx.node)?.fd())?,
            None => ask(self.fd(&self.inode(ctx.node)?)?.as_fd())?,
        };
        Ok(self.plain_attr(st, false))
    }

    /// SETATTR. The owner changes before the mode, because changing the owner clears set-id bits.
    pub fn setattr(&self, thread: &mut Thread, ctx: &Context, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let inode = self.inode(ctx.node)?;
        let handle = set.handle.map(|handle| self.handles.get(handle, ctx.node)).transpose()?;
        thread.become_root();
        if set.uid.is_some() || set.gid.is_some() {
            let uid = self.host_id(set.uid.map(|uid| uid.0), &self.uids)?;
            let gid = self.host_id(set.gid.map(|gid| gid.0), &self.gids)?;
            self.drop_renamed_capability(&inode)?;
            sys::chown_fd(self.fd(&inode)?.as_fd(), uid, gid)?;
        }
        if let Some(mode) = set.mode {
            sys::chmod_fd(self.fd_directory(), self.fd(&inode)?.as_fd(), mode & 0o7777)?;
            inode.saw_mode((mode & 0o7777) as u16);
        }
        if let Some(size) = set.size {
            let opened = Truncatable::new(self, &inode, handle.as_ref())?;
            self.drop_renamed_capability(&inode)?;
            let size = i64::try_from(size).map_err(|_| Errno::EINVAL)?;
            let truncate = || sys::ftruncate(opened.fd(), size);
            let set_id = if set.kill_suidgid { SetId::Clear } else { SetId::Keep };
            self.changing(thread, &inode, opened.fd(), set_id, truncate)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            sys::utimens_fd(self.fd(&inode)?.as_fd(), &[timespec(set.atime), timespec(set.mtime)])?;
        }
        Ok(self.plain_attr(sys::statx_fd(self.fd(&inode)?.as_fd())?, false))
    }

    /// The host's id for one that a SETATTR sets; all ones leave it alone.
    fn host_id(&self, id: Option<u32>, ids: &super::IdTranslator) -> Result<u32> {
        match id {
            None => Ok(u32::MAX),
            // Setting "no id" would silently leave the owner as it is.
            Some(u32::MAX) => Err(Errno::EINVAL),
            Some(id) => ids.guest_to_host(id).map_err(|_| Errno::EPERM),
        }
    }

    /// ACCESS: may the caller, by the permission bits? A guest that was told to check permissions itself
    /// (`default_permissions`, as virtiofs is) never asks.
    pub fn access(&self, ctx: &Context, mask: u32) -> Result<()> {
        let inode = self.inode(ctx.node)?;
        if mask & !0o7 != 0 {
            return Err(Errno::EINVAL);
        }
        if mask & libc::W_OK as u32 != 0 {
            self.writable()?;
        }
        let (uid, gid) = self.owner(ctx)?;
        let st = sys::statx_fd(self.fd(&inode)?.as_fd())?;
        if allows(&st, uid, gid, mask) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// STATFS
    pub fn statfs(&self, ctx: &Context) -> Result<libc::statfs64> {
        let inode = self.inode(ctx.node)?;
        sys::fstatfs(self.fd(&inode)?.as_fd())
    }
}

/// A file description that ftruncate takes: the guest's own where it gave one, else one for this call.
enum Truncatable {
    Handle(Arc<Handle>),
    Own(OwnedFd),
}

impl Truncatable {
    fn new(fs: &FileSystem, inode: &Arc<super::Inode>, handle: Option<&Arc<Handle>>) -> Result<Self> {
        match (inode.kind, handle) {
            (libc::S_IFDIR, _) => Err(Errno::EISDIR),
            (libc::S_IFREG, Some(handle)) if handle.may_write() => Ok(Self::Handle(Arc::clone(handle))),
            (libc::S_IFREG, _) => fs.reopen(inode, libc::O_WRONLY | libc::O_NONBLOCK).map(Self::Own),
            _ => Err(Errno::EINVAL),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Handle(handle) => handle.fd(),
            Self::Own(fd) => fd.as_fd(),
        }
    }
}

/// Do the permission bits let this user do all of `mask`? Root may do everything but execute what nobody may.
fn allows(st: &libc::statx, uid: u32, gid: u32, mask: u32) -> bool {
    let mode = u32::from(st.stx_mode);
    if uid == 0 {
        return mask & libc::X_OK as u32 == 0 || mode & libc::S_IFMT == libc::S_IFDIR || mode & 0o111 != 0;
    }
    let granted = match (st.stx_uid == uid, st.stx_gid == gid) {
        (true, _) => mode >> 6,
        (false, true) => mode >> 3,
        (false, false) => mode,
    };
    granted & mask == mask
}

fn timespec(time: Option<SetTime>) -> libc::timespec {
    match time {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At { seconds, nanos }) => libc::timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) },
    }
}
