//! Replies: what a handler says, as the bytes that the guest reads.
//!
//! A handler writes its reply into the queue thread's [`ReplyBuf`] and returns `Ok(())`, or returns an errno.
//! The queue then puts an [`OutHeader`] before what the buffer holds. Nothing here allocates once the buffer
//! has grown to what the thread's requests need.

#[cfg(test)]
mod tests;

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::Statvfs;
use zerocopy::{Immutable, IntoBytes};

use super::decode::MAX_DIR_REPLY;
use super::dirent::DirWriter;
use super::operation::{GuestGid, GuestUid, HandleId, NodeId, Operation};
use super::wire::{self, Attr, AttrFlags, EntryOut, OpenReplyFlags, OutHeader, StatFsOut, StatxTime};

/// Size that a buffer starts with: holds every reply but large directory listings.
const INITIAL: usize = 64 << 10;
/// Size beyond which a buffer never grows.
const LARGEST: usize = MAX_DIR_REPLY as usize;

impl OutHeader {
    /// The header of a reply: success with that many bytes behind it, or an error.
    pub fn new(unique: u64, result: Result<usize, Errno>) -> OutHeader {
        let (payload, error) = match result {
            Ok(payload) => (payload, 0),
            Err(errno) => (0, -(errno as i32)),
        };
        // A payload is at most what READ or LARGEST allow, both below 2 GiB.
        let len = u32::try_from(size_of::<OutHeader>() + payload).unwrap_or(u32::MAX);
        OutHeader { len, error, unique }
    }
}

/// A node as a guest learns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node. The guest now holds one more reference to it.
    pub node: NodeId,
    /// Tells nodes of one id apart.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the guest may cache the name.
    pub entry_timeout: Duration,
    /// How long the guest may cache the attributes.
    pub attr_timeout: Duration,
}

impl From<&Entry> for EntryOut {
    fn from(entry: &Entry) -> EntryOut {
        EntryOut {
            nodeid: entry.node.0,
            generation: entry.generation,
            entry_valid: entry.entry_timeout.as_secs(),
            attr_valid: entry.attr_timeout.as_secs(),
            entry_valid_nsec: entry.entry_timeout.subsec_nanos(),
            attr_valid_nsec: entry.attr_timeout.subsec_nanos(),
            attr: entry.attr,
        }
    }
}

/// Owner and group as the guest is to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Owner.
    pub uid: GuestUid,
    /// Group.
    pub gid: GuestGid,
}

/// A device number in the kernel's 32-bit coding (`new_encode_dev`): 12 bits major, 20 bits minor.
pub fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

/// Major and minor number of [`encode_dev`].
pub fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00))
}

/// Attributes from a `statx` that asked for `STATX_BASIC_STATS`.
pub fn attr(st: &libc::statx, owner: Owner, flags: AttrFlags) -> Attr {
    Attr {
        ino: st.stx_ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        atime: st.stx_atime.tv_sec.cast_unsigned(),
        mtime: st.stx_mtime.tv_sec.cast_unsigned(),
        ctime: st.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: st.stx_atime.tv_nsec,
        mtimensec: st.stx_mtime.tv_nsec,
        ctimensec: st.stx_ctime.tv_nsec,
        mode: u32::from(st.stx_mode),
        nlink: st.stx_nlink,
        uid: owner.uid.0,
        gid: owner.gid.0,
        rdev: encode_dev(st.stx_rdev_major, st.stx_rdev_minor),
        blksize: st.stx_blksize,
        flags: flags.bits(),
    }
}

/// The same for STATX. What only has a meaning on the host (device, mount, DIO alignment) is left out.
pub fn statx(st: &libc::statx, owner: Owner) -> wire::Statx {
    const MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    const ATTRIBUTES: u64 = (libc::STATX_ATTR_COMPRESSED
        | libc::STATX_ATTR_IMMUTABLE
        | libc::STATX_ATTR_APPEND
        | libc::STATX_ATTR_NODUMP
        | libc::STATX_ATTR_ENCRYPTED
        | libc::STATX_ATTR_VERITY)
        .cast_unsigned() as u64;
    let time = |t: libc::statx_timestamp| StatxTime { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec, reserved: 0 };
    wire::Statx {
        mask: st.stx_mask & MASK,
        blksize: st.stx_blksize,
        attributes: st.stx_attributes & ATTRIBUTES,
        nlink: st.stx_nlink,
        uid: owner.uid.0,
        gid: owner.gid.0,
        mode: st.stx_mode,
        ino: st.stx_ino,
        size: st.stx_size,
        blocks: st.stx_blocks,
        attributes_mask: st.stx_attributes_mask & ATTRIBUTES,
        atime: time(st.stx_atime),
        btime: time(st.stx_btime),
        ctime: time(st.stx_ctime),
        mtime: time(st.stx_mtime),
        rdev_major: st.stx_rdev_major,
        rdev_minor: st.stx_rdev_minor,
        ..wire::Statx::default()
    }
}

