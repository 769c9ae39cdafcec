//! Whatever lies in guest memory as a virtqueue, its chains are refused or lead to guest memory only, and reading
//! and writing through them keeps to the lengths that they say. Its rings are read and written as `virtio-queue` does it.
//!
//! Input: the first bytes of guest memory, with the descriptor table at 0, the available ring at 256 and the used
//! ring at 320, for a queue of 16. Memory has a hole, and a second region behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use virtiofsd::worker::buffers::{Buffers, ChainError, Scratch};
use virtiofsd::worker::chain::{Chain, Table};
use virtiofsd::worker::regions::Regions;
use virtiofsd::worker::rings;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const QUEUE_SIZE: u16 = 16;
/// Guest-physical start and length of the regions. All of the first but its rings holds buffers and indirect tables.
const REGIONS: [(u64, usize); 2] = [(0, 0x2000), (0x4000, 0x1000)];

type Theirs<'a> = DescriptorChain<&'a GuestMemoryMmap>;

fuzz_target!(|input: &[u8]| {
    let memory = memory(input);
    let chains = compare_rings(input, &memory);

    let (mut scratch, mut regions) = (Scratch::default(), Regions::new(&memory));
    let table = Table { address: GuestAddress(0), size: QUEUE_SIZE };
    for theirs in chains {
        let ours = || Chain::new(table, theirs.head_index());
        compare(&memory, ours(), theirs.clone());
        scratch.load(&mut regions, ours());
        if let Ok(buffers) = scratch.buffers(&memory) {
            walk(buffers);
        }
    }
});

/// Guest memory that begins with this.
fn memory(input: &[u8]) -> GuestMemoryMmap {
    let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
    let input = &input[..input.len().min(REGIONS[0].1)];
    memory.write_slice(input, GuestAddress(0)).expect("input fits the first region");
    memory
}

/// The virtqueue; its used ring goes on where memory says, so that it wraps, too.
fn queue(memory: &GuestMemoryMmap, event_idx: bool) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).expect("a queue");
    queue.set_size(QUEUE_SIZE);
    queue.try_set_desc_table_address(GuestAddress(0)).expect("aligned");
    queue.try_set_avail_ring_address(GuestAddress(256)).expect("aligned");
    queue.try_set_used_ring_address(GuestAddress(320)).expect("aligned");
    queue.set_next_used(memory.read_obj(GuestAddress(322)).expect("in the first region"));
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue
}

/// Takes what is available and gives it back, in `memory` as `virtio-queue` does it, and in a copy a batch at a time. The
/// chains.
fn compare_rings<'a>(input: &[u8], memory: &'a GuestMemoryMmap) -> Vec<Theirs<'a>> {
    let (copy, event_idx) = (self::memory(input), input.len() % 2 == 0);
    let (mut theirs, mut ours) = (queue(memory, event_idx), queue(&copy, event_idx));
    let chains: Option<Vec<_>> = theirs.iter(memory).ok().map(Iterator::collect);
    let mut heads = Vec::new();
    let taken = rings::take(&mut ours, &copy, usize::from(QUEUE_SIZE), |head| heads.push(head));
    assert_eq!(taken.is_ok(), chains.is_some());
    let chains = chains.unwrap_or_default();
    assert!(heads.iter().copied().eq(chains.iter().map(DescriptorChain::head_index)));
    assert_eq!(ours.next_avail(), theirs.next_avail());

    let done: Vec<_> = heads.iter().zip(1..).map(|(head, length)| (*head, length)).collect();
    if done.is_empty() {
        return chains;
    }
    if heads.iter().any(|head| *head >= QUEUE_SIZE) {
        assert!(rings::give(&mut ours, &copy, &done).is_err());
        assert_eq!(ours.next_used(), theirs.next_used());
        return chains;
    }
    for (head, length) in &done {
        theirs.add_used(memory, *head, *length).expect("a head of this queue");
    }
    let tells = theirs.needs_notification(memory).expect("the ring is in memory");
    assert_eq!(rings::give(&mut ours, &copy, &done).expect("heads of this queue"), tells);
    assert_eq!(ours.next_used(), theirs.next_used());
    for address in (0..REGIONS[0].1 as u64).step_by(8).map(GuestAddress) {
        let [theirs, ours]: [u64; 2] = [memory, &copy].map(|memory| memory.read_obj(address).expect("there"));
        assert_eq!(theirs, ours, "at {address:?}");
    }
    chains
}

/// The walk finds what that of `virtio-queue` finds, which ends without a word where a chain is broken.
fn compare(memory: &GuestMemoryMmap, mut ours: Chain, theirs: Theirs<'_>) {
    let mut regions = Regions::new(memory);
    let mut complete = false;
    for descriptor in theirs {
        let found = ours.next(&mut regions).expect("not broken here").expect("not ended here");
        assert_eq!((found.address, found.length), (descriptor.addr(), descriptor.len()));
        assert_eq!(found.writable, descriptor.is_write_only());
        complete = !descriptor.has_next();
    }
    assert_eq!(ours.next(&mut regions), if complete { Ok(None) } else { Err(ChainError::Cut) });
}

/// Reads and writes all of a chain's buffers, in the ways that the daemon does.
fn walk(mut buffers: Buffers<'_, ()>) {
    let (readable, writable) = (buffers.readable_len(), buffers.writable_len());
    let mut copy = vec![0; readable.min(0x3000)];
    assert!(buffers.copy_in(0, &mut copy));
    assert!(!buffers.copy_in(readable, &mut [0]));
    assert!(!buffers.copy_in(usize::MAX, &mut [0; 2]));
    assert_eq!(buffers.copy_out(0, &copy), copy.len().min(writable));
    assert_eq!(buffers.copy_out(writable, &[1]), 0);
    buffers.mark_dirty(writable);

    for skip in [0, 16, readable] {
        let mut seen = 0;
        let taken = buffers.data(skip).drain(0x1000, |pieces, done| {
            assert_eq!(done, seen);
            seen += sum(pieces);
            Ok(sum(pieces))
        });
        assert_eq!(taken, Ok(readable.saturating_sub(skip).min(0x1000)));
    }
    // A short answer ends the transfer.
    let mut calls = 0;
    let filled = buffers.room(0).fill(usize::MAX, |pieces, _| {
        calls += 1;
        Ok(sum(pieces) / 2)
    });
    assert!(filled.is_ok_and(|filled| filled <= writable) && calls <= 1 + writable / 1024);
}

fn sum(pieces: &[libc::iovec]) -> usize {
    assert!(!pieces.is_empty() && pieces.len() <= 1024);
    pieces.iter().map(|piece| piece.iov_len).sum()
}
