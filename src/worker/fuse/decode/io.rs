//! Requests on open files: data, ranges, locks, ioctls.
//!
//! Offsets are `u64` on the wire and `off_t` for the system: every one that leaves here fits an `i64`, and so
//! does the end of its range. Where an answer may be short (READ, COPY_FILE_RANGE) the range is cut instead
//! of refused, so that the last page of the largest possible file can be read.

use nix::errno::Errno;

use super::cursor::Cursor;
use super::{MAX_DIR_REPLY, MAX_IOCTL};
use crate::worker::fuse::operation::{HandleId, Lock, NodeId, Operation, Read, ReadDir, Write};
use crate::worker::fuse::wire::{self, Opcode};

/// The largest offset (`OFFSET_MAX`, `i64::MAX`).
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

/// Most that a COPY_FILE_RANGE reply, a `u32`, can count: whole pages, so that the next copy begins aligned.
const MAX_NARROW_COPY: u64 = 0xffff_f000;

/// How many bytes lie between `offset` and the end of the largest file.
fn room_behind(offset: u64) -> Result<u64, Errno> {
    OFFSET_MAX.checked_sub(offset).ok_or(Errno::EINVAL)
}

/// Refuses a range that ends beyond the largest file.
fn check_range(offset: u64, length: u64) -> Result<(), Errno> {
    if length <= room_behind(offset)? { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Most bytes that one read call moves (`MAX_RW_COUNT`).
const MAX_READ: u32 = 0x7fff_f000;

/// `room` as a `u32` not above `size`.
fn cut(size: u32, room: u64) -> u32 {
    u32::try_from(room).map_or(size, |room| size.min(room))
}

pub(super) fn read(opcode: Opcode, mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::ReadIn = body.fixed()?;
    let handle = HandleId(fixed.fh);
    if opcode == Opcode::Read {
        let size = cut(fixed.size.min(MAX_READ), room_behind(fixed.offset)?);
        return Ok(Operation::Read(Read { handle, offset: fixed.offset, size, flags: fixed.flags }));
    }
    let list = ReadDir { handle, offset: fixed.offset, size: fixed.size.min(MAX_DIR_REPLY) };
    Ok(if opcode == Opcode::ReadDir { Operation::ReadDir(list) } else { Operation::ReadDirPlus(list) })
}

/// `data` is how much the message holds behind the fixed part.
pub(super) fn write(mut body: Cursor<'_>, data: usize) -> Result<Operation<'_>, Errno> {
    let fixed: wire::WriteIn = body.fixed()?;
    check_range(fixed.offset, u64::from(fixed.size))?;
    if usize::try_from(fixed.size).map_or(true, |size| size > data) {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::Write(Write {
        handle: HandleId(fixed.fh),
        offset: fixed.offset,
        size: fixed.size,
        flags: fixed.flags,
        from_cache: fixed.write_flags & wire::WRITE_CACHE != 0,
        kill_suidgid: fixed.write_flags & wire::WRITE_KILL_SUIDGID != 0,
    }))
}

pub(super) fn close(opcode: Opcode, mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    if opcode == Opcode::Flush {
        let fixed: wire::FlushIn = body.fixed()?;
        return Ok(Operation::Flush { handle: HandleId(fixed.fh), lock_owner: fixed.lock_owner });
    }
    let fixed: wire::ReleaseIn = body.fixed()?;
    let handle = HandleId(fixed.fh);
    if opcode == Opcode::ReleaseDir {
        return Ok(Operation::ReleaseDir { handle });
    }
    Ok(Operation::Release {
        handle,
        flock_unlock: fixed.release_flags & wire::RELEASE_FLOCK_UNLOCK != 0,
        lock_owner: fixed.lock_owner,
    })
}

pub(super) fn fsync(opcode: Opcode, mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::FSyncIn = body.fixed()?;
    let handle = HandleId(fixed.fh);
    let datasync = fixed.fsync_flags & wire::FSYNC_FDATASYNC != 0;
    Ok(if opcode == Opcode::FSync {
        Operation::FSync { handle, datasync }
    } else {
        Operation::FSyncDir { handle, datasync }
    })
}

pub(super) fn fallocate(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::FAllocateIn = body.fixed()?;
    check_range(fixed.offset, fixed.length)?;
    Ok(Operation::FAllocate {
        handle: HandleId(fixed.fh),
        offset: fixed.offset,
        length: fixed.length,
        mode: fixed.mode,
    })
}

pub(super) fn lseek(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    const SET: u32 = libc::SEEK_SET.cast_unsigned();
    const END: u32 = libc::SEEK_END.cast_unsigned();
    const DATA: u32 = libc::SEEK_DATA.cast_unsigned();
    const HOLE: u32 = libc::SEEK_HOLE.cast_unsigned();
    let fixed: wire::LSeekIn = body.fixed()?;
    let beyond = fixed.offset > OFFSET_MAX;
    match fixed.whence {
        // As the kernel answers a negative offset, which the guest passes on unchecked.
        DATA | HOLE if beyond => Err(Errno::ENXIO),
        SET..=END | DATA | HOLE if !beyond => {
            Ok(Operation::LSeek { handle: HandleId(fixed.fh), offset: fixed.offset, whence: fixed.whence })
        }
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn copy_file_range(opcode: Opcode, mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::CopyFileRangeIn = body.fixed()?;
    let wide = opcode == Opcode::CopyFileRange64;
    let room = room_behind(fixed.off_in)?.min(room_behind(fixed.off_out)?);
    let most = if wide { room } else { room.min(MAX_NARROW_COPY) };
    Ok(Operation::CopyFileRange {
        handle_in: HandleId(fixed.fh_in),
        offset_in: fixed.off_in,
        node_out: NodeId(fixed.nodeid_out),
        handle_out: HandleId(fixed.fh_out),
        offset_out: fixed.off_out,
        length: fixed.len.min(most),
        flags: fixed.flags,
        wide,
    })
}

pub(super) fn lock(opcode: Opcode, mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    const UNLOCK: u32 = libc::F_UNLCK as u32;
    let fixed: wire::LkIn = body.fixed()?;
    let wire::FileLock { start, end, kind, pid } = fixed.lk;
    if start > end || end > OFFSET_MAX || kind > UNLOCK {
        return Err(Errno::EINVAL);
    }
    let flock = fixed.lk_flags & wire::LK_FLOCK != 0;
    let lock = Lock { handle: HandleId(fixed.fh), owner: fixed.owner, start, end, kind, pid, flock };
    match opcode {
        Opcode::GetLk if kind == UNLOCK => Err(Errno::EINVAL),
        Opcode::GetLk => Ok(Operation::GetLk(lock)),
        _ => Ok(Operation::SetLk { lock, wait: opcode == Opcode::SetLkWait }),
    }
}

pub(super) fn ioctl(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::IoctlIn = body.fixed()?;
    let in_size = usize::try_from(fixed.in_size).map_err(|_| Errno::EINVAL)?;
    let out_size = usize::try_from(fixed.out_size).map_err(|_| Errno::EINVAL)?;
    if in_size > MAX_IOCTL || out_size > MAX_IOCTL {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::Ioctl {
        handle: HandleId(fixed.fh),
        flags: fixed.flags,
        command: fixed.cmd,
        input: body.bytes(in_size)?,
        out_size: fixed.out_size,
    })
}
