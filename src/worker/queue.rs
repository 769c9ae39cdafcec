//! (1) A virtqueue's walk: kick → descriptor chains → replies → used ring → one notification.
//!
//! Requests are taken a batch at a time, under the vring's lock, and served without it, so that the front end's
//! control messages never wait for a request. They are returned a few at a time (`returns`).

use std::cell::RefCell;
use std::hint::cold_path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::timerfd::TimerFd;
use smallvec::SmallVec;
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryLoadGuard};

use super::buffers::{self, ChainError, Scratch};
use super::chain::{Chain, Table};
use super::deferred::Deferred;
use super::device::{AtomicMemory, Memory};
use super::dirty_log::DirtyLog;
use super::fs::{FileSystem, Thread, Wait};
use super::lookahead;
use super::pace::{Pace, Turn};
use super::poll::Poll;
use super::pool::{InFlight, Pool};
use super::recorder::Recorder;
use super::regions::Regions;
use super::request::{Served, Server, Slow};
use super::returns::Returns;
use super::rings;
use super::vring::Vring;

/// Requests taken from the available ring at once.
const BATCH: usize = 32;

/// The guest's memory as it is laid out now.
type Snapshot = GuestMemoryLoadGuard<Memory>;

/// A virtqueue and the state of the thread that serves it.
pub struct Queue {
    /// 0 is the high-priority queue.
    index: u16,
    fs: Arc<FileSystem>,
    logging: Arc<AtomicBool>,
    poll: Poll,
    /// With `--thread-pool-size`.
    pool: Option<Pool>,
    in_flight: InFlight,
    /// `None` when nothing is limited, and for the high-priority queue.
    pace: Option<Pace>,
    /// Helpers have requests of this batch.
    shared: bool,
    /// The guest broke this virtqueue: nothing more is taken from it until it is set up again.
    broken: bool,
}

thread_local! {
    /// Credentials and umask belong to a thread, so what works with them is made by the queue's thread and stays
    /// there.
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// What a queue thread works with, kept between requests.
struct Local {
    /// For the request that is served and for the next one, in turn.
    scratch: [Scratch; 2],
    server: Server,
    returns: Returns,
}

impl Local {
    fn new(fs: &Arc<FileSystem>, index: u16) -> Result<Self, nix::errno::Errno> {
        let recorder = Recorder::new(Arc::clone(fs.metrics()), index);
        let server = Server::new(Arc::clone(fs), Thread::new(fs)?, Some(recorder));
        Ok(Local { scratch: Default::default(), server, returns: Returns::new() })
    }

    /// Collects the buffers of a batch's request, while the one before is still to be served, so that the CPU can fetch
    /// what the guest's has written meanwhile.
    fn load(&mut self, index: usize, regions: &mut Regions<'_, DirtyLog>, table: Table, heads: &[u16]) {
        let Some(head) = heads.get(index) else { return };
        let scratch = &mut self.scratch[index % 2];
        scratch.load(regions, Chain::new(table, *head));
        scratch.prefetch();
    }
}

/// One request of a batch.
#[derive(Clone, Copy)]
struct Request {
    /// Its place in the batch.
    index: usize,
    /// Its chain's first descriptor.
    head: u16,
    /// There are more behind it.
    deep: bool,
}

/// Has the CPU fetch the descriptors of a batch's requests, all at the same time: the guest's CPU has just written them.
fn fetch_tables(regions: &mut Regions<'_, DirtyLog>, table: Table, heads: &[u16]) {
    for head in heads {
        if let Some(address) = Chain::new(table, *head).indirect_table(regions) {
            buffers::prefetch::<false>(address.cast());
        }
    }
}

/// Why a virtqueue can't go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Chain(#[from] ChainError),
    #[error("{0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("its thread cannot have credentials of its own: {0}")]
    Thread(nix::errno::Errno),
}

/// What to do after a batch.
enum Next {
    /// So many were served, and there may be more.
    Batch(usize),
    /// The virtqueue is empty: wait for a kick.
    Kick,
    /// The front end has stopped the virtqueue.
    Stopped,
}

