//! System calls that no safe wrapper has as they are needed here.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// A mapped file, as bytes.
pub(super) struct Mapping {
    start: NonNull<libc::c_void>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes, for reading and writing.
    pub(super) fn new(file: &File, len: usize, flags: MapFlags) -> Result<Mapping, Errno> {
        let length = len.try_into().map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at an address that the kernel chooses; it covers nothing that exists.
        let start =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, file, 0) }?;
        Ok(Mapping { start, len })
    }

    /// The bytes. Nobody else in this process has a reference to them, and the file isn't cut short meanwhile.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start` and `len` are those of a mapping that lives as long as self, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len) }
    }

    /// Writes changes back and waits for it.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        // SAFETY: as in `bytes`; it changes no memory.
        unsafe { msync(self.start, self.len, MsFlags::MS_SYNC) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more: `bytes` borrows self.
        unsafe { munmap(self.start, self.len) }.expect("an own mapping can be unmapped");
    }
}

/// Where data or a hole begins at or after `offset`.
pub(super) fn seek(file: &File, offset: i64, whence: i32) -> Result<i64, Errno> {
    // SAFETY: passes integers only.
    Errno::result(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// Takes or lets go a lock without waiting: flock(2).
pub(super) fn flock(file: &File, operation: i32) -> Result<(), Errno> {
    // SAFETY: passes integers only.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// Takes or lets go an open-file-description lock on a range, without waiting.
pub(super) fn range_lock(file: &File, kind: i32, start: i64, len: i64) -> Result<(), Errno> {
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the argument is a live struct flock.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

/// Renames with flags.
pub(super) fn rename(from: &Path, to: &Path, flags: u32) -> Result<(), Errno> {
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL in our paths");
    let (from, to) = (path(from), path(to));
    // SAFETY: both are C strings that live through the call.
    let result =
        unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    Errno::result(result).map(drop)
}

/// An entry of a directory, and the cookie of the place behind it.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) next: i64,
}

/// Reads as many entries as fit into a page, from where the directory stands. None at its end.
pub(super) fn read_entries(dir: &File) -> io::Result<Vec<Entry>> {
    let mut buffer = [0u8; 4096];
    // SAFETY: the buffer has the length that is passed.
    let filled =
        unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
    let mut entries = Vec::new();
    let mut rest = &buffer[..filled];
    // struct linux_dirent64: inode number, cookie, length of the record (2 bytes), type, name with its NUL.
    while rest.len() > 19 {
        let next = i64::from_ne_bytes(rest[8..16].try_into().expect("8 bytes"));
        let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        let name = rest[19..length].split(|byte| *byte == 0).next().unwrap_or_default();
        entries.push(Entry { name: OsString::from_vec(name.to_vec()), next });
        rest = &rest[length..];
    }
    Ok(entries)
}
