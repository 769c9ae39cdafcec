//! The kernel's side of a FUSE mount: open, mount, clone, unmount.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

mod ioctl {
    #![allow(missing_docs, reason = "the macro makes one undocumented function")]
    //! FUSE_DEV_IOC_CLONE
    nix::ioctl_read!(clone, 229, 0, u32);
}

/// Opens `/dev/fuse`, non-blocking.
pub fn open() -> nix::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse");
    file.map(OwnedFd::from).map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Mounts with the options that make the client act as virtio-fs does: every user may use it, and the kernel
/// checks permissions.
pub fn mount(fuse: BorrowedFd<'_>, mountpoint: &Path) -> nix::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    nix::mount::mount(Some("fuse-bridge"), mountpoint, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
}

/// Another descriptor of the same FUSE connection, with a queue of its own for what it has read.
pub fn clone(session: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let device = open()?;
    let mut number = u32::try_from(session.as_raw_fd()).expect("a descriptor is not negative");
    // SAFETY: the ioctl reads one u32 through the pointer, which is valid for the call.
    unsafe { ioctl::clone(device.as_raw_fd(), &raw mut number) }?;
    Ok(device)
}

/// Unmounts; waits for the kernel to write back and forget everything.
pub fn unmount(mountpoint: &Path) -> nix::Result<()> {
    umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW)
}

/// Aborts the connection (that is what force means to FUSE), so that every waiting program gets an error, and
/// takes the mount away even if it is in use. It needs no mounted fusectl, as `/sys/fs/fuse/connections` does.
pub fn force_unmount(mountpoint: &Path) -> nix::Result<()> {
    umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)
}