impl From<&Statvfs> for StatFsOut {
    fn from(st: &Statvfs) -> StatFsOut {
        let short = |value: libc::c_ulong| u32::try_from(value).unwrap_or(u32::MAX);
        StatFsOut {
            blocks: st.blocks(),
            bfree: st.blocks_free(),
            bavail: st.blocks_available(),
            files: st.files(),
            ffree: st.files_free(),
            bsize: short(st.block_size()),
            namelen: short(st.name_max()),
            frsize: short(st.fragment_size()),
            ..StatFsOut::default()
        }
    }
}

impl Operation<'_> {
    /// The least payload of a successful reply in bytes. A request whose reply buffers hold less is refused
    /// before it is carried out, so that no node or handle is given out that the guest never hears of.
    pub fn reply_len(&self) -> usize {
        match self {
            Operation::Lookup(_)
            | Operation::SymLink { .. }
            | Operation::MkNod { .. }
            | Operation::MkDir { .. }
            | Operation::Link { .. } => size_of::<EntryOut>(),
            Operation::Create { .. } | Operation::TmpFile { .. } => {
                size_of::<EntryOut>() + size_of::<wire::OpenOut>()
            }
            Operation::GetAttr { .. } | Operation::SetAttr(_) => size_of::<wire::AttrOut>(),
            Operation::Statx { .. } => size_of::<wire::StatxOut>(),
            Operation::Open(_) | Operation::OpenDir(_) => size_of::<wire::OpenOut>(),
            Operation::Write(_) => size_of::<wire::WriteOut>(),
            // fuse_write_out and fuse_copy_file_range_out are of one size.
            Operation::CopyFileRange { .. } => size_of::<wire::CopyFileRangeOut>(),
            Operation::StatFs => size_of::<StatFsOut>(),
            Operation::GetXattr { size: None, .. } | Operation::ListXattr { size: None } => {
                size_of::<wire::GetXattrOut>()
            }
            Operation::GetLk(_) => size_of::<wire::LkOut>(),
            Operation::Ioctl { .. } => size_of::<wire::IoctlOut>(),
            Operation::LSeek { .. } => size_of::<wire::LSeekOut>(),
            Operation::Init(_) => size_of::<wire::InitOut>(),
            _ => 0,
        }
    }
}

/// Where one queue thread puts replies together, one after another.
///
/// The memory is written once and then used again; of it, only what the current reply wrote can be seen.
#[derive(Debug)]
pub struct ReplyBuf {
    /// Initialised memory; grows up to [`LARGEST`].
    storage: Vec<u8>,
    /// Bytes of the current reply in `storage`.
    len: usize,
    /// Payload bytes that the guest's buffers hold.
    room: usize,
    /// Payload bytes that are already in the guest's buffers.
    in_place: usize,
}

impl Default for ReplyBuf {
    fn default() -> Self {
        ReplyBuf { storage: vec![0; INITIAL], len: 0, room: 0, in_place: 0 }
    }
}

impl ReplyBuf {
    /// Forgets the last reply. `room` is what the guest's reply buffers hold behind the header.
    pub fn begin(&mut self, room: usize) {
        (self.len, self.room, self.in_place) = (0, room, 0);
    }

    /// Payload bytes that still fit the guest's buffers.
    pub fn room(&self) -> usize {
        self.room - self.len
    }

    /// What to copy to the guest behind the header. Empty when the payload is already there.
    pub fn bytes(&self) -> &[u8] {
        self.storage.get(..self.len).unwrap_or_default()
    }

    /// Length of the payload, copied or in place.
    pub fn payload_len(&self) -> usize {
        self.len + self.in_place
    }

    /// The header for this reply, or for the error that there is instead.
    pub fn header(&self, unique: u64, result: Result<(), Errno>) -> OutHeader {
        OutHeader::new(unique, result.map(|()| self.payload_len()))
    }

    /// The payload of `len` bytes was written straight into the guest's buffers (READ).
    pub fn in_place(&mut self, len: usize) {
        self.in_place = len.min(self.room());
    }

