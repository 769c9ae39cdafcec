//! GETLK, SETLK, SETLKW (`--locks`): the guest's locks as locks on the host, so that other guests and the host's
//! own programs respect them.
//!
//! A byte-range lock belongs to an owner, which a guest's process is for all its descriptors of a file. On the host
//! each (inode, owner) has an open file description of its own, since a lock of such a description goes only with
//! it: when the guest closes any descriptor of that owner (FLUSH), forgets the inode, or ends the session. A
//! whole-file lock belongs to the open file; the handle's own description has it.
//!
//! Not there: EDEADLK, the pid of a lock's holder (0 is told), and locks in a migration.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::handles::Handle;
use super::lock_waiters::{LockWaiters, Wait};
use super::sys::{self, Result};
use super::{FileSystem, Inode, Thread};
use crate::config::Locks as Kinds;
use crate::worker::fuse::operation::{Context, HandleId, Lock, NodeId};
use crate::worker::fuse::wire::{FileLock, InitFlags};

/// Most owners of byte-range locks at a time, each of which has an open file; ENOLCK beyond it.
const MAX_OWNERS: usize = 4096;

/// The last byte that a lock can have: it means all bytes to the end of the file.
const TO_THE_END: u64 = i64::MAX as u64;

/// Who holds byte-range locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The inode.
    pub node: NodeId,
    /// The guest's lock owner.
    pub owner: u64,
}

impl Owner {
    fn new(inode: &Inode, owner: u64) -> Self {
        Owner { node: inode.id, owner }
    }
}

/// A lock to be taken or given up, with the open file that will have it.
pub enum Attempt {
    /// Byte range.
    Range {
        /// Whose.
        key: Owner,
        /// The owner's description of the file.
        file: Arc<OwnedFd>,
        /// `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
        kind: i16,
        /// First byte.
        start: i64,
        /// Bytes; 0 for all to the end.
        length: i64,
    },
    /// Whole file.
    Whole {
        /// The handle's id.
        id: HandleId,
        /// The open file.
        handle: Arc<Handle>,
        /// `LOCK_SH`, `LOCK_EX`, `LOCK_UN`.
        operation: i32,
    },
}

impl Attempt {
    /// Tries it without waiting.
    ///
    /// # Errors
    /// EAGAIN while somebody else's lock is in the way.
    pub fn make(&self) -> Result<()> {
        match self {
            Attempt::Range { file, kind, start, length, .. } => {
                sys::set_range_lock(file.as_fd(), *kind, *start, *length)
            }
            Attempt::Whole { handle, operation, .. } => sys::flock(handle.fd(), operation | libc::LOCK_NB),
        }
    }
}

/// The locks of a session.
pub struct Locks {
    waiters: LockWaiters,
    owners: Mutex<HashMap<Owner, Arc<OwnedFd>>>,
    /// Entries of `owners`, for those who only want to know whether there are any.
    count: AtomicUsize,
}

impl Locks {
    /// `None` when the user wants none.
    ///
    /// # Errors
    /// When the thread that waits for locks can't be started.
    pub fn new(kinds: Kinds) -> Result<Option<Self>> {
        if kinds == Kinds::default() {
            return Ok(None);
        }
        let waiters =
            LockWaiters::start().map_err(|e| e.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        Ok(Some(Locks { waiters, owners: Mutex::default(), count: AtomicUsize::new(0) }))
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<Owner, Arc<OwnedFd>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_of(&self, owner: Owner) -> Option<Arc<OwnedFd>> {
        self.owners().get(&owner).cloned()
    }

    /// Takes the owners out that `gone` picks; their locks go with their files.
    fn drop_owners(&self, gone: impl Fn(&Owner) -> bool) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut owners = self.owners();
        let dropped: Vec<_> = owners.extract_if(|owner, _| gone(owner)).collect();
        self.count.store(owners.len(), Ordering::Release);
        drop(owners);
        if !dropped.is_empty() {
            drop(dropped);
            self.waiters.unlocked();
        }
    }

    fn drop_owner(&self, owner: Owner) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut owners = self.owners();
        let dropped = owners.remove(&owner);
        self.count.store(owners.len(), Ordering::Release);
        drop(owners);
        if dropped.is_some() {
            self.waiters.cancel(|wait| wait.is_of(owner));
            drop(dropped);
            self.waiters.unlocked();
        }
    }
}

impl FileSystem {
    fn locks(&self, thread: &Thread, flock: bool) -> Result<&Locks> {
        let kind = if flock { InitFlags::FLOCK_LOCKS } else { InitFlags::POSIX_LOCKS };
        self.locks.as_ref().filter(|_| thread.session().has(kind)).ok_or(Errno::ENOSYS)
    }

    /// GETLK: the lock in the way, or one of kind `F_UNLCK`.
    pub fn getlk(&self, thread: &Thread, ctx: &Context, lock: &Lock) -> Result<FileLock> {
        let locks = self.locks(thread, lock.flock)?;
        let handle = self.handles.get(lock.handle, ctx.node)?;
        if lock.flock {
            return Err(Errno::EINVAL);
        }
        let (start, length) = range(lock);
        let own = locks.file_of(Owner::new(&handle.inode, lock.owner));
        // The handle's own description has no byte-range lock, so that all of them are others'.
        let file = own.as_ref().map_or(handle.fd(), |file| file.as_fd());
        let found = sys::get_range_lock(file, lock.kind as i16, start, length)?;
        if i32::from(found.l_type) == libc::F_UNLCK {
            return Ok(FileLock { start: 0, end: 0, kind: libc::F_UNLCK as u32, pid: 0 });
        }
        let start = found.l_start.max(0).cast_unsigned();
        let end = match found.l_len {
            length @ 1.. => start.saturating_add(length.cast_unsigned() - 1).min(TO_THE_END),
            _ => TO_THE_END,
        };
        Ok(FileLock { start, end, kind: u32::from(found.l_type.unsigned_abs()), pid: 0 })
    }

