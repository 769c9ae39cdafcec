//! One virtqueue's state as the front end sets it, with what `vhost-user-backend` leaves to us: the error fd, and
//! not to believe in the fds that the front end sends.
//!
//! The front end keeps a copy of each fd and can do with it what it likes, so this bounds mistakes rather than
//! malice: an fd that is no eventfd is not taken; none blocks; one that calls us again and again for nothing
//! stops its virtqueue. A front end that wants to keep its own device busy or stuck can; only its own guest
//! suffers, and the broker ends the worker all the same.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};

use super::device::AtomicMemory;
use super::fs::sys;

/// Events in a row that bring no kick. The first few can be left over from an fd that was replaced.
const MAX_IDLE_EVENTS: u32 = 1000;

/// A virtqueue's state; its copies are the same virtqueue.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<AtomicMemory>,
    error: Arc<Mutex<Option<File>>>,
    idle_events: Arc<AtomicU32>,
}

impl Vring {
    /// Tells the front end that the guest broke this virtqueue (`VHOST_USER_SET_VRING_ERR`), if it wants to know.
    pub fn signal_error(&self) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(e)) = error.as_mut().map(|fd| fd.write_all(&1u64.to_ne_bytes())) {
            log::debug!("the front end cannot be told of the broken virtqueue: {e}");
        }
    }
}

/// The fd, if it is one that can be waited for and written to without blocking.
fn event_fd(file: Option<File>, message: &str) -> Option<File> {
    let file = file?;
    // An eventfd lies on no file system, so that its mode says no type. Pipes, sockets and files do.
    let is_event = sys::statx_fd(file.as_fd()).is_ok_and(|st| u32::from(st.stx_mode) & libc::S_IFMT == 0);
    let set = || fcntl(&file, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK));
    if is_event && set().is_ok() {
        return Some(file);
    }
    log::error!("{message}: the front end's fd is not an eventfd; it is not used");
    None
}

impl<'a> VringStateGuard<'a, AtomicMemory> for Vring {
    type G = MutexGuard<'a, VringState<AtomicMemory>>;
}

impl<'a> VringStateMutGuard<'a, AtomicMemory> for Vring {
    type G = MutexGuard<'a, VringState<AtomicMemory>>;
}

impl VringT<AtomicMemory> for Vring {
    fn new(memory: AtomicMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        let state = VringMutex::new(memory, max_queue_size)?;
        Ok(Vring { state, error: Arc::default(), idle_events: Arc::default() })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<AtomicMemory>> {
        self.state.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<AtomicMemory>> {
        self.state.get_mut()
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.state.read_kick() {
            Ok(enabled) => {
                self.idle_events.store(0, Ordering::Relaxed);
                Ok(enabled)
            }
            Err(e)
                if e.kind() == ErrorKind::WouldBlock
                    && self.idle_events.fetch_add(1, Ordering::Relaxed) < MAX_IDLE_EVENTS =>
            {
                Ok(self.get_ref().is_enabled())
            }
            Err(e) => {
                log::error!("a virtqueue's kick fd does not work: {e}; the virtqueue is stopped for good");
                Err(e)
            }
        }
    }

    fn set_kick(&self, file: Option<File>) {
        self.state.set_kick(event_fd(file, "SET_VRING_KICK"));
    }

    fn set_call(&self, file: Option<File>) {
        self.state.set_call(event_fd(file, "SET_VRING_CALL"));
    }

    fn set_err(&self, file: Option<File>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = event_fd(file, "SET_VRING_ERR");
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.state.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.state.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.state.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.state.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.state.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.state.set_enabled(enabled);
        // Requests may wait in the ring whose kick went to an earlier daemon, or to this one while the virtqueue
        // was off: look at it once.
        if enabled && let Some(kick) = self.get_ref().get_kick() {
            // An error means that the counter is full: then there is a kick.
            // SAFETY: the state owns the fd, and its lock is held until the end of this statement.
            let _ =
                nix::unistd::write(unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) }, &1u64.to_ne_bytes());
        }
    }

    fn set_queue_info(&self, descriptors: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.state.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.state.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.state.set_queue_next_avail(base);
    }

    /// SET_VRING_ADDR brings it as it was in guest memory a moment ago. QEMU sends that message to running virtqueues,
    /// when it turns the dirty log on and off; theirs has moved on meanwhile, and would go back: replies would be lost,
    /// and others given twice.
    fn set_queue_next_used(&self, index: u16) {
        let mut state = self.state.get_mut();
        if !state.get_queue().ready() {
            state.get_queue_mut().set_next_used(index);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.state.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.state.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.state.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.state.set_queue_ready(ready);
    }
}
