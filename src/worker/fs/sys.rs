//! The system calls of the passthrough file system: each takes borrowed fds and returns owned ones, and every
//! raw fd of the file system is in this file. No policy, no retries, no path longer than one component.
//!
//! A `struct statx` has a quarter of a KiB, and a function that returns one copies it: hence `inline(always)`, here and on
//! its whole way into an answer (a tenth of a warm lookup).

use std::ffi::CStr;
use std::hint::cold_path;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::protocol::FileHandle;
use crate::protocol::bounded::Bytes;
use crate::protocol::handle::MAX_HANDLE_BYTES;

/// What a system call of this file gives.
pub type Result<T> = std::result::Result<T, Errno>;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): the mount id is never used again.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
/// The empty path, for calls on the fd itself.
const EMPTY: &CStr = c"";

/// Turns the C convention (-1 and errno) into a result.
fn check<T: PartialEq + From<i8>>(ret: T) -> Result<T> {
    if ret == T::from(-1) {
        cold_path();
        return Err(Errno::last());
    }
    Ok(ret)
}

/// Owns what a successful call returned.
fn owned(ret: libc::c_int) -> Result<OwnedFd> {
    let fd: RawFd = check(ret)?;
    // SAFETY: the kernel has just made this fd for us and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The decimal name of an fd in the fd directory, on the stack.
pub struct FdName([u8; 12]);

impl FdName {
    /// Formats the fd's number.
    pub fn new(fd: BorrowedFd<'_>) -> Self {
        let mut buf = [0u8; 12];
        let mut digits = [0u8; 10];
        let mut n = fd.as_raw_fd().unsigned_abs();
        let mut len = 0;
        for slot in &mut digits {
            *slot = b'0' + (n % 10) as u8;
            n /= 10;
            len += 1;
            if n == 0 {
                break;
            }
        }
        for (to, from) in buf.iter_mut().zip(digits[..len].iter().rev()) {
            *to = *from;
        }
        FdName(buf)
    }

    /// As a C string.
    pub fn as_cstr(&self) -> &CStr {
        // At most ten digits in twelve zeroed bytes: there is always a NUL.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(EMPTY)
    }
}

/// `openat`, by number as `statx` below: the C library's functions are cancellation points, which costs a thread
/// two atomic operations a call.
pub fn openat(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated; the call touches no other memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_openat, dir.as_raw_fd(), name.as_ptr(), flags, mode) };
    owned(fd as libc::c_int)
}

/// An `O_PATH` fd of what any fd is open on: `open_tree` without `OPEN_TREE_CLONE` is an `open` that takes an empty path,
/// and needs half the time of one through `/proc/self/fd`.
pub fn path_fd(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::AT_EMPTY_PATH as u32 | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is NUL-terminated; the call touches no other memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), EMPTY.as_ptr(), flags) };
    owned(fd as libc::c_int)
}

/// An fd that is closed by number, as [`openat`] opens; nobody cares what `close` says.
pub struct QuickFd(ManuallyDrop<OwnedFd>);

impl From<OwnedFd> for QuickFd {
    fn from(fd: OwnedFd) -> Self {
        QuickFd(ManuallyDrop::new(fd))
    }
}

impl AsFd for QuickFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for QuickFd {
    fn drop(&mut self) {
        // SAFETY: the fd is ours and is not used again: this is its owner's drop, which drops nothing else.
        unsafe { libc::syscall(libc::SYS_close, self.0.as_raw_fd()) };
    }
}

/// Makes the kernel's table of fds large enough for this many. It grows by itself, but for a process with threads only
/// at the end of an RCU grace period: some 10 ms in which nothing is opened, for each doubling.
pub fn expand_fd_table(fd: BorrowedFd<'_>, fds: i32) {
    // SAFETY: no memory is passed.
    let highest = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, fds - 1) };
    // Without it (beyond the limit, no memory) the table grows later.
    drop(owned(highest));
}

