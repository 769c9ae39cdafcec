//! What an idle inode is kept by: an `O_PATH` fd while it is hot, a handle sealed by the broker once it is cold.
//!
//! Fds are bounded ([`Bounds`]): when there are too many hot inodes, a batch of those that were not used lately
//! (CLOCK) is sealed and their fds are closed. Using a cold inode opens its handle again, through the broker,
//! because only the broker may. A warm workload does neither. Work is in proportion to the hot inodes, never to
//! all that the guest knows. A cold inode that is used once stays cold (`visits`).
//!
//! An unlinked inode stays hot: it lives as long as somebody has it open, and its fd may be the last. The hand meets it
//! once, and never again unless it gets a name.
//!
//! Lock order: `sealing`, then an inode's state, then `clock`. Under that one, inodes are only found, and asked whether
//! they are hot (which waits for nobody that waits for the clock). Whoever holds an inode's fd may wait for `sealing`: the
//! thread that seals never waits for an inode's state. No shard of the inode table is locked meanwhile.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};

use super::inodes::{Inode, Inodes};
use super::seats::{Bounds, HandleSeat, InodeSeat, Seats};
use super::sys::{self, QuickFd, Result};
use super::visits::{self, Age};
use crate::config::InodeFileHandles;
use crate::protocol::bounded::Bytes;
use crate::protocol::phase::Service;
use crate::protocol::{FileHandle, MAX_FDS, SealedHandle, Services};
use crate::worker::broker_client::BrokerClient;
use crate::worker::fuse::operation::NodeId;

/// Entries of the clock beyond twice the hot inodes: then those of inodes that are gone are taken out.
const CLOCK_SLACK: usize = 1024;

/// Batches of idle inodes that are looked through for one that can be sealed.
const MAX_BATCHES: usize = 4;

/// An inode's fd or sealed handle.
///
/// Readers are recursive: a rename within one directory holds its fd twice.
pub struct Residence(RwLock<State>);

/// The fd of a hot inode, and its seat.
pub struct HotFd {
    fd: QuickFd,
    _seat: InodeSeat,
}

impl AsFd for HotFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

enum State {
    Hot(HotFd),
    Cold(ColdHandle),
    /// A migrated guest holds it, but it was not found here.
    Lost,
}

/// Bytes of a sealed handle that are kept within the inode: enough for the handles of ext4, XFS, Btrfs and tmpfs.
const SHORT: usize = 46;

/// A sealed handle: mount (4 bytes), type (4), seal (16), handle (the rest). There may be millions, so one of usual
/// length takes no memory of its own.
enum ColdHandle {
    Short { len: u8, packed: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl ColdHandle {
    fn new(sealed: &SealedHandle) -> Self {
        let mut packed = Vec::with_capacity(SHORT);
        packed.extend_from_slice(&sealed.mount.to_ne_bytes());
        packed.extend_from_slice(&sealed.handle.handle_type.to_ne_bytes());
        packed.extend_from_slice(&sealed.mac);
        packed.extend_from_slice(sealed.handle.bytes.as_slice());
        let mut short = [0; SHORT];
        match (short.get_mut(..packed.len()), u8::try_from(packed.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(&packed);
                ColdHandle::Short { len, packed: short }
            }
            _ => ColdHandle::Long(packed.into_boxed_slice()),
        }
    }

    /// Mount, type, seal and handle.
    fn parts(&self) -> Option<(u32, i32, [u8; 16], &[u8])> {
        let packed = match self {
            ColdHandle::Short { len, packed } => packed.get(..usize::from(*len))?,
            ColdHandle::Long(packed) => packed,
        };
        let (mount, rest) = packed.split_first_chunk()?;
        let (handle_type, rest) = rest.split_first_chunk()?;
        let (mac, bytes) = rest.split_first_chunk()?;
        Some((u32::from_ne_bytes(*mount), i32::from_ne_bytes(*handle_type), *mac, bytes))
    }

    fn sealed(&self) -> Option<SealedHandle> {
        let (mount, handle_type, mac, bytes) = self.parts()?;
        Some(SealedHandle { mount, handle: FileHandle { handle_type, bytes: Bytes::new(bytes).ok()? }, mac })
    }

    fn is(&self, other: &SealedHandle) -> bool {
        let SealedHandle { mount, handle: FileHandle { handle_type, bytes }, mac } = other;
        self.parts() == Some((*mount, *handle_type, *mac, bytes.as_slice()))
    }
}

/// An inode's `O_PATH` fd, which stays open while this value lives.
pub enum InodeFd<'a> {
    /// That of a hot inode, which stays hot meanwhile.
    Hot(MappedRwLockReadGuard<'a, QuickFd>),
    /// That of a cold inode, which stays cold.
    Visit(Rc<HotFd>),
}

impl AsFd for InodeFd<'_> {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            InodeFd::Hot(fd) => fd.as_fd(),
            InodeFd::Visit(fd) => fd.as_fd(),
        }
    }
}

