//! READLINK, LINK, UNLINK, RMDIR, RENAME: names that come, go and move.

use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

use super::inodes::Identity;
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
        let entry = self.lookup_in(thread, &parent, name.as_cstr())?;
        if entry.attr.st.stx_nlink == 1 {
            // It had no name before.
            self.keeper.heated(source.id);
        }
        Ok(entry)
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
        let directory = self.fd(&parent)?;
        let tracked = self.tracker.change();
        let victim = tracked.as_ref().and_then(|_| identity_at(directory.as_fd(), name));
        sys::unlinkat(directory.as_fd(), name.as_cstr(), flags)?;
        if let (Some(tracked), Some(victim)) = (tracked, victim) {
            tracked.gone(&parent.identity, name.as_cstr(), &victim);
        }
        Ok(())
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
        let (from, to) = (self.fd(&parent)?, self.fd(&new_parent)?);
        let rename = || sys::renameat2(from.as_fd(), name.as_cstr(), to.as_fd(), new_name.as_cstr(), flags);
        let rename = |thread: &mut Thread| {
            if flags & libc::RENAME_WHITEOUT != 0 {
                // The whiteout is a new inode and belongs to the caller. Where the caller may rename by right of
                // a group that RENAME2 doesn't tell, it belongs to root.
                let (uid, gid) = self.owner(ctx)?;
                thread.become_user(uid, gid, &[])?;
                match rename() {
                    Err(Errno::EACCES | Errno::EPERM) => {}
                    result => return result,
                }
            }
            thread.become_root();
            rename()
        };
        let Some(tracked) = self.tracker.change() else { return rename(thread) };
        let victim = identity_at(to.as_fd(), new_name);
        rename(thread)?;
        if let Some(victim) = victim {
            tracked.gone(&new_parent.identity, new_name.as_cstr(), &victim);
        }
        // After an exchange there is something under both names.
        for (directory, fd, name) in [(&parent, &from, name), (&new_parent, &to, new_name)] {
            if let Some(identity) = identity_at(fd.as_fd(), name) {
                self.tracker.saw(&directory.identity, name.as_cstr(), &identity);
            }
        }
        Ok(())
    }
}

fn identity_at(directory: BorrowedFd<'_>, name: FileName<'_>) -> Option<Identity> {
    sys::statx_at(directory, name.as_cstr()).ok().map(|st| Identity::of(&st))
}
