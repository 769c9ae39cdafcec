//! (2) The request and reply buffers of a descriptor chain: bounded readers and writers over guest memory.
//!
//! Guest memory changes while we look at it. So a chain's descriptors are read once, into a list of pieces of
//! mapped memory; the message is copied once, into memory of our own, before anything in it is believed; and
//! file data is only ever passed by address to the kernel. All lists are kept between requests, so that the
//! hot path doesn't allocate.
//!
//! Invariant: no reference to guest memory is ever made, only raw pointers. They stay valid for as long as the
//! snapshot of the memory map that they were made from, which [`Buffers`] borrows.

use std::hint::cold_path;
use std::marker::PhantomData;

use nix::errno::Errno;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::chain::{Chain, Descriptor};
use super::regions::Regions;

/// A chain may have at most this many pieces: what the largest indirect table can hold.
const MAX_PIECES: usize = 65_536;

/// Bytes of the longest reply of fixed size, CREATE's; most requests have no more.
const FIXED: usize = 160;

/// Why a chain can't be used at all. The virtqueue that it came from is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A link leads nowhere, in circles, or to a table that can't be one; or the chain is longer than 2^32.
    #[error("the descriptor chain is cut short: a bad index, table or length, or a loop")]
    Cut,
    /// A descriptor's buffer is not in guest memory.
    #[error("a descriptor's buffer of {length} bytes at guest address {address:#x} is outside guest memory")]
    OutsideMemory {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A buffer to read behind one to write (virtio 1.3, 2.7.4.2).
    #[error("a device-readable descriptor follows a device-writable one")]
    WrongOrder,
    /// More than 65,536 pieces.
    #[error("the descriptor chain has too many pieces")]
    TooManyPieces,
}

/// The lists of one queue thread, kept between requests.
#[derive(Default)]
pub struct Scratch {
    readable: Vec<libc::iovec>,
    writable: Vec<libc::iovec>,
    /// Where `writable` is, for the dirty log.
    written: Vec<(GuestAddress, usize)>,
    /// The part of a list that one system call gets.
    window: Vec<libc::iovec>,
    readable_len: usize,
    writable_len: usize,
    /// What is wrong with the chain that was loaded last.
    error: Option<ChainError>,
}

/// The buffers of one request.
pub struct Buffers<'a, B: Bitmap + 'static> {
    memory: &'a GuestMemoryMmap<B>,
    scratch: &'a mut Scratch,
    readable_len: usize,
    writable_len: usize,
}

impl Scratch {
    /// Collects the buffers of a chain, for [`Scratch::buffers`].
    pub fn load<B: Bitmap + 'static>(&mut self, regions: &mut Regions<'_, B>, chain: Chain) {
        self.error = self.collect(regions, chain).err();
    }

    fn collect<B: Bitmap + 'static>(
        &mut self,
        regions: &mut Regions<'_, B>,
        mut chain: Chain,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.written.clear();
        let (mut readable_len, mut writable_len, mut number) = (0usize, 0usize, 0usize);
        while let Some(descriptor) = chain.next(regions)? {
            let Descriptor { address, length, .. } = descriptor;
            let outside = ChainError::OutsideMemory { address: address.raw_value(), length };
            if descriptor.writable {
                pieces(regions, address, length, |at, piece| {
                    number += 1;
                    self.written.push((at, piece.iov_len));
                    append(&mut self.writable, piece);
                })
                .ok_or(outside)?;
                writable_len += length as usize;
            } else if self.writable.is_empty() {
                pieces(regions, address, length, |_, piece| {
                    number += 1;
                    append(&mut self.readable, piece);
                })
                .ok_or(outside)?;
                readable_len += length as usize;
            } else {
                return Err(ChainError::WrongOrder);
            }
            if number > MAX_PIECES {
                return Err(ChainError::TooManyPieces);
            }
        }
        (self.readable_len, self.writable_len) = (readable_len, writable_len);
        Ok(())
    }

    /// Has the CPU fetch the beginnings of the message and of the reply, which another CPU has used last: the request
    /// will be served soon.
    pub fn prefetch(&self) {
        self.readable.iter().take(2).for_each(prefetch_beginning::<false>);
        self.writable.iter().take(2).for_each(prefetch_beginning::<true>);
    }

    /// The buffers of the chain that was loaded last. `memory` must be the snapshot that they were loaded from.
    ///
    /// # Errors
    /// [`ChainError`]; the chain can't be answered then.
    pub fn buffers<'a, B: Bitmap + 'static>(
        &'a mut self,
        memory: &'a GuestMemoryMmap<B>,
    ) -> Result<Buffers<'a, B>, ChainError> {
        match self.error {
            Some(error) => {
                cold_path();
                Err(error)
            }
            None => Ok(self.resume(memory)),
        }
    }

    /// The same for a request that was begun: its chain is good.
    pub fn resume<'a, B: Bitmap + 'static>(&'a mut self, memory: &'a GuestMemoryMmap<B>) -> Buffers<'a, B> {
        let (readable_len, writable_len) = (self.readable_len, self.writable_len);
        Buffers { memory, scratch: self, readable_len, writable_len }
    }
}

