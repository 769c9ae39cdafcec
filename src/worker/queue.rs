//! (1) A virtqueue's walk: kick → descriptor chains → replies → used ring → one notification.
//!
//! Requests are taken a batch at a time, under the vring's lock, and served without it, so that the front end's
//! control messages never wait for a request. Each reply is published as soon as it is there; the guest is
//! notified once a batch, or earlier when the next request may take long.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemory};

use super::buffers::{ChainError, Scratch};
use super::device::{AtomicMemory, Memory};
use super::fs::{FileSystem, Thread};
use super::request::Server;
use super::vring::Vring;

/// Requests taken from the available ring at once.
const BATCH: usize = 64;

/// A virtqueue and the state of the thread that serves it.
pub struct Queue {
    /// 0 is the high-priority queue.
    index: u16,
    fs: Arc<FileSystem>,
    logging: Arc<AtomicBool>,
    poll: Duration,
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
    scratch: Scratch,
    server: Server,
}

impl Local {
    fn new(fs: &Arc<FileSystem>) -> Result<Self, nix::errno::Errno> {
        Ok(Local { scratch: Scratch::default(), server: Server::new(Arc::clone(fs), Thread::new(fs)?) })
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

impl Queue {
    /// A virtqueue that is not set up yet.
    pub fn new(index: u16, fs: Arc<FileSystem>, logging: Arc<AtomicBool>, poll_us: u32) -> Self {
        let poll = Duration::from_micros(u64::from(poll_us));
        Queue { index, fs, logging, poll, broken: false }
    }

    /// The virtqueue was stopped: what the guest broke may be mended when it starts again.
    pub fn reset(&mut self) {
        self.broken = false;
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
                None => local.insert(Local::new(&self.fs).map_err(Broken::Thread)?),
            };
            loop {
                let snapshot = memory.memory();
                if !self.batch(local, vring, &snapshot)? {
                    return Ok(());
                }
            }
        })
    }

    /// Serves one batch. `false` when there is nothing (more) to do.
    fn batch(&mut self, local: &mut Local, vring: &Vring, memory: &Memory) -> Result<bool, Broken> {
        let mut chains = Vec::with_capacity(BATCH);
        {
            let mut state = vring.get_mut();
            if !state.is_enabled() || !state.get_queue().ready() {
                return Ok(false);
            }
            let queue = state.get_queue_mut();
            queue.disable_notification(memory)?;
            chains.extend(queue.iter(memory)?.take(BATCH));
            if chains.is_empty() && !poll_for_more(self.poll, queue, memory)? {
                return Ok(queue.enable_notification(memory)?);
            }
        }
        for chain in chains {
            if let Err(e) = self.serve(local, vring, memory, chain) {
                notify(vring, memory)?;
                return Err(e);
            }
        }
        notify(vring, memory)?;
        Ok(true)
    }

    /// Serves one request and publishes its reply.
    fn serve(
        &mut self,
        local: &mut Local,
        vring: &Vring,
        memory: &Memory,
        chain: DescriptorChain<&Memory>,
    ) -> Result<(), Broken> {
        let head = chain.head_index();
        let mut buffers = local.scratch.load(memory, chain)?;
        let used = local.server.serve(&mut buffers, || {
            // Replies that are ready must not wait for a slow request behind them.
            if let Err(e) = notify(vring, memory) {
                log::debug!("virtqueue: early notification: {e}");
            }
        });
        if self.logging.load(Ordering::Relaxed) {
            buffers.mark_dirty(used as usize);
        }
        vring.get_mut().get_queue_mut().add_used(memory, head, used)?;
        Ok(())
    }
}

/// Notifies the guest of used buffers, if it wants to know.
fn notify(vring: &Vring, memory: &Memory) -> Result<(), virtio_queue::Error> {
    let mut state = vring.get_mut();
    if state.get_queue_mut().needs_notification(memory)? {
        // An error means that the front end's eventfd is full (so it will look) or gone.
        let _ = state.signal_used_queue();
    }
    Ok(())
}

/// Waits a little for more requests before the thread sleeps.
fn poll_for_more<Q: QueueT, M: GuestMemory>(
    poll: Duration,
    queue: &Q,
    memory: &M,
) -> Result<bool, virtio_queue::Error> {
    if poll.is_zero() {
        return Ok(false);
    }
    let end = Instant::now() + poll;
    loop {
        if queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail() {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::hint::spin_loop();
    }
}
