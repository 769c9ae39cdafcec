//! Whether to look at a virtqueue a little longer before its thread sleeps (`--poll-us`).
//!
//! A thread that sleeps has to be woken, which takes both sides longer than most requests take. Looking on pays where
//! the next request comes soon, as with a guest that is busy, and is wasted where it doesn't, as with one that sleeps
//! itself after each reply. Which it is shows in what came of it before: after looking in vain, the thread sleeps at
//! once, the next time twice as often, up to [`MOST_SKIPPED`] times, and then tries again. A look that found something so
//! late that a sleep had cost less may have met a guest that was just waking up; if the next one is late, too, it was
//! in vain. So is one during which another thread ran on this CPU: it is wanted, perhaps by the guest itself, which can
//! make no request as long as this thread looks for one.

use std::time::{Duration, Instant};

/// Most sleeps in a row without a look: then one of `--poll-us` costs each of them a 64th.
const MOST_SKIPPED: u8 = 63;

/// What a guest that is awake needs for its next request. Whoever looks longer lets others have the CPU that want it, the
/// guest's own CPUs perhaps.
const UNDISTURBED: Duration = Duration::from_micros(2);

/// A yield that takes this long has let another thread run: one that returns at once takes a quarter of it.
const SWITCHED: Duration = Duration::from_micros(1);

/// One virtqueue's habit.
pub struct Poll {
    /// Longest look.
    most: Duration,
    /// Sleeps from one look in vain to the next look.
    pause: u8,
    /// How many of those are left.
    skip: u8,
    /// The last look took long and found something.
    late: bool,
}

impl Poll {
    /// Looks at most this long.
    pub fn new(most: Duration) -> Self {
        Poll { most, pause: 0, skip: 0, late: false }
    }

    /// Calls `look` until it finds something or it has been long enough. Whether it found something.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn look<E>(&mut self, mut look: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if self.most.is_zero() {
            return Ok(false);
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(false);
        }
        if look()? {
            return Ok(true);
        }
        let start = Instant::now();
        let mut spent = Duration::ZERO;
        loop {
            let yields = spent >= UNDISTURBED;
            if yields {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            let found = look()?;
            let turn = start.elapsed() - spent;
            spent += turn;
            let shared = yields && turn >= SWITCHED;
            if found || shared || spent >= self.most {
                self.learn(found && !shared, spent);
                return Ok(found);
            }
        }
    }

    fn learn(&mut self, found: bool, took: Duration) {
        let soon = found && took <= self.most / 2;
        let woken = found && !self.late;
        self.late = found && !soon;
        if soon {
            self.pause = 0;
        } else if !woken {
            self.pause = (2 * self.pause + 1).min(MOST_SKIPPED);
            self.skip = self.pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks come of so many sleeps, when the second look of each finds something or none does.
    fn looks(poll: &mut Poll, sleeps: usize, finds: bool) -> usize {
        let mut begun = 0;
        for _ in 0..sleeps {
            let mut calls = 0;
            let found = poll.look(|| {
                calls += 1;
                Ok::<_, ()>(finds && calls > 1)
            });
            assert_eq!(found, Ok(finds && calls > 1));
            begun += usize::from(calls > 0);
        }
        begun
    }

    #[test]
    fn looks_that_find_nothing_become_rare_and_are_never_given_up() {
        let mut poll = Poll::new(Duration::from_nanos(1));
        assert_eq!(looks(&mut poll, 5 + 1 + 3 + 7 + 15 + 31, false), 5);
        assert_eq!(looks(&mut poll, 640, false), 10);
        assert_eq!(looks(&mut poll, 1, false), 1);
    }

    #[test]
    fn what_is_found_soon_makes_them_frequent_again() {
        let mut poll =
            Poll { most: Duration::from_secs(60), pause: MOST_SKIPPED, skip: MOST_SKIPPED, late: false };
        assert_eq!(looks(&mut poll, 100, true), 100 - 63);
        assert_eq!(looks(&mut poll, 100, true), 100);
    }

    #[test]
    fn what_is_found_late_counts_as_nothing_the_second_time() {
        let mut poll = Poll::new(Duration::from_nanos(1));
        assert_eq!(looks(&mut poll, 2 + 1, true), 2);
        assert_eq!(looks(&mut poll, 1 + 3, true), 1);
    }

    #[test]
    fn no_time_is_no_look() {
        assert_eq!(looks(&mut Poll::new(Duration::ZERO), 10, true), 0);
    }
}
