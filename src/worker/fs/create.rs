//! MKNOD, MKDIR, SYMLINK, CREATE, TMPFILE: everything that makes a new inode runs as the guest's user.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use smallvec::SmallVec;

use super::inodes::Inode;
use super::open::Opened;
use super::sys::{self, Result};
use super::{Entry, FileSystem, Thread, Use};
use crate::worker::fuse::operation::{Context, CreateExtensions, FileName, Open};
use crate::worker::fuse::wire::InitFlags;

/// The protocol's minor version in Linux 6.12, the oldest kernel known to get TMPFILE right. In 6.1, an overlay whose
/// upper layer is here makes a file without a name, links it into place, and later looks the nameless one up again:
/// each file that was copied up is ESTALE then.
const TMPFILE_MINOR: u32 = 41;

impl FileSystem {
    /// Makes the thread the request's user, with its groups and umask, for making a new inode.
    fn become_creator(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        umask: u32,
        ext: &CreateExtensions<'_>,
    ) -> Result<()> {
        self.inode_room()?;
        self.keeper.make_room()?;
        let (uid, gid) = self.owner(ctx)?;
        let groups = ext.groups.iter().map(|gid| self.gids.guest_to_host(gid.0));
        let groups: SmallVec<[u32; 4]> =
            groups.collect::<std::result::Result<_, _>>().map_err(|_| Errno::EPERM)?;
        // Without ACLs the guest has applied the umask itself.
        thread.set_umask(if thread.session().has(InitFlags::POSIX_ACL) { umask & 0o777 } else { 0 });
        thread.become_user(uid, gid, &groups)
    }

    /// MKNOD
    #[expect(clippy::too_many_arguments, reason = "the fields of the request, nothing else")]
    pub fn mknod(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: FileName<'_>,
        mode: u32,
        rdev: u32,
        umask: u32,
        ext: &CreateExtensions<'_>,
    ) -> Result<Entry> {
        self.writable()?;
        let parent = self.dir_inode(ctx.node)?;
        // The worker can make one device node, the whiteout of overlay file systems.
        let device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        if device && (mode & libc::S_IFMT, rdev) != (libc::S_IFCHR, 0) {
            self.inode_room()?;
            self.make_device(thread, ctx, &parent, name, (mode, rdev, umask))?;
        } else {
            self.become_creator(thread, ctx, umask, ext)?;
            sys::mknodat(self.fd(&parent)?.as_fd(), name.as_cstr(), mode, 0)?;
        }
        self.created(thread, &parent, name.as_cstr(), ext, 0)
    }

    /// MKDIR
    pub fn mkdir(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: FileName<'_>,
        mode: u32,
        umask: u32,
        ext: &CreateExtensions<'_>,
    ) -> Result<Entry> {
        self.writable()?;
        let parent = self.dir_inode(ctx.node)?;
        self.become_creator(thread, ctx, umask, ext)?;
        sys::mkdirat(self.fd(&parent)?.as_fd(), name.as_cstr(), mode & 0o7777)?;
        self.created(thread, &parent, name.as_cstr(), ext, libc::AT_REMOVEDIR)
    }

    /// SYMLINK
    pub fn symlink(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: FileName<'_>,
        target: &CStr,
        ext: &CreateExtensions<'_>,
    ) -> Result<Entry> {
        self.writable()?;
        let parent = self.dir_inode(ctx.node)?;
        self.become_creator(thread, ctx, 0, ext)?;
        sys::symlinkat(target, self.fd(&parent)?.as_fd(), name.as_cstr())?;
        self.created(thread, &parent, name.as_cstr(), ext, 0)
    }

    /// Looks up what was just made, and labels it; takes the name away again when that fails.
    fn created(
        &self,
        thread: &mut Thread,
        parent: &Arc<Inode>,
        name: &CStr,
        ext: &CreateExtensions<'_>,
        unlink_flags: i32,
    ) -> Result<Entry> {
        let fd = self.open_path(parent, name, libc::O_NOFOLLOW);
        let entry = self.created_fd(thread, parent, fd, ext).inspect_err(|_| {
            thread.become_root();
            self.undo(parent, name, unlink_flags);
        })?;
        self.track_created(parent, name, &entry);
        Ok(entry)
    }

    /// Tells a migration that is being prepared where the new inode lies.
    fn track_created(&self, parent: &Inode, name: &CStr, entry: &Entry) {
        if self.tracker.is_on()
            && let Some(inode) = self.inodes.get(entry.node)
        {
            self.tracker.saw(&parent.identity, name, &inode.identity);
        }
    }

    /// Takes away what was just made but can't be told of. Where that fails too, the name stays.
    fn undo(&self, parent: &Arc<Inode>, name: &CStr, unlink_flags: i32) {
        if let Ok(parent) = self.fd(parent) {
            let _ = sys::unlinkat(parent.as_fd(), name, unlink_flags);
        }
    }

