//! The closed loop: keeps a number of requests in flight on a queue, as so many threads of a guest would, and
//! measures what comes of it.
//!
//! It behaves as Linux's driver does: it kicks only when the daemon asks for it (EVENT_IDX), takes all that was
//! returned at once, and sleeps on the call eventfd when there is nothing to take. On the way it allocates
//! nothing and makes no other system call.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::Failure;
use super::guest::Guest;
use super::histogram::Histogram;
use super::message::{Message, Response};
use super::tree::pin;
use crate::frontend::Queue;
use crate::frontend::queue::SlotId;

/// What the slots of one queue do, request by request. Slots count from 0 up to the depth.
pub trait Script: Send {
    /// The slot's next request, `None` when no operation is left in this lap. It is called at first, and then
    /// after each reply.
    fn next(&mut self, slot: usize) -> Option<&mut Message>;

    /// Takes the reply to the slot's request; returns how many operations it completed.
    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure>;

    /// Whether an operation of several requests is under way in this slot.
    fn is_busy(&self, _slot: usize) -> bool {
        false
    }

    /// The lap is over for this slot, at its next reply: what is under way is cut short.
    fn stop(&mut self, _slot: usize) {}

    /// Whether its requests belong on the high-priority queue.
    fn high_priority(&self) -> bool {
        false
    }

    /// Before each lap, not measured.
    fn prepare(&mut self, _guest: &mut Guest) -> Result<(), Failure> {
        Ok(())
    }

