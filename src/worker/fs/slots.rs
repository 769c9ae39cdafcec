//! Ids that are indices: `u64 → Arc<T>` in constant time, without a lock that all threads share.
//!
//! Ids are dealt out densely from `first` on and reused after removal, so that the table stays as large as the
//! largest number of live entries. The table is striped by the low bits of the id; a reader takes one stripe's
//! read lock for the time of an `Arc` clone. Ids restored from a migration stream may be sparse: those beyond
//! the dense part live in a map.
//!
//! Lock order: a stripe's lock is innermost; nothing else is taken under it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Stripes; a power of two.
const STRIPES: u64 = 64;

/// An id beyond this many times the live entries goes to the map instead of the dense part.
const DENSE_SLACK: usize = 4096;

/// A table of shared entries by id.
pub struct Slots<T> {
    stripes: Box<[Stripe<T>]>,
    allocator: Mutex<Allocator>,
    first: u64,
}

/// Stripes are touched by different threads: keep each on cache lines of its own.
#[repr(align(128))]
struct Stripe<T>(RwLock<Entries<T>>);

struct Entries<T> {
    dense: Vec<Option<Arc<T>>>,
    sparse: HashMap<u64, Arc<T>>,
}

struct Allocator {
    /// The smallest id that was never given out.
    next: u64,
    /// Given back, with the number of times each was used.
    free: Vec<(u64, u32)>,
}

/// A new id; `generation` tells apart two uses of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// The id.
    pub id: u64,
    /// How often it was used before.
    pub generation: u32,
}

impl<T> Slots<T> {
    /// An empty table whose first id is `first`.
    pub fn new(first: u64) -> Self {
        let stripe = || Stripe(RwLock::new(Entries { dense: Vec::new(), sparse: HashMap::new() }));
        Slots {
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
            allocator: Mutex::new(Allocator { next: first, free: Vec::new() }),
            first,
        }
    }

    /// Reserves an id. It must be filled with [`Slots::set`] or given back with [`Slots::release`].
    pub fn reserve(&self) -> Id {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, generation)) = allocator.free.pop() {
            return Id { id, generation };
        }
        let id = allocator.next;
        allocator.next = id.saturating_add(1);
        Id { id, generation: 0 }
    }

    /// Gives an id back that has no entry (any more).
    pub fn release(&self, id: Id) {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        allocator.free.push((id.id, id.generation.wrapping_add(1)));
    }

    fn stripe(&self, id: u64) -> Option<(&RwLock<Entries<T>>, usize)> {
        let offset = id.checked_sub(self.first)?;
        let stripe = self.stripes.get((offset % STRIPES) as usize)?;
        Some((&stripe.0, usize::try_from(offset / STRIPES).unwrap_or(usize::MAX)))
    }

    /// The entry of an id.
    pub fn get(&self, id: u64) -> Option<Arc<T>> {
        let (stripe, index) = self.stripe(id)?;
        let entries = stripe.read().unwrap_or_else(PoisonError::into_inner);
        match entries.dense.get(index) {
            Some(slot) => slot.clone(),
            None => entries.sparse.get(&id).cloned(),
        }
    }

    /// Puts an entry at an id; an earlier one is dropped.
    pub fn set(&self, id: u64, entry: Arc<T>) {
        let Some((stripe, index)) = self.stripe(id) else { return };
        let mut entries = stripe.write().unwrap_or_else(PoisonError::into_inner);
        let len = entries.dense.len();
        if index < len.saturating_mul(2).saturating_add(DENSE_SLACK) {
            while entries.dense.len() <= index {
                // An id that came early may already be in the map.
                let id = self.first + (entries.dense.len() as u64 * STRIPES) + (id - self.first) % STRIPES;
                let early = if entries.sparse.is_empty() { None } else { entries.sparse.remove(&id) };
                entries.dense.push(early);
            }
            if let Some(slot) = entries.dense.get_mut(index) {
                *slot = Some(entry);
            }
        } else {
            entries.sparse.insert(id, entry);
        }
    }

    /// Takes an entry out; its id is not given back.
    pub fn remove(&self, id: u64) -> Option<Arc<T>> {
        let (stripe, index) = self.stripe(id)?;
        let mut entries = stripe.write().unwrap_or_else(PoisonError::into_inner);
        match entries.dense.get_mut(index) {
            Some(slot) => slot.take(),
            None => entries.sparse.remove(&id),
        }
    }

    /// Drops all entries and starts again at the first id.
    pub fn clear(&self) {
        for stripe in &self.stripes {
            let mut entries = stripe.0.write().unwrap_or_else(PoisonError::into_inner);
            let dropped =
                std::mem::replace(&mut *entries, Entries { dense: Vec::new(), sparse: HashMap::new() });
            drop(entries);
            drop(dropped);
        }
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        *allocator = Allocator { next: self.first, free: Vec::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dense_and_reused_with_a_new_generation() {
        let slots = Slots::new(1);
        let a = slots.reserve();
        let b = slots.reserve();
        assert_eq!((a, b), (Id { id: 1, generation: 0 }, Id { id: 2, generation: 0 }));
        slots.set(a.id, Arc::new("a"));
        slots.set(b.id, Arc::new("b"));
        assert_eq!(slots.get(1).as_deref(), Some(&"a"));
        assert_eq!(slots.remove(1).as_deref(), Some(&"a"));
        assert_eq!(slots.get(1), None);
        slots.release(a);
        assert_eq!(slots.reserve(), Id { id: 1, generation: 1 });
        assert_eq!(slots.get(2).as_deref(), Some(&"b"));
    }

    #[test]
    fn any_id_may_be_asked_for_and_sparse_ids_cost_no_memory() {
        let slots = Slots::new(1);
        for id in [0, 1, 77, u64::MAX - 1, u64::MAX] {
            assert_eq!(slots.get(id), None::<Arc<u64>>);
        }
        for id in [u64::MAX, 1 << 40, 3, 64 * 5000 + 1, 64 * 4000 + 1, 64 * 12000 + 1] {
            slots.set(id, Arc::new(id));
        }
        for id in [u64::MAX, 1 << 40, 3, 64 * 5000 + 1, 64 * 4000 + 1, 64 * 12000 + 1] {
            assert_eq!(slots.get(id).as_deref(), Some(&id), "{id}");
        }
        // The dense part of this stripe grows over ids that went to the map first.
        for index in 0..13000 {
            if ![4000, 5000, 12000].contains(&index) {
                slots.set(index * 64 + 1, Arc::new(index * 64 + 1));
            }
        }
        for id in [64 * 5000 + 1, 64 * 4000 + 1, 64 * 12000 + 1] {
            assert_eq!(slots.get(id).as_deref(), Some(&id), "{id}");
        }
    }
}