impl Residence {
    /// A hot one.
    pub fn hot(fd: HotFd) -> Self {
        Residence(RwLock::new(State::Hot(fd)))
    }

    /// That of an inode which was not found where the guest migrated to.
    pub fn lost() -> Self {
        Residence(RwLock::new(State::Lost))
    }

    /// Is there an fd now? Only sure as long as nobody seals.
    pub fn is_hot(&self) -> bool {
        matches!(&*self.0.read_recursive(), State::Hot(_))
    }

    /// The fd, if it is hot.
    fn fd(&self) -> Option<InodeFd<'_>> {
        let hot = RwLockReadGuard::try_map(self.0.read_recursive(), |state| match state {
            State::Hot(hot) => Some(&hot.fd),
            State::Cold(_) | State::Lost => None,
        });
        hot.ok().map(InodeFd::Hot)
    }

    /// The sealed handle, if it is cold.
    pub fn sealed(&self) -> Option<Result<SealedHandle>> {
        match &*self.0.read_recursive() {
            State::Hot(_) => None,
            State::Cold(cold) => Some(cold.sealed().ok_or(Errno::EIO)),
            State::Lost => Some(Err(Errno::ESTALE)),
        }
    }

    /// Is it the inode of this handle? Nothing is known of a hot one.
    fn is_cold_and(&self, handle: &SealedHandle) -> Option<bool> {
        match &*self.0.read_recursive() {
            State::Hot(_) | State::Lost => None,
            State::Cold(cold) => Some(cold.is(handle)),
        }
    }

    /// Puts an fd in the place of the handle; `false`, and the fd closed, when it is hot already.
    fn warm(&self, fd: HotFd) -> bool {
        let mut state = self.0.write();
        let cold = matches!(*state, State::Cold(_));
        if cold {
            *state = State::Hot(fd);
        }
        cold
    }

    /// Puts a handle in the place of the fd; `false` when it is in use.
    fn cool(&self, sealed: &SealedHandle) -> bool {
        let Some(mut state) = self.0.try_write() else { return false };
        let before = std::mem::replace(&mut *state, State::Cold(ColdHandle::new(sealed)));
        // The fd closes when nobody waits for the lock.
        drop(state);
        drop(before);
        true
    }
}

/// Keeps the number of fds within bounds.
pub struct Keeper {
    /// Seals and opens handles.
    broker: Option<Arc<BrokerClient>>,
    /// Wants to know of each mount of the share.
    mounts: Option<Arc<BrokerClient>>,
    mandatory: bool,
    bounds: Bounds,
    seats: Seats,
    inodes: Arc<Inodes>,
    /// Every hot inode that can be sealed, and some that are gone or cold. Empty until something has to be sealed.
    clock: Mutex<VecDeque<NodeId>>,
    /// Inodes that become hot go into the clock.
    watching: AtomicBool,
    /// Counts visits.
    age: Age,
    /// Held by the one thread that seals.
    sealing: Mutex<()>,
}

impl Keeper {
    /// Without a broker that serves handles, or with `--inode-file-handles=never`, every inode stays hot.
    pub fn new(
        mode: InodeFileHandles,
        broker: Option<Arc<BrokerClient>>,
        services: Services,
        bounds: Bounds,
        inodes: Arc<Inodes>,
    ) -> Self {
        Keeper {
            mounts: broker.clone().filter(|_| services.has(Service::Mounts)),
            broker: broker.filter(|_| services.handles && mode != InodeFileHandles::Never),
            mandatory: mode == InodeFileHandles::Mandatory,
            bounds,
            seats: Seats::new(&bounds),
            inodes,
            clock: Mutex::new(VecDeque::new()),
            watching: AtomicBool::new(false),
            age: Age::new(bounds.inodes),
            sealing: Mutex::new(()),
        }
    }

