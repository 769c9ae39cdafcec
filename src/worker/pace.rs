//! `--limit-ops` and `--limit-bandwidth`: how fast the request queues of a device are served.
//!
//! A queue that must wait takes nothing from its ring and arms a timer in its thread's epoll: no thread sleeps, no
//! lock is held and no request is in flight meanwhile, so control messages, a stop and the high-priority queue
//! (which is never limited) go on at once.
//!
//! The buckets are the device's, shared by its queues, as one number each: the time at which the bucket will be
//! full again (the generic cell rate algorithm). A queue that finds no token reserves the next one, so that queues
//! that want more than there is get turns in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::config::{Limits, RateLimit};

/// Requests taken at once where bytes are limited, which are known only afterwards.
const FEW: usize = 8;

/// One bucket. Times are nanoseconds since the limiter was made.
struct Bucket {
    rate: u64,
    /// What the burst takes to fill.
    tolerance: u64,
    full_again: AtomicU64,
}

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        let tolerance = nanoseconds(limit.burst.saturating_sub(1), limit.rate);
        Self { rate: limit.rate, tolerance, full_again: AtomicU64::new(0) }
    }

    /// How long until there is a token.
    fn wait(&self, now: u64) -> u64 {
        self.full_again.load(Ordering::Relaxed).saturating_sub(now.saturating_add(self.tolerance))
    }

    /// Takes so many, whether they are there or not.
    fn take(&self, now: u64, number: u64) {
        let cost = nanoseconds(number, self.rate);
        let after = |full_again: u64| full_again.max(now).saturating_add(cost);
        // The closure always gives a value.
        let _ = self.full_again.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |f| Some(after(f)));
    }

    /// Takes as many as are there, at most `most`; where there is none, reserves the next one, and says how long
    /// until it is there.
    fn grant(&self, now: u64, most: usize) -> Result<usize, u64> {
        let limit = now.saturating_add(self.tolerance);
        let mut seen = self.full_again.load(Ordering::Relaxed);
        loop {
            let from = seen.max(now);
            let more = u128::from(limit.saturating_sub(from)) * u128::from(self.rate) / 1_000_000_000;
            let number = usize::try_from(more).unwrap_or(usize::MAX).saturating_add(1).min(most);
            let number = if from > limit { 1 } else { number };
            let new = from.saturating_add(nanoseconds(number as u64, self.rate));
            let order = Ordering::Relaxed;
            match self.full_again.compare_exchange_weak(seen, new, order, order) {
                Ok(_) if from > limit => return Err(from - limit),
                Ok(_) => return Ok(number),
                Err(now_there) => seen = now_there,
            }
        }
    }

    /// Gives back what was not used.
    fn refund(&self, number: u64) {
        let cost = nanoseconds(number, self.rate);
        let less = |full_again: u64| Some(full_again.saturating_sub(cost));
        // The closure always gives a value.
        let _ = self.full_again.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

fn nanoseconds(number: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(number) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}

/// The device's buckets.
pub struct Limiter {
    begun: Instant,
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// `None` when nothing is limited.
    pub fn new(limits: &Limits) -> Option<Arc<Self>> {
        let (operations, bytes) = (limits.operations.map(Bucket::new), limits.bandwidth.map(Bucket::new));
        let limited = operations.is_some() || bytes.is_some();
        limited.then(|| Arc::new(Self { begun: Instant::now(), operations, bytes }))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What a queue may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Take up to so many requests.
    Take(usize),
    /// Wait this long: the timer is armed.
    Wait(Duration),
    /// Go on waiting: it is not yet time.
    StillWaiting,
}

/// One queue's place at the buckets.
pub struct Pace {
    limiter: Arc<Limiter>,
    timer: Arc<TimerFd>,
    /// Waiting until this time.
    until: Option<u64>,
    /// A request's token was taken while waiting for it.
    reserved: bool,
}

impl Pace {
    /// For one queue.
    ///
    /// # Errors
    /// When the kernel has no timer for us.
    pub fn new(limiter: Arc<Limiter>) -> nix::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Arc::new(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        Ok(Self { limiter, timer, until: None, reserved: false })
    }

    /// What the queue's thread must wait on.
    pub fn timer(&self) -> Arc<TimerFd> {
        Arc::clone(&self.timer)
    }

    /// Forgets about waiting: the queue was stopped.
    pub fn reset(&mut self) {
        self.until = None;
        self.give_back_reserved();
    }

    /// How many requests may be taken, of at most `most`.
    pub fn turn(&mut self, most: usize) -> Turn {
        let now = self.limiter.now();
        if self.until.is_some_and(|until| now < until) {
            return Turn::StillWaiting;
        }
        self.until = None;
        let wait_for_bytes = self.limiter.bytes.as_ref().map_or(0, |bytes| bytes.wait(now));
        if wait_for_bytes > 0 {
            return self.wait(now, wait_for_bytes);
        }
        let most = if self.limiter.bytes.is_some() { most.min(FEW) } else { most };
        if std::mem::take(&mut self.reserved) {
            return Turn::Take(1);
        }
        let Some(operations) = &self.limiter.operations else { return Turn::Take(most) };
        match operations.grant(now, most) {
            Ok(number) => Turn::Take(number),
            Err(wait) => {
                self.reserved = true;
                self.wait(now, wait)
            }
        }
    }

    /// After a turn: requests that were granted and not there, and bytes of file data that were moved.
    pub fn done(&mut self, unused: usize, bytes: u64) {
        if let Some(operations) = self.limiter.operations.as_ref().filter(|_| unused > 0) {
            operations.refund(unused as u64);
        }
        if let Some(bucket) = self.limiter.bytes.as_ref().filter(|_| bytes > 0) {
            bucket.take(self.limiter.now(), bytes);
        }
    }

    fn give_back_reserved(&mut self) {
        if std::mem::take(&mut self.reserved)
            && let Some(operations) = &self.limiter.operations
        {
            operations.refund(1);
        }
    }

    fn wait(&mut self, now: u64, nanoseconds: u64) -> Turn {
        self.until = Some(now.saturating_add(nanoseconds));
        // Setting it anew also takes back an earlier expiration.
        let wait = Duration::from_nanos(nanoseconds.max(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
        if let Err(errno) = self.timer.set(expiration, TimerSetTimeFlags::empty()) {
            // Better too fast than never again.
            log::error!("cannot set a timer for a limit: {errno}");
            self.until = None;
            return Turn::Take(1);
        }
        Turn::Wait(wait)
    }

    /// The timer has expired: takes the event back.
    pub fn expired(&self) {
        if let Err(errno) = self.timer.unset() {
            log::error!("cannot stop a timer: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let bucket = Bucket::new(RateLimit { rate: 1000, burst: 3 });
        assert_eq!(bucket.grant(0, 1), Ok(1));
        assert_eq!(bucket.grant(0, 64), Ok(2));
        assert_eq!(bucket.grant(0, 64), Err(1_000_000));
        assert_eq!(bucket.grant(0, 64), Err(2_000_000));
        assert_eq!(bucket.wait(5_000_000), 0);
        bucket.refund(2);
        assert_eq!(bucket.grant(0, 64), Err(1_000_000));
        // After a long quiet time there is no more than a burst.
        assert_eq!(bucket.grant(1 << 40, 64), Ok(3));
        assert_eq!(bucket.grant(1 << 40, 64), Err(1_000_000));
    }

    #[test]
    fn bytes_are_paid_afterwards() {
        let bucket = Bucket::new(RateLimit { rate: 1 << 20, burst: 1 });
        assert_eq!(bucket.wait(0), 0);
        bucket.take(0, 2 << 20);
        assert_eq!(bucket.wait(0), 2_000_000_000);
        assert_eq!(bucket.wait(2_000_000_000), 0);
    }

    #[test]
    fn extreme_numbers_do_not_wrap() {
        let bucket = Bucket::new(RateLimit { rate: 1, burst: 1 << 40 });
        bucket.take(u64::MAX, u64::MAX);
        assert_eq!(bucket.grant(u64::MAX, usize::MAX), Ok(1));
        bucket.refund(u64::MAX);
        assert_eq!(bucket.grant(0, 5), Ok(5));
        let bucket = Bucket::new(RateLimit { rate: 1, burst: 2 });
        bucket.take(0, u64::MAX);
        assert_eq!(bucket.grant(0, 5), Err(u64::MAX - bucket.tolerance));
    }

    fn pace(operations: Option<RateLimit>, bandwidth: Option<RateLimit>) -> Pace {
        let limits = Limits { operations, bandwidth };
        Pace::new(Limiter::new(&limits).unwrap()).unwrap()
    }

    #[test]
    fn a_queue_waits_for_the_token_that_it_reserved() {
        let mut pace = pace(Some(RateLimit { rate: 1, burst: 2 }), None);
        assert_eq!(pace.turn(64), Turn::Take(2));
        assert!(matches!(pace.turn(64), Turn::Wait(wait) if wait > Duration::from_millis(900)));
        assert_eq!(pace.turn(64), Turn::StillWaiting);
        // Stopped and started: the reservation is given back, and another one is taken.
        pace.reset();
        assert!(matches!(pace.turn(64), Turn::Wait(wait) if wait <= Duration::from_secs(1)));
        pace.until = Some(0);
        assert_eq!(pace.turn(64), Turn::Take(1));
    }

    #[test]
    fn queues_get_turns_in_their_order() {
        let limits = Limits { operations: Some(RateLimit { rate: 10, burst: 1 }), bandwidth: None };
        let limiter = Limiter::new(&limits).unwrap();
        let mut queues: Vec<_> = (0..3).map(|_| Pace::new(Arc::clone(&limiter)).unwrap()).collect();
        assert_eq!(queues[0].turn(64), Turn::Take(1));
        let waits: Vec<_> = queues.iter_mut().map(|pace| pace.turn(64)).collect();
        let waits = waits.iter().map(|turn| match turn {
            Turn::Wait(wait) => wait.as_millis().div_ceil(100),
            other => panic!("{other:?}"),
        });
        assert_eq!(waits.collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn without_limits_there_is_no_limiter() {
        assert!(Limiter::new(&Limits::default()).is_none());
        let mut bytes = pace(None, Some(RateLimit { rate: 1, burst: 1 }));
        assert_eq!(bytes.turn(64), Turn::Take(FEW));
        bytes.done(0, 10);
        assert!(matches!(bytes.turn(64), Turn::Wait(wait) if wait > Duration::from_secs(8)));
    }
}
