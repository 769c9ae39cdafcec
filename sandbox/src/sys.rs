//! System calls that neither std nor nix wraps: one function a call, no policy, and most of this crate's
//! unsafe code. The calls that change credentials are made directly, because the C library's functions of
//! the same name change every thread of the process.

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

/// The "no change" value of the id system calls; never a valid id.
pub(crate) const NO_ID: u32 = u32::MAX;

/// A file descriptor that a system call has just made.
fn new_fd(result: c_long) -> Result<OwnedFd, Errno> {
    let raw = Errno::result(result)? as RawFd;
    // SAFETY: the kernel has just returned this number as a new descriptor of ours, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// open_tree(2).
pub(crate) fn open_tree(dir: BorrowedFd<'_>, path: &CStr, flags: c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call, which writes to no memory of ours.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// mount_setattr(2) on the mount that `mount` refers to, and with `AT_RECURSIVE` in `flags` on all below it.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    flags: c_int,
    attributes: &libc::mount_attr,
) -> Result<(), Errno> {
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a static C string, and `attributes` is a live mount_attr whose true size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            ptr::from_ref(attributes),
            size,
        )
    };
    Errno::result(result).map(drop)
}

/// fsopen(2), close-on-exec.
pub(crate) fn fsopen(file_system: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is NUL-terminated and outlives the call, which writes to no memory of ours.
    new_fd(unsafe { libc::syscall(libc::SYS_fsopen, file_system.as_ptr(), libc::FSOPEN_CLOEXEC) })
}

/// One fsconfig(2) command: `key` and `value` as the command wants them.
pub(crate) fn fsconfig(
    context: BorrowedFd<'_>,
    command: c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: both pointers are null or C strings that outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0)
    };
    Errno::result(result).map(drop)
}

/// fsmount(2), close-on-exec: a detached mount with these `MOUNT_ATTR_*`.
pub(crate) fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers only.
    new_fd(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes as c_uint)
    })
}

/// move_mount(2): attaches the detached mount at `target`.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    // SAFETY: both paths are C strings that outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// move_mount(2): attaches the detached mount on top of what `target` is.
pub(crate) fn move_mount_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both paths are static C strings; the call only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// openat2(2): an `O_PATH` descriptor of `path`, which is resolved below `dir` without following any link.
pub(crate) fn open_path_beneath(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: all-zero bytes are a valid open_how: integers only.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    // Without O_NOFOLLOW, with which a link would be opened as itself.
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path is NUL-terminated, and `how` is a live open_how whose true size is passed; both outlive the call.
    new_fd(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

/// statx(2) with this mask of the file that `fd` is, asking no server. A field that the kernel can't fill in is ENOSYS.
pub(crate) fn statx_fd(fd: BorrowedFd<'_>, mask: c_uint) -> Result<libc::statx, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: all-zero bytes are a valid statx: integers only.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a static C string, `stat` outlives the call.
    Errno::result(unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut stat) })?;
    if stat.stx_mask & mask == mask { Ok(stat) } else { Err(Errno::ENOSYS) }
}

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
pub(crate) const STATX_MNT_ID_UNIQUE: c_uint = 0x4000;

/// `struct mnt_id_req` of linux/mount.h, its first version.
#[repr(C)]
struct MountIdRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
}

/// `struct statmount` of linux/mount.h up to where a mount gets its mounts from, and room for what comes behind.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawMountStat {
    before: [u64; 8],
    attributes: u64,
    propagation: u64,
    peer_group: u64,
    master: u64,
    behind: [u64; 52],
}

/// What statmount(2) says of a mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountStat {
    /// The group of mounts that it shares mounts with; 0 for none.
    pub peer_group: u64,
    /// The group that it gets mounts from; 0 for none.
    pub master: u64,
}