    /// A seat for an inode's fd.
    pub fn seat(&self, fd: OwnedFd) -> HotFd {
        HotFd { fd: fd.into(), _seat: self.seats.inode() }
    }

    /// A seat for a handle that is about to be opened.
    ///
    /// # Errors
    /// EMFILE when the guest has as much open as this process can have.
    pub fn handle_seat(&self) -> Result<HandleSeat> {
        if !self.seats.has_one_for_a_handle() {
            self.make_one_free()?;
        }
        Ok(self.seats.handle())
    }

    /// Makes sure that one more inode's fd can be kept. Called before anything is changed on the host.
    ///
    /// # Errors
    /// EMFILE when the guest has as much open as this process can have.
    pub fn make_room(&self) -> Result<()> {
        if self.seats.has_one_for_an_inode() { Ok(()) } else { self.make_one_free() }
    }

    fn make_one_free(&self) -> Result<()> {
        if self.has_room() {
            return Ok(());
        }
        let _one = self.sealing.lock();
        if !self.has_room() {
            self.seal_some();
        }
        if self.has_room() { Ok(()) } else { Err(Errno::EMFILE) }
    }

    fn has_room(&self) -> bool {
        self.seats.taken() < self.bounds.total
    }

    /// An inode became hot, or an unlinked one was linked.
    pub fn heated(&self, inode: &Arc<Inode>) {
        if self.broker.is_none() || inode.id == NodeId::ROOT {
            return;
        }
        if self.watching.load(Ordering::SeqCst) {
            self.watch([inode.id]);
        }
        // A thread that took several seats looks again when it has used them up.
        if !self.seats.has_one_for_an_inode() {
            self.keep_within_bounds();
        }
    }

    /// Seals idle inodes if there are too many hot ones.
    fn keep_within_bounds(&self) {
        // Whoever finds another thread at it leaves it to that one, until it is really too much.
        if (self.seats.inodes() > self.bounds.inodes || !self.has_room())
            && let Some(_one) = self.sealing.try_lock()
        {
            self.seal_some();
        }
    }

    /// Puts hot inodes behind the clock's hand.
    fn watch(&self, inodes: impl IntoIterator<Item = NodeId>) {
        let mut clock = self.clock.lock();
        clock.extend(inodes);
        if clock.len() > self.seats.inodes().saturating_mul(2).saturating_add(CLOCK_SLACK) {
            clock.retain(|id| self.inodes.get(*id).is_some_and(|inode| inode.residence.is_hot()));
        }
    }

    /// Puts all hot inodes into the clock, the first time that it is needed. Most guests never get there, and lookups
    /// should not pay for it. An inode that becomes hot meanwhile is seen by this, or sees `watching`.
    fn begin_to_watch(&self) {
        if !self.watching.swap(true, Ordering::SeqCst) {
            let all = self.inodes.all();
            let hot = all.iter().filter(|inode| inode.id != NodeId::ROOT && inode.residence.is_hot());
            self.watch(hot.map(|inode| inode.id));
        }
    }

    /// How many inodes are hot.
    pub fn hot(&self) -> usize {
        self.seats.inodes()
    }

    /// All inodes are gone.
    pub fn reset(&self) {
        self.watching.store(false, Ordering::SeqCst);
        *self.clock.lock() = VecDeque::new();
    }