/// Attributes and the unique mount id of a name in a directory, not following a symbolic link.
#[inline(always)]
pub fn statx_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<libc::statx> {
    statx_raw(dir, name, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT, BASIC)
}

/// Attributes and the unique mount id of an open file or `O_PATH` fd.
#[inline(always)]
pub fn statx_fd(fd: BorrowedFd<'_>) -> Result<libc::statx> {
    statx_fd_for(fd, BASIC)
}

/// Device, inode number and unique mount id of an open file. Without its times: since Linux 6.13, a change that follows when
/// those were asked for costs more (multigrain timestamps).
#[inline(always)]
pub fn identity_fd(fd: BorrowedFd<'_>) -> Result<libc::statx> {
    statx_fd_for(fd, IDENTITY)
}

#[inline(always)]
fn statx_fd_for(fd: BorrowedFd<'_>, mask: u32) -> Result<libc::statx> {
    let name = if NAMELESS.load(Ordering::Relaxed) { ptr::null() } else { EMPTY.as_ptr() };
    // SAFETY: without a name, or with one that is NUL-terminated.
    unsafe { statx_by(fd, name, libc::AT_EMPTY_PATH, mask) }
}

/// Does the kernel take no name for an empty one (Linux 6.11 and later)? It then needn't read it from our memory.
static NAMELESS: AtomicBool = AtomicBool::new(false);

/// Finds that out, with any fd.
pub fn learn_nameless(fd: BorrowedFd<'_>) {
    // SAFETY: without a name.
    let found = unsafe { statx_by(fd, ptr::null(), libc::AT_EMPTY_PATH, BASIC) };
    NAMELESS.store(found.is_ok(), Ordering::Relaxed);
}

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE_BYTES],
}

/// The handle of the inode that an fd is open on: what the broker seals. Comparing is all that a worker can do with it.
pub fn handle_of(fd: BorrowedFd<'_>) -> Result<FileHandle> {
    let mut raw =
        RawHandle { bytes: MAX_HANDLE_BYTES as libc::c_uint, kind: 0, handle: [0; MAX_HANDLE_BYTES] };
    let mut mount: libc::c_int = 0;
    // SAFETY: `raw` has the layout of struct file_handle and says how much room there is; the name is NUL-terminated;
    // `mount` is an int.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            EMPTY.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let bytes = raw.handle.get(..raw.bytes as usize).and_then(|bytes| Bytes::new(bytes).ok());
    Ok(FileHandle { handle_type: raw.kind, bytes: bytes.ok_or(Errno::EOVERFLOW)? })
}

/// What tells an inode from others. Kernels before 6.8 ignore the unknown bit and leave the field 0, so the
/// plain mount id is asked for as well; the unique one wins where both are known.
const IDENTITY: u32 = libc::STATX_INO | libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
/// What lookups and GETATTR need.
const BASIC: u32 = libc::STATX_BASIC_STATS | IDENTITY;

/// `statx` with the caller's flags and mask.
#[inline(always)]
pub fn statx_raw(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mask: u32) -> Result<libc::statx> {
    // SAFETY: the name is NUL-terminated.
    unsafe { statx_by(dir, name.as_ptr(), flags, mask) }
}

/// # Safety
/// `name` must be null or point to a NUL-terminated string.
#[inline(always)]
unsafe fn statx_by(
    dir: BorrowedFd<'_>,
    name: *const libc::c_char,
    flags: i32,
    mask: u32,
) -> Result<libc::statx> {
    let mut st = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: the caller vouches for the name, and `st` has room for one struct statx.
    check(unsafe { libc::syscall(libc::SYS_statx, dir.as_raw_fd(), name, flags, mask, st.as_mut_ptr()) })?;
    // SAFETY: on success the kernel has filled the whole struct.
    Ok(unsafe { st.assume_init() })
}

