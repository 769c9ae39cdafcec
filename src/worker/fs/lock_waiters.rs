//! Locks that a guest waits for (SETLKW), without a thread that blocks in the kernel for each.
//!
//! One thread tries all of them in turn, without waiting: at once whenever the guest gives up a lock, and from time
//! to time for the locks of others on the host. So a wait can be given up at any moment, and holds up neither a
//! queue nor a stop. What this costs: no order among those who wait, a delay of up to [`LONGEST_PAUSE`] after
//! somebody on the host unlocks, and no EDEADLK.
//!
//! Lock order: the list of waits, then a virtqueue's lock (to return the reply). Nobody may come here with a
//! virtqueue locked.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::lock::{Attempt, Owner};
use super::sys::Result;
use crate::worker::fuse::operation::HandleId;

/// Most locks that are waited for at a time, of all queues; ENOLCK beyond it.
const MAX_WAITS: usize = 1024;

/// The first pause between two attempts; each that changes nothing doubles it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Returns the answer to the guest.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// One lock that is waited for.
pub struct Wait {
    /// The request.
    pub unique: u64,
    /// The virtqueue that it came from.
    pub queue: u16,
    /// What to try.
    pub attempt: Attempt,
    /// Who hears of it.
    pub done: Done,
}

/// All locks that are waited for.
#[derive(Clone)]
pub struct LockWaiters(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waits: Vec<Wait>,
    /// Something was unlocked, or a wait was added, since the last attempts.
    news: bool,
}

impl LockWaiters {
    /// Starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// What `pthread_create` says.
    pub fn start() -> io::Result<Self> {
        let waiters = Self(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() }));
        let shared = Arc::clone(&waiters.0);
        std::thread::Builder::new().name("lock_waiter".to_owned()).spawn(move || shared.run())?;
        Ok(waiters)
    }

    /// Waits for a lock. `done` is called once, perhaps before this returns, unless all waits are abandoned.
    pub fn wait(&self, wait: Wait) {
        let mut state = self.0.state();
        if state.waits.len() >= MAX_WAITS {
            drop(state);
            return (wait.done)(Err(Errno::ENOLCK));
        }
        state.waits.push(wait);
        state.news = true;
        self.0.changed.notify_one();
    }

    /// The guest has given up a lock: somebody may have been waiting for it.
    pub fn unlocked(&self) {
        let mut state = self.0.state();
        if !state.waits.is_empty() {
            state.news = true;
            self.0.changed.notify_one();
        }
    }

    /// Ends with EINTR all waits that `which` picks; they have been answered when this returns.
    pub fn cancel(&self, which: impl Fn(&Wait) -> bool) {
        let mut state = self.0.state();
        for wait in state.waits.extract_if(.., |wait| which(wait)) {
            (wait.done)(Err(Errno::EINTR));
        }
    }

    /// Ends all waits; nobody hears of it.
    pub fn abandon(&self) {
        self.0.state().waits.clear();
    }
}

impl Wait {
    /// Is it for a byte-range lock of this owner?
    pub fn is_of(&self, owner: Owner) -> bool {
        matches!(&self.attempt, Attempt::Range { key, .. } if *key == owner)
    }

    /// Is it for a whole-file lock of this open file?
    pub fn is_of_handle(&self, handle: HandleId) -> bool {
        matches!(&self.attempt, Attempt::Whole { id, .. } if *id == handle)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut pause = SHORTEST_PAUSE;
        let mut state = self.state();
        loop {
            state = if state.waits.is_empty() {
                pause = SHORTEST_PAUSE;
                self.changed.wait_while(state, |state| !state.news).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.changed.wait_timeout_while(state, pause, |state| !state.news);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
            if std::mem::take(&mut state.news) {
                pause = SHORTEST_PAUSE;
            }
            if !state.try_all() {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

impl State {
    /// Tries each; whether any wait ended.
    fn try_all(&mut self) -> bool {
        let mut any = false;
        let mut waits = std::mem::take(&mut self.waits).into_iter();
        for wait in waits.by_ref() {
            match wait.attempt.make() {
                Err(Errno::EAGAIN | Errno::EACCES) => self.waits.push(wait),
                result => {
                    any = true;
                    (wait.done)(result);
                }
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;

    use super::*;
    use crate::worker::fuse::operation::NodeId;

    fn open(path: &std::path::Path) -> Arc<OwnedFd> {
        Arc::new(std::fs::File::options().read(true).write(true).open(path).unwrap().into())
    }

    fn own(owner: u64) -> Owner {
        Owner { node: NodeId(7), owner }
    }

    fn range(file: &Arc<OwnedFd>, owner: u64) -> Attempt {
        let key = own(owner);
        Attempt::Range { key, file: Arc::clone(file), kind: libc::F_WRLCK as i16, start: 0, length: 0 }
    }

    fn wait(waiters: &LockWaiters, unique: u64, attempt: Attempt) -> mpsc::Receiver<Result<()>> {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        waiters.wait(Wait { unique, queue: 1, attempt, done });
        receiver
    }

    #[test]
    fn a_wait_ends_with_the_lock_or_when_it_is_cancelled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (holder, second, third) = (open(file.path()), open(file.path()), open(file.path()));
        range(&holder, 1).make().unwrap();
        assert_eq!(range(&second, 2).make(), Err(Errno::EAGAIN));
        let waiters = LockWaiters::start().unwrap();
        let granted = wait(&waiters, 10, range(&second, 2));
        let cancelled = wait(&waiters, 12, range(&third, 3));
        waiters.cancel(|wait| wait.is_of(own(3)));
        assert_eq!(cancelled.try_recv(), Ok(Err(Errno::EINTR)), "answered when cancel returns");
        assert_eq!(granted.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(holder);
        waiters.unlocked();
        assert_eq!(granted.recv_timeout(Duration::from_secs(20)), Ok(Ok(())));
        assert_eq!(range(&third, 3).make(), Err(Errno::EAGAIN), "the lock is held");
    }

    #[test]
    fn waits_are_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (holder, second) = (open(file.path()), open(file.path()));
        range(&holder, 1).make().unwrap();
        let waiters = LockWaiters::start().unwrap();
        let waiting: Vec<_> =
            (0..MAX_WAITS as u64).map(|unique| wait(&waiters, unique, range(&second, 2))).collect();
        assert_eq!(wait(&waiters, 5000, range(&second, 2)).recv(), Ok(Err(Errno::ENOLCK)));
        waiters.cancel(|_| true);
        assert!(waiting.iter().all(|one| one.try_recv() == Ok(Err(Errno::EINTR))));
    }
}