    fn created_fd(
        &self,
        thread: &mut Thread,
        parent: &Arc<Inode>,
        fd: Result<OwnedFd>,
        ext: &CreateExtensions<'_>,
    ) -> Result<Entry> {
        let fd = fd?;
        if let Some((name, value)) = ext.security_context {
            thread.become_root();
            self.set_security_context(fd.as_fd(), name, value)?;
        }
        let st = sys::statx_fd(fd.as_fd())?;
        let (node, _) = self.adopt(&st, fd, Use::Often)?;
        Ok(self.entry(node, st, &parent.identity))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the request, nothing else")]
    /// CREATE: makes and opens a file, or opens the one that is there unless the guest wants a new one.
    pub fn create(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        name: FileName<'_>,
        open: Open,
        mode: u32,
        umask: u32,
        ext: &CreateExtensions<'_>,
    ) -> Result<(Entry, Opened)> {
        let parent = self.dir_inode(ctx.node)?;
        if self.config.readonly {
            // What is there may still be opened for reading.
            return self.open_existing(thread, &parent, name.as_cstr(), open).map_err(|e| match e {
                Errno::ENOENT => Errno::EROFS,
                e => e,
            });
        }
        let seat = self.handle_seat()?;
        self.become_creator(thread, ctx, umask, ext)?;
        let flags = self.host_flags(thread.session(), open.flags);
        let exclusive = flags | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let made = {
            let parent = self.fd(&parent)?;
            self.keeper.with_room(|| sys::openat(parent.as_fd(), name.as_cstr(), exclusive, mode & 0o7777))
        };
        match made {
            Ok(file) => {
                let fd = self.path_fd(file.as_fd());
                let entry = self.created_fd(thread, &parent, fd, ext).inspect_err(|_| {
                    thread.become_root();
                    self.undo(&parent, name.as_cstr(), 0);
                })?;
                self.track_created(&parent, name.as_cstr(), &entry);
                thread.names.met(&entry, parent.id, name.as_cstr());
                let opened = self.opened(thread, self.inode(entry.node)?, open, file, seat);
                Ok((entry, opened))
            }
            Err(Errno::EEXIST) if open.flags & libc::O_EXCL as u32 == 0 => {
                self.open_existing(thread, &parent, name.as_cstr(), open)
            }
            Err(e) => Err(e),
        }
    }

    /// CREATE of a name that the guest didn't know to be there.
    fn open_existing(
        &self,
        thread: &mut Thread,
        parent: &Arc<Inode>,
        name: &CStr,
        open: Open,
    ) -> Result<(Entry, Opened)> {
        thread.become_root();
        let entry = self.lookup_in(thread, parent, name)?;
        let opened = self.inode(entry.node).and_then(|inode| match inode.kind {
            libc::S_IFREG => self.open_inode(thread, inode, open),
            libc::S_IFDIR => Err(Errno::EISDIR),
            libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Err(Errno::EBADF),
        });
        match opened {
            Ok(opened) => Ok((entry, opened)),
            Err(e) => {
                self.forget(entry.node, 1);
                Err(e)
            }
        }
    }

    /// TMPFILE: an open file without a name. ENOSYS for guests in which it does harm: they do without, as with
    /// upstream.
    pub fn tmpfile(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        open: Open,
        mode: u32,
        umask: u32,
        ext: &CreateExtensions<'_>,
    ) -> Result<(Entry, Opened)> {
        if thread.session().minor < TMPFILE_MINOR {
            return Err(Errno::ENOSYS);
        }
        self.writable()?;
        let parent = self.dir_inode(ctx.node)?;
        let seat = self.handle_seat()?;
        self.become_creator(thread, ctx, umask, ext)?;
        let no_link = open.flags as i32 & libc::O_EXCL;
        let flags = self.host_flags(thread.session(), open.flags) | libc::O_TMPFILE | no_link;
        let file = sys::openat(self.fd(&parent)?.as_fd(), c".", flags, mode & 0o7777)?;
        let fd = self.path_fd(file.as_fd());
        let entry = self.created_fd(thread, &parent, fd, ext)?;
        let opened = self.opened(thread, self.inode(entry.node)?, open, file, seat);
        Ok((entry, opened))
    }

    /// An `O_PATH` fd of exactly the inode that a file is open on, whatever became of its name.
    fn path_fd(&self, file: BorrowedFd<'_>) -> Result<OwnedFd> {
        match sys::path_fd(file) {
            // A container's filter of system calls may know nothing of open_tree.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let name = sys::FdName::new(file);
                sys::openat(self.fd_directory(), name.as_cstr(), libc::O_PATH, 0)
            }
            fd => fd,
        }
    }
}
