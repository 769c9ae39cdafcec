//! What it costs our daemon to count a request: the worker's own recorder, on memory of the same kind, by itself.
//!
//! Through the whole daemon the difference between counting and not counting is smaller than what two runs differ by.
//! By itself it is the lower bound of a cost that caches and the requests around it add little to: a queue's counters of one
//! kind of request are two or three cache lines that only its thread writes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use virtiofsd::protocol::metrics::{MetricsMemory, Region};
use virtiofsd::worker::recorder::Recorder;

use super::Failure;
use super::report::median;
use crate::fuse::wire::opcode;

/// Rounds, of which the median counts.
const ROUNDS: usize = 9;
/// Requests a round: some milliseconds.
const REQUESTS: u32 = 1 << 20;
/// Requests that come with one look at the ring, as in the workloads that it is compared with.
const BATCH: u32 = 16;
/// A virtqueue for requests.
const QUEUE: u16 = 1;

/// CPU time for a request, in microseconds, of counting it: its share of its batch's, one clock reading in so many, and
/// file data.
pub fn cost() -> Result<f64, Failure> {
    let memory = MetricsMemory::create().map_err(|_| Failure::Malformed("no memory for metrics"))?;
    let region = Region::writable(&memory.fd).map_err(|_| Failure::Malformed("no memory for metrics"))?;
    let recorder = Recorder::new(Arc::new(region), QUEUE);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (counting, loop_alone) = (time(|| count(&recorder))?, time(count_nothing)?);
        rounds.push((counting.as_secs_f64() - loop_alone.as_secs_f64()) * 1e6 / f64::from(REQUESTS));
    }
    median(rounds).ok_or(Failure::Malformed("no rounds"))
}

fn count(recorder: &Recorder) {
    for number in 0..REQUESTS {
        if number % BATCH == 0 {
            recorder.idle();
            recorder.taken(BATCH as usize);
        }
        let begun = recorder.begin(black_box(opcode::READ));
        recorder.end(black_box(&begun), black_box(false), black_box(4096));
    }
}

fn count_nothing() {
    for number in 0..REQUESTS {
        black_box(number);
    }
}

/// This thread's CPU time for it.
fn time(act: impl FnOnce()) -> Result<Duration, Failure> {
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let start = clock()?;
    act();
    Ok(clock()?.saturating_sub(start))
}
