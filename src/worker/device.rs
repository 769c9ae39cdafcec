//! The vhost-user back end of a virtio-fs device (virtio 1.3, section 5.11): features, config space, and which
//! thread serves which queue. What is in the queues is `queue`'s business.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::timerfd::TimerFd;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::dirty_log::DirtyLog;
use super::fs::FileSystem;
use super::migrate::Migration;
use super::pace::{Limiter, Pace};
use super::pool::Pool;
use super::queue::Queue;
use super::vring::Vring;
use crate::config::{DeviceConfig, MigrationConfig};

/// Guest memory with a dirty log.
pub type Memory = GuestMemoryMmap<DirtyLog>;
/// Guest memory whose layout the front end may change at any time.
pub type AtomicMemory = GuestMemoryAtomic<Memory>;

/// The largest virtqueue, in descriptors (virtio 1.3, 2.7: the most that a split virtqueue can have).
const MAX_QUEUE_SIZE: usize = 32_768;

/// The high-priority queue's index.
const HIGH_PRIORITY: u16 = 0;

/// Bytes of the tag in the config space (`struct virtio_fs_config`).
const TAG_LEN: usize = 36;

/// One virtio-fs device.
pub struct Device {
    fs: Arc<FileSystem>,
    config: DeviceConfig,
    memory: AtomicMemory,
    /// One a virtqueue: the high-priority queue, then the request queues. A queue's thread holds its lock while
    /// it works on requests.
    queues: Box<[Mutex<Queue>]>,
    /// Written pages go to the dirty log (`VHOST_F_LOG_ALL`).
    logging: Arc<AtomicBool>,
    migration: Migration,
}

impl Device {
    /// A device over a file system.
    ///
    /// # Errors
    /// When a limit needs a timer and the kernel has none for us.
    pub fn new(
        fs: Arc<FileSystem>,
        config: DeviceConfig,
        migration: MigrationConfig,
        memory: AtomicMemory,
        pool: Option<&Pool>,
    ) -> nix::Result<Self> {
        let limiter = Limiter::new(&config.limits);
        let logging = Arc::new(AtomicBool::new(false));
        let queues = (0..=config.num_request_queues)
            .map(|index| {
                let limiter = limiter.as_ref().filter(|_| index != HIGH_PRIORITY);
                let pace = limiter.map(|limiter| Pace::new(Arc::clone(limiter))).transpose()?;
                let (fs, logging) = (Arc::clone(&fs), Arc::clone(&logging));
                Ok(Mutex::new(Queue::new(index, fs, logging, config.poll_us, pool.cloned(), pace)))
            })
            .collect::<nix::Result<_>>()?;
        let migration = Migration::new(Arc::clone(&fs), migration);
        Ok(Device { fs, config, memory, queues, logging, migration })
    }

    /// What the queues' threads must wait on besides kicks: by the thread's number.
    pub fn timers(&self) -> Vec<(usize, Arc<TimerFd>)> {
        let timers = (0..self.queues.len()).map(|index| Some((index, self.queue(index)?.timer()?)));
        timers.flatten().collect()
    }

    /// The number of the event that a timer is; those below are queues and the end.
    pub fn timer_event(&self) -> u64 {
        self.queues.len() as u64 + 1
    }

    fn queue(&self, index: usize) -> Option<MutexGuard<'_, Queue>> {
        Some(self.queues.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `struct virtio_fs_config`: the tag, padded with zeros, and the number of request queues.
    fn config_space(&self) -> Vec<u8> {
        let mut space = self.config.tag.clone().unwrap_or_default().into_bytes();
        space.resize(TAG_LEN, 0);
        space.extend_from_slice(&u32::from(self.config.num_request_queues).to_le_bytes());
        space
    }
}

impl VhostUserBackend for Device {
    type Bitmap = DirtyLog;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn acked_features(&self, features: u64) {
        let logging = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        for region in self.memory.memory().iter() {
            region.bitmap().want(logging);
        }
        self.logging.store(logging, Ordering::Release);
        self.migration.logging(logging);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::DEVICE_STATE;
        if self.config.tag.is_some() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        features
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The virtqueues know it themselves.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (from, size) = (offset as usize, size as usize);
        let space = self.config_space();
        from.checked_add(size).and_then(|to| space.get(from..to)).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, _memory: AtomicMemory) -> io::Result<()> {
        // The queues share the atomic memory and take a snapshot for each batch.
        Ok(())
    }

    fn reset_device(&self) {
        for queue in &self.queues {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.reset();
            queue.wait_for_helpers();
        }
        // The guest's memory is the guest's again.
        self.fs.abandon_waits();
        if let Err(e) = self.fs.end_session() {
            log::error!("device reset: cannot go back to the root of the share: {e}");
        }
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        // The front end's pipe is as good as one of ours.
        let begun = self.migration.begin(direction, phase, file);
        begun.inspect_err(|e| log::error!("migration: {e}"))?;
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        Ok(self.migration.check().inspect_err(|e| log::error!("migration: {e}"))?)
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // A bit mask has room for 64 virtqueues, which is why there are at most 63 request queues.
        (0..self.queues.len()).map(|index| 1u64.checked_shl(index as u32).unwrap_or(0)).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        // The queue is no longer ready: once its thread lets go of the lock, nothing is in flight.
        if let Some(mut queue) = self.queue(index as usize) {
            queue.reset();
            queue.answer_deferred();
        }
        Ok(())
    }

    fn handle_event(&self, event: u16, events: EventSet, vrings: &[Vring], thread: usize) -> io::Result<()> {
        // One queue a thread: its number is the thread's, and it is the first of the thread's vrings.
        let timer = u64::from(event) == self.timer_event();
        if (event != 0 && !timer) || !events.contains(EventSet::IN) {
            return Ok(());
        }
        if let (Some(mut queue), Some(vring)) = (self.queue(thread), vrings.first()) {
            if timer {
                queue.expired();
            }
            queue.run(vring, &self.memory);
        }
        Ok(())
    }
}
