//! Attaching mounts in another process's mount namespace, and detaching them there, from a process that belongs in
//! this one: it enters the other one only for that.
//!
//! Nothing here is found by a path alone. Places are opened below a directory without following links
//! ([`open_below`]), and what is detached is named by a descriptor of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;

use crate::sys;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum GraftError {
    /// A step of the preparation.
    #[error("cannot open {what}: {errno}. Is /proc mounted?")]
    Open {
        /// What.
        what: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The other namespace can't be entered.
    #[error("cannot enter the mount namespace: {0} (this takes CAP_SYS_ADMIN and CAP_SYS_CHROOT)")]
    Enter(Errno),
    /// The process is left in the other namespace: it must end.
    #[error("cannot go back to the own mount namespace: {0}")]
    Return(Errno),
}

/// Where a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The id of its mount, as in mountinfo.
    pub mount: u64,
    /// It is the root of that mount.
    pub is_root: bool,
}

/// Asks where `fd` is.
///
/// # Errors
/// ENOSYS before Linux 5.8, and the kernel's others.
pub fn place_of(fd: BorrowedFd<'_>) -> Result<Place, Errno> {
    let stat = sys::statx_fd(fd, libc::STATX_MNT_ID)?;
    let is_root = stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0;
    Ok(Place { mount: stat.stx_mnt_id, is_root })
}

/// An `O_PATH` descriptor of what is at `path` below `root`, the topmost mount there. No link is followed and nothing
/// leads out, whoever changes the tree at the same time.
///
/// # Errors
/// ELOOP for a link, EXDEV for a way out, and the kernel's others.
pub fn open_below(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    sys::open_path_beneath(root, path)
}

/// This process's mount namespace and another one.
#[derive(Debug)]
pub struct Namespaces {
    own: OwnedFd,
    other: OwnedFd,
    /// `/proc/self` of this one's procfs; there may be none in the other.
    process: OwnedFd,
    /// `/proc/self/fd`: what is to be detached is named in it.
    fds: OwnedFd,
}

impl Namespaces {
    /// For a process of one thread. Its root and working directory become the root of its own mount namespace.
    ///
    /// # Errors
    /// [`GraftError`]
    pub fn new(other: OwnedFd) -> Result<Self, GraftError> {
        let failed = |what| move |errno| GraftError::Open { what, errno };
        let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let process = open("/proc/self", path, Mode::empty()).map_err(failed("/proc/self"))?;
        let fds = openat(&process, "fd", path, Mode::empty()).map_err(failed("/proc/self/fd"))?;
        let own = openat(&process, "ns/mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("/proc/self/ns/mnt"))?;
        let namespaces = Self { own, other, process, fds };
        namespaces.go_back()?;
        Ok(namespaces)
    }

    fn go_back(&self) -> Result<(), GraftError> {
        setns(&self.own, CloneFlags::CLONE_NEWNS).map_err(GraftError::Return)
    }

    /// Runs `act` in the other namespace.
    ///
    /// # Errors
    /// [`GraftError::Enter`] before `act`, [`GraftError::Return`] after it.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> Result<T, GraftError> {
        setns(&self.other, CloneFlags::CLONE_NEWNS).map_err(GraftError::Enter)?;
        let result = act();
        self.go_back()?;
        Ok(result)
    }

    /// The list of mounts of the namespace that the process is in now, as it is seen from its root now. It stays that
    /// one's: POLLPRI comes with each change, and reading from the start gives the new list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mountinfo(&self) -> Result<OwnedFd, Errno> {
        openat2_read(self.process.as_fd(), c"mountinfo")
    }

    /// The path of what `fd` is, from the root of the namespace that the process is in now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn path_of(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        use std::os::unix::ffi::OsStringExt;
        Ok(readlinkat(&self.fds, number(fd).as_c_str())?.into_vec())
    }

    /// Attaches a detached mount on top of what `target` is in the other namespace.
    ///
    /// # Errors
    /// [`GraftError`]; inside, the kernel's.
    pub fn attach(
        &self,
        mount: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
    ) -> Result<Result<(), Errno>, GraftError> {
        self.inside(|| sys::move_mount_onto(mount, target))
    }

    /// Detaches the mount that `root` is the root of in the other namespace, whoever uses it. If something is mounted
    /// over its root, that is detached instead. That it is attached no more is no error.
    ///
    /// # Errors
    /// [`GraftError`]; inside, the kernel's.
    pub fn detach(&self, root: BorrowedFd<'_>) -> Result<Result<(), Errno>, GraftError> {
        let name = number(root);
        self.inside(|| {
            // By its descriptor, since its path may be any other by now; the other namespace has no procfs.
            fchdir(&self.fds)?;
            match umount2(name.as_c_str(), MntFlags::MNT_DETACH) {
                Err(Errno::EINVAL) => Ok(()),
                result => result,
            }
        })
    }

    /// Makes a mount of the other namespace read-only, or writable.
    ///
    /// # Errors
    /// [`GraftError`]; inside, the kernel's: EBUSY while something is open for writing.
    pub fn set_read_only(
        &self,
        mount: BorrowedFd<'_>,
        read_only: bool,
    ) -> Result<Result<(), Errno>, GraftError> {
        let (set, clear) =
            if read_only { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
        let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
        self.inside(|| sys::mount_setattr(mount, 0, &attributes))
    }
}

fn number(fd: BorrowedFd<'_>) -> CString {
    // Digits have no NUL.
    CString::new(fd.as_raw_fd().to_string()).unwrap_or_default()
}

/// By openat2, as everything is opened here, so that a system call filter needs no other.
fn openat2_read(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    use nix::fcntl::{OpenHow, ResolveFlag, openat2};
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(dir, name, how)
}
