//! The broker's system calls that have no safe wrapper elsewhere, each as a safe function.

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use sandbox::capabilities::CapabilitySet;

use crate::protocol::FileHandle;
use crate::protocol::bounded::Bytes;
use crate::protocol::handle::MAX_HANDLE_BYTES;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: c_uint,
    handle_type: c_int,
    f_handle: [u8; MAX_HANDLE_BYTES],
}

fn fd_result(result: c_long) -> Result<OwnedFd, Errno> {
    let fd = c_int::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the system call succeeded and returned a new fd, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `ioctl(SIOCOUTQ)`, which has the number of `TIOCOUTQ`: how much of what was sent on a UNIX socket its reader has
/// not read yet; 0 is nothing.
///
/// # Errors
/// The kernel's.
pub fn unread(socket: BorrowedFd<'_>) -> Result<c_int, Errno> {
    let mut amount: c_int = 0;
    // SAFETY: this request writes one int, to a variable that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut amount) };
    Errno::result(result)?;
    Ok(amount)
}

/// `name_to_handle_at(fd, "", AT_EMPTY_PATH)`: the handle of the file that `fd` is, and the id of its mount.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has no handles, and the kernel's others.
pub fn handle_of(fd: BorrowedFd<'_>) -> Result<(FileHandle, MountId), Errno> {
    let mut raw = RawHandle {
        handle_bytes: MAX_HANDLE_BYTES as c_uint,
        handle_type: 0,
        f_handle: [0; MAX_HANDLE_BYTES],
    };
    let mut mount: c_int = 0;
    // SAFETY: `raw` has the layout of struct file_handle and states the room behind it truly; the path is a
    // NUL-terminated literal; `mount` is an int that outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    let bytes = raw.f_handle.get(..raw.handle_bytes as usize).ok_or(Errno::EOVERFLOW)?;
    let bytes = Bytes::new(bytes).map_err(|_| Errno::EOVERFLOW)?;
    let mount = MountId(u64::try_from(mount).map_err(|_| Errno::EOVERFLOW)?);
    Ok((FileHandle { handle_type: raw.handle_type, bytes }, mount))
}

/// `open_by_handle_at` on the mount that `mount` is on: an `O_PATH` fd. Needs `CAP_DAC_READ_SEARCH` in the host's
/// user namespace.
///
/// # Errors
/// `ESTALE` when the file is gone, and the kernel's others.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    let bytes = handle.bytes.as_slice();
    let mut raw = RawHandle {
        handle_bytes: c_uint::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?,
        handle_type: handle.handle_type,
        f_handle: [0; MAX_HANDLE_BYTES],
    };
    raw.f_handle.get_mut(..bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
    // SAFETY: `raw` has the layout of struct file_handle and at least `handle_bytes` bytes behind its head.
    fd_result(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
        )
    })
}

/// `AT_HANDLE_CONNECTABLE` (Linux 6.13).
const AT_HANDLE_CONNECTABLE: c_int = 0x2;
/// `FILEID_IS_CONNECTABLE`: the flag in a handle's type that goes with it. The kernel opens such a handle only if
/// the file can be reached from the root of the mount that it is opened on.
const FILEID_IS_CONNECTABLE: c_int = 0x1_0000;
/// `FILEID_USER_FLAGS_MASK`: not the file system's part of a handle's type.
const FILEID_USER_FLAGS: c_int = FILEID_IS_CONNECTABLE.wrapping_neg();

/// Whether this kernel knows connectable handles, and this file system makes them. An older kernel would hand the
/// flag on to the file system, so without this check nothing must be opened by [`open_foreign_handle`].
pub fn proves_handles(directory: BorrowedFd<'_>) -> bool {
    let mut raw = RawHandle {
        handle_bytes: MAX_HANDLE_BYTES as c_uint,
        handle_type: 0,
        f_handle: [0; MAX_HANDLE_BYTES],
    };
    let mut mount: c_int = 0;
    // SAFETY: `raw` has the layout of struct file_handle and states the room behind it truly; the path is a
    // NUL-terminated literal; `mount` is an int that outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            directory.as_raw_fd(),
            c".".as_ptr(),
            &raw mut raw,
            &raw mut mount,
            AT_HANDLE_CONNECTABLE,
        )
    };
    result == 0 && raw.handle_type & FILEID_IS_CONNECTABLE != 0
}

/// [`open_handle`] of a handle that anybody may have made: only if the kernel finds its file below the root of
/// the mount.
///
/// # Errors
/// `ESTALE` when it doesn't, `EINVAL` for a type that no file system has, and the kernel's others.
pub fn open_foreign_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    if handle.handle_type & FILEID_USER_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let handle_type = handle.handle_type | FILEID_IS_CONNECTABLE;
    open_handle(mount, &FileHandle { handle_type, bytes: handle.bytes.clone() })
}

