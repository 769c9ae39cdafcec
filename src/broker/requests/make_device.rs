//! `MakeDevice` (`--modcaps=+mknod`): block and character device nodes, for which the kernel wants `CAP_MKNOD` in
//! the host's user namespace.
//!
//! The node is made as the guest's root and for nobody else: only root has the capability in a guest, and a FUSE
//! request does not tell which capabilities an ordinary process had. The share's mount has `nodev`, so on this
//! host nothing can open the node through the share.

use std::os::fd::BorrowedFd;

use nix::sys::stat::{Mode, SFlag, makedev, mknodat, umask};

use super::Server;
use crate::config::IdMapEntry;
use crate::protocol::message::{DeviceKind, MakeDevice};
use crate::protocol::{Errno, ToWorker};

/// The host's ids of the worker's ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIds {
    /// Lines of the user map.
    pub uids: Vec<IdMapEntry>,
    /// Lines of the group map.
    pub gids: Vec<IdMapEntry>,
}

impl HostIds {
    /// The host's number of the worker's user `id`.
    pub fn uid(&self, id: u32) -> Option<u32> {
        to_outer(&self.uids, id)
    }

    /// The host's number of the worker's group `id`.
    pub fn gid(&self, id: u32) -> Option<u32> {
        to_outer(&self.gids, id)
    }
}

fn to_outer(map: &[IdMapEntry], id: u32) -> Option<u32> {
    map.iter().find_map(|line| {
        let offset = id.checked_sub(line.inner).filter(|offset| *offset < line.count)?;
        line.outer.checked_add(offset)
    })
}

/// Makes the node in `directory`, which must be on a mount of the share.
pub(super) fn make_device(server: &mut Server, device: &MakeDevice, directory: BorrowedFd<'_>) -> ToWorker {
    ToWorker::DeviceMade(try_make(server, device, directory).map_err(Errno::from))
}

fn try_make(
    server: &mut Server,
    device: &MakeDevice,
    directory: BorrowedFd<'_>,
) -> Result<(), nix::errno::Errno> {
    use nix::errno::Errno;
    if server.readonly {
        return Err(Errno::EROFS);
    }
    if device.uid != 0 {
        return Err(Errno::EPERM);
    }
    server.mounts.check(directory)?;
    let uid = server.host_ids.uid(device.uid).ok_or(Errno::EOVERFLOW)?;
    let gid = server.host_ids.gid(device.gid).ok_or(Errno::EOVERFLOW)?;
    let kind = match device.kind {
        DeviceKind::Block => SFlag::S_IFBLK,
        DeviceKind::Character => SFlag::S_IFCHR,
    };
    let permissions = Mode::from_bits_truncate(device.permissions.bits() as libc::mode_t);
    let number = makedev(u64::from(device.major), u64::from(device.minor));
    server.privileges.make_device(uid, gid, || {
        // Process-wide, and this process has one thread; the broker makes no other files.
        let before = umask(Mode::from_bits_truncate(device.umask.bits() as libc::mode_t));
        let result = mknodat(directory, device.name.as_cstr(), kind, permissions, number);
        umask(before);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_through_the_map_or_nowhere() {
        let line = |inner, outer, count| IdMapEntry { inner, outer, count };
        let ids = HostIds {
            uids: vec![line(0, 1000, 1), line(1, 100_000, 10)],
            gids: vec![line(0, u32::MAX - 1, 10)],
        };
        assert_eq!(ids.uid(0), Some(1000));
        assert_eq!(ids.uid(10), Some(100_009));
        assert_eq!(ids.uid(11), None);
        assert_eq!(ids.gid(1), Some(u32::MAX));
        assert_eq!(ids.gid(2), None, "beyond the last id");
        assert_eq!(HostIds::default().uid(0), None);
    }
}
