//! How many fds idle inodes and open handles take, and how many they may.
//!
//! A guest decides how many inodes it knows and how many files it has open. What it may not decide is whether
//! the next message of the front end, or of the broker, still finds room for the fds that come with it: a table
//! of fds that is full would end the daemon. So each fd that a guest keeps takes a seat, and there are fewer
//! seats than the process may have fds.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Fds that are nobody's seat: broker channel, sockets, memory regions, and those that a request opens and closes.
const RESERVED: u64 = 128;
/// The same for each queue: its eventfds (old and new, while they are replaced), its epoll, and its thread's own.
const RESERVED_FOR_A_QUEUE: u64 = 12;
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
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Bounds {
            total: count(total),
            inodes: count(total / 4 * 3).max(1),
            batch: count(nofile / 4).clamp(1, crate::protocol::MAX_FDS),
        }
    }
}

/// The seats that are taken now. There is one such count for each device, and so for each worker, for the life of the
/// process: a seat that had a share in its ownership would cost as much again as the count.
#[derive(Clone, Copy)]
pub struct Seats(&'static Taken);

#[derive(Default)]
struct Taken {
    inodes: AtomicUsize,
    handles: AtomicUsize,
}

/// The seat of a hot inode, free again when dropped.
pub struct InodeSeat(&'static Taken);

/// The seat of an open handle, free again when dropped.
pub struct HandleSeat(&'static Taken);

impl Default for Seats {
    fn default() -> Self {
        Seats(Box::leak(Box::default()))
    }
}

impl Seats {
    /// Takes one for an inode.
    pub fn inode(&self) -> InodeSeat {
        self.0.inodes.fetch_add(1, Ordering::Relaxed);
        InodeSeat(self.0)
    }

    /// Takes one for a handle.
    pub fn handle(&self) -> HandleSeat {
        self.0.handles.fetch_add(1, Ordering::Relaxed);
        HandleSeat(self.0)
    }

    /// Those of inodes.
    pub fn inodes(&self) -> usize {
        self.0.inodes.load(Ordering::Relaxed)
    }

    /// All.
    pub fn taken(&self) -> usize {
        self.inodes() + self.0.handles.load(Ordering::Relaxed)
    }
}

impl Drop for InodeSeat {
    fn drop(&mut self) {
        self.0.inodes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for HandleSeat {
    fn drop(&mut self) {
        self.0.handles.fetch_sub(1, Ordering::Relaxed);
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

    #[test]
    fn a_dropped_seat_is_free() {
        let seats = Seats::default();
        let (inode, handle) = (seats.inode(), seats.handle());
        assert_eq!((seats.inodes(), seats.taken()), (1, 2));
        drop(inode);
        assert_eq!((seats.inodes(), seats.taken()), (0, 1));
        drop(handle);
        assert_eq!(seats.taken(), 0);
    }
}
