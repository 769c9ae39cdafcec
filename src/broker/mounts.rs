//! The mounts of the share: on which of them an fd of the worker is, and an fd to open handles on each.
//!
//! The share is a tree of mounts that only this device has, so an fd on one of them was opened through
//! the share, whoever passed it. The broker knows the tree's root from the start. It learns another mount when it
//! is shown that mount's root directory and `..` from there leads to a mount that it knows: mounts whose parent is
//! in the tree are in the tree. (A worker shows a mount's root when it first looks it up; before that, and for
//! mounts on single files, it keeps fds instead of sealed handles.)
//!
//! A mount that was detached from the tree leaves the table ([`MountTable::drop_detached`]), so that its file system is
//! not kept in use. What was sealed on it is then gone.
//!
//! Invariants: an fd is kept on each mount of the table, so none of their ids is used again for another mount. An
//! index is never used again, so what was sealed on one mount is never opened on another.

use std::collections::BTreeMap;
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
    mounts: BTreeMap<u32, Mount>,
    /// The next index.
    next: u32,
}

impl MountTable {
    /// A table of no mount, which knows no fd.
    pub fn empty() -> Self {
        Self { mounts: BTreeMap::new(), next: 0 }
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
        self.mounts.get(&index).map(|mount| mount.directory.as_fd())
    }

    /// Whether there was a mount with this index, which is no more.
    pub fn has_gone(&self, index: u32) -> bool {
        index < self.next && !self.mounts.contains_key(&index)
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

    /// Forgets the mounts that are attached to no other any more. The share's own, the first, counts as attached.
    pub fn drop_detached(&mut self) {
        self.mounts.retain(|index, mount| *index == 0 || parent_of(mount.directory.as_fd()) != Ok(mount.id));
    }

    fn find(&self, id: MountId) -> Option<u32> {
        self.mounts.iter().find(|(_, mount)| mount.id == id).map(|(index, _)| *index)
    }

    fn learn(&mut self, id: MountId, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let stat = sys::stat_fd(fd)?;
        if stat.mount != id || !stat.is_mount_root || !stat.is_directory {
            return Err(Errno::EXDEV);
        }
        self.find(parent_of(fd)?).ok_or(Errno::EXDEV)?;
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
        let index = self.next;
        self.next = index.checked_add(1).ok_or(Errno::ENOSPC)?;
        self.mounts.insert(index, Mount { id, directory });
        Ok(index)
    }
}

/// The mount that the one whose root is `root` is attached to; itself if it is attached nowhere.
fn parent_of(root: BorrowedFd<'_>) -> Result<MountId, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let parent = openat(root, c"..", flags, Mode::empty())?;
    Ok(sys::stat_fd(parent.as_fd())?.mount)
}
