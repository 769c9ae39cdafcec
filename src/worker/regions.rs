//! Guest addresses to host addresses, with the region that was found last kept for the next address: it is mostly the
//! same one, and a request has about a dozen.

use std::hint::cold_path;

use smallvec::SmallVec;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress,
};
use zerocopy::{FromBytes, IntoBytes};

/// A snapshot of guest memory's layout, to find many addresses in.
pub struct Regions<'m, B: Bitmap + 'static> {
    memory: &'m GuestMemoryMmap<B>,
    last: Option<Mapped>,
}

/// One region, which is one mapping.
#[derive(Clone, Copy)]
struct Mapped {
    /// Guest address.
    start: u64,
    length: u64,
    /// Where `start` is mapped.
    host: *mut u8,
}

impl Mapped {
    fn of<B: Bitmap + 'static>(region: &GuestRegionMmap<B>) -> Option<Self> {
        let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
        Some(Mapped { start: region.start_addr().raw_value(), length: region.len(), host })
    }

    fn at(&self, address: GuestAddress) -> Option<(*mut u8, usize)> {
        let offset = address.raw_value().checked_sub(self.start).filter(|offset| *offset < self.length)?;
        let there = usize::try_from(self.length - offset).ok()?;
        Some((self.host.wrapping_add(usize::try_from(offset).ok()?), there))
    }
}

impl<'m, B: Bitmap + 'static> Regions<'m, B> {
    /// Those of `memory`.
    pub fn new(memory: &'m GuestMemoryMmap<B>) -> Self {
        Regions { memory, last: None }
    }

    /// Where an address is mapped, and how many bytes of its region begin there; `None` when it is not in guest memory.
    /// What is found stays mapped for as long as the snapshot lives.
    #[inline]
    pub fn find(&mut self, address: GuestAddress) -> Option<(*mut u8, usize)> {
        if let Some(found) = self.last.and_then(|region| region.at(address)) {
            return Some(found);
        }
        self.find_other(address)
    }

    /// Not in the region that was found last, or there is none yet.
    #[cold]
    fn find_other(&mut self, address: GuestAddress) -> Option<(*mut u8, usize)> {
        self.last = self.memory.find_region(address).and_then(Mapped::of);
        self.last?.at(address)
    }

    /// A copy of what is there, which the guest may be changing; `None` when it is not all in guest memory.
    ///
    /// As a number or struct, not as bytes to be put together: a load of parts that were stored separately waits until
    /// all stores before it are done, those to lines that the guest's CPU holds among them.
    #[inline]
    pub fn read<T: FromBytes + IntoBytes>(&mut self, address: GuestAddress) -> Option<T> {
        let (host, there) = self.find(address)?;
        if there >= size_of::<T>() {
            // SAFETY: that many bytes from `host` on are mapped, and any bytes are a `T`.
            return Some(unsafe { std::ptr::read_unaligned(host.cast()) });
        }
        // It goes on in the next region.
        cold_path();
        let mut value = T::new_zeroed();
        self.memory.read_slice(value.as_mut_bytes(), address).ok()?;
        Some(value)
    }
}

/// Writes words side by side from an address on, and marks them in the dirty log. The guest may be reading them.
///
/// # Errors
/// When they are not all in guest memory; some may be written then.
pub fn write_words<B: Bitmap + 'static>(
    memory: &GuestMemoryMmap<B>,
    address: GuestAddress,
    words: impl ExactSizeIterator<Item = u64>,
) -> Result<(), GuestMemoryError> {
    let length = words.len() * size_of::<u64>();
    let found = memory.to_region_addr(address);
    let (region, offset) = found.ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
    if region.len() - offset.raw_value() < length as u64 {
        // They go on in the next region, or nowhere.
        cold_path();
        let words: SmallVec<[u64; 8]> = words.collect();
        return memory.write_slice(words.as_bytes(), address);
    }
    let host = region.get_host_address(offset)?.cast::<u64>();
    for (index, word) in words.enumerate().take(length / size_of::<u64>()) {
        // SAFETY: `length` bytes from `host` on are in the region, which is mapped for as long as `memory` lives, and the
        // index is below their number of words.
        unsafe { host.add(index).write_unaligned(word) };
    }
    region.bitmap().mark_dirty(offset.raw_value() as usize, length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_each_region_and_nowhere_else() {
        let ranges =
            [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x9000), 0x1000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let mut regions = Regions::new(&memory);
        for (address, there) in
            [(0x1000, 0x1000), (0x1fff, 1), (0x2000, 0x1000), (0x9ffe, 2), (0x1234, 0xdcc), (0x9000, 0x1000)]
        {
            let (host, length) = regions.find(GuestAddress(address)).unwrap();
            assert_eq!((host, length), (memory.get_host_address(GuestAddress(address)).unwrap(), there));
        }
        for address in [0, 0xfff, 0x3000, 0x8fff, 0xa000, u64::MAX] {
            assert!(regions.find(GuestAddress(address)).is_none(), "{address:#x}");
            assert!(regions.find(GuestAddress(0x1000)).is_some());
        }
    }

    #[test]
    fn bytes_are_read_across_regions_and_not_beyond() {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        memory.write_slice(&[1, 2, 3, 4], GuestAddress(0x1ffe)).unwrap();
        let mut regions = Regions::new(&memory);
        assert_eq!(regions.read(GuestAddress(0x1ffe)), Some([1u8, 2, 3, 4]));
        assert_eq!(regions.read(GuestAddress(0x1fff)), Some([2u8, 3]));
        assert_eq!(regions.read(GuestAddress(0x2000)), Some(u16::from_ne_bytes([3, 4])));
        assert_eq!(regions.read::<u16>(GuestAddress(0x2fff)), None);
        assert_eq!(regions.read::<u8>(GuestAddress(0x3000)), None);
    }
    #[test]
    fn words_are_written_across_regions_and_not_beyond() {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        for address in [0x1008, 0x1ffc, 0x2ff0] {
            write_words(&memory, GuestAddress(address), [1u64, 2].into_iter()).unwrap();
            let read = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
            assert_eq!((read(address), read(address + 8)), (1, 2));
        }
        for address in [0xff8, 0x2ff4, 0x3000] {
            assert!(write_words(&memory, GuestAddress(address), [1u64, 2].into_iter()).is_err());
        }
    }
}
