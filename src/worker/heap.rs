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
/// Those that it [gets back](Spares::take_back) it uses first.
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

    /// Gives a value up. If nobody else holds it, it is dropped, and a few of the places become spare again.
    pub fn take_back(&self, mut value: Arc<T>) {
        let Some(inside) = Arc::get_mut(&mut value) else { return };
        let inside: *mut T = inside;
        // SAFETY: a `MaybeUninit<T>` is laid out as its `T`, and so are the places of both.
        let place = unsafe { Arc::from_raw(Arc::into_raw(value).cast::<MaybeUninit<T>>()) };
        // SAFETY: the value is there, nobody else holds it, and `place` will not drop it.
        unsafe { inside.drop_in_place() };
        // What the value's own drop did may have changed the list, so it is borrowed only now.
        let mut spares = self.0.borrow_mut();
        if spares.len() < Self::BURST {
            spares.push(place);
        }
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

    #[test]
    fn the_place_of_what_is_given_up_is_used_again() {
        let value = Arc::new(());
        let spares = Spares::new();
        let held: Vec<_> = (0..Spares::<Arc<()>>::BURST).map(|_| spares.make(Arc::clone(&value))).collect();
        let [place, other] = [0, 1].map(|n| Arc::as_ptr(&held[n]));
        let mut held = held.into_iter();
        spares.take_back(held.next().unwrap());
        assert_eq!(Arc::strong_count(&value), held.len() + 1, "dropped at once");
        let again = spares.make(Arc::clone(&value));
        assert_eq!(Arc::as_ptr(&again), place);
        // What somebody holds stays as it is.
        let shared = held.next().unwrap();
        spares.take_back(Arc::clone(&shared));
        assert!(Arc::ptr_eq(&*shared, &value) && Arc::strong_count(&shared) == 1);
        assert_ne!(Arc::as_ptr(&spares.make(Arc::clone(&value))), other);
        // No more than so many are kept.
        (0..1000).map(|_| Arc::new(Arc::clone(&value))).for_each(|one| spares.take_back(one));
        assert_eq!(spares.0.borrow().len(), Spares::<Arc<()>>::BURST);
        drop((held, again, shared, spares));
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
