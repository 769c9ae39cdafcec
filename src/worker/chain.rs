//! The descriptors of a chain (virtio 1.3, 2.7.5 to 2.7.8): where its buffers are in guest memory.
//!
//! `virtio-queue` has such a walk, too. This one finds the region of a descriptor in the one that was used before, and
//! copies nothing but descriptors, as single numbers (see `regions.rs`): all that together took a GETATTR from 0.65 to
//! 0.57 µs. The fuzz target `chain` compares the two.

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress};

use super::buffers::ChainError;
use super::regions::Regions;

/// Bytes of a descriptor.
const DESCRIPTOR: u16 = 16;

/// `VIRTQ_DESC_F_NEXT`
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
const INDIRECT: u16 = 4;

/// A virtqueue's descriptor table, or an indirect one.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Of its first descriptor.
    pub address: GuestAddress,
    /// Descriptors.
    pub size: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the buffer begins.
    pub address: GuestAddress,
    /// Its bytes.
    pub length: u32,
    /// For the device to write; else to read.
    pub writable: bool,
}

/// A chain, from one descriptor to the next. Each is read once.
pub struct Chain {
    table: Table,
    indirect: bool,
    /// The index of the descriptor that comes now.
    next: Option<u16>,
    /// Descriptors that may come before the chain must be a loop.
    left: u16,
    /// Bytes of all buffers so far.
    length: u32,
}

impl Chain {
    /// The chain that begins with this descriptor of a virtqueue's table.
    pub fn new(table: Table, head: u16) -> Self {
        Chain { table, indirect: false, next: Some(head), left: table.size, length: 0 }
    }

    /// Where its indirect table is, if it has one: a guess, for [`crate::worker::buffers::prefetch`].
    pub fn indirect_table<B: Bitmap + 'static>(&self, regions: &mut Regions<'_, B>) -> Option<*const u8> {
        let raw = self.read(regions, self.next?).ok().filter(|raw| raw.flags & INDIRECT != 0)?;
        Some(regions.find(raw.address)?.0)
    }

    /// The next descriptor, `None` after the last.
    ///
    /// # Errors
    /// [`ChainError::Cut`] where the chain is broken.
    pub fn next<B: Bitmap + 'static>(
        &mut self,
        regions: &mut Regions<'_, B>,
    ) -> Result<Option<Descriptor>, ChainError> {
        let Some(index) = self.next else { return Ok(None) };
        let mut raw = self.read(regions, index)?;
        if raw.flags & INDIRECT != 0 {
            self.enter(&raw)?;
            raw = self.read(regions, 0)?;
            if raw.flags & INDIRECT != 0 {
                return Err(ChainError::Cut);
            }
        }
        // 2.7.5.2: a chain has at most 2^32 bytes.
        self.length = self.length.checked_add(raw.length).ok_or(ChainError::Cut)?;
        self.left = self.left.saturating_sub(1);
        self.next = (raw.flags & NEXT != 0).then_some(raw.next);
        Ok(Some(Descriptor { address: raw.address, length: raw.length, writable: raw.flags & WRITE != 0 }))
    }

    /// Goes on in the indirect table that a descriptor leads to.
    fn enter(&mut self, raw: &Raw) -> Result<(), ChainError> {
        let size = raw.length / u32::from(DESCRIPTOR);
        if self.indirect || !raw.length.is_multiple_of(u32::from(DESCRIPTOR)) {
            return Err(ChainError::Cut);
        }
        let size = u16::try_from(size).map_err(|_| ChainError::Cut)?;
        self.table = Table { address: raw.address, size };
        self.indirect = true;
        self.left = size;
        Ok(())
    }

    #[inline]
    fn read<B: Bitmap + 'static>(&self, regions: &mut Regions<'_, B>, index: u16) -> Result<Raw, ChainError> {
        if index >= self.table.size || self.left == 0 {
            return Err(ChainError::Cut);
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR);
        let address = self.table.address.checked_add(offset).ok_or(ChainError::Cut)?;
        Ok(Raw::from(u128::from_le(regions.read(address).ok_or(ChainError::Cut)?)))
    }
}

/// A descriptor as it lies in memory (`struct virtq_desc`): little-endian address, length, flags, next.
struct Raw {
    address: GuestAddress,
    length: u32,
    flags: u16,
    next: u16,
}

impl From<u128> for Raw {
    fn from(raw: u128) -> Raw {
        Raw {
            address: GuestAddress(raw as u64),
            length: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    const TABLE: Table = Table { address: GuestAddress(0), size: 8 };

    fn raw(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
        let raw = u128::from(address) | u128::from(length) << 64;
        (raw | u128::from(flags) << 96 | u128::from(next) << 112).to_le_bytes()
    }

    /// Writes descriptors at the memory's begin and walks from `head`.
    fn walk(descriptors: &[[u8; 16]], head: u16) -> Result<Vec<(u64, u32, bool)>, ChainError> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(descriptors.concat().as_slice(), GuestAddress(0)).unwrap();
        let (mut chain, mut found) = (Chain::new(TABLE, head), Vec::new());
        let mut regions = Regions::new(&memory);
        while let Some(one) = chain.next(&mut regions)? {
            found.push((one.address.raw_value(), one.length, one.writable));
        }
        Ok(found)
    }

    #[test]
    fn links_are_followed_in_a_queue_and_in_an_indirect_table() {
        let direct = [raw(10, 1, NEXT, 2), raw(30, 3, WRITE, 0), raw(20, 2, NEXT, 1)];
        assert_eq!(walk(&direct, 0), Ok(vec![(10, 1, false), (20, 2, false), (30, 3, true)]));
        // The link of a descriptor that leads to a table means nothing.
        let indirect = [raw(16, 32, INDIRECT | NEXT, 7), raw(10, 1, NEXT, 1), raw(20, 2, WRITE, 0)];
        assert_eq!(walk(&indirect, 0), Ok(vec![(10, 1, false), (20, 2, true)]));
    }

    #[test]
    fn what_leads_nowhere_is_cut() {
        let cut = Err(ChainError::Cut);
        assert_eq!(walk(&[raw(0, 1, 0, 0)], 8), cut, "a head outside the table");
        assert_eq!(walk(&[raw(0, 1, NEXT, 8)], 0), cut, "a link out of it");
        assert_eq!(walk(&[raw(0, 1, NEXT, 1), raw(0, 1, NEXT, 0)], 0), cut, "a loop");
        assert_eq!(walk(&[raw(0, u32::MAX, NEXT, 1), raw(0, 1, 0, 0)], 0), cut, "more than 2^32 bytes");
        assert_eq!(walk(&[raw(16, 17, INDIRECT, 0)], 0), cut, "a table of one and a bit");
        assert_eq!(walk(&[raw(16, 0, INDIRECT, 0)], 0), cut, "an empty table");
        assert_eq!(walk(&[raw(16, 1 << 20, INDIRECT, 0)], 0), cut, "a table that is too large");
        assert_eq!(walk(&[raw(16, 16, INDIRECT, 0), raw(16, 16, INDIRECT, 0)], 0), cut, "a table in a table");
        assert_eq!(walk(&[raw(16, 32, INDIRECT, 0), raw(0, 1, NEXT, 1), raw(16, 16, INDIRECT, 0)], 0), cut);
        assert_eq!(walk(&[raw(0xff8, 16, INDIRECT, 0)], 0), cut, "a table that ends outside memory");
        assert_eq!(walk(&[raw(u64::MAX, 16, INDIRECT, 0)], 0), cut, "a table that ends nowhere");
    }
}
