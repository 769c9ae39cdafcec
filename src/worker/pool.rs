//! Helper threads (`--thread-pool-size`) for requests that wait for storage, so that those behind them in the
//! virtqueue don't wait too.
//!
//! A request goes to a helper whole, undecided and with its buffers ([`Deferred`]); the helper decodes it again
//! from guest memory, believing nothing that the queue's thread saw. Credentials belong to threads, so each helper
//! has its own.
//!
//! Lock order: the list of jobs and the counters are leaves; nothing is taken under them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::deferred::Deferred;
use super::fs::{FileSystem, Thread};
use super::request::{Served, Server};

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
            request.finish_with(|buffers| match server.serve(buffers, |_| false) {
                Served::Replied(used) => used,
                // The guest changed the request into another behind our back: that one isn't served.
                Served::Waits { .. } | Served::Moves => 0,
            });
        }
    }
}