    /// Bytes as they are (READLINK, a xattr's value).
    ///
    /// # Errors
    ///
    /// `EINVAL` when they don't fit the guest's buffers; so for all methods below.
    pub fn bytes_from(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.len + bytes.len();
        self.reserve(bytes.len())?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Lets `read` (a system call) put up to `max` bytes straight into the buffer; it says how many it put.
    /// It gets less room when the guest's buffers are smaller, and leaves the reply empty when it fails.
    ///
    /// # Errors
    ///
    /// Those of `read`; `EIO` when it claims more than it was given.
    pub fn fill(
        &mut self,
        max: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let max = max.min(self.room()).min(LARGEST - self.len);
        let count = read(self.reserve(max)?)?;
        if count > max {
            return Err(Errno::EIO);
        }
        self.len += count;
        Ok(())
    }

    /// A directory listing of at most `size` bytes. Its bytes count as they are pushed.
    pub fn dir(&mut self, size: u32) -> Result<DirWriter<'_>, Errno> {
        let size = usize::try_from(size).unwrap_or(LARGEST).min(self.room()).min(LARGEST - self.len);
        self.reserve(size)?;
        let buf = self.storage.get_mut(self.len..self.len + size).ok_or(Errno::EINVAL)?;
        Ok(DirWriter::new(buf, &mut self.len))
    }

    /// LOOKUP, SYMLINK, MKNOD, MKDIR, LINK.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), Errno> {
        self.put(&EntryOut::from(entry))
    }

    /// LOOKUP of a name that doesn't exist, to be cached for `timeout`.
    pub fn no_entry(&mut self, timeout: Duration) -> Result<(), Errno> {
        let (entry_valid, entry_valid_nsec) = (timeout.as_secs(), timeout.subsec_nanos());
        self.put(&EntryOut { entry_valid, entry_valid_nsec, ..EntryOut::default() })
    }

    /// GETATTR, SETATTR.
    pub fn attr(&mut self, attr: &Attr, timeout: Duration) -> Result<(), Errno> {
        self.put(&wire::AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            dummy: 0,
            attr: *attr,
        })
    }

    /// STATX.
    pub fn statx(&mut self, stat: &wire::Statx, timeout: Duration) -> Result<(), Errno> {
        self.put(&wire::StatxOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            stat: *stat,
            ..wire::StatxOut::default()
        })
    }

    /// OPEN, OPENDIR.
    pub fn open(&mut self, handle: HandleId, flags: OpenReplyFlags) -> Result<(), Errno> {
        self.put(&wire::OpenOut { fh: handle.0, open_flags: flags.bits(), backing_id: 0 })
    }

    /// CREATE, TMPFILE.
    pub fn create(&mut self, entry: &Entry, handle: HandleId, flags: OpenReplyFlags) -> Result<(), Errno> {
        self.entry(entry)?;
        self.open(handle, flags)
    }

    /// WRITE.
    pub fn written(&mut self, size: u32) -> Result<(), Errno> {
        self.put(&wire::WriteOut { size, padding: 0 })
    }

    /// COPY_FILE_RANGE (whose count the decoder limits to a `u32`), COPY_FILE_RANGE_64 (`wide`).
    pub fn copied(&mut self, bytes_copied: u64, wide: bool) -> Result<(), Errno> {
        if wide {
            return self.put(&wire::CopyFileRangeOut { bytes_copied });
        }
        self.written(u32::try_from(bytes_copied).map_err(|_| Errno::EOVERFLOW)?)
    }

    /// STATFS.
    pub fn statfs(&mut self, st: &StatFsOut) -> Result<(), Errno> {
        self.put(st)
    }

    /// GETXATTR and LISTXATTR that asked for the size only.
    pub fn xattr_size(&mut self, size: u32) -> Result<(), Errno> {
        self.put(&wire::GetXattrOut { size, padding: 0 })
    }

    /// GETLK: the lock in the way, or one of kind `F_UNLCK`.
    pub fn lock(&mut self, lk: wire::FileLock) -> Result<(), Errno> {
        self.put(&wire::LkOut { lk })
    }

    /// IOCTL: what the call returned, and its output.
    pub fn ioctl(&mut self, result: i32, output: &[u8]) -> Result<(), Errno> {
        self.put(&wire::IoctlOut { result, ..wire::IoctlOut::default() })?;
        self.bytes_from(output)
    }

    /// LSEEK.
    pub fn seek(&mut self, offset: u64) -> Result<(), Errno> {
        self.put(&wire::LSeekOut { offset })
    }

    /// INIT.
    pub fn init(&mut self, reply: &wire::InitOut) -> Result<(), Errno> {
        self.put(reply)
    }

    fn put(&mut self, value: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
        self.bytes_from(value.as_bytes())
    }

    /// The next `len` bytes of the buffer, which grows for them.
    fn reserve(&mut self, len: usize) -> Result<&mut [u8], Errno> {
        if len > self.room() {
            return Err(Errno::EINVAL);
        }
        let end = self.len + len;
        if end > self.storage.len() {
            if end > LARGEST {
                return Err(Errno::EINVAL);
            }
            self.storage.resize(end.next_power_of_two(), 0);
        }
        self.storage.get_mut(self.len..end).ok_or(Errno::EINVAL)
    }
}
