//! Which file descriptors a process keeps. [`crate::process::Spawn`] already starts a process with the listed
//! ones only; a program started by somebody else (a service manager, a test) calls [`keep_only`] itself.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::sys;

/// Why the descriptors could not be put in order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// close_range(2) failed.
    #[error(
        "cannot close file descriptors {first} to {last}: {errno} (close_range needs Linux 5.9 or newer)"
    )]
    Close {
        /// First of the range.
        first: u32,
        /// Last of the range.
        last: u32,
        /// The kernel's reason.
        errno: Errno,
    },
    /// close_range(2) with CLOSE_RANGE_CLOEXEC failed.
    #[error(
        "cannot mark file descriptors from {first} close-on-exec: {errno} (this needs Linux 5.11 or newer)"
    )]
    CloseOnExec {
        /// First of the range.
        first: u32,
        /// The kernel's reason.
        errno: Errno,
    },
    /// fcntl(2) failed.
    #[error("cannot change whether file descriptor {fd} survives exec: {errno}")]
    Inherit {
        /// The descriptor.
        fd: RawFd,
        /// The kernel's reason.
        errno: Errno,
    },
}

/// Closes every descriptor of the process but those in `keep`.
///
/// # Errors
///
/// [`FdError::Close`]; some ranges may then be closed and others not.
///
/// # Safety
///
/// Nothing in the process may own or use a descriptor that is not in `keep`, in any thread, now or later: call
/// it at the start of `main`, before anything has been opened.
pub unsafe fn keep_only(keep: &[RawFd]) -> Result<(), FdError> {
    for (first, last) in gaps(keep) {
        // SAFETY: the range holds no member of `keep`; the caller vouches that nobody uses any other.
        unsafe { sys::close_range(first, last, 0) }.map_err(|errno| FdError::Close { first, last, errno })?;
    }
    Ok(())
}

/// Makes every descriptor from `first` on close when this process executes another program.
///
/// # Errors
///
/// [`FdError::CloseOnExec`].
pub fn close_on_exec_from(first: u32) -> Result<(), FdError> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing now.
    unsafe { sys::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }
        .map_err(|errno| FdError::CloseOnExec { first, errno })
}

/// Sets whether one descriptor survives exec.
///
/// # Errors
///
/// [`FdError::Inherit`].
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> Result<(), FdError> {
    let flags = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags))
        .map(drop)
        .map_err(|errno| FdError::Inherit { fd: fd.as_raw_fd(), errno })
}

/// The ranges, in order and both ends included, that hold every descriptor number but those in `keep`
/// (negative ones are ignored).
pub(crate) fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut gaps = Vec::with_capacity(kept.len() + 1);
    let mut next = 0;
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = fd + 1; // at most 2^31: a descriptor number is at most i32::MAX
    }
    gaps.push((next, u32::MAX));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_lies_between() {
        assert_eq!(gaps(&[]), [(0, u32::MAX)]);
        assert_eq!(gaps(&[0, 1, 2]), [(3, u32::MAX)]);
        assert_eq!(gaps(&[7, 3, 3, 4]), [(0, 2), (5, 6), (8, u32::MAX)]);
        assert_eq!(gaps(&[-1, i32::MAX]), [(0, 0x7fff_fffe), (0x8000_0000, u32::MAX)]);
    }

    #[test]
    fn inheritance_can_be_switched_on_and_off() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/").unwrap();
        let close_on_exec =
            |file: &std::fs::File| fcntl(file, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0;
        set_inheritable(file.as_fd(), true).unwrap();
        assert!(!close_on_exec(&file));
        set_inheritable(file.as_fd(), false).unwrap();
        assert!(close_on_exec(&file));
    }
}
