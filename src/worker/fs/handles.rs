//! Open files and directories by handle id.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::directory::DirStream;
use super::inodes::Inode;
use super::seats::HandleSeat;
use super::slots::Slots;
use super::sys::{QuickFd, Result};
use crate::worker::fuse::operation::{HandleId, NodeId};
use crate::worker::heap::Spares;

/// An open file or directory.
pub struct Handle {
    /// What it is open on; the handle keeps the inode, whatever the guest forgets.
    pub inode: Arc<Inode>,
    /// The guest's open flags, as it sent them.
    pub flags: u32,
    file: QuickFd,
    _seat: HandleSeat,
    /// The position in the directory, and what was read ahead of it.
    pub directory: Mutex<DirStream>,
}

impl Handle {
    fn new(inode: Arc<Inode>, flags: u32, file: OwnedFd, seat: HandleSeat) -> Self {
        Handle { inode, flags, file: file.into(), _seat: seat, directory: Mutex::new(DirStream::default()) }
    }

    /// The open file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

thread_local! {
    /// Memory for the handles that this thread makes next.
    static SPARES: Spares<Handle> = const { Spares::new() };
}

/// All open handles.
pub struct Handles(Slots<Handle>);

impl Handles {
    /// A table with nothing in it.
    pub fn new() -> Self {
        // 0 is left out: some clients take it for "no handle".
        Handles(Slots::new(1))
    }

    /// Adds an open file.
    pub fn insert(&self, inode: Arc<Inode>, flags: u32, file: OwnedFd, seat: HandleSeat) -> HandleId {
        let id = self.0.reserve();
        self.0.set(id, SPARES.with(|spares| spares.make(Handle::new(inode, flags, file, seat))));
        HandleId(id)
    }

    /// Adds an open file under the id of a migrated guest.
    pub fn insert_at(&self, id: HandleId, inode: Arc<Inode>, flags: u32, file: OwnedFd, seat: HandleSeat) {
        self.0.restore(id.0, Arc::new(Handle::new(inode, flags, file, seat)));
    }

    /// All open handles, each with its id.
    pub fn all(&self) -> Vec<(HandleId, Arc<Handle>)> {
        self.0.all().into_iter().map(|(id, handle)| (HandleId(id), handle)).collect()
    }

    /// Above every id that was ever given out.
    pub fn next(&self) -> u64 {
        self.0.next()
    }

    /// See [`Slots::continue_from`].
    pub fn continue_from(&self, next: u64, live: usize) {
        self.0.continue_from(next, live);
    }

    /// The handle, if it is open and belongs to the node.
    ///
    /// # Errors
    /// EBADF
    pub fn get(&self, id: HandleId, node: NodeId) -> Result<Arc<Handle>> {
        let handle = self.0.get(id.0).ok_or(Errno::EBADF)?;
        if handle.inode.id == node { Ok(handle) } else { Err(Errno::EBADF) }
    }

    /// Closes a handle; requests under way keep the file open until they end.
    ///
    /// # Errors
    /// EBADF
    pub fn close(&self, id: HandleId, node: NodeId) -> Result<()> {
        let handle = self.0.remove_if(id.0, |handle| handle.inode.id == node).ok_or(Errno::EBADF)?;
        self.0.release(id.0);
        SPARES.with(|spares| spares.take_back(handle));
        Ok(())
    }

    /// How many are open.
    pub fn len(&self) -> u64 {
        self.0.live()
    }

    /// Closes all handles.
    pub fn clear(&self) {
        self.0.clear();
    }
}

impl Default for Handles {
    fn default() -> Self {
        Self::new()
    }
}
