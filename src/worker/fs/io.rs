//! READ, WRITE, LSEEK, FALLOCATE, COPY_FILE_RANGE: file data goes between the host's file and guest memory
//! without a copy.

use nix::errno::Errno;

use super::sys::{self, Result};
use super::{FileSystem, Thread};
use crate::worker::buffers::{GuestData, GuestRoom};
use crate::worker::fuse::operation::{Context, HandleId, NodeId, Read, Write};

/// More than this at once is split by the kernel anyway (`MAX_RW_COUNT`).
const MAX_COPY: u64 = 0x7fff_f000;

impl FileSystem {
    /// READ into guest memory; bytes read, less than `read.size` at the end of the file.
    pub fn read(&self, ctx: &Context, read: Read, room: &mut GuestRoom<'_>) -> Result<usize> {
        let handle = self.handles.get(read.handle, ctx.node)?;
        let offset = i64::try_from(read.offset).map_err(|_| Errno::EINVAL)?;
        room.fill(read.size as usize, |iov, done| {
            // SAFETY: GuestRoom's elements are mapped guest memory that the guest gave us to write to.
            unsafe { sys::read_at(handle.fd(), iov, offset.saturating_add(done as i64)) }
        })
    }

    /// WRITE from guest memory; bytes written.
    pub fn write(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        write: Write,
        data: &mut GuestData<'_>,
    ) -> Result<usize> {
        let handle = self.handles.get(write.handle, ctx.node)?;
        self.writable()?;
        let offset = i64::try_from(write.offset).map_err(|_| Errno::EINVAL)?;
        // What comes from the guest's page cache has its place in the file. What a program writes to a file
        // opened with O_APPEND goes to the end that the host knows.
        let append = write.flags & libc::O_APPEND as u32 != 0 && !write.from_cache;
        let flags = if append { libc::RWF_APPEND } else { 0 };
        self.drop_renamed_capability(&handle.inode)?;
        let run = || {
            data.drain(write.size as usize, |iov, done| {
                // SAFETY: GuestData's elements are mapped guest memory.
                unsafe { sys::write_at(handle.fd(), iov, offset.saturating_add(done as i64), flags) }
            })
        };
        let set_id = self.set_id_of_write(thread, ctx, &write, handle.flags);
        self.changing(thread, &handle.inode, handle.fd(), set_id, run)
    }

    /// LSEEK for data and holes; the new offset.
    pub fn lseek(&self, ctx: &Context, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        let handle = self.handles.get(handle, ctx.node)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let whence = whence as i32;
        // A directory's position belongs to READDIR; a guest only asks for these two.
        if !matches!(
            whence,
            libc::SEEK_DATA | libc::SEEK_HOLE | libc::SEEK_SET | libc::SEEK_CUR | libc::SEEK_END
        ) || handle.inode.is_dir()
        {
            return Err(Errno::EINVAL);
        }
        sys::lseek(handle.fd(), offset, whence).map(i64::cast_unsigned)
    }

    /// FALLOCATE
    pub fn fallocate(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        handle: HandleId,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let handle = self.handles.get(handle, ctx.node)?;
        self.writable()?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = i64::try_from(length).map_err(|_| Errno::EINVAL)?;
        let run = || sys::fallocate(handle.fd(), mode as i32, offset, length);
        self.changing(thread, &handle.inode, handle.fd(), self.set_id_unsaid(thread, ctx), run)
    }

    /// COPY_FILE_RANGE on the host; bytes copied.
    #[expect(clippy::too_many_arguments, reason = "the fields of the request, nothing else")]
    pub fn copy_file_range(
        &self,
        thread: &mut Thread,
        ctx: &Context,
        handle_in: HandleId,
        offset_in: u64,
        node_out: NodeId,
        handle_out: HandleId,
        offset_out: u64,
        length: u64,
        flags: u64,
    ) -> Result<usize> {
        let from = self.handles.get(handle_in, ctx.node)?;
        let to = self.handles.get(handle_out, node_out)?;
        self.writable()?;
        let offset_in = i64::try_from(offset_in).map_err(|_| Errno::EINVAL)?;
        let offset_out = i64::try_from(offset_out).map_err(|_| Errno::EINVAL)?;
        let flags = u32::try_from(flags).map_err(|_| Errno::EINVAL)?;
        self.drop_renamed_capability(&to.inode)?;
        let length = length.min(MAX_COPY) as usize;
        let run = || sys::copy_file_range(from.fd(), offset_in, to.fd(), offset_out, length, flags);
        self.changing(thread, &to.inode, to.fd(), self.set_id_unsaid(thread, ctx), run)
    }
}
