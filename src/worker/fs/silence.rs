//! Whether a guest needs to send FLUSH when one of its descriptors of a file is closed (`FOPEN_NOFLUSH`, protocol 7.35,
//! Linux 5.16; older guests and others don't know the flag and send it).
//!
//! FLUSH asks what the host's file system has to say at a `close`, and has the guest write back what it changed through
//! mappings first, and report errors of that. Neither can come of a descriptor that was opened for reading alone, nor of one
//! for writing alone on a file system that does nothing at a `close`: such can't be mapped for writing. With both, the guest
//! may have mapped it. A guest with a write-back cache ignores the flag.

use std::os::fd::BorrowedFd;

use super::inodes::Identity;
use super::sys;
use crate::worker::fuse::wire::OpenReplyFlags;

/// File systems whose file operations have no `flush` (in `fs/{ext4,xfs,btrfs}/file.c` and `mm/shmem.c`), as NFS, FUSE,
/// SMB and overlays of such do. ext2 and ext3 share ext4's number, and its code mostly.
const SILENT: [libc::c_long; 4] =
    [libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC, libc::BTRFS_SUPER_MAGIC, libc::TMPFS_MAGIC];

/// A mount of such a file system, so that not every open asks.
#[derive(Debug, Default)]
pub struct SilentMount(Option<u64>);

impl SilentMount {
    /// What to tell the guest of a file that it has opened with these flags.
    pub fn flags(&mut self, opened: u32, identity: &Identity, file: BorrowedFd<'_>) -> OpenReplyFlags {
        let silent = match opened as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => true,
            libc::O_WRONLY => self.holds(identity, file),
            _ => false,
        };
        if silent { OpenReplyFlags::NOFLUSH } else { OpenReplyFlags::empty() }
    }

    fn holds(&mut self, identity: &Identity, file: BorrowedFd<'_>) -> bool {
        if self.0 == Some(identity.mount) {
            return true;
        }
        let silent = sys::fstatfs(file).is_ok_and(|st| SILENT.contains(&st.f_type));
        if silent && identity.has_unique_mount() {
            self.0 = Some(identity.mount);
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn identity(mount: u64) -> Identity {
        Identity { mount, device: 0, ino: 1 }
    }

    fn needs_flush(mount: &mut SilentMount, access: i32, identity: &Identity, file: &File) -> bool {
        mount.flags(access.cast_unsigned(), identity, file.as_fd()).is_empty()
    }

    #[test]
    fn files_opened_for_reading_need_no_flush_anywhere() {
        let file = File::open("/proc/self/status").unwrap();
        let mut mount = SilentMount::default();
        assert!(!needs_flush(&mut mount, libc::O_RDONLY, &identity(1 << 40), &file));
        assert!(needs_flush(&mut mount, libc::O_WRONLY, &identity(1 << 40), &file));
        assert!(needs_flush(&mut mount, libc::O_RDWR, &identity(1 << 40), &file));
    }

    #[test]
    fn a_mount_is_remembered_only_if_its_id_is_not_used_again() {
        let memory = File::from(memfd_create(c"silent", MFdFlags::MFD_CLOEXEC).unwrap());
        let other = File::open("/proc/self/status").unwrap();
        for (id, remembered) in [(1 << 40, true), (27, false)] {
            let mut mount = SilentMount::default();
            assert!(!needs_flush(&mut mount, libc::O_WRONLY, &identity(id), &memory));
            assert_eq!(needs_flush(&mut mount, libc::O_WRONLY, &identity(id), &other), !remembered);
            assert!(needs_flush(&mut mount, libc::O_WRONLY, &identity(id + 1), &other));
            assert!(needs_flush(&mut mount, libc::O_RDWR, &identity(id), &memory));
        }
    }
}
