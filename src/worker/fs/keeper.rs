//! How many inodes are hot: fds are bounded ([`Bounds`]), and when there are too many hot inodes, a batch of those that were
//! not used lately (CLOCK) is sealed and their fds are closed. Using a cold inode opens its handle again, through the
//! broker, because only the broker may. A warm workload does neither. Work is in proportion to the hot inodes, never to
//! all that the guest knows. A cold inode that is used once stays cold ([`visits`]).
//!
//! An unlinked inode stays hot: it lives as long as somebody has it open, and its fd may be the last. The hand meets it
//! once, and never again unless it gets a name.
//!
//! Lock order: `sealing`, then an inode's state, then `clock`. Under that one, inodes are only found, and asked whether
//! they are hot (which waits for nobody that waits for the clock). Whoever holds an inode's fd may wait for `sealing`: the
//! thread that seals never waits for an inode's state. No shard of the inode table is locked meanwhile.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::inodes::{Inode, Inodes};
use super::residence::{HotFd, InodeFd};
use super::seats::{Bounds, HandleSeat, InodeSeat, Seats};
use super::sys::{self, Result};
use super::visits::{self, Age, Use};
use crate::config::InodeFileHandles;
use crate::protocol::phase::Service;
use crate::protocol::{MAX_FDS, Services};
use crate::worker::broker_client::BrokerClient;
use crate::worker::fuse::operation::NodeId;

/// Entries of the clock beyond twice the hot inodes: then those of inodes that are gone are taken out.
const CLOCK_SLACK: usize = 1024;

/// Batches of idle inodes that are looked through for one that can be sealed.
const MAX_BATCHES: usize = 4;

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
        HotFd::new(fd, self.seats.inode())
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

    #[cold]
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
    pub fn heated(&self, inode: NodeId) {
        if self.broker.is_none() || inode == NodeId::ROOT {
            return;
        }
        if self.watching.load(Ordering::SeqCst) {
            self.watch([inode]);
        }
        // A thread that took several seats looks again when it has used them up.
        if !self.seats.has_one_for_an_inode() {
            self.keep_within_bounds();
        }
    }

    /// Seals idle inodes if there are too many hot ones.
    #[cold]
    fn keep_within_bounds(&self) {
        // Whoever finds another thread at it leaves it to that one, until it is really too much.
        if (self.seats.inodes() > self.bounds.inodes || !self.has_room())
            && let Some(_one) = self.sealing.try_lock()
        {
            self.seal_some();
        }
    }

    /// Puts hot inodes behind the clock's hand.
    #[cold]
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
        if let Some(fd) = inode.residence.fd() {
            inode.touched.mark();
            return Ok(fd);
        }
        self.hold_cold(inode, neighbours)
    }

    /// That of an inode that was cold just now.
    #[cold]
    fn hold_cold<'a>(
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
            self.heated(inode.id);
        }
        Ok(())
    }

    /// Makes cold inodes hot together, with one request to the broker; up to [`MAX_FDS`], each once. What can't be opened
    /// stays cold: whoever uses it is told why.
    fn prefetch(&self, inodes: &[Arc<Inode>]) {
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
        opened.filter_map(|((inode, result), seat)| Some((inode, HotFd::new(result.ok()?, seat)))).collect()
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
            Err(Errno::EMFILE | Errno::ENFILE) if self.closed_some() => call(),
            result => result,
        }
    }

    /// Closes the fds of idle inodes; `false` when there were none.
    #[cold]
    fn closed_some(&self) -> bool {
        let _one = self.sealing.lock();
        self.seal_some() > 0
    }

    /// A cold inode has the identity of one that was just opened as `fd`. Is it the same? If not, its file is gone and
    /// the number was used again.
    ///
    /// The handle tells, which has a generation, on a mount whose id `is_unique`. Other ids are used again, as inode
    /// numbers are; then the broker, which counts mounts by itself, seals `fd`: two seals of one inode are equal.
    ///
    /// # Errors
    /// What asking for the handle, or sealing `fd`, says.
    pub fn is_same(&self, inode: &Inode, fd: BorrowedFd<'_>, is_unique: bool) -> Result<bool> {
        if is_unique {
            let handle = sys::handle_of(fd)?;
            return Ok(!inode.residence.is_cold_but_not(|cold| cold.is_of(&handle)));
        }
        let broker = self.broker.as_ref().ok_or(Errno::ESTALE)?;
        let mut results = broker.seal(&[fd]).map_err(|e| Errno::from_raw(e.errno().code()))?;
        let sealed = match results.pop() {
            Some(result) => result.map_err(|errno| Errno::from_raw(errno.code()))?,
            None => return Err(Errno::EIO),
        };
        Ok(!inode.residence.is_cold_but_not(|cold| cold.is(&sealed)))
    }

    /// A cold inode was opened as `fd` and will be used. It becomes hot if `wanted` often, or visited not long ago.
    pub fn opened(&self, inode: &Arc<Inode>, fd: HotFd, wanted: Use) {
        if wanted == Use::Once && !inode.touched.again(self.age.after(1)) {
            return;
        }
        inode.touched.mark();
        if inode.residence.warm(fd) {
            self.heated(inode.id);
        }
    }

    /// Tells the broker of a mount that the guest has reached: it only acts on mounts that it knows.
    ///
    /// # Errors
    /// EOPNOTSUPP when handles are mandatory and this file system has none.
    #[cold]
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
