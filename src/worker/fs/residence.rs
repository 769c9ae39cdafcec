//! What an idle inode is kept by: an `O_PATH` fd while it is hot, a handle sealed by the broker once it is cold.
//!
//! Fds are bounded: when there are more hot inodes than the limit, a batch of those that were not used lately
//! (CLOCK) is sealed and their fds are closed. Using a cold inode opens its handle again, through the broker,
//! because only the broker may. A warm workload does neither.
//!
//! Lock order: the clock's hand, then an inode's state; no shard of the inode table is locked meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};

use super::inodes::{Inode, Inodes};
use super::slots::Cursor;
use super::sys::Result;
use crate::config::InodeFileHandles;
use crate::protocol::bounded::Bytes;
use crate::protocol::phase::Service;
use crate::protocol::{FileHandle, MAX_FDS, SealedHandle, Services};
use crate::worker::broker_client::BrokerClient;

/// Inodes looked at, at most, for one batch to seal.
const SCAN_LIMIT: usize = 4 * MAX_FDS;

/// Fds that are left alone for everything that is not an inode or a handle.
const RESERVED: u64 = 128;

/// An inode's fd or sealed handle.
///
/// Readers are recursive: a rename within one directory holds its fd twice.
pub struct Residence {
    state: RwLock<State>,
    /// Used since the clock's hand last passed.
    used: AtomicBool,
    /// Its file system gives no handles, or they can't be sealed: it stays hot.
    unsealable: AtomicBool,
}

enum State {
    Hot(OwnedFd),
    Cold(ColdHandle),
}

/// A sealed handle in one piece of memory: mount (4 bytes), type (4), seal (16), handle (the rest). There may be
/// millions.
struct ColdHandle(Box<[u8]>);

impl ColdHandle {
    fn new(sealed: &SealedHandle) -> Self {
        let mut packed = Vec::with_capacity(24 + sealed.handle.bytes.as_slice().len());
        packed.extend_from_slice(&sealed.mount.to_ne_bytes());
        packed.extend_from_slice(&sealed.handle.handle_type.to_ne_bytes());
        packed.extend_from_slice(&sealed.mac);
        packed.extend_from_slice(sealed.handle.bytes.as_slice());
        ColdHandle(packed.into_boxed_slice())
    }

    /// Mount, type, seal and handle.
    fn parts(&self) -> Option<(u32, i32, [u8; 16], &[u8])> {
        let (mount, rest) = self.0.split_first_chunk()?;
        let (handle_type, rest) = rest.split_first_chunk()?;
        let (mac, bytes) = rest.split_first_chunk()?;
        Some((u32::from_ne_bytes(*mount), i32::from_ne_bytes(*handle_type), *mac, bytes))
    }

    fn sealed(&self) -> Option<SealedHandle> {
        let (mount, handle_type, mac, bytes) = self.parts()?;
        Some(SealedHandle { mount, handle: FileHandle { handle_type, bytes: Bytes::new(bytes).ok()? }, mac })
    }

    fn is(&self, other: &SealedHandle) -> bool {
        self.sealed().is_some_and(|sealed| sealed == *other)
    }
}

/// An inode's `O_PATH` fd, which stays open while this value lives.
pub struct InodeFd<'a>(MappedRwLockReadGuard<'a, OwnedFd>);

impl AsFd for InodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Residence {
    /// A hot one.
    pub fn hot(fd: OwnedFd) -> Self {
        Residence {
            state: RwLock::new(State::Hot(fd)),
            used: AtomicBool::new(false),
            unsealable: AtomicBool::new(false),
        }
    }

    /// Is there an fd now? Only sure as long as nobody seals.
    pub fn is_hot(&self) -> bool {
        matches!(&*self.state.read_recursive(), State::Hot(_))
    }

