//! What a thread needs to know of the mount that a file is on, kept from the last request.

use std::os::fd::BorrowedFd;

use super::inodes::Identity;
use super::sys;

/// Local file systems that do nothing when a file is closed (no `flush` in `fs/{ext4,xfs,btrfs}/file.c`, `mm/shmem.c`), as
/// NFS, FUSE, SMB and overlays of such do, and for whose regular files `O_NONBLOCK` means nothing. ext2 and ext3 share
/// ext4's number, and its code mostly.
const PLAIN: [libc::c_long; 4] =
    [libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC, libc::BTRFS_SUPER_MAGIC, libc::TMPFS_MAGIC];

/// `ST_VALID` (`include/linux/statfs.h`): the kernel has filled in `f_flags`.
const ST_VALID: u64 = 0x20;

/// A mount's properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountKind {
    /// It shows a file system of [`PLAIN`].
    pub is_plain: bool,
    /// To open a device node on it is refused.
    pub is_nodev: bool,
}

impl MountKind {
    fn of(st: &libc::statfs64) -> Self {
        let flags = st.f_flags as u64;
        MountKind {
            is_plain: PLAIN.contains(&st.f_type),
            is_nodev: flags & ST_VALID != 0 && flags & libc::ST_NODEV != 0,
        }
    }
}

/// The mount that was asked about last, so that not every open asks.
#[derive(Debug, Default)]
pub struct LastMount(Option<(u64, MountKind)>);

impl LastMount {
    /// What is known of the mount of an inode, of which `fd` is any fd; nothing if the host doesn't say.
    pub fn kind(&mut self, identity: &Identity, fd: BorrowedFd<'_>) -> MountKind {
        match self.0 {
            Some((id, kind)) if id == identity.mount => kind,
            _ => {
                let kind = sys::fstatfs(fd).map(|st| MountKind::of(&st)).unwrap_or_default();
                if identity.has_unique_mount() {
                    self.0 = Some((identity.mount, kind));
                }
                kind
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    #[test]
    fn a_mount_is_remembered_only_if_its_id_is_not_used_again() {
        let memory = File::from(memfd_create(c"kind", MFdFlags::MFD_CLOEXEC).unwrap());
        let other = File::open("/proc/self/status").unwrap();
        for (id, remembered) in [(1 << 40, true), (27, false)] {
            let identity = |mount| Identity { mount, device: 0, ino: 1 };
            let mut last = LastMount::default();
            assert!(last.kind(&identity(id), memory.as_fd()).is_plain);
            assert_eq!(last.kind(&identity(id), other.as_fd()).is_plain, remembered);
            assert!(!last.kind(&identity(id + 1), other.as_fd()).is_plain);
            assert!(last.kind(&identity(id), memory.as_fd()).is_plain);
        }
    }

    #[test]
    fn flags_count_only_where_the_kernel_gives_them() {
        let mut st = sys::fstatfs(File::open("/proc/self/status").unwrap().as_fd()).unwrap();
        for (flags, is_nodev) in [(0, false), (4, false), (0x20, false), (0x24, true), (0x2e, true)] {
            st.f_flags = flags;
            assert_eq!(MountKind::of(&st).is_nodev, is_nodev, "{flags:#x}");
        }
    }
}