/// Starts to bring a line of memory to this CPU, to read it or `FOR_WRITING`. Any address will do: nothing is accessed.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "no such instruction in stable Rust")
)]
pub fn prefetch<const FOR_WRITING: bool>(address: *const libc::c_void) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; it reads and writes nothing and cannot fault.
        unsafe {
            if FOR_WRITING {
                _mm_prefetch::<_MM_HINT_ET0>(address.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            }
        }
    }
}

/// Starts to bring the beginning of a piece to this CPU: as much as the fixed part of any request or reply has.
fn prefetch_beginning<const FOR_WRITING: bool>(piece: &libc::iovec) {
    const LINE: usize = 64;
    let first = piece.iov_base.addr() % LINE;
    let lines = (first + piece.iov_len.min(FIXED)).div_ceil(LINE);
    for line in 0..lines {
        prefetch::<FOR_WRITING>(piece.iov_base.wrapping_byte_add(line * LINE));
    }
}

/// Calls `each` for every piece of mapped memory behind a guest buffer; `None` when part of it isn't there.
fn pieces<B: Bitmap + 'static>(
    regions: &mut Regions<'_, B>,
    mut address: GuestAddress,
    length: u32,
    mut each: impl FnMut(GuestAddress, libc::iovec),
) -> Option<()> {
    let mut left = length as usize;
    while left > 0 {
        let (host, there) = regions.find(address)?;
        let piece = left.min(there);
        each(address, libc::iovec { iov_base: host.cast(), iov_len: piece });
        left -= piece;
        if left > 0 {
            address = address.checked_add(piece as u64)?;
        }
    }
    Some(())
}

/// Adds a piece to the one before, where it goes on right behind that: the kernel copies what is one in one go.
fn append(list: &mut Vec<libc::iovec>, piece: libc::iovec) {
    match list.last_mut() {
        Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == piece.iov_base => {
            last.iov_len += piece.iov_len;
        }
        _ => list.push(piece),
    }
}

impl<B: Bitmap + 'static> Buffers<'_, B> {
    /// Bytes that the guest sent.
    pub fn readable_len(&self) -> usize {
        self.readable_len
    }

    /// Room that the guest gave for the reply.
    pub fn writable_len(&self) -> usize {
        self.writable_len
    }

    /// The first bytes of the message; `None` when it is shorter.
    pub fn begin<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.scratch.readable.first() {
            Some(piece) if piece.iov_len >= N => {
                // SAFETY: the piece is mapped memory of at least `N` bytes; `bytes` is our own.
                unsafe { std::ptr::copy_nonoverlapping(piece.iov_base.cast(), bytes.as_mut_ptr(), N) };
                Some(bytes)
            }
            _ => self.copy_in(0, &mut bytes).then_some(bytes),
        }
    }

    /// Copies bytes `from..from + buf.len()` of the message out of guest memory; `false` when it is shorter.
    pub fn copy_in(&self, from: usize, buf: &mut [u8]) -> bool {
        if from.checked_add(buf.len()).is_none_or(|end| end > self.readable_len) {
            return false;
        }
        let mut skip = from;
        let mut rest = buf;
        for piece in &self.scratch.readable {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let n = rest.len().min(piece.iov_len - skip);
            let (now, later) = rest.split_at_mut(n);
            // SAFETY: `skip + n` is within the piece, which is mapped memory; `now` is `n` bytes of our own.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.iov_base.cast::<u8>().add(skip), now.as_mut_ptr(), n);
            }
            rest = later;
            skip = 0;
        }
        rest.is_empty()
    }

    /// Copies bytes to guest memory from `from` on; bytes that there was room for.
    pub fn copy_out(&self, from: usize, bytes: &[u8]) -> usize {
        let mut skip = from;
        let mut rest = bytes;
        for piece in &self.scratch.writable {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let n = rest.len().min(piece.iov_len - skip);
            let (now, later) = rest.split_at(n);
            // SAFETY: `skip + n` is within the piece, which is mapped memory; `now` is `n` bytes of our own.
            unsafe {
                std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast::<u8>().add(skip), n);
            }
            rest = later;
            skip = 0;
        }
        bytes.len() - rest.len()
    }

    /// The message from byte `from` on, as file data.
    pub fn data(&mut self, from: usize) -> GuestData<'_> {
        let Scratch { readable, window, .. } = &mut *self.scratch;
        GuestData(Pieces { all: readable, skip: from, window, guest: PhantomData })
    }

    /// The reply from byte `from` on, as room for file data.
    pub fn room(&mut self, from: usize) -> GuestRoom<'_> {
        let Scratch { writable, window, .. } = &mut *self.scratch;
        GuestRoom(Pieces { all: writable, skip: from, window, guest: PhantomData })
    }

    /// Marks the first `length` bytes of the reply in the dirty log.
    pub fn mark_dirty(&self, length: usize) {
        let mut left = length;
        for (address, size) in &self.scratch.written {
            let n = left.min(*size);
            if n == 0 {
                break;
            }
            if let Some((region, offset)) = self.memory.to_region_addr(*address) {
                region.bitmap().mark_dirty(offset.raw_value() as usize, n);
            }
            left -= n;
        }
    }
}

