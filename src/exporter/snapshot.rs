//! The counters at one moment, as numbers with names. Each counter is read once; they are not read all at the same
//! instant, so sums of them may differ by what was being served meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::protocol::metrics::{BUCKETS, Metrics, OPERATIONS, QUEUES, TIMED_ONE_OF};
use crate::protocol::phase::Kind;
use crate::worker::fuse::wire::Opcode;

/// The form of a [`Snapshot`]; a greater number when a field changes its meaning.
pub const VERSION: u32 = 1;

/// What the numbers are about; from the command line, so not the worker's to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The shared directory.
    pub share: String,
    /// The tag, or else the socket.
    pub device: String,
    /// Request queues.
    pub request_queues: u16,
    /// Limits in force, by the option's name without dashes.
    pub limits: BTreeMap<String, u64>,
}

/// Everything there is to see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`]
    pub version: u32,
    /// What it is about.
    pub subject: Subject,
    /// Since the daemon's start.
    pub uptime_seconds: f64,
    /// Inodes that the guest knows.
    pub inodes: u64,
    /// Of them, those kept by a file descriptor.
    pub hot_inodes: u64,
    /// Open files and directories.
    pub handles: u64,
    /// Refused because of `--max-inodes`.
    pub refused_inodes: u64,
    /// Refused because of `--max-handles`.
    pub refused_handles: u64,
    /// Requests to the broker, by kind; kinds that never came are left out.
    pub broker_requests: BTreeMap<String, u64>,
    /// The virtqueues; the first is the high-priority queue.
    pub queues: Vec<Queue>,
    /// By opcode, over all virtqueues; opcodes that never came are left out.
    pub operations: Vec<Operation>,
}

/// One virtqueue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// 0 is the high-priority queue.
    pub index: usize,
    /// Batches taken from the ring.
    pub batches: u64,
    /// Requests taken from the ring.
    pub taken: u64,
    /// Requests of the present batch.
    pub depth: u64,
    /// Times that a limit made it wait.
    pub throttled: u64,
    /// How long that was.
    pub throttled_seconds: f64,
}

/// One kind of request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// As in `fuse.h`, or `other`.
    pub name: String,
    /// How many.
    pub requests: u64,
    /// Answered with an error.
    pub errors: u64,
    /// File data read or written.
    pub bytes: u64,
    /// How many were timed: one of 16.
    pub timed: u64,
    /// What those took in all.
    pub timed_seconds: f64,
    /// Those by latency: bucket `i` has what took less than `2^i` µs and not less than half of that.
    pub buckets: Vec<u64>,
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

impl Snapshot {
    /// Reads the counters.
    pub fn take(metrics: &Metrics, subject: &Subject, uptime_seconds: f64) -> Self {
        let queues = (usize::from(subject.request_queues) + 1).min(QUEUES);
        let device = &metrics.device;
        let inodes = load(&device.inodes);
        let kinds = Kind::ALL.iter().zip(&device.broker_requests);
        let kinds = kinds.map(|(kind, count)| (format!("{kind:?}"), load(count)));
        Self {
            version: VERSION,
            subject: subject.clone(),
            uptime_seconds,
            inodes,
            // Seats that a queue's thread has taken ahead are counted among them.
            hot_inodes: load(&device.hot_inodes).min(inodes),
            handles: load(&device.handles),
            refused_inodes: load(&device.refused_inodes),
            refused_handles: load(&device.refused_handles),
            broker_requests: kinds.filter(|(_, count)| *count > 0).collect(),
            queues: metrics.queues.iter().take(queues).enumerate().map(queue).collect(),
            operations: (0..OPERATIONS)
                .map(|opcode| operation(metrics, queues, opcode))
                .filter(|operation| operation.requests > 0)
                .collect(),
        }
    }
}

fn queue((index, queue): (usize, &crate::protocol::metrics::QueueMetrics)) -> Queue {
    Queue {
        index,
        batches: load(&queue.batches),
        taken: load(&queue.taken),
        depth: load(&queue.depth),
        throttled: load(&queue.throttled),
        throttled_seconds: seconds(load(&queue.throttled_ns)),
    }
}

