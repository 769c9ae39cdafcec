//! How many fds idle inodes and open handles take, and how many they may.
//!
//! A guest decides how many inodes it knows and how many files it has open. What it may not decide is whether
//! the next message of the front end, or of the broker, still finds room for the fds that come with it: a table
//! of fds that is full would end the daemon. So each fd that a guest keeps takes a seat, and there are fewer
//! seats than the process may have fds.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fds that are nobody's seat: broker channel, sockets, memory regions, and those that a request opens and closes.
const RESERVED: u64 = 128;
/// The same for each queue: its eventfds (old and new, while they are replaced), its epoll, and its thread's own.
const RESERVED_FOR_A_QUEUE: u64 = 12;
/// Most seats that a thread takes together.
const MOST_TOGETHER: u64 = 8;
/// It takes one together for each so many that there are.
const FEW: u64 = 1024;
/// The reserve takes at most three quarters of a very low limit.
const LEAST: u64 = 4;

/// The number of seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of inodes and handles together.
    pub total: usize,
    /// Of inodes, from where on idle ones are sealed: a guest that looks up everything can still open files.
    pub inodes: usize,
    /// Inodes sealed at once: their fds are in the broker's table meanwhile.
    pub batch: usize,
}

impl Bounds {
    /// For a process that may have `nofile` fds and serves this many queues.
    pub fn within(nofile: u64, queues: u64) -> Self {
        let reserve = RESERVED.saturating_add(queues.saturating_mul(RESERVED_FOR_A_QUEUE));
        let total = nofile.saturating_sub(reserve).max(nofile / LEAST).max(2);
        // Of the last ones each thread may take several of each kind together.
        let beyond = queues.saturating_mul(KINDS as u64 * (together(total) - 1));
        let total = total - beyond.min(total / 2);
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Bounds {
            total: count(total),
            inodes: count(total / 4 * 3).max(1),
            batch: count(nofile / 4).clamp(1, crate::protocol::MAX_FDS),
        }
    }
}

/// What a seat is for.
#[derive(Clone, Copy)]
enum Kind {
    Inode,
    Handle,
}

/// How many kinds there are.
const KINDS: usize = 2;

/// How many seats a thread takes together, when there are `total`.
fn together(total: u64) -> u64 {
    (total / FEW).clamp(1, MOST_TOGETHER)
}

