//! A request that left its queue's thread: its reply comes later, from whichever thread has it then.
//!
//! Invariant: before a virtqueue's stop is reported to the front end, every request deferred from it has been
//! answered ([`crate::worker::device`] sees to that), so that none is lost and none is written to after the guest
//! may have taken its memory back. (The virtqueue is disabled by then, which is no reason not to answer.) What is
//! dropped, as at a device reset, writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use vhost_user_backend::VringT;
use zerocopy::IntoBytes;

use super::buffers::{Buffers, Scratch};
use super::device::Memory;
use super::dirty_log::DirtyLog;
use super::fuse::wire::OutHeader;
use super::rings;
use super::vring::Vring;

/// The buffers of a request, with the guest memory that they are in.
pub struct Deferred {
    vring: Vring,
    memory: Arc<Memory>,
    scratch: Scratch,
    head: u16,
    logging: Arc<AtomicBool>,
}

// SAFETY: what keeps the type from being Send are the addresses in `scratch`. They are of mappings that `memory`
// keeps, whichever thread uses them.
unsafe impl Send for Deferred {}

impl Deferred {
    /// Takes a request over. `scratch` was loaded from the chain that begins with descriptor `head`, and from this
    /// very snapshot of the guest's memory.
    pub fn new(
        vring: Vring,
        memory: Arc<Memory>,
        scratch: Scratch,
        head: u16,
        logging: Arc<AtomicBool>,
    ) -> Self {
        Deferred { vring, memory, scratch, head, logging }
    }

    /// Lets `serve` work on the buffers, and returns the chain with as many bytes as it says that it wrote.
    pub fn finish_with(mut self, serve: impl FnOnce(&mut Buffers<'_, DirtyLog>) -> u32) {
        let mut buffers = self.scratch.resume(&*self.memory);
        let used = serve(&mut buffers);
        if self.logging.load(Ordering::Relaxed) {
            buffers.mark_dirty(used as usize);
        }
        self.publish(used);
    }

    /// Answers with a header only.
    pub fn finish(self, unique: u64, result: Result<(), Errno>) {
        let out = OutHeader::new(unique, result.map(|()| 0));
        self.finish_with(|buffers| {
            buffers.copy_out(0, out.as_bytes());
            out.len
        });
    }

    fn publish(&self, used: u32) {
        let memory = &*self.memory;
        let mut state = self.vring.get_mut();
        match rings::give(state.get_queue_mut(), memory, &[(self.head, used)]) {
            // An error means that the front end's eventfd is full (so it will look) or gone.
            Ok(true) => drop(state.signal_used_queue()),
            Ok(false) => {}
            Err(e) => log::error!("a late reply cannot be returned: {e}"),
        }
    }
}
