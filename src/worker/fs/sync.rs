//! FSYNC, FSYNCDIR, SYNCFS.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::FileSystem;
use super::sys::{self, Result};
use crate::worker::fuse::operation::{Context, HandleId};

impl FileSystem {
    /// FSYNC and FSYNCDIR
    pub fn fsync(&self, ctx: &Context, handle: HandleId, datasync: bool) -> Result<()> {
        sys::fsync(self.handles.get(handle, ctx.node)?.fd(), datasync)
    }

    /// SYNCFS: the file system that the node is on.
    pub fn syncfs(&self, ctx: &Context) -> Result<()> {
        let inode = self.inode(ctx.node)?;
        // syncfs wants a file description; special files are never opened.
        let file = match inode.kind {
            libc::S_IFDIR => {
                sys::openat(self.fd(&inode)?.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?
            }
            libc::S_IFREG => self.reopen(&inode, libc::O_RDONLY | libc::O_NONBLOCK)?,
            _ => return Err(Errno::EBADF),
        };
        sys::syncfs(file.as_fd())
    }
}