    /// The fd, if it is hot.
    fn fd(&self) -> Option<InodeFd<'_>> {
        let hot = RwLockReadGuard::try_map(self.state.read_recursive(), |state| match state {
            State::Hot(fd) => Some(fd),
            State::Cold(_) => None,
        });
        hot.ok().map(InodeFd)
    }

    /// Is it the inode of this handle? Nothing is known of a hot one.
    fn is_cold_and(&self, handle: &SealedHandle) -> Option<bool> {
        match &*self.state.read_recursive() {
            State::Hot(_) => None,
            State::Cold(cold) => Some(cold.is(handle)),
        }
    }

    /// Puts an fd in the place of the handle; `false`, and the fd closed, when it is hot already.
    fn warm(&self, fd: OwnedFd) -> bool {
        let mut state = self.state.write();
        let cold = matches!(*state, State::Cold(_));
        if cold {
            *state = State::Hot(fd);
        }
        cold
    }

    /// Puts a handle in the place of the fd; `false` when it is in use or cold already.
    fn cool(&self, sealed: &SealedHandle) -> bool {
        let Some(mut state) = self.state.try_write() else { return false };
        let hot = matches!(*state, State::Hot(_));
        if hot {
            *state = State::Cold(ColdHandle::new(sealed));
        }
        hot
    }
}

/// Keeps the number of hot inodes within bounds.
pub struct Keeper {
    /// Seals and opens handles.
    broker: Option<Arc<BrokerClient>>,
    /// Wants to know of each mount of the share.
    mounts: Option<Arc<BrokerClient>>,
    mandatory: bool,
    limit: usize,
    hot: AtomicUsize,
    hand: Mutex<Cursor>,
}

impl Keeper {
    /// `nofile` is the process's limit of open fds. Without a broker that serves handles, or with
    /// `--inode-file-handles=never`, every inode stays hot.
    pub fn new(
        mode: InodeFileHandles,
        broker: Option<Arc<BrokerClient>>,
        services: Services,
        nofile: u64,
    ) -> Self {
        // A quarter is for handles, so that a guest that looks up everything can still open files.
        let limit = nofile.saturating_sub(RESERVED) / 4 * 3;
        Keeper {
            mounts: broker.clone().filter(|_| services.has(Service::Mounts)),
            broker: broker.filter(|_| services.handles && mode != InodeFileHandles::Never),
            mandatory: mode == InodeFileHandles::Mandatory,
            limit: usize::try_from(limit).unwrap_or(usize::MAX).max(1),
            hot: AtomicUsize::new(0),
            hand: Mutex::new(Cursor::default()),
        }
    }

    /// Another inode became hot.
    pub fn heated(&self, inodes: &Inodes) {
        let hot = self.hot.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever finds the hand taken leaves it to that thread, until it is really too much.
        if hot > self.limit
            && self.broker.is_some()
            && let Some(mut hand) = self.hand.try_lock()
        {
            self.seal_some(inodes, &mut hand);
        }
    }

    /// An inode is gone for good.
    pub fn gone(&self, inode: &Inode) {
        if inode.residence.is_hot() {
            self.cooled(1);
        }
    }

    /// All inodes are gone.
    pub fn reset(&self) {
        self.hot.store(0, Ordering::Relaxed);
    }

