//! READLINK, LINK, UNLINK, RMDIR, RENAME: names that come, go and move.

use nix::errno::Errno;
use std::os::fd::AsFd;

use super::sys::{self, Result};
use super::{Entry, FileSystem, Thread};
use crate::worker::fuse::operation::{Context, FileName, NodeId};

/// The rename flags that a guest may use.
const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

impl FileSystem {
    /// READLINK: bytes put into `buf`, which has room for the longest target (`PATH_MAX`).
    pub fn readlink(&self, ctx: &Context, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ctx.node)?;
        if inode.kind != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        sys::readlink_fd(self.fd(&inode)?.as_fd(), buf)
    }

    /// LINK
    pub fn link(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        source: NodeId,
        name: FileName<'_>,
    ) -> Result<Entry> {
        self.writable()?;
        let source = self.inode(source)?;
        let parent = self.dir_inode(ctx.node)?;
        thread.become_root();
        sys::link_fd(
            self.fd_directory(),
            self.fd(&source)?.as_fd(),
            self.fd(&parent)?.as_fd(),
            name.as_cstr(),
        )?;
        self.lookup_in(&parent, name.as_cstr())
    }

    /// UNLINK
    pub fn unlink(&self, thread: &mut Thread, ctx: &Context, name: FileName<'_>) -> Result<()> {
        self.remove(thread, ctx, name, 0)
    }

    /// RMDIR
    pub fn rmdir(&self, thread: &mut Thread, ctx: &Context, name: FileName<'_>) -> Result<()> {
        self.remove(thread, ctx, name, libc::AT_REMOVEDIR)
    }

    fn remove(&self, thread: &mut Thread, ctx: &Context, name: FileName<'_>, flags: i32) -> Result<()> {
        self.writable()?;
        let parent = self.dir_inode(ctx.node)?;
        thread.become_root();
        sys::unlinkat(self.fd(&parent)?.as_fd(), name.as_cstr(), flags)
    }

    /// RENAME and RENAME2
    pub fn rename(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: FileName<'_>,
        new_parent: NodeId,
        new_name: FileName<'_>,
        flags: u32,
    ) -> Result<()> {
        self.writable()?;
        if flags & !RENAME_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let parent = self.dir_inode(ctx.node)?;
        let new_parent = self.dir_inode(new_parent)?;
        thread.become_root();
        sys::renameat2(
            self.fd(&parent)?.as_fd(),
            name.as_cstr(),
            self.fd(&new_parent)?.as_fd(),
            new_name.as_cstr(),
            flags,
        )
    }
}