/// Reads into `iov` at an offset.
///
/// # Safety
/// As [`preadv2`].
#[inline(always)]
pub unsafe fn read_at(fd: BorrowedFd<'_>, iov: &[libc::iovec], offset: i64) -> Result<usize> {
    match iov {
        [piece] => {
            let libc::iovec { iov_base: base, iov_len: length } = *piece;
            // SAFETY: the caller vouches for the one element.
            let n = unsafe { libc::syscall(libc::SYS_pread64, fd.as_raw_fd(), base, length, offset) };
            check(n).map(|n| n as usize)
        }
        // SAFETY: the caller vouches for all elements.
        _ => unsafe { preadv2(fd, iov, offset, 0) },
    }
}

/// Writes `iov` at an offset, or, with `RWF_APPEND` among the flags, at the end.
///
/// # Safety
/// As [`pwritev2`].
#[inline(always)]
pub unsafe fn write_at(fd: BorrowedFd<'_>, iov: &[libc::iovec], offset: i64, flags: i32) -> Result<usize> {
    match (iov, flags) {
        ([piece], 0) => {
            let libc::iovec { iov_base: base, iov_len: length } = *piece;
            // SAFETY: the caller vouches for the one element.
            let n = unsafe { libc::syscall(libc::SYS_pwrite64, fd.as_raw_fd(), base, length, offset) };
            check(n).map(|n| n as usize)
        }
        // SAFETY: the caller vouches for all elements.
        _ => unsafe { pwritev2(fd, iov, offset, flags) },
    }
}

/// `preadv2` and `pwritev2` take an offset in two halves of a `long` each, and where that has 64 bits ignore the upper.
const HIGH: libc::c_long = 0;

/// `preadv2`
///
/// # Safety
/// Every element of `iov` must be memory that may be written and stays mapped during the call.
unsafe fn preadv2(fd: BorrowedFd<'_>, iov: &[libc::iovec], offset: i64, flags: i32) -> Result<usize> {
    let count = iov.len().min(libc::UIO_MAXIOV as usize);
    // SAFETY: the caller vouches for the elements; `count` does not exceed the slice.
    let n =
        unsafe { libc::syscall(libc::SYS_preadv2, fd.as_raw_fd(), iov.as_ptr(), count, offset, HIGH, flags) };
    check(n).map(|n| n as usize)
}

/// `pwritev2`
///
/// # Safety
/// Every element of `iov` must be memory that may be read and stays mapped during the call.
unsafe fn pwritev2(fd: BorrowedFd<'_>, iov: &[libc::iovec], offset: i64, flags: i32) -> Result<usize> {
    let count = iov.len().min(libc::UIO_MAXIOV as usize);
    // SAFETY: the caller vouches for the elements; `count` does not exceed the slice.
    let n = unsafe {
        libc::syscall(libc::SYS_pwritev2, fd.as_raw_fd(), iov.as_ptr(), count, offset, HIGH, flags)
    };
    check(n).map(|n| n as usize)
}

/// Fills `buf` with `struct linux_dirent64`s; 0 at the end of the directory.
pub fn getdents64(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    check(n).map(|n| n as usize)
}

/// `lseek`
pub fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<i64> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) })
}

/// `mkdirat`
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// `mknodat`
pub fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u64) -> Result<()> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

/// `symlinkat`
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Links the inode behind an fd, through its name in the fd directory (`AT_EMPTY_PATH` would need a
/// capability on the host before Linux 6.10).
pub fn link_fd(fd_dir: BorrowedFd<'_>, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let source = FdName::new(fd);
    // SAFETY: both strings are NUL-terminated.
    check(unsafe {
        libc::linkat(
            fd_dir.as_raw_fd(),
            source.as_cstr().as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })
    .map(drop)
}

/// `unlinkat`; `flags` is 0 or `AT_REMOVEDIR`.
pub fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<()> {
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// `renameat2`, by number: the C library takes an older call when there are no flags.
pub fn renameat2(from: BorrowedFd<'_>, old: &CStr, to: BorrowedFd<'_>, new: &CStr, flags: u32) -> Result<()> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both names are NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_renameat2, from, old.as_ptr(), to, new.as_ptr(), flags) })
        .map(drop)
}