    fn cooled(&self, count: usize) {
        // After a reset, requests still under way may take back what doesn't count any more.
        let _ = self
            .hot
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |hot| Some(hot.saturating_sub(count)));
    }

    /// The inode's fd, opened again if it is cold.
    ///
    /// # Errors
    /// ESTALE when the file of a cold inode is gone; EMFILE, ENFILE.
    pub fn hold<'a>(&self, inodes: &Inodes, inode: &'a Inode) -> Result<InodeFd<'a>> {
        // An inode that is sealed again each time it is opened would need a limit of hot inodes of nearly zero.
        for _ in 0..16 {
            if let Some(fd) = inode.residence.fd() {
                if !inode.residence.used.load(Ordering::Relaxed) {
                    inode.residence.used.store(true, Ordering::Relaxed);
                }
                return Ok(fd);
            }
            let fd = self.reopen(inodes, inode)?;
            if inode.residence.warm(fd) {
                self.heated(inodes);
            }
        }
        Err(Errno::EMFILE)
    }

    fn reopen(&self, inodes: &Inodes, inode: &Inode) -> Result<OwnedFd> {
        let sealed = match &*inode.residence.state.read_recursive() {
            State::Hot(fd) => return fd.try_clone().map_err(|_| Errno::last()),
            State::Cold(cold) => cold.sealed().ok_or(Errno::EIO)?,
        };
        let broker = self.broker.as_ref().ok_or(Errno::ESTALE)?;
        self.with_room(inodes, || broker.reopen(&sealed).map_err(|e| Errno::from_raw(e.errno().code())))
    }

    /// Runs a call that makes an fd; when there are too many, closes those of idle inodes and tries again.
    ///
    /// # Errors
    /// What the call says.
    pub fn with_room<T>(&self, inodes: &Inodes, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Err(e @ (Errno::EMFILE | Errno::ENFILE)) => {
                let sealed = self.broker.is_some() && self.seal_some(inodes, &mut self.hand.lock()) > 0;
                if sealed { call() } else { Err(e) }
            }
            result => result,
        }
    }

    /// A cold inode has the identity of one that was just opened as `fd`. If it is the same, it is hot from now on.
    /// `false` when it is not: its file is gone and the number was used again.
    ///
    /// # Errors
    /// What sealing `fd` says: two seals of one inode are equal.
    pub fn meet(&self, inodes: &Inodes, inode: &Inode, fd: BorrowedFd<'_>) -> Result<bool> {
        let broker = self.broker.as_ref().ok_or(Errno::ESTALE)?;
        let mut results = broker.seal(&[fd]).map_err(|e| Errno::from_raw(e.errno().code()))?;
        let sealed = match results.pop() {
            Some(result) => result.map_err(|errno| Errno::from_raw(errno.code()))?,
            None => return Err(Errno::EIO),
        };
        if inode.residence.is_cold_and(&sealed) == Some(false) {
            return Ok(false);
        }
        if inode.residence.warm(fd.try_clone_to_owned().map_err(|_| Errno::last())?) {
            self.heated(inodes);
        }
        Ok(true)
    }

    /// Tells the broker of a mount that the guest has reached: it only acts on mounts that it knows.
    ///
    /// # Errors
    /// EOPNOTSUPP when handles are mandatory and this file system has none.
    pub fn reached_mount(&self, root: BorrowedFd<'_>) -> Result<()> {
        let Some(broker) = &self.mounts else { return Ok(()) };
        match broker.seal(&[root]) {
            Ok(results) if matches!(results.first(), Some(Ok(_))) => Ok(()),
            Ok(results) if self.mandatory => {
                let errno = results.first().and_then(|result| result.as_ref().err());
                Err(errno.map_or(Errno::EOPNOTSUPP, |errno| Errno::from_raw(errno.code())))
            }
            Ok(_) => Ok(()),
            Err(e) => {
                log::error!("cannot tell the broker of a mount: {e}");
                Err(Errno::EIO)
            }
        }
    }

    /// Seals a batch of inodes that were not used lately and closes their fds; how many.
    fn seal_some(&self, inodes: &Inodes, hand: &mut Cursor) -> usize {
        let Some(broker) = &self.broker else { return 0 };
        let mut batch = Vec::with_capacity(MAX_FDS);
        let mut scanned = 0;
        // Two rounds at most: the first may only take the marks away.
        while batch.len() < MAX_FDS && scanned < SCAN_LIMIT.max(self.limit.saturating_mul(3)) {
            let step = inodes.sweep(hand, MAX_FDS);
            if step.is_empty() {
                break;
            }
            scanned += step.len();
            let room = MAX_FDS - batch.len();
            batch.extend(step.into_iter().filter(is_idle).take(room));
        }
        let held: Vec<_> = batch.iter().filter_map(|inode| Some((inode, inode.residence.fd()?))).collect();
        if held.is_empty() {
            return 0;
        }
        let fds: Vec<_> = held.iter().map(|(_, fd)| fd.as_fd()).collect();
        let results = match broker.seal(&fds) {
            Ok(results) => results,
            Err(e) => {
                log::error!("cannot seal the handles of idle inodes: {e}");
                return 0;
            }
        };
        let inodes: Vec<_> = held.iter().map(|(inode, _)| *inode).collect();
        drop(held);
        let mut cooled = 0;
        for (inode, result) in inodes.into_iter().zip(results) {
            match result {
                Ok(sealed) => cooled += usize::from(inode.residence.cool(&sealed)),
                Err(_) => inode.residence.unsealable.store(true, Ordering::Relaxed),
            }
        }
        self.cooled(cooled);
        cooled
    }
}

/// Has the clock's hand passed since it was last used? Takes the mark away.
fn is_idle(inode: &Arc<Inode>) -> bool {
    let residence = &inode.residence;
    !residence.used.swap(false, Ordering::Relaxed)
        && !residence.unsealable.load(Ordering::Relaxed)
        && inode.id != crate::worker::fuse::operation::NodeId::ROOT
        && residence.is_hot()
}
