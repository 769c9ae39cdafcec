//! Ids that lead to entries in constant time, without a lock that all threads share, and are never used twice.
//!
//! The low half of an id is an index into a table that stays as large as the largest number of live entries; the
//! high half grows each time the index is used again. So an id that was given up stays dead: the guest's kernel
//! and a migration stream know nodes by this id alone. The table is striped by the low bits of the index; a
//! reader takes one stripe's read lock for the time of an `Arc` clone. Ids restored from a migration stream may
//! be any: those that the table has no room for live in a map.
//!
//! Lock order: a stripe's lock is innermost; nothing else is taken under it.

use std::collections::HashMap;
use std::hint::cold_path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Stripes; a power of two.
const STRIPES: u64 = 64;

/// Threads that make entries at the same time without waiting for each other; a divisor of [`STRIPES`], so that their
/// entries lie in different stripes, too.
const LANES: usize = 8;

/// From one id to the next that the same thread gives out, as long as none is used again.
pub const STEP: u64 = LANES as u64;

/// Numbers threads as they come.
static NEXT_LANE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The lane that this thread takes ids from.
    static MY_LANE: usize = NEXT_LANE.fetch_add(1, Ordering::Relaxed) % LANES;
}

/// Bits of an id that are its index.
const INDEX_BITS: u32 = 32;
/// The part of an id that is its index.
const INDEX: u64 = (1 << INDEX_BITS) - 1;

/// A stripe's table may have this many places more than twice its live entries.
const DENSE_SLACK: usize = 4096;

/// A table of shared entries by id.
pub struct Slots<T> {
    stripes: Box<[Stripe<T>]>,
    lanes: Box<[Lane]>,
    first: u64,
}

/// As [`Stripe`].
#[repr(align(128))]
struct Lane {
    allocator: Mutex<Allocator>,
    /// Ids of this lane that are given out or restored, and not given back. Changes only under the lock.
    live: AtomicU64,
}

