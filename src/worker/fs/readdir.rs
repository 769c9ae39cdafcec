//! READDIR and READDIRPLUS.

use std::sync::{Arc, PoisonError};

use nix::errno::Errno;

use super::directory::RawEntry;
use super::inodes::{Identity, Inode};
use super::sys::Result;
use super::{Entry, FileSystem, Thread, Use};
use crate::worker::fuse::dirent::MAX_NAME;
use crate::worker::fuse::operation::{Context, ReadDir};

/// Where directory entries go: a reply of bounded size.
pub trait DirSink {
    /// Adds an entry; `false` when there is no room for it.
    fn push(&mut self, entry: &RawEntry<'_>) -> bool;
    /// Is there room for an entry with attributes and a name of this length?
    fn has_room_plus(&self, name_len: usize) -> bool;
    /// Adds an entry with what a lookup of it said; `None` for `.`, `..` and what could not be looked up, which
    /// the guest takes as a name without a node. `false` when there is no room for it.
    fn push_plus(&mut self, entry: &RawEntry<'_>, looked_up: Option<&Entry>) -> bool;
}

impl FileSystem {
    /// READDIR
    ///
    /// # Errors
    /// EINVAL when there is no room for a single entry.
    pub fn readdir(&self, ctx: &Context, read: ReadDir, sink: &mut impl DirSink) -> Result<()> {
        self.list(ctx, read, |_, entry| Ok(sink.push(entry)))
    }

    /// READDIRPLUS: every entry that has a node in the reply is a reference that the guest now holds.
    ///
    /// # Errors
    /// As [`FileSystem::readdir`].
    pub fn readdirplus(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        read: ReadDir,
        sink: &mut impl DirSink,
    ) -> Result<()> {
        thread.become_root();
        self.list(ctx, read, |directory, entry| {
            // Room first: a reference that doesn't make it into the reply would be lost.
            if !sink.has_room_plus(entry.name.count_bytes()) {
                return Ok(false);
            }
            // An entry that vanished, or that the host can't give us, is still a name.
            let looked_up =
                if entry.is_dot() { None } else { self.lookup_listed(thread, directory, entry).ok() };
            if let Some(found) = &looked_up {
                thread.names.met(found, directory.id, entry.name);
            }
            Ok(sink.push_plus(entry, looked_up.as_ref()))
        })
    }

    /// Hands out entries while `each` takes them.
    #[inline(always)]
    fn list(
        &self,
        ctx: &Context,
        read: ReadDir,
        mut each: impl FnMut(&Arc<Inode>, &RawEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        let handle = self.handles.get(read.handle, ctx.node)?;
        if !handle.inode.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let mut stream = handle.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        stream.read(handle.fd(), read.offset, |entry| {
            // A name that the protocol has no room for could never be looked up either.
            if entry.name.count_bytes() > MAX_NAME {
                return Ok(true);
            }
            let taken = each(&handle.inode, &entry)?;
            any |= taken;
            // Nothing at all would tell the guest that the directory ends here.
            if taken || any { Ok(taken) } else { Err(Errno::EINVAL) }
        })
    }

    /// Looks up an entry of a listing, opening it first when its inode is probably not hot. The listing's inode
    /// number tells, but to look for it costs, too, so that is done only where entries are hot.
    #[inline(always)]
    fn lookup_listed(&self, thread: &mut Thread, parent: &Arc<Inode>, entry: &RawEntry<'_>) -> Result<Entry> {
        if thread.listing.expects_hot() {
            let guess = Identity { ino: entry.ino, ..parent.identity };
            if self.inodes.knows_hot(&guess)
                && let Some(found) = self.lookup_hot(parent, entry.name)?
            {
                return Ok(found);
            }
        }
        // A listing tells of many files, and few of those are opened.
        let (entry, before) = self.lookup_new(parent, entry.name, Use::Once)?;
        thread.listing.saw(before);
        Ok(entry)
    }
}
