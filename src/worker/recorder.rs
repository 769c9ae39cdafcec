//! Counting what a virtqueue's thread serves, in the memory that the exporter reads.
//!
//! It must cost next to nothing: a request adds to counters that only this thread writes, and one of
//! [`TIMED_ONE_OF`] reads the clock, twice.

use std::hint::cold_path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::protocol::metrics::{QueueMetrics, Region, TIMED_ONE_OF, add, bucket};

/// The counters of one virtqueue.
pub struct Recorder {
    region: Arc<Region>,
    index: usize,
}

/// A request that is being served.
pub struct Begun {
    opcode: u32,
    timed: Option<Instant>,
}

impl Recorder {
    /// For the virtqueue of this index.
    pub fn new(region: Arc<Region>, index: u16) -> Self {
        let index = usize::from(index).min(region.queues.len() - 1);
        Recorder { region, index }
    }

    fn queue(&self) -> &QueueMetrics {
        &self.region.queues[self.index]
    }

    /// A batch of requests was taken from the ring.
    pub fn taken(&self, requests: usize) {
        let queue = self.queue();
        add(&queue.batches, 1);
        add(&queue.taken, requests as u64);
        queue.depth.store(requests as u64, Ordering::Relaxed);
    }

    /// The batch is done.
    pub fn idle(&self) {
        self.queue().depth.store(0, Ordering::Relaxed);
    }

    /// A limit makes the queue wait.
    pub fn throttled(&self, time: Duration) {
        let queue = self.queue();
        add(&queue.throttled, 1);
        add(&queue.throttled_ns, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A request begins.
    pub fn begin(&self, opcode: u32) -> Begun {
        let operation = self.queue().operation(opcode);
        let timed = operation.requests.load(Ordering::Relaxed).is_multiple_of(TIMED_ONE_OF);
        add(&operation.requests, 1);
        Begun { opcode, timed: timed.then(Instant::now) }
    }

    /// It is served: `bytes` of file data were read or written.
    pub fn end(&self, begun: &Begun, failed: bool, bytes: u64) {
        let operation = self.queue().operation(begun.opcode);
        if failed {
            cold_path();
            add(&operation.errors, 1);
        }
        if bytes > 0 {
            add(&operation.bytes, bytes);
        }
        if let Some(start) = begun.timed {
            cold_path();
            let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            add(&operation.timed_ns, took);
            add(&operation.buckets[bucket(took)], 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::metrics::MetricsMemory;

    #[test]
    fn requests_are_counted_and_some_are_timed() {
        let region = Arc::new(Region::writable(&MetricsMemory::create().unwrap().fd).unwrap());
        let recorder = Recorder::new(Arc::clone(&region), 2);
        let number = 2 * TIMED_ONE_OF + 1;
        recorder.taken(number as usize);
        for number in 0..number {
            let begun = recorder.begin(15);
            recorder.end(&begun, number == 7, 10);
        }
        let read = &region.queues[2].operations[15];
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((load(&read.requests), load(&read.errors), load(&read.bytes)), (number, 1, 10 * number));
        assert_eq!(read.buckets.iter().map(load).sum::<u64>(), 3);
        assert_eq!((load(&region.queues[2].taken), load(&region.queues[2].depth)), (number, number));
        recorder.idle();
        assert_eq!(load(&region.queues[2].depth), 0);
    }
}
