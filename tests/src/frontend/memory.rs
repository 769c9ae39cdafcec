//! Guest memory: regions of memfds, mapped here and handed to the daemon, and a simple allocator in them.
//!
//! The daemon writes to this memory while we run, so it is only reached through copies and atomics, never
//! through references.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

use super::messages::RegionDescription;
use super::{Error, Result};

/// A guest page, in bytes.
pub const PAGE: usize = 4096;

/// One region: a shared mapping of a memfd.
#[derive(Debug)]
pub struct Region {
    guest: u64,
    size: NonZeroUsize,
    file: OwnedFd,
    base: NonNull<c_void>,
}

// SAFETY: the mapping belongs to no thread, and all access to it is by copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A new region of zeros at this guest address. `size` is rounded up to pages.
    pub fn new(guest: u64, size: usize) -> Result<Region> {
        let size = NonZeroUsize::new(size.next_multiple_of(PAGE)).expect("a region has a size");
        let file =
            memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC).map_err(Error::system("make a memfd"))?;
        let length = i64::try_from(size.get()).expect("a region is smaller than 8 EiB");
        ftruncate(&file, length).map_err(Error::system("size a memfd"))?;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing of ours.
        let base = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0)
        };
        Ok(Region { guest, size, file, base: base.map_err(Error::system("map a memfd"))? })
    }

    /// The memfd.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How vhost-user messages describe it.
    pub fn description(&self) -> RegionDescription {
        RegionDescription {
            guest: self.guest,
            size: self.size.get() as u64,
            user: self.base.as_ptr() as u64,
            offset: 0,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; every buffer in it holds an `Arc` of the region, so
        // none is left.
        unsafe { munmap(self.base, self.size.get()) }.expect("unmap what was mapped");
    }
}

/// All regions of a guest, and where the next buffer goes.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
    next: Mutex<usize>,
}

impl GuestMemory {
    /// Takes regions; buffers come from the first.
    pub fn new(regions: Vec<Region>) -> GuestMemory {
        assert!(!regions.is_empty(), "a guest has memory");
        GuestMemory { regions: regions.into_iter().map(Arc::new).collect(), next: Mutex::new(0) }
    }

    /// The regions.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// A buffer of zeros in the first region, at a multiple of `align`. It is never reused. Panics when the
    /// region is full: tests know how much they need.
    pub fn allocate(&self, len: usize, align: usize) -> GuestBuffer {
        let region = self.regions.first().expect("a guest has memory");
        let mut next = self.next.lock().expect("no panic while it is held");
        let offset = next.next_multiple_of(align);
        let end = offset + len;
        assert!(end <= region.size.get(), "guest memory is full: {end} of {} bytes", region.size);
        *next = end;
        GuestBuffer { region: Arc::clone(region), offset, len }
    }

    /// A buffer at any place of a region.
    pub fn at(&self, region: usize, offset: usize, len: usize) -> GuestBuffer {
        let region = Arc::clone(&self.regions[region]);
        assert!(offset + len <= region.size.get(), "outside of the region");
        GuestBuffer { region, offset, len }
    }
}

/// A piece of guest memory.
#[derive(Clone, Debug)]
pub struct GuestBuffer {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl GuestBuffer {
    /// Its guest address.
    pub fn guest_address(&self) -> u64 {
        self.region.guest + self.offset as u64
    }

    /// Its address in this process.
    pub fn user_address(&self) -> u64 {
        self.as_ptr() as u64
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it starts, for system calls that fill it or read from it. Valid for [`GuestBuffer::len`] bytes as
    /// long as the buffer lives.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `offset` was checked against the region's size when the buffer was made.
        unsafe { self.region.base.as_ptr().cast::<u8>().add(self.offset) }
    }

    fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{at}+{len} is outside of {}",
            self.len
        );
        // SAFETY: just checked: `at` lies in the buffer.
        unsafe { self.as_ptr().add(at) }
    }

    /// Copies bytes in.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.pointer(at, bytes.len());
        // SAFETY: `to` is valid for that many bytes, and no Rust reference points into guest memory.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.pointer(at, bytes.len());
        // SAFETY: as in `write`.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies `len` bytes out.
    pub fn to_vec(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes);
        bytes
    }

    /// Copies `N` bytes out.
    pub fn read_array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(at, &mut bytes);
        bytes
    }

    /// Fills it all with one byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: as in `write`.
        unsafe { self.as_ptr().write_bytes(byte, self.len) }
    }

    /// A 16-bit number that both sides use at once (all of virtio's are little-endian).
    pub fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        u16::from_le(self.atomic_u16(at).load(order))
    }

    /// See [`GuestBuffer::load_u16`].
    pub fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        self.atomic_u16(at).store(value.to_le(), order);
    }

    fn atomic_u16(&self, at: usize) -> &AtomicU16 {
        let pointer = self.pointer(at, 2).cast::<u16>();
        assert!(pointer.is_aligned(), "{at} is odd");
        // SAFETY: in bounds, aligned, and mapped as long as `self` borrows the region; concurrent access by
        // the daemon is why it is atomic.
        unsafe { AtomicU16::from_ptr(pointer) }
    }
}