    /// After each lap, not measured: what must be undone before the next.
    fn clean_up(&mut self, _guest: &mut Guest) -> Result<(), Failure> {
        Ok(())
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measurement {
    /// Operations completed.
    pub operations: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// CPU time of the daemon.
    pub daemon_cpu: Duration,
    /// CPU time of this front end.
    pub front_cpu: Duration,
    /// How often the daemon was kicked.
    pub kicks: u64,
    /// How long the operations took.
    pub latency: Histogram,
    /// What ended it early.
    pub failure: Option<String>,
}

impl Measurement {
    /// Adds what happened at the same time on another queue.
    fn join(&mut self, other: &Measurement) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.add_counts(other);
    }

    /// Adds what happened afterwards.
    fn append(&mut self, other: &Measurement) {
        self.elapsed += other.elapsed;
        self.add_counts(other);
    }

    fn add_counts(&mut self, other: &Measurement) {
        self.operations += other.operations;
        self.daemon_cpu += other.daemon_cpu;
        self.front_cpu += other.front_cpu;
        self.kicks += other.kicks;
        self.latency.merge(&other.latency);
        if self.failure.is_none() {
            self.failure.clone_from(&other.failure);
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Not measured, before.
    pub warm_up: Duration,
    /// Measured. A lap that is under way goes on until its operations are complete.
    pub measured: Duration,
}

/// Runs one script a queue, all at once, lap after lap, with `depth` requests in flight on each.
pub fn measure(guest: &mut Guest, scripts: &mut [Box<dyn Script>], depth: u16, span: Span) -> Measurement {
    if !span.warm_up.is_zero() {
        let warm_up = laps(guest, scripts, depth, span.warm_up);
        if warm_up.failure.is_some() {
            return warm_up;
        }
    }
    laps(guest, scripts, depth, span.measured)
}

fn laps(guest: &mut Guest, scripts: &mut [Box<dyn Script>], depth: u16, length: Duration) -> Measurement {
    let mut scripts: Vec<&mut dyn Script> = scripts.iter_mut().map(|script| &mut **script as _).collect();
    let mut sum = Measurement::default();
    while sum.failure.is_none() && sum.elapsed < length {
        match lap(guest, &mut scripts, depth, length - sum.elapsed) {
            Ok(lap) => sum.append(&lap),
            Err(failure) => sum.failure = Some(failure.to_string()),
        }
    }
    sum
}

/// Runs one script on the first queue until it has no more to do, or for this long.
pub fn once(guest: &mut Guest, script: &mut dyn Script, depth: u16, length: Duration) -> Measurement {
    lap(guest, &mut [script], depth, length)
        .unwrap_or_else(|failure| Measurement { failure: Some(failure.to_string()), ..Default::default() })
}

/// One lap: until the scripts have no more to do, or for this long.
fn lap(
    guest: &mut Guest,
    scripts: &mut [&mut dyn Script],
    depth: u16,
    length: Duration,
) -> Result<Measurement, Failure> {
    guest.check_alive()?;
    for script in scripts.iter_mut() {
        script.prepare(guest)?;
    }
    guest.tree.settle()?;
    let before = guest.tree.cpu()?;
    let until = Instant::now() + length;
    let mut sum = match scripts {
        [script] if script.high_priority() => drive(&mut guest.high_priority, *script, depth, until),
        [script] if guest.spread.is_none() => drive(guest.queue(), *script, depth, until),
        _ => {
            let spread = guest.spread;
            drive_all(guest.queues_mut(), scripts, depth, until, spread)
        }
    };
    guest.check_alive()?;
    guest.tree.settle()?;
    sum.daemon_cpu = guest.tree.cpu()?.saturating_sub(before);
    for script in scripts.iter_mut() {
        script.clean_up(guest)?;
    }
    Ok(sum)
}

/// A thread a queue; where queues are spread over so many CPUs, on that of its queue, but not where there is one queue.
fn drive_all(
    queues: &mut [Queue],
    scripts: &mut [&mut dyn Script],
    depth: u16,
    until: Instant,
    spread: Option<usize>,
) -> Measurement {
    let mut sum = Measurement::default();
    let beside = usize::from(queues.len() == 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = queues
            .iter_mut()
            .zip(scripts)
            .enumerate()
            .map(|(index, (queue, script))| {
                scope.spawn(move || {
                    if let Some(Err(e)) = spread.map(|cpus| pin(Pid::from_raw(0), (index + beside) % cpus)) {
                        return Measurement { failure: Some(e.to_string()), ..Default::default() };
                    }
                    drive(queue, *script, depth, until)
                })
            })
            .collect();
        for thread in threads {
            sum.join(&thread.join().expect("a front-end thread reports failures, it doesn't panic"));
        }
    });
    sum
}

/// The loop on one queue.
fn drive(queue: &mut Queue, script: &mut dyn Script, depth: u16, until: Instant) -> Measurement {
    let cpu = thread_cpu();
    let kicks = queue.kicks();
    let slots: Vec<SlotId> = (0..depth).map_while(|_| queue.take()).collect();
    let start = Instant::now();
    let mut run = Run { done: Measurement::default(), started: vec![start; slots.len()], unique: 0 };
    if let Err(failure) = run.complete(queue, &slots, script, until) {
        run.done.failure = Some(failure.to_string());
    }
    let done = Measurement {
        elapsed: start.elapsed(),
        front_cpu: thread_cpu().saturating_sub(cpu),
        kicks: queue.kicks() - kicks,
        ..run.done
    };
    if done.failure.is_none() || queue.in_flight() == 0 {
        // In this order they come back at the next lap.
        slots.into_iter().rev().for_each(|slot| queue.put(slot));
    }
    done
}

struct Run {
    done: Measurement,
    /// When each slot's operation began.
    started: Vec<Instant>,
    unique: u64,
}

impl Run {
    fn complete(
        &mut self,
        queue: &mut Queue,
        slots: &[SlotId],
        script: &mut dyn Script,
        until: Instant,
    ) -> Result<(), Failure> {
        if slots.is_empty() {
            return Err(Failure::Malformed("no slots are left: the daemon has kept requests of before"));
        }
        let mut in_flight = 0;
        for (index, slot) in slots.iter().copied().enumerate() {
            // All slots are free at the begin, so that they come in order.
            assert_eq!(slot.index(), index, "slots come in order");
            if let Some(message) = script.next(slot.index()) {
                message.submit(queue, slot, self.next_unique());
                in_flight += 1;
            }
        }
        queue.flush();
        while in_flight > 0 {
            let mut completion = queue.wait()?;
            let now = Instant::now();
            let may_begin = now < until && self.done.failure.is_none();
            loop {
                in_flight -= 1;
                let slot = completion.slot;
                match script.take(slot.index(), Response::new(queue, completion)) {
                    Ok(count) => self.count(slot.index(), count, now, script.is_busy(slot.index())),
                    Err(failure) => self.done.failure = Some(failure.to_string()),
                }
                if !may_begin {
                    script.stop(slot.index());
                }
                let goes_on = may_begin || script.is_busy(slot.index()) && self.done.failure.is_none();
                if let Some(message) = goes_on.then(|| script.next(slot.index())).flatten() {
                    message.submit(queue, slot, self.next_unique());
                    in_flight += 1;
                }
                match queue.poll()? {
                    Some(next) => completion = next,
                    None => break,
                }
            }
            queue.flush();
        }
        Ok(())
    }

    fn count(&mut self, slot: usize, operations: u64, now: Instant, busy: bool) {
        self.done.operations += operations;
        if !busy && operations > 0 {
            self.done.latency.record(now - self.started[slot]);
            self.started[slot] = now;
        }
    }

    fn next_unique(&mut self) -> u64 {
        self.unique += 2;
        self.unique
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a CPU clock").into()
}