impl Queue {
    /// A virtqueue that is not set up yet.
    pub fn new(
        index: u16,
        fs: Arc<FileSystem>,
        logging: Arc<AtomicBool>,
        poll_us: u32,
        pool: Option<Pool>,
        pace: Option<Pace>,
    ) -> Self {
        let poll = Poll::new(Duration::from_micros(u64::from(poll_us)));
        Queue {
            index,
            fs,
            logging,
            poll,
            pool,
            in_flight: InFlight::default(),
            pace,
            shared: false,
            broken: false,
        }
    }

    /// The virtqueue was stopped: what the guest broke may be mended when it starts again.
    pub fn reset(&mut self) {
        self.broken = false;
        if let Some(pace) = &mut self.pace {
            pace.reset();
        }
    }

    /// What its thread must wait on besides the guest's kicks.
    pub fn timer(&self) -> Option<Arc<TimerFd>> {
        self.pace.as_ref().map(Pace::timer)
    }

    /// That timer has expired.
    pub fn expired(&self) {
        if let Some(pace) = &self.pace {
            pace.expired();
        }
    }

    /// Sees to it that all that left this virtqueue's thread is answered: what waits for a lock at once, what
    /// helpers have when they are done.
    pub fn answer_deferred(&self) {
        self.fs.interrupt_queue(self.index);
        self.in_flight.wait_for_none();
    }

    /// Waits until helpers are done.
    pub fn wait_for_helpers(&self) {
        self.in_flight.wait_for_none();
    }

    /// Serves what is in the virtqueue, until it is empty or stopped.
    pub fn run(&mut self, vring: &Vring, memory: &AtomicMemory) {
        if self.broken {
            return;
        }
        if let Err(e) = self.drain(vring, memory) {
            self.broken = true;
            vring.signal_error();
            log::error!(
                "virtqueue {}: {e}; it is stopped until the guest's driver resets the device",
                self.index
            );
        }
    }

    fn drain(&mut self, vring: &Vring, memory: &AtomicMemory) -> Result<(), Broken> {
        LOCAL.with_borrow_mut(|local| {
            let local = match local {
                Some(local) => local,
                None => local.insert(Local::new(&self.fs, self.index).map_err(Broken::Thread)?),
            };
            let mut served = false;
            loop {
                let most = match self.pace.as_mut().map(|pace| pace.turn(BATCH)) {
                    None => BATCH,
                    Some(Turn::Take(most)) => most,
                    Some(Turn::Wait(time)) => {
                        if let Some(recorder) = local.server.recorder() {
                            recorder.throttled(time);
                        }
                        // If it is stopped meanwhile, whoever goes on with it expects to be kicked.
                        let queue = &mut *vring.get_mut();
                        if queue.get_queue().ready() {
                            queue.get_queue_mut().enable_notification(&*memory.memory())?;
                        }
                        return Ok(());
                    }
                    Some(Turn::StillWaiting) => return Ok(()),
                };
                let snapshot = memory.memory();
                let moved = local.server.moved();
                let next = self.batch(local, vring, &snapshot, most);
                if let Some(pace) = &mut self.pace {
                    let number = if let Ok(Next::Batch(number)) = &next { *number } else { 0 };
                    pace.done(most.saturating_sub(number), local.server.moved().wrapping_sub(moved));
                }
                match next? {
                    Next::Batch(_) => served = true,
                    Next::Kick => break,
                    Next::Stopped => {
                        // Whoever goes on with this virtqueue, perhaps another daemon, expects to be kicked.
                        if served {
                            vring.get_mut().get_queue_mut().enable_notification(&*snapshot)?;
                        }
                        break;
                    }
                }
            }
            if let Some(recorder) = local.server.recorder() {
                recorder.idle();
            }
            self.fs.publish();
            Ok(())
        })
    }