/// statmount(2) (Linux 6.8) of the mount with this unique id.
pub(crate) fn statmount(mount: u64) -> Result<MountStat, Errno> {
    /// The same number on every architecture.
    const SYS_STATMOUNT: c_long = 457;
    /// `STATMOUNT_MNT_BASIC`
    const BASIC: u64 = 2;
    let request = MountIdRequest { size: size_of::<MountIdRequest>() as u32, spare: 0, mount, param: BASIC };
    let mut stat = RawMountStat {
        before: [0; 8],
        attributes: 0,
        propagation: 0,
        peer_group: 0,
        master: 0,
        behind: [0; 52],
    };
    let size = size_of::<RawMountStat>();
    // SAFETY: both structures are live, of the layout of linux/mount.h, with their true sizes.
    let result = unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, &raw mut stat, size, 0) };
    Errno::result(result)?;
    // size and mnt_opts, then the mask.
    match stat.before.get(1) {
        Some(mask) if mask & BASIC != 0 => Ok(MountStat { peer_group: stat.peer_group, master: stat.master }),
        _ => Err(Errno::ENOSYS),
    }
}

/// close_range(2).
///
/// # Safety
///
/// Unless `flags` has `CLOSE_RANGE_CLOEXEC`, nothing in this process may own or still use a descriptor in
/// `first..=last`.
pub(crate) unsafe fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<(), Errno> {
    // SAFETY: the call takes integers only; that the descriptors may go is this function's own contract.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    // SAFETY: a null siginfo asks the kernel to fill in its own; the other arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// waitid(2) for the end of the child that a pidfd refers to: si_code and si_status, or `None` when it still runs
/// and `flags` has WNOHANG. (nix's wrapper fails on a death by a real-time signal, having reaped the child.)
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>, flags: c_int) -> Result<Option<(c_int, c_int)>, Errno> {
    // SAFETY: all zero is a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is live, and the call writes at most one siginfo_t to it.
    let result = unsafe {
        libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, &raw mut info, libc::WEXITED | flags)
    };
    Errno::result(result)?;
    // SAFETY: waitid has filled in si_pid and si_status, or left the zeroes that say "none yet".
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some((info.si_code, status)))
}

/// setfsuid(2) for this thread: the id in force before. It reports no error: ask again with [`NO_ID`].
pub(crate) fn setfsuid(uid: u32) -> u32 {
    // SAFETY: the call takes an integer only.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) as u32 }
}

/// setfsgid(2) for this thread: the id in force before. It reports no error: ask again with [`NO_ID`].
pub(crate) fn setfsgid(gid: u32) -> u32 {
    // SAFETY: the call takes an integer only.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) as u32 }
}

/// setgroups(2) for this thread.
pub(crate) fn setgroups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the pointer and the count describe one live slice, which the call only reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// prctl(PR_GET_SECUREBITS).
pub(crate) fn securebits() -> Result<c_int, Errno> {
    // SAFETY: this command takes no argument.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) })
}

/// prctl(PR_SET_SECUREBITS) for this thread.
pub(crate) fn set_securebits(bits: c_int) -> Result<(), Errno> {
    // SAFETY: this command takes an integer only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong) }).map(drop)
}

/// prctl(PR_CAPBSET_READ) of this thread; EINVAL for a capability that the kernel doesn't have.
pub(crate) fn bounding_has(capability: u32) -> Result<bool, Errno> {
    // SAFETY: this command takes an integer only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability)) };
    Ok(Errno::result(result)? == 1)
}

/// prctl(PR_CAPBSET_DROP) for this thread.
pub(crate) fn bounding_drop(capability: u32) -> Result<(), Errno> {
    // SAFETY: this command takes an integer only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
    Errno::result(result).map(drop)
}

/// The three sets that capget(2) and capset(2) handle, bit n being capability n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CapabilityBits {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// `struct __user_cap_data_struct` of linux/capability.h; version 3 takes two, low half first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// capget(2) of this thread.
pub(crate) fn capget() -> Result<CapabilityBits, Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: header and data are live, of the layout that version 3 prescribes (two data elements).
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapabilityBits {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
    })
}

/// capset(2) of this thread.
pub(crate) fn capset(bits: CapabilityBits) -> Result<(), Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapabilityData {
        effective: (bits.effective >> shift) as u32,
        permitted: (bits.permitted >> shift) as u32,
        inheritable: (bits.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: header and data are live, of the layout that version 3 prescribes (two data elements); the call
    // writes at most the header's version.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}
