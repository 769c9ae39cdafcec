//! How the C library's allocator works for this process.
//!
//! By default each thread gets a heap of its own, which grows by a page at a time, each time with a system call that
//! locks the memory map against all threads. A guest that looks up many files made one such call for every 14 of them.
//! Requests allocate hardly anything else, so that one heap, which grows in large steps, serves all threads better. Its
//! lock they then share, so what is needed often is taken from it [several pieces at a time](Spares).

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// The one heap grows by this much, in bytes.
const STEP: i32 = 1 << 20;
/// This much may be free at its end before it is given back, in bytes.
const SPARE: i32 = 16 << 20;

/// Sets it up. Call it before there are threads.
pub fn prepare() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TOP_PAD, STEP), (libc::M_TRIM_THRESHOLD, SPARE)]
    {
        // SAFETY: the call takes two integers and changes settings of the allocator only. A setting that it refuses
        // stays as it was, and nothing depends on it.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Pieces of memory that a thread takes from the heap together: two threads that take one each time wait for each other
/// half of the time, and get pieces that lie side by side, in the same lines of their caches.
pub struct Spares<T>(RefCell<Vec<Arc<MaybeUninit<T>>>>);

impl<T> Spares<T> {
    /// How many at a time: a page of inodes.
    const BURST: usize = 32;

    /// None yet.
    pub const fn new() -> Self {
        Spares(RefCell::new(Vec::new()))
    }

    /// As `Arc::new`.
    pub fn make(&self, value: T) -> Arc<T> {
        let spare = {
            let mut spares = self.0.borrow_mut();
            if spares.is_empty() {
                spares.extend((0..Self::BURST).map(|_| Arc::new_uninit()));
                // In the order of their addresses.
                spares.reverse();
            }
            spares.pop()
        };
        let Some(mut place) = spare else { return Arc::new(value) };
        match Arc::get_mut(&mut place) {
            Some(inside) => inside.write(value),
            // Nobody else has ever seen it.
            None => return Arc::new(value),
        };
        // SAFETY: just written.
        unsafe { place.assume_init() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_a_place_of_its_own_and_is_dropped_once() {
        struct Counted<'a>(usize, &'a RefCell<usize>);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                *self.1.borrow_mut() += 1;
            }
        }
        let dropped = RefCell::new(0);
        let spares = Spares::new();
        let all: Vec<_> = (0..100).map(|n| spares.make(Counted(n, &dropped))).collect();
        assert!(all.iter().enumerate().all(|(n, one)| one.0 == n && Arc::strong_count(one) == 1));
        // What is left over has no value to be dropped.
        drop(spares);
        assert_eq!(*dropped.borrow(), 0);
        drop(all);
        assert_eq!(*dropped.borrow(), 100);
    }
}
