//! Helper threads (`--thread-pool-size`) for requests that wait for storage, so that those behind them in the
//! virtqueue don't wait too: those that always do, large transfers, and small ones as long as such have been slow.
//!
//! A request goes to a helper whole, undecided and with its buffers ([`Deferred`]); the helper decodes it again
//! from guest memory, believing nothing that the queue's thread saw. Credentials belong to threads, so each helper
//! has its own.
//!
//! Lock order: the list of jobs and the counters are leaves; nothing is taken under them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::deferred::Deferred;
use super::fs::{FileSystem, Thread};
use super::request::{Served, Server, Slow};

/// More helpers than this are not started: the guest can't have more to wait for at a time than that is good for.
const MAX_HELPERS: u16 = 64;

/// Requests that may wait for each helper. With more, the queue's thread serves them itself.
const WAITING_PER_HELPER: usize = 4;

/// Requests of one virtqueue that helpers have.
#[derive(Clone, Default)]
pub struct InFlight(Arc<(Mutex<usize>, Condvar)>);

/// One of them, until it is dropped.
struct Ticket(InFlight);

impl InFlight {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(&self) -> Ticket {
        *self.count() += 1;
        Ticket(self.clone())
    }

    /// Waits until helpers have none any more, as a stop of the virtqueue must.
    pub fn wait_for_none(&self) {
        let wait = self.0.1.wait_while(self.count(), |count| *count > 0);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = self.0.count();
        *count = count.saturating_sub(1);
        self.0.0.1.notify_all();
    }
}

struct Job {
    request: Deferred,
    /// Dropped after the reply is published.
    _ticket: Ticket,
}

/// The helpers.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    fs: Arc<FileSystem>,
    jobs: Mutex<VecDeque<Job>>,
    filled: Condvar,
    most: usize,
    data: Pulse,
}

/// How long requests for file data take, in nanoseconds, as an average in which each new one has an eighth.
#[derive(Default)]
struct Pulse(AtomicU64);

/// From here on handing a request over, some 20 µs with the helper's wake-up, is the smaller part of it.
const SLOW: Duration = Duration::from_micros(100);

impl Pulse {
    fn beat(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / 8;
        // Of two at the same time one may be lost.
        let average = self.0.load(Ordering::Relaxed);
        self.0.store((average - average / 8).saturating_add(took), Ordering::Relaxed);
    }

    fn is_slow(&self) -> bool {
        u128::from(self.0.load(Ordering::Relaxed)) > SLOW.as_nanos()
    }
}

impl Pool {
    /// Starts the helpers, which live as long as the process; none for a size of 0.
    ///
    /// # Errors
    /// What `pthread_create` says.
    pub fn start(fs: &Arc<FileSystem>, size: u16) -> io::Result<Option<Self>> {
        let size = size.min(MAX_HELPERS);
        if size == 0 {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            fs: Arc::clone(fs),
            jobs: Mutex::default(),
            filled: Condvar::new(),
            most: usize::from(size) * WAITING_PER_HELPER,
            data: Pulse::default(),
        });
        for number in 0..size {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("helper_{number}"));
            builder.spawn(move || shared.help())?;
        }
        Ok(Some(Pool(shared)))
    }

    /// Is there room for one more request? (Several queues that ask at once may each get one in.)
    pub fn has_room(&self) -> bool {
        self.0.jobs().len() < self.0.most
    }

    /// A queue's thread took so long for a request.
    pub fn observe(&self, took: Duration) {
        self.0.data.beat(took);
    }

    /// Is file data on storage that takes its time, so that other threads should wait for it?
    pub fn is_storage_slow(&self) -> bool {
        self.0.data.is_slow()
    }

    /// Hands a request over.
    pub fn submit(&self, request: Deferred, in_flight: &InFlight) {
        let job = Job { request, _ticket: in_flight.ticket() };
        self.0.jobs().push_back(job);
        self.0.filled.notify_one();
    }
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let jobs = self.filled.wait_while(self.jobs(), |jobs| jobs.is_empty());
        jobs.unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn help(&self) {
        let thread = match Thread::new(&self.fs) {
            Ok(thread) => thread,
            Err(e) => return log::error!("a helper thread cannot have credentials of its own: {e}"),
        };
        let mut server = Server::new(Arc::clone(&self.fs), thread, None);
        loop {
            let Some(Job { request, _ticket }) = self.next() else { continue };
            let (begun, mut kind) = (Instant::now(), None);
            request.finish_with(|buffers| {
                let served = server.serve(buffers, |slow| {
                    kind = Some(slow);
                    false
                });
                match served {
                    Served::Replied(used) => used,
                    // The guest changed the request into another behind our back: that one isn't served.
                    Served::Waits { .. } | Served::Moves => 0,
                }
            });
            if kind == Some(Slow::Data) {
                self.data.beat(begun.elapsed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_slow_after_some_slow_requests_and_quick_after_some_quick_ones() {
        let pulse = Pulse::default();
        let beats = |took, until: bool| {
            (0..1000).take_while(|_| pulse.is_slow() != until).map(|_| pulse.beat(took)).count()
        };
        assert_eq!(beats(Duration::from_micros(2), true), 1000);
        assert!((1..10).contains(&beats(Duration::from_micros(600), true)));
        assert!((1..10).contains(&beats(Duration::from_micros(2), false)));
        pulse.beat(Duration::MAX);
        assert!(pulse.is_slow());
    }
}
