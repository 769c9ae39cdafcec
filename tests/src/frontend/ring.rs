//! One split virtqueue from the driver's side (virtio 1.2, 2.7). Knows nothing of requests; each of its three
//! parts can also be written with any bytes.

use std::sync::atomic::{Ordering, fence};

use super::memory::{GuestBuffer, GuestMemory};
use super::messages::VringAddresses;

/// Descriptor flag: another follows in `next`.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes here.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: usize = 16;

const AVAIL_FLAGS: usize = 0;
const AVAIL_INDEX: usize = 2;
const AVAIL_RING: usize = 4;
const USED_FLAGS: usize = 0;
const USED_INDEX: usize = 2;
const USED_RING: usize = 4;
const USED_ELEMENT: usize = 8;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A descriptor, in its wire order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// In bytes.
    pub len: u32,
    /// `DESC_*`.
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    /// Writes it as entry `index` of a table.
    pub fn write_to(self, table: &GuestBuffer, index: usize) {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        table.write(index * DESCRIPTOR_SIZE, &bytes);
    }
}

/// What the device returned in the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u32,
    /// How many bytes the device wrote.
    pub len: u32,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    event_index: bool,
    descriptors: GuestBuffer,
    available: GuestBuffer,
    used: GuestBuffer,
    /// How many chains were made available; not yet all published.
    next_available: u16,
    published: u16,
    next_used: u16,
}

impl SplitRing {
    /// A ring of `size` descriptors (a power of two). `event_index` says whether EVENT_IDX was negotiated.
    pub fn new(memory: &GuestMemory, size: u16, event_index: bool) -> SplitRing {
        assert!(size.is_power_of_two(), "a split ring's size is a power of two");
        let entries = usize::from(size);
        SplitRing {
            size,
            event_index,
            descriptors: memory.allocate(entries * DESCRIPTOR_SIZE, 4096),
            // Ring, and used_event behind it.
            available: memory.allocate(AVAIL_RING + entries * 2 + 2, 4096),
            // Ring, and avail_event behind it.
            used: memory.allocate(USED_RING + entries * USED_ELEMENT + 2, 4096),
            next_available: 0,
            published: 0,
            next_used: 0,
        }
    }

    /// Its number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> &GuestBuffer {
        &self.descriptors
    }

    /// The available ring: flags, index, entries, used_event.
    pub fn available(&self) -> &GuestBuffer {
        &self.available
    }

    /// The used ring: flags, index, entries, avail_event.
    pub fn used(&self) -> &GuestBuffer {
        &self.used
    }

    /// Where it is, for SET_VRING_ADDR.
    pub fn addresses(&self, index: u32) -> VringAddresses {
        VringAddresses {
            index,
            flags: 0,
            descriptors: self.descriptors.user_address(),
            used: self.used.user_address(),
            available: self.available.user_address(),
            log: self.used.guest_address(),
        }
    }

    /// The index that the device has to read next, as far as we published.
    pub fn published_index(&self) -> u16 {
        self.published
    }

    /// The index up to which we took what the device returned.
    pub fn used_index(&self) -> u16 {
        self.next_used
    }

    /// How many chains the device has and did not return, as far as we looked.
    pub fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.next_used)
    }

    /// Makes the ring empty, as the guest's driver does after a reset.
    pub fn reset(&mut self) {
        (self.next_available, self.published, self.next_used) = (0, 0, 0);
        for part in [&self.descriptors, &self.available, &self.used] {
            part.fill(0);
        }
    }

    /// Makes the chain that starts at descriptor `head` available; the device sees it after
    /// [`SplitRing::publish`].
    pub fn push(&mut self, head: u16) {
        let entry = usize::from(self.next_available & (self.size - 1));
        self.available.write(AVAIL_RING + entry * 2, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Publishes what was pushed; `true` when the device wants a kick.
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.set_available_index(self.next_available);
        // The device decides whether to sleep by reading our index after it wrote its wish; we write our
        // index and then read its wish. Both need a full barrier in between.
        fence(Ordering::SeqCst);
        if self.event_index {
            let wish =
                self.used.load_u16(USED_RING + usize::from(self.size) * USED_ELEMENT, Ordering::Relaxed);
            wants_event(wish, self.published, old)
        } else {
            self.used.load_u16(USED_FLAGS, Ordering::Relaxed) & USED_NO_NOTIFY == 0 && old != self.published
        }
    }

    /// Sets the available index to anything, also to what a driver must not do.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.published = index;
        self.available.store_u16(AVAIL_INDEX, index, Ordering::Release);
    }

    /// Takes the next chain that the device returned.
    pub fn pop(&mut self) -> Option<Used> {
        if self.used.load_u16(USED_INDEX, Ordering::Acquire) == self.next_used {
            return None;
        }
        let at = USED_RING + usize::from(self.next_used & (self.size - 1)) * USED_ELEMENT;
        let element: [u8; USED_ELEMENT] = self.used.read_array(at);
        self.next_used = self.next_used.wrapping_add(1);
        let [head, len] = [0, 4]
            .map(|i| u32::from_le_bytes(*element[i..].first_chunk().expect("two numbers of four bytes")));
        Some(Used { head, len })
    }

    /// Asks the device to call at the next chain that it returns; `true` when one is there already.
    pub fn enable_calls(&mut self) -> bool {
        if self.event_index {
            self.store_used_event(self.next_used);
        } else {
            self.available.store_u16(AVAIL_FLAGS, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.used.load_u16(USED_INDEX, Ordering::Acquire) != self.next_used
    }

    /// Asks the device not to call. It may call all the same.
    pub fn disable_calls(&mut self) {
        if self.event_index {
            // As far ahead as an index can be.
            self.store_used_event(self.next_used.wrapping_sub(1));
        } else {
            self.available.store_u16(AVAIL_FLAGS, AVAIL_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    fn store_used_event(&self, index: u16) {
        self.available.store_u16(AVAIL_RING + usize::from(self.size) * 2, index, Ordering::Relaxed);
    }
}

/// Whether moving an index from `old` to `new` passes the one after which an event is wished (virtio 1.2,
/// 2.7.7.2).
fn wants_event(wish: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(wish).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::wants_event;

    #[test]
    fn event_is_due_when_the_wish_is_passed() {
        assert!(wants_event(5, 6, 5));
        assert!(wants_event(5, 9, 3));
        assert!(!wants_event(5, 5, 3));
        assert!(!wants_event(5, 9, 6));
        assert!(!wants_event(5, 6, 6));
        assert!(wants_event(u16::MAX, 0, u16::MAX));
        assert!(!wants_event(4, 9, 5));
    }
}