/// A mount's id as `/proc/self/mountinfo` has it: unique while the mount exists, so keep an fd on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MountId(u64);

/// What the broker wants to know about an fd.
#[derive(Clone, Copy, Debug)]
pub struct FdStat {
    /// The mount that it is on.
    pub mount: MountId,
    /// Whether it is the root of that mount.
    pub is_mount_root: bool,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// `statx` of the file that `fd` is, asking no server.
///
/// # Errors
/// `ENOSYS` where the kernel can't tell mounts apart (before 5.8), and the kernel's others.
pub fn stat_fd(fd: BorrowedFd<'_>) -> Result<FdStat, Errno> {
    let mask = libc::STATX_TYPE | libc::STATX_MNT_ID;
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    let stat = statx(fd, c"", flags, mask)?;
    Ok(FdStat {
        mount: MountId(stat.stx_mnt_id),
        is_mount_root: stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        is_directory: u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
    })
}

/// `getxattr` into `value`; gives the length.
///
/// # Errors
/// The kernel's.
pub fn get_xattr(path: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: both strings are NUL-terminated; the kernel writes at most `value.len()` bytes into `value`.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    Errno::result(len).map(isize::unsigned_abs)
}

/// `setxattr` with `flags` (`XATTR_CREATE`, `XATTR_REPLACE` or 0).
///
/// # Errors
/// The kernel's.
pub fn set_xattr(path: &CStr, name: &CStr, value: &[u8], flags: c_int) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated; the kernel reads `value.len()` bytes of `value`.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(result).map(drop)
}

/// `listxattr` into `names`; gives the length.
///
/// # Errors
/// The kernel's.
pub fn list_xattr(path: &CStr, names: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the path is NUL-terminated; the kernel writes at most `names.len()` bytes into `names`.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    Errno::result(len).map(isize::unsigned_abs)
}

/// `removexattr`.
///
/// # Errors
/// The kernel's.
pub fn remove_xattr(path: &CStr, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Random bytes from the kernel, once it has gathered enough randomness after boot.
///
/// # Errors
/// The kernel's; not `EINTR`.
pub fn random_key() -> Result<[u8; 16], Errno> {
    let mut key = [0; 16];
    loop {
        // SAFETY: the kernel writes at most `key.len()` bytes into `key`.
        let len = unsafe { libc::getrandom(key.as_mut_ptr().cast(), key.len(), 0) };
        match Errno::result(len) {
            // Requests of up to 256 bytes are never cut short.
            Ok(_) => return Ok(key),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Which file a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    device: (u32, u32),
    inode: u64,
    kind: u32,
}

impl EntryId {
    /// Whether it is a socket.
    pub fn is_socket(self) -> bool {
        self.kind == libc::S_IFSOCK
    }
}

/// The file that `name` in `directory` is; a symbolic link is not followed.
///
/// # Errors
/// The kernel's.
pub fn entry_id(directory: BorrowedFd<'_>, name: &CStr) -> Result<EntryId, Errno> {
    entry_of(directory, name, libc::AT_SYMLINK_NOFOLLOW)
}

/// The file that `fd` is.
///
/// # Errors
/// The kernel's.
pub fn own_id(fd: BorrowedFd<'_>) -> Result<EntryId, Errno> {
    entry_of(fd, c"", libc::AT_EMPTY_PATH)
}

fn entry_of(directory: BorrowedFd<'_>, name: &CStr, flags: c_int) -> Result<EntryId, Errno> {
    let stat = statx(directory, name, flags, libc::STATX_TYPE | libc::STATX_INO)?;
    Ok(EntryId {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        kind: u32::from(stat.stx_mode) & libc::S_IFMT,
    })
}

fn statx(directory: BorrowedFd<'_>, name: &CStr, flags: c_int, mask: c_uint) -> Result<libc::statx, Errno> {
    // SAFETY: all-zero bytes are a valid statx: integers only.
    let mut stat: libc::statx = unsafe { mem::zeroed() };
    // SAFETY: the name is NUL-terminated, `stat` outlives the call.
    Errno::result(unsafe { libc::statx(directory.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut stat) })?;
    // A kernel that can't fill in a field says so in the mask.
    if stat.stx_mask & mask == mask { Ok(stat) } else { Err(Errno::ENOSYS) }
}

/// `struct __user_cap_header_struct` and two of `struct __user_cap_data_struct`, version 3 of the interface.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets this thread's permitted and effective capabilities; the inheritable set becomes empty.
///
/// # Errors
/// `EPERM` when `permitted` is more than it is now, or `effective` not within it.
pub fn set_capabilities(permitted: CapabilitySet, effective: CapabilitySet) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective.bits() >> shift) as u32,
        permitted: (permitted.bits() >> shift) as u32,
        inheritable: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: both pointers are to live structs of the layout that version 3 of capset reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}