/// File data in guest memory, to be read by the kernel.
pub struct GuestData<'a>(Pieces<'a>);

/// Room for file data in guest memory, to be written by the kernel.
pub struct GuestRoom<'a>(Pieces<'a>);

struct Pieces<'a> {
    all: &'a [libc::iovec],
    skip: usize,
    window: &'a mut Vec<libc::iovec>,
    guest: PhantomData<&'a ()>,
}

impl GuestData<'_> {
    /// Passes up to `length` bytes to `write`, in as many calls as the kernel's limit on pieces needs, until it
    /// takes less than it got. `write` gets the pieces and the bytes done before. Bytes taken.
    ///
    /// # Errors
    /// What the first `write` says.
    pub fn drain(
        &mut self,
        length: usize,
        write: impl FnMut(&[libc::iovec], usize) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        self.0.run(length, write)
    }
}

impl GuestRoom<'_> {
    /// Lets `read` fill up to `length` bytes; otherwise as [`GuestData::drain`].
    ///
    /// # Errors
    /// What the first `read` says.
    pub fn fill(
        &mut self,
        length: usize,
        read: impl FnMut(&[libc::iovec], usize) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        self.0.run(length, read)
    }
}

impl Pieces<'_> {
    fn run(
        &mut self,
        length: usize,
        mut call: impl FnMut(&[libc::iovec], usize) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        self.select(length);
        let mut done = 0;
        for pieces in self.window.chunks(libc::UIO_MAXIOV as usize) {
            let wanted: usize = pieces.iter().map(|piece| piece.iov_len).sum();
            let n = match call(pieces, done) {
                Ok(n) => n.min(wanted),
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            done += n;
            if n < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// Puts the pieces of the wanted part into the window, the first and the last cut to size.
    fn select(&mut self, length: usize) {
        self.window.clear();
        let (mut skip, mut left) = (self.skip, length);
        for piece in self.all {
            if left == 0 {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let n = left.min(piece.iov_len - skip);
            // SAFETY: `skip` is below the piece's length.
            let base = unsafe { piece.iov_base.cast::<u8>().add(skip) };
            self.window.push(libc::iovec { iov_base: base.cast(), iov_len: n });
            left -= n;
            skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::super::chain::Table;
    use super::*;

    /// `VIRTQ_DESC_F_NEXT`, `VIRTQ_DESC_F_WRITE`
    const FLAGS: [u64; 2] = [1, 2];

    #[test]
    fn what_lies_side_by_side_is_one_piece() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        // To read: a header, three pages in a row and one apart. To write: two pages in the wrong order.
        let buffers = [
            (0x100, 40),
            (0x1000, 0x1000),
            (0x2000, 0x1000),
            (0x3000, 0x800),
            (0x4000, 0x10),
            (0x6000, 0x1000),
            (0x5000, 0x1000),
        ];
        for (index, (address, length)) in buffers.into_iter().enumerate() {
            let next = if index + 1 < buffers.len() { FLAGS[0] } else { 0 };
            let flags = next | if index >= 5 { FLAGS[1] } else { 0 };
            let rest = length | flags << 32 | (index as u64 + 1) << 48;
            let at = GuestAddress(16 * index as u64);
            memory.write_obj(address, at).unwrap();
            memory.write_obj(rest, GuestAddress(at.0 + 8)).unwrap();
        }
        let mut scratch = Scratch::default();
        scratch.load(&mut Regions::new(&memory), Chain::new(Table { address: GuestAddress(0), size: 8 }, 0));
        let lengths = |list: &[libc::iovec]| list.iter().map(|piece| piece.iov_len).collect::<Vec<_>>();
        let mut found = scratch.buffers(&memory).unwrap();
        assert_eq!((found.readable_len(), found.writable_len()), (40 + 0x2810, 0x2000));
        let mut seen = Vec::new();
        let taken = found.data(40).drain(usize::MAX, |pieces, _| {
            seen.extend(lengths(pieces));
            Ok(pieces.iter().map(|piece| piece.iov_len).sum())
        });
        assert_eq!((taken, seen), (Ok(0x2810), vec![0x2800, 0x10]));
        assert_eq!(lengths(&scratch.writable), [0x1000, 0x1000]);
        assert_eq!(scratch.written, [(GuestAddress(0x6000), 0x1000), (GuestAddress(0x5000), 0x1000)]);
    }
}