impl Lane {
    fn new(first: u64, lane: usize) -> Self {
        Lane { allocator: Mutex::new(Allocator::new(first, lane)), live: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id more. The caller holds the lock.
    fn gain(&self) {
        self.live.store(self.live.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// An id less. The caller holds the lock.
    fn lose(&self) {
        self.live.store(self.live.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }
}

/// Stripes are touched by different threads: keep each on cache lines of its own.
#[repr(align(128))]
struct Stripe<T>(RwLock<Entries<T>>);

struct Entries<T> {
    dense: Vec<Option<(u64, Arc<T>)>>,
    /// Entries whose place in `dense` is taken by another id, or would make it too large.
    sparse: HashMap<u64, Arc<T>>,
    /// Entries of both kinds.
    live: usize,
}

impl<T> Entries<T> {
    fn new() -> Self {
        Entries { dense: Vec::new(), sparse: HashMap::new(), live: 0 }
    }
}

struct Allocator {
    /// The smallest index that was never given out.
    next_index: u64,
    /// No smaller id is given out (any more).
    floor: u64,
    /// Above every id that was ever given out.
    next: u64,
    /// Ids given back.
    free: Vec<u64>,
}

impl Allocator {
    /// Gives out `first + lane`, and then every [`LANES`]th index.
    fn new(first: u64, lane: usize) -> Self {
        Allocator { next_index: first + lane as u64, floor: first, next: first, free: Vec::new() }
    }

    /// The smallest id with this index that may be given out.
    fn lift(&self, index: u64) -> Option<u64> {
        let id = (self.floor & !INDEX) | (index & INDEX);
        if id >= self.floor { Some(id) } else { id.checked_add(1 << INDEX_BITS) }
    }

    fn reserve(&mut self) -> Option<u64> {
        while let Some(old) = self.free.pop() {
            // An index whose ids are used up, after 2^32 uses, is not used any more.
            if let (Some(again), Some(least)) = (old.checked_add(1 << INDEX_BITS), self.lift(old)) {
                return Some(again.max(least));
            }
        }
        let id = self.lift(self.next_index)?;
        self.next_index += LANES as u64;
        Some(id)
    }
}

impl<T> Slots<T> {
    /// An empty table whose first id is `first`.
    pub fn new(first: u64) -> Self {
        Slots {
            stripes: (0..STRIPES).map(|_| Stripe(RwLock::new(Entries::new()))).collect(),
            lanes: (0..LANES).map(|lane| Lane::new(first, lane)).collect(),
            first,
        }
    }

    /// Reserves an id that was never used. It must be filled with [`Slots::set`] or given back with
    /// [`Slots::release`].
    pub fn reserve(&self) -> u64 {
        let lane = self.lane(MY_LANE.with(|lane| *lane));
        let mut allocator = lane.lock();
        lane.gain();
        // Without an id left, after 2^64, the last one serves all.
        let id = allocator.reserve().unwrap_or(u64::MAX);
        allocator.next = allocator.next.max(id.saturating_add(1));
        id
    }

    /// Gives an id back that has no entry (any more); its place in the table is used again, under another id.
    pub fn release(&self, id: u64) {
        // To whose index it is: a thread that only forgets would else hoard what the others need.
        let lane = self.lane_of(id);
        let mut allocator = lane.lock();
        lane.lose();
        allocator.free.push(id);
    }

    /// How many ids have an entry, or will have one soon.
    pub fn live(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.live.load(Ordering::Relaxed)).sum()
    }

    /// Above every id that was ever given out.
    pub fn next(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.lock().next).max().unwrap_or(self.first)
    }

    /// Gives out no id below `next` from here on: those belong to a guest that came with them. `live` is how many
    /// entries it came with.
    pub fn continue_from(&self, next: u64, live: usize) {
        // Going on with the next index leaves the places below to the entries that are there. When those are few,
        // as after a long life of the source, begin again at the front: the table stays small.
        let index = next & INDEX;
        let few = (live as u64).saturating_mul(4).saturating_add(STRIPES * DENSE_SLACK as u64);
        let index = if index <= few { index.max(self.first) } else { self.first };
        let base = self.first + (index - self.first).next_multiple_of(LANES as u64);
        for (lane, allocator) in self.lanes.iter().enumerate() {
            let mut allocator = allocator.lock();
            allocator.floor = allocator.floor.max(next);
            allocator.next = allocator.next.max(next);
            allocator.next_index = base + lane as u64;
        }
    }

    fn lane(&self, lane: usize) -> &Lane {
        &self.lanes[lane % LANES]
    }

    /// The lane that an id is or would be given out by.
    fn lane_of(&self, id: u64) -> &Lane {
        self.lane(((id & INDEX).wrapping_sub(self.first) % LANES as u64) as usize)
    }

    fn stripe(&self, id: u64) -> Option<(&RwLock<Entries<T>>, usize)> {
        let index = id & INDEX;
        let stripe = self.stripes.get((index % STRIPES) as usize)?;
        Some((&stripe.0, usize::try_from(index / STRIPES).unwrap_or(usize::MAX)))
    }

    /// The entry of an id.
    pub fn get(&self, id: u64) -> Option<Arc<T>> {
        let (stripe, index) = self.stripe(id)?;
        let entries = stripe.read().unwrap_or_else(PoisonError::into_inner);
        match entries.dense.get(index) {
            Some(Some((there, entry))) if *there == id => Some(Arc::clone(entry)),
            _ => {
                cold_path();
                entries.sparse.get(&id).cloned()
            }
        }
    }

    /// Puts an entry at an id that was not reserved, and has none: one that a migrated guest knows.
    pub fn restore(&self, id: u64, entry: Arc<T>) {
        let lane = self.lane_of(id);
        let allocator = lane.lock();
        lane.gain();
        drop(allocator);
        self.set(id, entry);
    }

    /// Puts an entry at an id that has none.
    pub fn set(&self, id: u64, entry: Arc<T>) {
        let Some((stripe, index)) = self.stripe(id) else { return };
        let mut entries = stripe.write().unwrap_or_else(PoisonError::into_inner);
        let entries = &mut *entries;
        let most = entries.live.saturating_mul(2).saturating_add(DENSE_SLACK);
        if index >= entries.dense.len() && index < most {
            cold_path();
            entries.dense.resize_with(index + 1, || None);
        }
        match entries.dense.get_mut(index) {
            Some(slot @ None) => *slot = Some((id, entry)),
            _ => {
                cold_path();
                drop(entries.sparse.insert(id, entry));
            }
        }
        entries.live += 1;
    }

    /// Takes an entry out if it is the one that is meant; its id is not given back.
    pub fn remove_if(&self, id: u64, is_meant: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let (stripe, index) = self.stripe(id)?;
        let mut entries = stripe.write().unwrap_or_else(PoisonError::into_inner);
        let removed = match entries.dense.get(index) {
            Some(Some((there, entry))) if *there == id => {
                if !is_meant(entry) {
                    return None;
                }
                entries.dense.get_mut(index)?.take().map(|(_, entry)| entry)
            }
            _ if entries.sparse.get(&id).is_some_and(|entry| is_meant(entry)) => entries.sparse.remove(&id),
            _ => None,
        };
        if removed.is_some() {
            entries.live -= 1;
        }
        removed
    }

    /// All entries, each with its id.
    pub fn all(&self) -> Vec<(u64, Arc<T>)> {
        let mut all = Vec::new();
        for stripe in &self.stripes {
            let entries = stripe.0.read().unwrap_or_else(PoisonError::into_inner);
            all.reserve(entries.live);
            all.extend(entries.dense.iter().flatten().map(|(id, entry)| (*id, Arc::clone(entry))));
            all.extend(entries.sparse.iter().map(|(id, entry)| (*id, Arc::clone(entry))));
        }
        all
    }

    /// Drops all entries and starts again at the first id.
    pub fn clear(&self) {
        for stripe in &self.stripes {
            let mut entries = stripe.0.write().unwrap_or_else(PoisonError::into_inner);
            let dropped = std::mem::replace(&mut *entries, Entries::new());
            drop(entries);
            drop(dropped);
        }
        for (number, lane) in self.lanes.iter().enumerate() {
            let mut allocator = lane.lock();
            *allocator = Allocator::new(self.first, number);
            lane.live.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_and_ids_are_not() {
        let slots = Slots::new(1);
        let (a, b) = (slots.reserve(), slots.reserve());
        assert_ne!(a, b);
        slots.set(a, Arc::new("a"));
        slots.set(b, Arc::new("b"));
        assert_eq!(slots.get(a).as_deref(), Some(&"a"));
        assert_eq!(slots.remove_if(a, |there| *there == "b"), None);
        assert_eq!(slots.remove_if(a, |there| *there == "a").as_deref(), Some(&"a"));
        assert_eq!(slots.get(a), None);
        slots.release(a);
        assert_eq!(slots.live(), 1);
        let again = slots.reserve();
        assert_eq!((again & INDEX, again >> INDEX_BITS), (a, 1));
        slots.set(again, Arc::new("c"));
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.get(again).as_deref(), Some(&"c"));
        assert_eq!(slots.live(), 2);
        assert_eq!(slots.get(b).as_deref(), Some(&"b"));
        assert_eq!(slots.next(), again + 1);
    }

    #[test]
    fn any_id_may_be_restored_and_costs_little_memory() {
        let slots = Slots::new(1);
        for id in [0, 1, 77, u64::MAX - 1, u64::MAX] {
            assert_eq!(slots.get(id), None::<Arc<u64>>);
        }
        // Each would make the table three times as large as before, were only its size to count.
        let mut ids: Vec<u64> = (1..26).map(|power| ((64 * 4096 * 3u64.pow(power)) & INDEX) | 1).collect();
        ids.extend([0, 1 << 32, u64::MAX, (1 << 40) | 5, 5, (2 << 40) | 5]);
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            slots.restore(*id, Arc::new(*id));
        }
        for id in &ids {
            assert_eq!(slots.get(*id).as_deref(), Some(id));
        }
        assert_eq!(slots.all().len(), ids.len());
        assert_eq!(slots.live(), ids.len() as u64);
        let places: usize = slots.stripes.iter().map(|s| s.0.read().unwrap().dense.len()).sum();
        assert!(places < STRIPES as usize * 2 * DENSE_SLACK, "{places}");
        for id in &ids {
            assert_eq!(slots.remove_if(*id, |_| true).as_deref(), Some(id));
            slots.release(*id);
        }
        assert!(slots.all().is_empty());
        assert_eq!(slots.live(), 0);
    }

    #[test]
    fn no_id_of_an_earlier_life_is_given_out_again() {
        for next in [1, 100, (5 << 32) | 7, 700 << 20, u64::MAX - (1 << 33)] {
            let slots = Slots::new(1);
            slots.continue_from(next, 3);
            for _ in 0..10 {
                let id = slots.reserve();
                assert!(id >= next, "{id} {next}");
                slots.set(id, Arc::new(()));
                slots.remove_if(id, |()| true);
                slots.release(id);
            }
            assert!(slots.next() > next);
        }
    }
}
