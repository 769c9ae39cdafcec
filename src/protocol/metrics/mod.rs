//! Counters that the worker keeps in memory that others read: what there is, and where.
//!
//! The broker makes the memory (a sealed memfd), the worker maps it to write, and the exporter maps it to read.
//! All of it is atomic integers, so whatever a hostile worker writes are numbers, and never more than numbers.
//! Invariant: nobody but the worker acts on them; to everybody else they are something to show.
//!
//! A virtqueue's counters are written by its own thread alone, so that counting is a load and a store without a
//! locked instruction, on cache lines that no other thread writes.

mod memory;

use std::sync::atomic::{AtomicU64, Ordering};

use super::phase::KINDS;
pub use memory::{MetricsMemory, MetricsMemoryError, Region};

/// Virtqueues: the high-priority queue and up to 63 request queues.
pub const QUEUES: usize = 64;

/// Places for operations, by number of the opcode; 0 is for opcodes that are not in the table.
pub const OPERATIONS: usize = 64;

/// Bounds of latency buckets: bucket `i` counts what took less than `2^i` µs, and more than the bucket before. The
/// last one has no upper bound; the one before it ends at 8.4 s.
pub const BUCKETS: usize = 25;

/// One of this many requests of a kind is timed, and counted in a bucket; the first one always is.
pub const TIMED_ONE_OF: u64 = 32;

/// Everything.
#[repr(C)]
pub struct Metrics {
    /// The device as a whole.
    pub device: DeviceMetrics,
    /// One a virtqueue; 0 is the high-priority queue.
    pub queues: [QueueMetrics; QUEUES],
}

/// The device as a whole.
#[repr(C, align(128))]
pub struct DeviceMetrics {
    /// Virtqueues that there are.
    pub queues: AtomicU64,
    /// Inodes that the guest knows.
    pub inodes: AtomicU64,
    /// Files and directories that the guest has open.
    pub handles: AtomicU64,
    /// Inodes that are kept by a file descriptor.
    pub hot_inodes: AtomicU64,
    /// Requests to the broker, by [`super::phase::Kind`].
    pub broker_requests: [AtomicU64; KINDS],
    /// Requests that were refused because of `--max-inodes`.
    pub refused_inodes: AtomicU64,
    /// Requests that were refused because of `--max-handles`.
    pub refused_handles: AtomicU64,
}

/// One virtqueue.
#[repr(C, align(128))]
pub struct QueueMetrics {
    /// Batches taken from the available ring.
    pub batches: AtomicU64,
    /// Requests taken with them.
    pub taken: AtomicU64,
    /// Requests of the present batch that are not served yet; 0 when the thread sleeps.
    pub depth: AtomicU64,
    /// Times that the thread had to wait for `--limit-ops` or `--limit-bandwidth`.
    pub throttled: AtomicU64,
    /// How long it had to, in nanoseconds.
    pub throttled_ns: AtomicU64,
    /// By number of the opcode.
    pub operations: [OperationMetrics; OPERATIONS],
}

/// One kind of request on one virtqueue.
#[repr(C)]
pub struct OperationMetrics {
    /// Requests.
    pub requests: AtomicU64,
    /// Those answered with an error.
    pub errors: AtomicU64,
    /// File data that was read or written, in bytes.
    pub bytes: AtomicU64,
    /// What the timed requests took in all, in nanoseconds.
    pub timed_ns: AtomicU64,
    /// The timed requests by what they took.
    pub buckets: [AtomicU64; BUCKETS],
}

/// Adds to a counter that only the calling thread writes.
pub fn add(counter: &AtomicU64, number: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
}

/// The bucket of a duration in nanoseconds.
pub fn bucket(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds / 1000;
    ((u64::BITS - microseconds.leading_zeros()) as usize).min(BUCKETS - 1)
}

impl Metrics {
    /// The virtqueue of this index.
    pub fn queue(&self, index: u16) -> Option<&QueueMetrics> {
        self.queues.get(usize::from(index))
    }
}

impl QueueMetrics {
    /// The counters of an opcode.
    pub fn operation(&self, opcode: u32) -> &OperationMetrics {
        let index = usize::try_from(opcode).unwrap_or(0);
        match self.operations.get(index) {
            Some(operation) => operation,
            None => &self.operations[0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_their_bounds() {
        assert_eq!([0, 999, 1000, 1999, 2000, 3999, 4000].map(bucket), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(bucket((1 << 23) * 1000 - 1), 23);
        assert_eq!(bucket((1 << 23) * 1000), 24);
        assert_eq!(bucket(u64::MAX), 24);
    }

    #[test]
    fn threads_write_to_cache_lines_of_their_own() {
        assert_eq!(align_of::<QueueMetrics>(), 128);
        assert_eq!(size_of::<QueueMetrics>() % 128, 0);
        assert!(size_of::<Metrics>() < 1 << 20, "mapped by three processes");
    }

    #[test]
    fn any_opcode_has_a_place() {
        let region = MetricsMemory::create().unwrap();
        let region = Region::writable(&region.fd).unwrap();
        let queue = region.queue(63).unwrap();
        assert!(region.queue(64).is_none());
        add(&queue.operation(1).requests, 2);
        add(&queue.operation(u32::MAX).requests, 3);
        add(&queue.operation(64).requests, 4);
        assert_eq!(queue.operations[1].requests.load(Ordering::Relaxed), 2);
        assert_eq!(queue.operations[0].requests.load(Ordering::Relaxed), 7);
    }
}
