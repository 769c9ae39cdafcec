//! A virtqueue's available and used ring (virtio 1.3, 2.7.6 to 2.7.10), a batch at a time.
//!
//! `virtio-queue` keeps the virtqueue's state, and could do this, too: an entry at a time, each with a search for the
//! memory that it is in, and with a used index that the guest's CPU, which is looking at it, has to fetch again for each.
//! A test and a fuzz target compare the two.

use std::hint::cold_path;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::regions::{Regions, write_words};

/// Where the entries begin in either ring: behind flags and index.
const ENTRIES: u64 = 4;
/// Where the index is in either ring.
const INDEX: u64 = 2;
/// Bytes of an entry of the used ring: head and length.
const USED: u64 = 8;

/// A request that is done: the head of its chain, and the bytes that were written to its buffers.
pub type Used = (u16, u32);

/// Takes up to `most` chains from the available ring, and calls `each` with their heads, which may be anything.
///
/// # Errors
/// The ring is not in guest memory, or the guest says that there are more in it than it has room for.
pub fn take<B: Bitmap + 'static>(
    queue: &mut Queue,
    memory: &GuestMemoryMmap<B>,
    most: usize,
    mut each: impl FnMut(u16),
) -> Result<(), Error> {
    if !queue.ready() || queue.avail_ring() == 0 {
        cold_path();
        return Err(Error::QueueNotReady);
    }
    let next = Wrapping(queue.next_avail());
    let there = (queue.avail_idx(memory, Ordering::Acquire)? - next).0;
    if there > queue.size() {
        cold_path();
        return Err(Error::InvalidAvailRingIndex);
    }
    let number = there.min(u16::try_from(most).unwrap_or(u16::MAX));
    let mut regions = Regions::new(memory);
    for index in 0..number {
        let place = entry(next + Wrapping(index), queue.size())?;
        let address = at(queue.avail_ring(), ENTRIES + 2 * place)?;
        each(u16::from_le(regions.read(address).ok_or(Error::AddressOverflow)?));
    }
    queue.set_next_avail((next + Wrapping(number)).0);
    Ok(())
}

/// Puts requests into the used ring, with one change of its index. Whether the guest wants to be told.
///
/// # Errors
/// The ring is not in guest memory, or a head is none; the guest sees nothing then.
pub fn give<B: Bitmap + 'static>(
    queue: &mut Queue,
    memory: &GuestMemoryMmap<B>,
    done: &[Used],
) -> Result<bool, Error> {
    let old = Wrapping(queue.next_used());
    let mut rest = done;
    let mut next = old;
    while !rest.is_empty() {
        // Up to the end of the ring.
        let place = entry(next, queue.size())?;
        let (now, later) = rest.split_at(rest.len().min(usize::from(queue.size()) - place as usize));
        if now.iter().any(|(head, _)| *head >= queue.size()) {
            cold_path();
            return Err(Error::InvalidDescriptorIndex);
        }
        let entries = now.iter().map(|(head, length)| (u64::from(*head) | u64::from(*length) << 32).to_le());
        write_words(memory, at(queue.used_ring(), ENTRIES + USED * place)?, entries)
            .map_err(Error::GuestMemory)?;
        next += Wrapping(now.len() as u16);
        rest = later;
    }
    memory
        .store(next.0.to_le(), at(queue.used_ring(), INDEX)?, Ordering::Release)
        .map_err(Error::GuestMemory)?;
    queue.set_next_used(next.0);
    // 2.7.10.1: the index must be there before the device looks for what the guest waits.
    fence(Ordering::SeqCst);
    if !queue.event_idx_enabled() {
        return Ok(true);
    }
    let event = Wrapping(used_event(queue, memory).ok_or(Error::AddressOverflow)?);
    Ok(next - event - Wrapping(1) < next - old)
}

/// The index in the used ring at which the guest wants to be told (`used_event`, with EVENT_IDX); `None` when that is not
/// in guest memory.
pub fn used_event<B: Bitmap + 'static>(queue: &Queue, memory: &GuestMemoryMmap<B>) -> Option<u16> {
    let at = at(queue.avail_ring(), ENTRIES + 2 * u64::from(queue.size())).ok()?;
    Regions::new(memory).read(at).map(u16::from_le)
}