/// The seats that are taken now. There is one such count for each device, and so for each worker, for the life of the
/// process: a seat that had a share in its ownership would cost as much again as the count.
#[derive(Clone, Copy)]
pub struct Seats(&'static Taken);

/// A count that all threads change is in no thread's cache. So each thread takes several seats together and keeps those
/// that it does not need yet, or any more: they count as taken.
struct Taken {
    /// How many together; 1 where there are few.
    step: usize,
    /// One for each kind.
    counts: [Count; KINDS],
}

/// On a line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicUsize);

thread_local! {
    /// What this thread keeps.
    static STOCK: Stock = const { Stock { of: Cell::new(None), kept: [const { Cell::new(0) }; KINDS] } };
}

struct Stock {
    /// The device that the seats are of.
    of: Cell<Option<&'static Taken>>,
    /// How many of each kind.
    kept: [Cell<usize>; KINDS],
}

impl Stock {
    /// The stock of this kind and device.
    fn kept(&self, taken: &'static Taken, kind: Kind) -> &Cell<usize> {
        if !self.of.get().is_some_and(|of| std::ptr::eq(of, taken)) {
            self.give_back();
            self.of.set(Some(taken));
        }
        &self.kept[kind as usize]
    }

    fn give_back(&self) {
        let Some(taken) = self.of.get() else { return };
        for (count, kept) in taken.counts.iter().zip(&self.kept) {
            count.0.fetch_sub(kept.take(), Ordering::Relaxed);
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Taken {
    fn take(&'static self, kind: Kind) {
        let count = &self.counts[kind as usize].0;
        let from_stock = |stock: &Stock| {
            let kept = stock.kept(self, kind);
            if kept.get() == 0 {
                count.fetch_add(self.step, Ordering::Relaxed);
                kept.set(self.step);
            }
            kept.set(kept.get() - 1);
        };
        // A thread that ends has no stock any more.
        if self.step == 1 || STOCK.try_with(from_stock).is_err() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn give_back(&'static self, kind: Kind) {
        let count = &self.counts[kind as usize].0;
        let to_stock = |stock: &Stock| {
            let kept = stock.kept(self, kind);
            kept.set(kept.get() + 1);
            if kept.get() == 2 * self.step {
                count.fetch_sub(self.step, Ordering::Relaxed);
                kept.set(self.step);
            }
        };
        if self.step == 1 || STOCK.try_with(to_stock).is_err() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Does the calling thread keep a seat of this kind?
    fn is_at_hand(&'static self, kind: Kind) -> bool {
        self.step > 1 && STOCK.try_with(|stock| stock.kept(self, kind).get() > 0).unwrap_or(false)
    }

    fn count(&self, kind: Kind) -> usize {
        self.counts[kind as usize].0.load(Ordering::Relaxed)
    }
}

/// The seat of a hot inode, free again when dropped.
pub struct InodeSeat(&'static Taken);

/// The seat of an open handle, free again when dropped.
pub struct HandleSeat(&'static Taken);

impl Seats {
    /// None is taken.
    pub fn new(bounds: &Bounds) -> Self {
        let step = usize::try_from(together(bounds.total as u64)).unwrap_or(1);
        Seats(Box::leak(Box::new(Taken { step, counts: Default::default() })))
    }

    /// Takes one for an inode.
    pub fn inode(&self) -> InodeSeat {
        self.0.take(Kind::Inode);
        InodeSeat(self.0)
    }

    /// Takes one for a handle.
    pub fn handle(&self) -> HandleSeat {
        self.0.take(Kind::Handle);
        HandleSeat(self.0)
    }

    /// The next one for an inode is counted already.
    pub fn has_one_for_an_inode(&self) -> bool {
        self.0.is_at_hand(Kind::Inode)
    }

    /// The next one for a handle is counted already.
    pub fn has_one_for_a_handle(&self) -> bool {
        self.0.is_at_hand(Kind::Handle)
    }

    /// Those of inodes.
    pub fn inodes(&self) -> usize {
        self.0.count(Kind::Inode)
    }

    /// All.
    pub fn taken(&self) -> usize {
        self.inodes() + self.0.count(Kind::Handle)
    }
}

impl Drop for InodeSeat {
    fn drop(&mut self) {
        self.0.give_back(Kind::Inode);
    }
}

impl Drop for HandleSeat {
    fn drop(&mut self) {
        self.0.give_back(Kind::Handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_leave_room_at_every_limit() {
        for nofile in [0, 16, 64, 256, 1024, 4096, 1_000_000, u64::MAX] {
            for queues in [1, 2, 64] {
                let bounds = Bounds::within(nofile, queues);
                assert!(bounds.inodes >= 1 && bounds.inodes <= bounds.total, "{nofile} {queues} {bounds:?}");
                assert!(bounds.total as u64 <= nofile.max(2), "{nofile} {queues} {bounds:?}");
                if nofile >= 1024 {
                    assert!(nofile - bounds.total as u64 >= RESERVED, "{nofile} {queues} {bounds:?}");
                }
            }
        }
        assert_eq!(Bounds::within(1024, 2), Bounds { total: 872, inodes: 654, batch: 253 });
    }

    const MOST_TOGETHER: usize = super::MOST_TOGETHER as usize;

    fn seats(total: usize) -> Seats {
        Seats::new(&Bounds { total, inodes: total, batch: 1 })
    }

    #[test]
    fn a_dropped_seat_is_free() {
        let seats = seats(100);
        let (inode, handle) = (seats.inode(), seats.handle());
        assert_eq!((seats.inodes(), seats.taken()), (1, 2));
        drop(inode);
        assert_eq!((seats.inodes(), seats.taken()), (0, 1));
        drop(handle);
        assert_eq!(seats.taken(), 0);
    }

    #[test]
    fn where_there_are_many_a_thread_takes_several_and_gives_all_back() {
        let (seats, others) = (seats(100_000), self::seats(100_000));
        let one = seats.inode();
        assert_eq!((seats.inodes(), seats.taken()), (MOST_TOGETHER, MOST_TOGETHER));
        assert!(seats.has_one_for_an_inode() && !seats.has_one_for_a_handle());
        let most: Vec<_> = (1..MOST_TOGETHER).map(|_| seats.inode()).collect();
        assert!(!seats.has_one_for_an_inode());
        assert_eq!(seats.inodes(), MOST_TOGETHER);
        // Seats that another thread gives up are in its stock, and with its end nobody's.
        std::thread::scope(|scope| scope.spawn(|| drop(most)).join().unwrap());
        assert_eq!(seats.inodes(), 1);
        // Another device's come from another count.
        let other = others.handle();
        assert_eq!((seats.taken(), others.taken()), (1, MOST_TOGETHER));
        drop((one, other));
        std::thread::scope(|scope| scope.spawn(|| drop(seats.inode())).join().unwrap());
        assert!(seats.taken() < 2 * MOST_TOGETHER && others.taken() < 2 * MOST_TOGETHER);
    }

    #[test]
    fn a_thread_keeps_few() {
        let seats = seats(100_000);
        drop((0..1000).map(|_| seats.handle()).collect::<Vec<_>>());
        assert!(seats.taken() < 2 * MOST_TOGETHER, "{}", seats.taken());
    }
}