fn opcode_name(opcode: usize) -> &'static str {
    u32::try_from(opcode).ok().and_then(Opcode::from_raw).map_or("other", Opcode::name)
}

/// Sums an opcode up. The worker may have written any numbers: sums stop at the largest.
fn operation(metrics: &Metrics, queues: usize, opcode: usize) -> Operation {
    let mut sum =
        Operation { name: opcode_name(opcode).to_owned(), buckets: vec![0; BUCKETS], ..Operation::default() };
    let mut timed_ns = 0u64;
    for queue in metrics.queues.iter().take(queues) {
        let Some(part) = queue.operations.get(opcode) else { continue };
        sum.requests = sum.requests.saturating_add(load(&part.requests));
        sum.errors = sum.errors.saturating_add(load(&part.errors));
        sum.bytes = sum.bytes.saturating_add(load(&part.bytes));
        timed_ns = timed_ns.saturating_add(load(&part.timed_ns));
        for (total, bucket) in sum.buckets.iter_mut().zip(&part.buckets) {
            *total = total.saturating_add(load(bucket));
        }
    }
    sum.timed = sum.buckets.iter().fold(0, |sum: u64, bucket| sum.saturating_add(*bucket));
    sum.timed_seconds = seconds(timed_ns);
    sum
}

impl Operation {
    /// The time in seconds within which this part (0–1) of the timed requests were served: the upper bound of its
    /// bucket. `None` when none was timed, infinite in the last bucket.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        if self.timed == 0 {
            return None;
        }
        let rank = (self.timed as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        for (index, count) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return Some(upper_bound(index));
            }
        }
        Some(f64::INFINITY)
    }
}

/// Where a bucket ends, in seconds.
pub fn upper_bound(index: usize) -> f64 {
    if index + 1 >= BUCKETS { f64::INFINITY } else { (1u64 << index) as f64 / 1e6 }
}

/// For texts: how many requests stand behind a timed one.
pub const SAMPLE: u64 = TIMED_ONE_OF;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::metrics::{MetricsMemory, Region, add};

    #[test]
    fn queues_are_summed_and_what_never_came_is_left_out() {
        let region = Region::writable(&MetricsMemory::create().unwrap().fd).unwrap();
        for index in [1, 2, 3] {
            let read = &region.queues[index].operations[15];
            add(&read.requests, 32);
            add(&read.bytes, 4096);
            add(&read.buckets[3], 2);
            add(&read.timed_ns, 10_000);
        }
        add(&region.device.broker_requests[2], 5);
        let subject = Subject { request_queues: 2, ..Subject::default() };
        let snapshot = Snapshot::take(&region, &subject, 1.0);
        assert_eq!(snapshot.queues.len(), 3);
        assert_eq!(snapshot.operations.len(), 1);
        let read = &snapshot.operations[0];
        assert_eq!((read.name.as_str(), read.requests, read.bytes, read.timed), ("READ", 64, 8192, 4));
        assert_eq!(read.quantile(0.5), Some(8e-6));
        assert_eq!(snapshot.broker_requests, BTreeMap::from([("Seal".to_owned(), 5)]));
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    }

    #[test]
    fn hostile_numbers_are_only_numbers() {
        let region = Region::writable(&MetricsMemory::create().unwrap().fd).unwrap();
        for queue in &region.queues {
            for operation in &queue.operations {
                operation.requests.store(u64::MAX, Ordering::Relaxed);
                operation.timed_ns.store(u64::MAX, Ordering::Relaxed);
                operation.buckets.iter().for_each(|bucket| bucket.store(u64::MAX, Ordering::Relaxed));
            }
        }
        let subject = Subject { request_queues: u16::MAX, ..Subject::default() };
        let snapshot = Snapshot::take(&region, &subject, f64::MAX);
        assert_eq!(snapshot.queues.len(), QUEUES);
        assert_eq!(snapshot.operations[0].requests, u64::MAX);
        assert_eq!(snapshot.operations[0].quantile(1.0), Some(1e-6));
        assert_eq!(Operation::default().quantile(0.5), None);
    }
}