    /// The inode's fd, opened again if it is cold, together with those of its `neighbours`, cold ones that will be
    /// needed soon.
    ///
    /// # Errors
    /// ESTALE when the file of a cold inode is gone; EMFILE, ENFILE.
    pub fn hold<'a>(
        &self,
        inode: &'a Arc<Inode>,
        neighbours: impl FnOnce() -> Vec<Arc<Inode>>,
    ) -> Result<InodeFd<'a>> {
        let mut neighbours = Some(neighbours);
        // An inode that is sealed again each time it is opened would need a limit of hot inodes of nearly zero.
        for _ in 0..16 {
            if let Some(fd) = inode.residence.fd() {
                inode.touched.mark();
                return Ok(fd);
            }
            if let Some(fd) = visits::find(inode.id) {
                return Ok(InodeFd::Visit(fd));
            }
            if let Some(mut others) = neighbours.take().map(|neighbours| neighbours())
                && !others.is_empty()
            {
                others.insert(0, Arc::clone(inode));
                self.prefetch(&others);
                continue;
            }
            self.reopen(inode)?;
        }
        Err(Errno::EMFILE)
    }

    /// Makes a cold inode hot.
    fn reopen(&self, inode: &Arc<Inode>) -> Result<()> {
        let Some(sealed) = inode.residence.sealed() else { return Ok(()) };
        let sealed = sealed?;
        let broker = self.broker.as_ref().ok_or(Errno::ESTALE)?;
        self.make_room()?;
        let fd = self.with_room(|| broker.reopen(&sealed).map_err(|e| Errno::from_raw(e.errno().code())))?;
        // Used from the start: the hand doesn't take it away before it served once.
        inode.touched.mark();
        if inode.residence.warm(self.seat(fd)) {
            self.heated(inode);
        }
        Ok(())
    }

    /// Makes cold inodes hot together, with one request to the broker; up to [`MAX_FDS`], each once. What can't be opened
    /// stays cold: whoever uses it is told why.
    pub fn prefetch(&self, inodes: &[Arc<Inode>]) {
        self.warm_all(self.open_together(inodes));
    }

    /// Opens the cold inodes that a batch of requests will use, as [`Keeper::prefetch`]. Most stay cold: the calling
    /// thread has their fds until it [ends its visits](visits::end). Hot become those of `kept` nodes and those that
    /// were visited not long ago.
    pub fn visit(&self, inodes: &[Arc<Inode>], kept: &[NodeId]) {
        let now = self.age.after(inodes.len());
        let (warm, visited): (Vec<_>, Vec<_>) = self
            .open_together(inodes)
            .into_iter()
            .partition(|(inode, _)| inode.touched.again(now) || kept.contains(&inode.id));
        visits::begin(visited.into_iter().map(|(inode, fd)| (inode.id, fd)));
        self.warm_all(warm);
    }

    /// Opens cold inodes with one request to the broker: those that can be opened, each with its fd.
    fn open_together<'a>(&self, inodes: &'a [Arc<Inode>]) -> Vec<(&'a Arc<Inode>, HotFd)> {
        let Some(broker) = &self.broker else { return Vec::new() };
        let seats = self.reserve(inodes.len().min(MAX_FDS).min(self.bounds.inodes / 4));
        let cold = inodes.iter().filter_map(|inode| Some((inode, inode.residence.sealed()?.ok()?)));
        let (inodes, sealed): (Vec<_>, Vec<_>) = cold.take(seats.len()).unzip();
        if sealed.is_empty() {
            return Vec::new();
        }
        // If the broker is gone, the requests themselves will say so.
        let Ok(results) = broker.reopen_all(sealed) else { return Vec::new() };
        let opened = inodes.into_iter().zip(results).zip(seats);
        opened
            .filter_map(|((inode, result), seat)| {
                Some((inode, HotFd { fd: result.ok()?.into(), _seat: seat }))
            })
            .collect()
    }

    fn warm_all(&self, opened: Vec<(&Arc<Inode>, HotFd)>) {
        let warmed = opened.into_iter().filter_map(|(inode, fd)| {
            inode.touched.mark();
            inode.residence.warm(fd).then_some(inode.id)
        });
        let warmed: Vec<_> = warmed.collect();
        if !warmed.is_empty() {
            self.watch(warmed);
            self.keep_within_bounds();
        }
    }

    /// Seats for up to so many fds that are about to come; fewer when there is not room for all.
    pub fn reserve(&self, wanted: usize) -> Vec<InodeSeat> {
        let mut seats = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            let seat = self.seats.inode();
            if self.seats.taken() > self.bounds.total {
                break;
            }
            seats.push(seat);
        }
        seats
    }

    /// Runs a call that makes an fd; when there are too many, closes those of idle inodes and tries again.
    ///
    /// # Errors
    /// What the call says.
    pub fn with_room<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Err(e @ (Errno::EMFILE | Errno::ENFILE)) => {
                let sealed = {
                    let _one = self.sealing.lock();
                    self.seal_some()
                };
                if sealed > 0 { call() } else { Err(e) }
            }
            result => result,
        }
    }

    /// A cold inode has the identity of one that was just opened as `fd`. If it is the same, it is hot from now on.
    /// `false` when it is not: its file is gone and the number was used again.
    ///
    /// # Errors
    /// What sealing `fd` says: two seals of one inode are equal.
    pub fn meet(&self, inode: &Arc<Inode>, fd: BorrowedFd<'_>) -> Result<bool> {
        let broker = self.broker.as_ref().ok_or(Errno::ESTALE)?;
        let mut results = broker.seal(&[fd]).map_err(|e| Errno::from_raw(e.errno().code()))?;
        let sealed = match results.pop() {
            Some(result) => result.map_err(|errno| Errno::from_raw(errno.code()))?,
            None => return Err(Errno::EIO),
        };
        if inode.residence.is_cold_and(&sealed) == Some(false) {
            return Ok(false);
        }
        let fd = self.with_room(|| sys::duplicate(fd))?;
        if inode.residence.warm(self.seat(fd)) {
            self.heated(inode);
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

    /// Seals a batch of inodes that were not used lately and closes their fds; how many. The caller holds
    /// `sealing`.
    fn seal_some(&self) -> usize {
        let Some(broker) = &self.broker else { return 0 };
        for _ in 0..MAX_BATCHES {
            match self.seal_batch(broker, self.idle()) {
                0 => {}
                cooled => return cooled,
            }
        }
        0
    }

    fn seal_batch(&self, broker: &BrokerClient, batch: Vec<Arc<Inode>>) -> usize {
        let mut busy = Vec::new();
        let held: Vec<_> = batch
            .iter()
            .filter_map(|inode| Some((inode, inode.residence.fd()?)))
            .filter(|(inode, fd)| match sys::statx_fd(fd.as_fd()) {
                Ok(st) => st.stx_nlink > 0,
                Err(_) => {
                    busy.push(inode.id);
                    false
                }
            })
            .collect();
        if held.is_empty() {
            self.watch(busy);
            return 0;
        }
        let fds: Vec<_> = held.iter().map(|(_, fd)| fd.as_fd()).collect();
        let results = match broker.seal(&fds) {
            Ok(results) => results,
            Err(e) => {
                log::error!("cannot seal the handles of idle inodes: {e}");
                busy.extend(held.iter().map(|(inode, _)| inode.id));
                self.watch(busy);
                return 0;
            }
        };
        let inodes: Vec<_> = held.iter().map(|(inode, _)| Arc::clone(inode)).collect();
        drop(fds);
        drop(held);
        let mut cooled = 0;
        for (inode, result) in inodes.into_iter().zip(results) {
            // One without a handle stays hot for good: it is not watched any more.
            let Ok(sealed) = result else { continue };
            if inode.residence.cool(&sealed) {
                cooled += 1;
            } else {
                busy.push(inode.id);
            }
        }
        self.watch(busy);
        cooled
    }

    /// Takes a batch of inodes that were not used since the hand last passed them out of the clock.
    fn idle(&self) -> Vec<Arc<Inode>> {
        self.begin_to_watch();
        let mut batch = Vec::with_capacity(self.bounds.batch);
        let mut clock = self.clock.lock();
        // Two rounds at most: the first may only take the marks away.
        for _ in 0..clock.len().saturating_mul(2) {
            if batch.len() == self.bounds.batch {
                break;
            }
            let Some(watched) = clock.pop_front() else { break };
            match self.inodes.get(watched) {
                Some(inode) if inode.touched.take() => clock.push_back(watched),
                Some(inode) => batch.push(inode),
                None => {}
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_handles_of_every_length_come_back() {
        for len in 0..=crate::protocol::handle::MAX_HANDLE_BYTES {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let handle = FileHandle { handle_type: -7, bytes: Bytes::new(&bytes).unwrap() };
            let sealed = SealedHandle { mount: 3, handle, mac: [9; 16] };
            let cold = ColdHandle::new(&sealed);
            assert_eq!(matches!(cold, ColdHandle::Short { .. }), len <= 22, "{len}");
            assert_eq!(cold.sealed().as_ref(), Some(&sealed));
            assert!(cold.is(&sealed));
            assert!(!cold.is(&SealedHandle { mount: 4, ..sealed.clone() }));
            assert!(!cold.is(&SealedHandle { mac: [8; 16], ..sealed }));
        }
    }
}