/// The target of the symbolic link behind an `O_PATH` fd; its length (a longer target is cut).
pub fn readlink_fd(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let n = unsafe { libc::readlinkat(fd.as_raw_fd(), EMPTY.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    check(n).map(|n| n as usize)
}

/// What the kernel calls the file that an fd is open on: its path, relative to the root of a detached tree of
/// mounts; its length. Only a hint: a removed file's has ` (deleted)` behind it, and that may also be a name.
///
/// # Errors
/// ENAMETOOLONG when the path doesn't fit into a page.
pub fn path_of_fd(fd_dir: BorrowedFd<'_>, fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize> {
    let name = FdName::new(fd);
    // SAFETY: the name is NUL-terminated; the kernel writes at most `buf.len()` bytes to `buf`.
    let n = unsafe {
        libc::readlinkat(fd_dir.as_raw_fd(), name.as_cstr().as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    };
    check(n).map(|n| n as usize)
}

/// Changes the permission bits of the inode behind any fd, through its name in the fd directory: fchmod takes no
/// `O_PATH` fds, and fchmodat2 needs Linux 6.6.
pub fn chmod_fd(fd_dir: BorrowedFd<'_>, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let name = FdName::new(fd);
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::fchmodat(fd_dir.as_raw_fd(), name.as_cstr().as_ptr(), mode, 0) }).map(drop)
}

/// Changes the owner of the inode behind any fd; `u32::MAX` leaves an id.
pub fn chown_fd(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), EMPTY.as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }).map(drop)
}

/// Sets access and modification time of the inode behind any fd.
pub fn utimens_fd(fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> Result<()> {
    // SAFETY: the path is NUL-terminated, `times` has the two elements that the call reads.
    check(unsafe { libc::utimensat(fd.as_raw_fd(), EMPTY.as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
        .map(drop)
}

/// `ftruncate`
pub fn ftruncate(fd: BorrowedFd<'_>, size: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// `fstatfs`
pub fn fstatfs(fd: BorrowedFd<'_>) -> Result<libc::statfs64> {
    let mut st = MaybeUninit::<libc::statfs64>::uninit();
    // SAFETY: `st` has room for one struct statfs64.
    check(unsafe { libc::fstatfs64(fd.as_raw_fd(), st.as_mut_ptr()) })?;
    // SAFETY: on success the kernel has filled the whole struct.
    Ok(unsafe { st.assume_init() })
}

/// `fsync`, or `fdatasync` for the data only.
pub fn fsync(fd: BorrowedFd<'_>, datasync: bool) -> Result<()> {
    let raw = fd.as_raw_fd();
    // SAFETY: no memory is passed.
    check(unsafe { if datasync { libc::fdatasync(raw) } else { libc::fsync(raw) } }).map(drop)
}

/// `syncfs`
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}

/// `fallocate`
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, length: i64) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate64(fd.as_raw_fd(), mode, offset, length) }).map(drop)
}

/// `copy_file_range` at two offsets.
pub fn copy_file_range(
    from: BorrowedFd<'_>,
    mut from_offset: i64,
    to: BorrowedFd<'_>,
    mut to_offset: i64,
    length: usize,
    flags: u32,
) -> Result<usize> {
    // SAFETY: both offsets are live i64s for the length of the call.
    let n = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &raw mut from_offset,
            to.as_raw_fd(),
            &raw mut to_offset,
            length,
            flags,
        )
    };
    check(n).map(|n| n as usize)
}

/// Another fd of the same open file.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|_| Errno::last())
}