    /// SETLK, and the first attempt of SETLKW: the lock to wait for, when the guest is to wait.
    ///
    /// # Errors
    /// EAGAIN when somebody else's lock is in the way and the guest doesn't wait; ENOLCK for too many owners.
    pub fn setlk(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        lock: &Lock,
        wait: bool,
    ) -> Result<Option<Attempt>> {
        let locks = self.locks(thread, lock.flock)?;
        let handle = self.handles.get(lock.handle, ctx.node)?;
        let unlock = lock.kind == libc::F_UNLCK as u32;
        let attempt = if lock.flock {
            let operation = match lock.kind as i32 {
                libc::F_RDLCK => libc::LOCK_SH,
                libc::F_WRLCK => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            Attempt::Whole { id: lock.handle, handle, operation }
        } else {
            let key = Owner::new(&handle.inode, lock.owner);
            let Some(file) = self.owner_file(thread, locks, key, &handle.inode, unlock)? else {
                // Who has no locks has nothing to give up.
                return Ok(None);
            };
            let (start, length) = range(lock);
            Attempt::Range { key, file, kind: lock.kind as i16, start, length }
        };
        match attempt.make() {
            Ok(()) => {
                // Taking a lock for reading in place of one for writing lets others in, too.
                if lock.kind != libc::F_WRLCK as u32 {
                    locks.waiters.unlocked();
                }
                Ok(None)
            }
            Err(Errno::EAGAIN | Errno::EACCES) if wait => Ok(Some(attempt)),
            Err(Errno::EACCES) => Err(Errno::EAGAIN),
            Err(e) => Err(e),
        }
    }

    /// The owner's description of the file; made for a first lock, `None` for a first unlock.
    fn owner_file(
        &self,
        thread: &mut Thread,
        locks: &Locks,
        owner: Owner,
        inode: &Arc<Inode>,
        unlock: bool,
    ) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(file) = locks.file_of(owner) {
            return Ok(Some(file));
        }
        if unlock {
            return Ok(None);
        }
        if inode.kind != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        if locks.count.load(Ordering::Acquire) >= MAX_OWNERS {
            return Err(Errno::ENOLCK);
        }
        thread.become_root();
        let open = |access| self.reopen(inode, access | libc::O_NONBLOCK);
        // A lock for writing takes a file that is open for writing.
        let writable = if self.config.readonly { Err(Errno::EROFS) } else { open(libc::O_RDWR) };
        let file = Arc::new(writable.or_else(|_| open(libc::O_RDONLY))?);
        let mut owners = locks.owners();
        let file = Arc::clone(owners.entry(owner).or_insert(file));
        locks.count.store(owners.len(), Ordering::Release);
        Ok(Some(file))
    }

    /// Waits for a lock on behalf of a request; `done` hears of it.
    pub fn wait_for_lock(&self, wait: Wait) {
        match &self.locks {
            Some(locks) => locks.waiters.wait(wait),
            None => (wait.done)(Err(Errno::ENOSYS)),
        }
    }

    /// FLUSH: an owner's byte-range locks end with any of its descriptors.
    pub(super) fn release_owner(&self, inode: &Inode, owner: u64) {
        if let Some(locks) = &self.locks {
            locks.drop_owner(Owner::new(inode, owner));
        }
    }

    /// RELEASE: nobody waits for a lock of this open file any more; those it has go with its description.
    pub(super) fn release_whole(&self, handle: HandleId) {
        if let Some(locks) = &self.locks {
            locks.waiters.cancel(|wait| wait.is_of_handle(handle));
        }
    }

    /// A lock has gone with an open file.
    pub(super) fn lock_may_be_free(&self) {
        if let Some(locks) = &self.locks {
            locks.waiters.unlocked();
        }
    }

    /// The guest has forgotten an inode.
    pub(super) fn forget_locks(&self, inode: &Inode) {
        if let Some(locks) = &self.locks {
            locks.drop_owners(|owner| owner.node == inode.id);
        }
    }

    /// INTERRUPT: the guest gives up on a request.
    pub fn interrupt(&self, unique: u64) {
        if let Some(locks) = &self.locks {
            locks.waiters.cancel(|wait| wait.unique == unique);
        }
    }

    /// Answers all requests of this virtqueue that wait for a lock.
    pub fn interrupt_queue(&self, queue: u16) {
        if let Some(locks) = &self.locks {
            locks.waiters.cancel(|wait| wait.queue == queue);
        }
    }

    /// Forgets all requests that wait for a lock, without an answer: for a device reset.
    pub fn abandon_waits(&self) {
        if let Some(locks) = &self.locks {
            locks.waiters.abandon();
        }
    }

    /// Owners that have, or had until now, byte-range locks on the host.
    pub(in crate::worker) fn lock_owners(&self) -> usize {
        self.locks.as_ref().map_or(0, |locks| locks.count.load(Ordering::Acquire))
    }

    /// The end of a session: nothing is locked or waited for any more.
    pub(super) fn drop_locks(&self) {
        if let Some(locks) = &self.locks {
            locks.waiters.cancel(|_| true);
            locks.drop_owners(|_| true);
        }
    }
}

/// First byte and length, 0 meaning all to the end.
fn range(lock: &Lock) -> (i64, i64) {
    let start = i64::try_from(lock.start).unwrap_or(i64::MAX);
    if lock.end >= TO_THE_END {
        return (start, 0);
    }
    (start, i64::try_from(lock.end - lock.start + 1).unwrap_or(0))
}
