//! Requests that are served and not yet in the used ring.
//!
//! To return a request takes the vring's lock, a store that the guest's CPU is looking at, and a full fence before the
//! look whether the guest wants a call; the CPU waits at each for the one before. So quick requests are returned
//! [`GROUP`] at a time, as long as those of the last batch took no longer than [`QUICK`] each: where storage is slow, none
//! waits for another. All that is done goes back before a request that is known to take long; and where the guest sleeps,
//! the first of a batch goes back at once and wakes it, so that it comes while the rest is served.

use std::time::{Duration, Instant};

use smallvec::SmallVec;
use vhost_user_backend::VringT;
use virtio_queue::{Error, Queue, QueueT};

use super::device::Memory;
use super::rings::{self, Used};
use super::vring::Vring;

/// Most requests that are kept back.
const GROUP: usize = 8;

/// How long a request may take on average for that.
const QUICK: Duration = Duration::from_micros(4);

/// One virtqueue's.
pub struct Returns {
    /// Served, and still to be put into the used ring.
    done: SmallVec<[Used; GROUP]>,
    /// The guest sleeps until the next one comes.
    awaited: bool,
    /// Most that are kept back now.
    most: usize,
    /// When the batch began, if it has more than one request.
    begun: Option<Instant>,
}

impl Returns {
    /// With none.
    pub fn new() -> Self {
        Returns { done: SmallVec::new(), awaited: false, most: GROUP, begun: None }
    }

    /// A batch of so many begins.
    pub fn begin(&mut self, number: usize, queue: &Queue, memory: &Memory) {
        self.awaited = is_awaited(queue, memory);
        self.begun = (number > 1).then(Instant::now);
    }

    /// The batch of so many is served; how long each took, if there were several.
    pub fn end(&mut self, number: usize) -> Option<Duration> {
        let took = self.begun.take()?.elapsed();
        let each = took / u32::try_from(number.max(1)).unwrap_or(u32::MAX);
        self.most = if each <= QUICK { GROUP } else { 1 };
        Some(each)
    }

    /// A request is served.
    pub fn push(&mut self, head: u16, used: u32) {
        self.done.push((head, used));
    }

    /// Should those that are there go back now?
    pub fn are_due(&self) -> bool {
        self.awaited || self.done.len() >= self.most
    }

    /// Puts them into the used ring, and notifies the guest if it wants to know.
    ///
    /// # Errors
    /// When the used ring is not in guest memory.
    pub fn publish(&mut self, vring: &Vring, memory: &Memory) -> Result<(), Error> {
        if self.done.is_empty() {
            return Ok(());
        }
        self.awaited = false;
        let mut state = vring.get_mut();
        let told = rings::give(state.get_queue_mut(), memory, &self.done);
        self.done.clear();
        if told? {
            // An error means that the front end's eventfd is full (so it will look) or gone.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }
}

/// Has the guest asked for a call at the very next used descriptor (virtio 1.3, 2.7.7.1)? Only a guess, since it may
/// change its mind meanwhile. One without EVENT_IDX always asks.
fn is_awaited(queue: &Queue, memory: &Memory) -> bool {
    !queue.event_idx_enabled() || rings::used_event(queue, memory) == Some(queue.next_used())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_kept_back_only_while_requests_are_quick() {
        let mut returns = Returns::new();
        let mut after = |took: Duration, number| {
            returns.begun = Instant::now().checked_sub(took);
            returns.end(number);
            returns.done.clear();
            (1..=GROUP).find(|_| {
                returns.push(0, 0);
                returns.are_due()
            })
        };
        assert_eq!(after(Duration::ZERO, 1_000_000), Some(GROUP));
        assert_eq!(after(Duration::from_millis(5), 8), Some(1));
        assert_eq!(after(Duration::from_micros(1), 1_000_000), Some(GROUP));
    }
}
