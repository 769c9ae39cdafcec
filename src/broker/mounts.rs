//! The mounts of the share: on which of them an fd of the worker is, and an fd to open handles on each.
//!
//! The share is a detached tree of mounts that only this device has, so an fd on one of them was opened through
//! the share, whoever passed it. The broker knows the tree's root from the start. It learns another mount when it
//! is shown that mount's root directory and `..` from there leads to a mount that it knows: mounts whose parent is
//! in the tree are in the tree. (A worker shows a mount's root when it first looks it up; before that, and for
//! mounts on single files, it keeps fds instead of sealed handles.)
//!
//! Invariant: an fd is kept on each mount of the table, so none of their ids is used again for another mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::sys::{self, MountId};

/// Most mounts of one share. An fd is held for each.
pub const MAX_MOUNTS: usize = 256;

struct Mount {
    id: MountId,
    /// Opened for reading: `open_by_handle_at` takes no `O_PATH` fd.
    directory: OwnedFd,
}

/// The mounts of one share; a sealed handle has the index.
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// A table of no mount, which knows no fd.
    pub fn empty() -> Self {
        Self { mounts: Vec::new() }
    }

    /// A table of the one mount whose root directory is `share`.
    ///
    /// # Errors
    /// When `share` is not a directory, or can't be read.
    pub fn of_share(share: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut table = Self::empty();
        table.add(share, sys::stat_fd(share)?.mount)?;
        Ok(table)
    }

    /// The fd of the mount with this index.
    pub fn get(&self, index: u32) -> Option<BorrowedFd<'_>> {
        let mount = self.mounts.get(usize::try_from(index).ok()?)?;
        Some(mount.directory.as_fd())
    }

    /// The index of mount `id`, which `fd` is on. Learns the mount if `fd` shows that it belongs to the share.
    ///
    /// # Errors
    /// `EXDEV` for a mount that is not, or not known to be, one of the share's.
    pub fn index_of(&mut self, id: MountId, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        if let Some(index) = self.find(id) {
            return Ok(index);
        }
        self.learn(id, fd).map_err(|_| Errno::EXDEV)
    }

    /// Whether `fd` is on a mount of the share.
    ///
    /// # Errors
    /// `EXDEV` if it isn't, or isn't known to be.
    pub fn check(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let id = sys::stat_fd(fd).map_err(|_| Errno::EXDEV)?.mount;
        self.index_of(id, fd).map(drop)
    }

    fn find(&self, id: MountId) -> Option<u32> {
        u32::try_from(self.mounts.iter().position(|mount| mount.id == id)?).ok()
    }

    fn learn(&mut self, id: MountId, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let stat = sys::stat_fd(fd)?;
        if stat.mount != id || !stat.is_mount_root || !stat.is_directory {
            return Err(Errno::EXDEV);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let parent = openat(fd, c"..", flags, Mode::empty())?;
        self.find(sys::stat_fd(parent.as_fd())?.mount).ok_or(Errno::EXDEV)?;
        self.add(fd, id)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, id: MountId) -> Result<u32, Errno> {
        if self.mounts.len() == MAX_MOUNTS {
            return Err(Errno::ENOSPC);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(fd, c".", flags, Mode::empty())?;
        // What is mounted over the directory would be opened in its place.
        if sys::stat_fd(directory.as_fd())?.mount != id {
            return Err(Errno::EXDEV);
        }
        let index = u32::try_from(self.mounts.len()).map_err(|_| Errno::ENOSPC)?;
        self.mounts.push(Mount { id, directory });
        Ok(index)
    }
}
