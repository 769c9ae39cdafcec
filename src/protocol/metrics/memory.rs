//! The memory itself: a memfd whose size is sealed, and its mappings.

use std::num::NonZero;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::ftruncate;

use super::Metrics;

/// Why there is no such memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricsMemoryError {
    /// A step of making it.
    #[error("cannot make memory for metrics ({step}): {errno}")]
    Make {
        /// The system call.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// It can't be mapped.
    #[error("cannot map the memory for metrics: {0}")]
    Map(Errno),
    /// What was passed is something else.
    #[error("the file descriptor is not the memory for metrics: its size is not sealed, or another")]
    NotOurs,
}

/// A memfd of the right size, which nobody can change.
#[derive(Debug)]
pub struct MetricsMemory {
    /// For the worker, which maps it to write.
    pub fd: OwnedFd,
}

impl MetricsMemory {
    /// New memory, all zeros.
    ///
    /// # Errors
    /// By step.
    pub fn create() -> Result<Self, MetricsMemoryError> {
        let failed = |step| move |errno| MetricsMemoryError::Make { step, errno };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"virtiofsd-metrics", flags).map_err(failed("memfd_create"))?;
        ftruncate(&fd, size_of::<Metrics>() as libc::off_t).map_err(failed("ftruncate"))?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals())).map_err(failed("F_ADD_SEALS"))?;
        Ok(Self { fd })
    }

    /// The same memory for somebody who may only read it.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn read_only(&self) -> Result<OwnedFd, MetricsMemoryError> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| MetricsMemoryError::Make { step: "open it to read", errno })
    }
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A mapping.
#[derive(Debug)]
pub struct Region(NonNull<Metrics>);

// SAFETY: a Region gives out only shared references to atomic integers, which any thread may use, and unmaps when
// its one owner drops it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps it to read and write.
    ///
    /// # Errors
    /// When it is not a memfd of sealed, right size, or can't be mapped.
    pub fn writable(fd: &OwnedFd) -> Result<Self, MetricsMemoryError> {
        Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps it to read: whoever writes through this mapping is killed, so use it only to load.
    ///
    /// # Errors
    /// As [`Self::writable`].
    pub fn read_only(fd: &OwnedFd) -> Result<Self, MetricsMemoryError> {
        Self::map(fd, ProtFlags::PROT_READ)
    }

    fn map(fd: &OwnedFd, protection: ProtFlags) -> Result<Self, MetricsMemoryError> {
        let sealed = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
        let size = fstat(fd).map_err(MetricsMemoryError::Map)?.st_size;
        let length = size_of::<Metrics>();
        if !sealed.is_ok_and(|sealed| sealed.contains(seals())) || u64::try_from(size) != Ok(length as u64) {
            return Err(MetricsMemoryError::NotOurs);
        }
        let length = NonZero::new(length).ok_or(MetricsMemoryError::NotOurs)?;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing. The file is as long as the
        // mapping and its size is sealed (checked above), so no access can fault; all bytes of it are valid as
        // atomic integers; the mapping lives until `drop`.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd.as_fd(), 0) };
        Ok(Self(address.map_err(MetricsMemoryError::Map)?.cast()))
    }
}

impl Deref for Region {
    type Target = Metrics;

    fn deref(&self) -> &Metrics {
        // SAFETY: the mapping is live as long as `self`, page-aligned and as long as a `Metrics`, which consists of
        // atomic integers only: any bytes are valid, and other processes may write them meanwhile.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this is the address and length of a mapping that this value made and owns; no reference to it
        // outlives the value.
        let _ = unsafe { munmap(self.0.cast(), size_of::<Metrics>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_the_worker_writes_is_read_and_the_reader_cannot_write_or_resize() {
        let memory = MetricsMemory::create().unwrap();
        let reader = memory.read_only().unwrap();
        let (written, read) = (Region::writable(&memory.fd).unwrap(), Region::read_only(&reader).unwrap());
        written.device.inodes.store(42, Ordering::Relaxed);
        assert_eq!(read.device.inodes.load(Ordering::Relaxed), 42);
        assert_eq!(Region::writable(&reader).unwrap_err(), MetricsMemoryError::Map(Errno::EACCES));
        for size in [0, 1 << 30] {
            assert_eq!(ftruncate(&memory.fd, size), Err(Errno::EPERM));
        }
    }

    #[test]
    fn other_memory_is_not_taken() {
        let other = memfd_create(c"other", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&other, size_of::<Metrics>() as libc::off_t).unwrap();
        assert_eq!(Region::read_only(&other).unwrap_err(), MetricsMemoryError::NotOurs);
        fcntl(&other, FcntlArg::F_ADD_SEALS(seals())).unwrap();
        assert!(Region::read_only(&other).is_ok());
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(Region::read_only(&file.into()).unwrap_err(), MetricsMemoryError::NotOurs);
    }
}