    /// Serves one batch of at most `most`.
    fn batch(
        &mut self,
        local: &mut Local,
        vring: &Vring,
        snapshot: &Snapshot,
        most: usize,
    ) -> Result<Next, Broken> {
        let memory: &Memory = snapshot;
        let mut heads = SmallVec::<[u16; BATCH]>::new();
        let table = {
            let mut state = vring.get_mut();
            if !state.is_enabled() || !state.get_queue().ready() {
                return Ok(Next::Stopped);
            }
            let queue = state.get_queue_mut();
            queue.disable_notification(memory)?;
            rings::take(queue, memory, most, |head| heads.push(head))?;
            if heads.is_empty() {
                let there =
                    || queue.avail_idx(memory, Ordering::Acquire).map(|index| index.0 != queue.next_avail());
                let more = self.poll.look(there)? || queue.enable_notification(memory)?;
                return Ok(if more { Next::Batch(0) } else { Next::Kick });
            }
            local.returns.begin(heads.len(), queue, memory);
            Table { address: GuestAddress(queue.desc_table()), size: queue.size() }
        };
        let number = heads.len();
        if let Some(recorder) = local.server.recorder() {
            recorder.taken(number);
        }
        let visits = number > 1 && self.fs.has_cold_inodes();
        if visits {
            lookahead::visit(&self.fs, memory, table, &heads);
        }
        let result = self.serve_all(local, vring, snapshot, table, &heads);
        if visits {
            self.fs.end_visits();
        }
        result?;
        let each = local.returns.end(number);
        // Where helpers have some of them, they know better.
        if let (Some(pool), Some(each), false) = (&self.pool, each, std::mem::take(&mut self.shared)) {
            pool.observe(each);
        }
        Ok(Next::Batch(number))
    }

    /// Serves all of a batch, and returns them.
    fn serve_all(
        &mut self,
        local: &mut Local,
        vring: &Vring,
        snapshot: &Snapshot,
        table: Table,
        heads: &[u16],
    ) -> Result<(), Broken> {
        let memory: &Memory = snapshot;
        let mut regions = Regions::new(memory);
        fetch_tables(&mut regions, table, heads);
        local.load(0, &mut regions, table, heads);
        for (index, head) in heads.iter().enumerate() {
            local.load(index + 1, &mut regions, table, heads);
            let request = Request { index, head: *head, deep: index + 1 < heads.len() };
            let result = self.serve(local, vring, snapshot, request);
            if result.is_err() || local.returns.are_due() {
                local.returns.publish(vring, memory)?;
            }
            result?;
        }
        Ok(local.returns.publish(vring, memory)?)
    }

    /// Serves one request, whose reply is then to be published.
    fn serve(
        &mut self,
        local: &mut Local,
        vring: &Vring,
        snapshot: &Snapshot,
        request: Request,
    ) -> Result<(), Broken> {
        let Request { index, head, deep } = request;
        let memory: &Memory = snapshot;
        let Local { scratch, server, returns } = local;
        let mut buffers = scratch[index % 2].buffers(memory)?;
        let mut early = Ok(());
        let served = server.serve(&mut buffers, |slow| {
            let pool = self.pool.as_ref().filter(|pool| match slow {
                Slow::Storage => true,
                Slow::Transfer => deep || pool.is_storage_slow(),
                Slow::Data => deep && pool.is_storage_slow(),
                Slow::Stays => false,
            });
            if pool.is_some_and(Pool::has_room) {
                return true;
            }
            // Replies that are ready must not wait for a slow request behind them.
            if slow != Slow::Data {
                early = returns.publish(vring, memory);
            }
            false
        });
        early?;
        let used = match served {
            Served::Replied(used) => used,
            Served::Waits { unique, attempt } => {
                cold_path();
                let request = self.defer(local, vring, snapshot, request);
                let done = Box::new(move |result| request.finish(unique, result));
                self.fs.wait_for_lock(Wait { unique, queue: self.index, attempt, done });
                return Ok(());
            }
            Served::Moves => {
                self.shared = true;
                if let Some(pool) = &self.pool {
                    pool.submit(self.defer(local, vring, snapshot, request), &self.in_flight);
                }
                return Ok(());
            }
        };
        if self.logging.load(Ordering::Relaxed) {
            cold_path();
            buffers.mark_dirty(used as usize);
        }
        local.returns.push(head, used);
        Ok(())
    }

    /// Takes a request off this thread.
    fn defer(&self, local: &mut Local, vring: &Vring, snapshot: &Snapshot, request: Request) -> Deferred {
        let scratch = std::mem::take(&mut local.scratch[request.index % 2]);
        Deferred::new(
            vring.clone(),
            snapshot.clone().into_inner(),
            scratch,
            request.head,
            Arc::clone(&self.logging),
        )
    }
}