/// What `close` of one more reference to this open file says: where a file system reports delayed errors.
pub fn flush(fd: BorrowedFd<'_>) -> Result<()> {
    let copy = duplicate(fd)?;
    // SAFETY: the fd is ours and is given up here; Linux frees it even when close reports an error.
    check(unsafe { libc::close(copy.into_raw_fd()) }).map(drop)
}

/// The name in the fd directory, which is the worker's working directory: the only way to reach extended
/// attributes of special files and symbolic links, which can't be opened.
fn proc_name(fd: BorrowedFd<'_>) -> FdName {
    FdName::new(fd)
}

/// `setxattr` on the inode behind any fd.
pub fn setxattr_fd(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
    let path = proc_name(fd);
    // SAFETY: both strings are NUL-terminated; the kernel reads `value.len()` bytes of `value`.
    check(unsafe {
        libc::setxattr(path.as_cstr().as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    })
    .map(drop)
}

/// `getxattr` on the inode behind any fd; with an empty buffer, the value's size.
pub fn getxattr_fd(fd: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    let path = proc_name(fd);
    // SAFETY: both strings are NUL-terminated; the kernel writes at most `buf.len()` bytes.
    let n =
        unsafe { libc::getxattr(path.as_cstr().as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    check(n).map(|n| n as usize)
}

/// `listxattr` on the inode behind any fd; with an empty buffer, the list's size.
pub fn listxattr_fd(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize> {
    let path = proc_name(fd);
    // SAFETY: the path is NUL-terminated; the kernel writes at most `buf.len()` bytes.
    let n = unsafe { libc::listxattr(path.as_cstr().as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    check(n).map(|n| n as usize)
}

/// `removexattr` on the inode behind any fd.
pub fn removexattr_fd(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let path = proc_name(fd);
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::removexattr(path.as_cstr().as_ptr(), name.as_ptr()) }).map(drop)
}

/// Makes the fd directory the working directory, for the calls above.
pub fn enter_fd_directory(fd_dir: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fchdir(fd_dir.as_raw_fd()) }).map(drop)
}

/// Sets the calling thread's umask (the process's, unless the thread has its own `fs_struct`).
pub fn set_umask(mask: u32) {
    // SAFETY: umask can't fail and passes no memory.
    unsafe { libc::umask(mask) };
}

/// Gives the calling thread an umask and working directory of its own.
pub fn unshare_fs() -> Result<()> {
    // SAFETY: no memory is passed; CLONE_FS concerns the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// A byte range as `fcntl` takes it; length 0 is all to the end.
fn byte_range(kind: i16, start: i64, length: i64) -> libc::flock {
    libc::flock { l_type: kind, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

/// Takes or gives up a byte-range lock of this open file description; EAGAIN when another's is in the way.
pub fn set_range_lock(fd: BorrowedFd<'_>, kind: i16, start: i64, length: i64) -> Result<()> {
    let lock = byte_range(kind, start, length);
    // SAFETY: the kernel reads one struct flock, which is live during the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

/// The lock that is in the way of this one, or one of type `F_UNLCK`.
pub fn get_range_lock(fd: BorrowedFd<'_>, kind: i16, start: i64, length: i64) -> Result<libc::flock> {
    let mut lock = byte_range(kind, start, length);
    // SAFETY: the kernel reads and writes one struct flock, which is live during the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(lock)
}

/// `flock`
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation) }).map(drop)
}

/// One of the ioctls on an inode's flags, whose argument is an int or a `struct fsxattr` (28 bytes).
pub fn inode_ioctl(fd: BorrowedFd<'_>, command: u32, argument: &mut [u8; 28]) -> Result<()> {
    // SAFETY: of the commands that `fs::ioctl` passes, none reads or writes more than 28 bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), command as libc::Ioctl, argument.as_mut_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fd_names_are_decimal() {
        let file = std::fs::File::open("/").unwrap();
        assert_eq!(FdName::new(file.as_fd()).as_cstr().to_str().unwrap(), file.as_raw_fd().to_string());
    }
}