/// The place of an index in a ring.
fn entry(index: Wrapping<u16>, size: u16) -> Result<u64, Error> {
    index.0.checked_rem(size).map(u64::from).ok_or(Error::InvalidSize)
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    GuestAddress(ring).checked_add(offset).ok_or(Error::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueOwnedT;

    use super::*;

    const SIZE: u16 = 8;
    const AVAILABLE: u64 = 0x1000;
    const USED_RING: u64 = 0x2000;

    /// A virtqueue whose rings are at the same place of their counts.
    fn queue(count: u16, event_idx: bool) -> (Queue, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED_RING)).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_next_avail(count);
        queue.set_next_used(count);
        queue.set_ready(true);
        (queue, memory)
    }

    fn all(memory: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; 0x3000];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn a_batch_is_given_as_the_library_gives_its_requests() {
        for count in [0, 5, u16::MAX - 1] {
            for number in 1..=SIZE {
                for event in (0..=2 * SIZE).map(|back| count.wrapping_add(SIZE).wrapping_sub(back)) {
                    for event_idx in [false, true] {
                        let (mut theirs, expected) = queue(count, event_idx);
                        let (mut ours, memory) = queue(count, event_idx);
                        for memory in [&expected, &memory] {
                            let address = GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE));
                            memory.write_obj(event.to_le(), address).unwrap();
                        }
                        let done: Vec<Used> =
                            (0..number).map(|i| (SIZE - 1 - i, 100 + u32::from(i))).collect();
                        for (head, length) in &done {
                            theirs.add_used(&expected, *head, *length).unwrap();
                        }
                        let tells = theirs.needs_notification(&expected).unwrap();
                        let case = format!("{number} at {count}, event {event}, {event_idx}");
                        assert_eq!(give(&mut ours, &memory, &done).unwrap(), tells, "{case}");
                        assert_eq!(ours.next_used(), theirs.next_used(), "{case}");
                        assert!(all(&memory) == all(&expected), "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_batch_is_taken_as_the_library_takes_its_requests() {
        for count in [0, 5, u16::MAX - 1] {
            for number in 0..=SIZE {
                for most in [0, 1, 3, 32] {
                    let (mut theirs, memory) = queue(count, true);
                    let (mut ours, _) = queue(count, true);
                    memory
                        .write_obj(count.wrapping_add(number).to_le(), GuestAddress(AVAILABLE + 2))
                        .unwrap();
                    for place in 0..u64::from(SIZE) {
                        memory.write_obj(place as u16, GuestAddress(AVAILABLE + 4 + 2 * place)).unwrap();
                    }
                    let expected: Vec<u16> =
                        theirs.iter(&memory).unwrap().take(most).map(|chain| chain.head_index()).collect();
                    let mut heads = Vec::new();
                    take(&mut ours, &memory, most, |head| heads.push(head)).unwrap();
                    assert_eq!(heads, expected, "{number} of {most} at {count}");
                    assert_eq!(ours.next_avail(), theirs.next_avail());
                }
            }
        }
    }

    #[test]
    fn what_a_guest_cannot_mean_is_refused() {
        let (mut queue, memory) = queue(7, true);
        memory.write_obj(7 + SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
        let mut heads = Vec::new();
        assert!(matches!(
            take(&mut queue, &memory, 32, |head| heads.push(head)),
            Err(Error::InvalidAvailRingIndex)
        ));
        assert!(matches!(give(&mut queue, &memory, &[(SIZE, 0)]), Err(Error::InvalidDescriptorIndex)));
        assert_eq!((queue.next_avail(), queue.next_used(), heads.len()), (7, 7, 0));
        queue.set_ready(false);
        assert!(matches!(take(&mut queue, &memory, 32, |head| heads.push(head)), Err(Error::QueueNotReady)));
    }

    #[test]
    fn an_entry_may_go_on_in_the_next_region() {
        let ranges = [(GuestAddress(0), USED_RING as usize + 8), (GuestAddress(USED_RING + 8), 0x100)];
        let (mut queue, _) = queue(0, false);
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        assert!(give(&mut queue, &memory, &[(3, 4), (5, 6)]).unwrap());
        let [first, second] = [4, 12].map(|offset| {
            memory.read_obj::<u64>(GuestAddress(USED_RING + offset)).map(u64::from_le).unwrap()
        });
        assert_eq!((first, second), (3 | 4 << 32, 5 | 6 << 32));
    }

    #[test]
    fn rings_outside_of_memory_are_an_error() {
        let (mut queue, memory) = queue(0, true);
        memory.write_obj(SIZE, GuestAddress(AVAILABLE + 2)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(0x2ffa)).unwrap();
        memory.write_obj(SIZE, GuestAddress(0x2ffc)).unwrap();
        assert!(take(&mut queue, &memory, 32, |_| {}).is_err());
        queue.try_set_used_ring_address(GuestAddress(0x2ff8)).unwrap();
        assert!(give(&mut queue, &memory, &[(0, 1)]).is_err());
        assert_eq!((queue.next_avail(), queue.next_used()), (0, 0));
    }
}
