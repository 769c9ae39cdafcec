//! The structs and constants of the kernel's `fuse.h` (FUSE protocol 7.x), byte for byte.
//!
//! Facts are from `include/uapi/linux/fuse.h` of Linux 7.3 (protocol 7.46); sizes were compared with those a
//! C compiler computes from that header. Not here, because no virtio-fs device sends or receives it: CUSE,
//! notifications (the Linux driver never acknowledges `VIRTIO_FS_F_NOTIFICATION`), io_uring and the ioctls of
//! `/dev/fuse`.
//!
//! Integers are in the guest's byte order; the daemon serves little-endian guests on little-endian hosts.
//! Nothing here is checked: that is what `decode` is for.

mod flags;
mod opcode;
mod reply;
mod request;

pub use flags::{
    AttrFlags, FSYNC_FDATASYNC, GETATTR_FH, InitFlags, LK_FLOCK, OPEN_KILL_SUIDGID, OpenReplyFlags,
    RELEASE_FLOCK_UNLOCK, SETXATTR_ACL_KILL_SGID, SetAttrValid, WRITE_CACHE, WRITE_KILL_SUIDGID,
};
pub use opcode::Opcode;
pub use reply::*;
pub use request::*;

const _: () = assert!(cfg!(target_endian = "little"), "virtio-fs messages are read in host byte order");

/// Major version of the protocol (`FUSE_KERNEL_VERSION`).
pub const MAJOR: u32 = 7;
/// Minor version that this daemon speaks. 7.46 exists, but adds only io_uring.
pub const MINOR: u32 = 45;
/// Oldest minor version that is served, as by upstream. Every Linux with virtio-fs (5.4: 7.31) speaks a later one.
pub const MIN_MINOR: u32 = 27;
/// Node id of the root of the share (`FUSE_ROOT_ID`).
pub const ROOT_ID: u64 = 1;
/// A user or group id that has no meaning here (`FUSE_INVALID_UIDGID`, also `-1` in chown and setfsuid).
pub const INVALID_ID: u32 = u32::MAX;
/// Type of the supplementary groups extension (`FUSE_EXT_GROUPS`); types 0–31 are counts of security contexts.
pub const EXT_GROUPS: u32 = 32;
/// Variable-length records in replies begin at multiples of this (`FUSE_REC_ALIGN`).
pub const RECORD_ALIGN: usize = 8;

/// Defines structs of the wire: each field with its meaning on one line, the size in C beside the name.
macro_rules! wire_structs {
    ($($(#[$meta:meta])* struct $name:ident, $size:literal { $($field:ident: $kind:ty, $doc:literal;)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        #[repr(C)]
        pub struct $name { $(#[doc = $doc] pub $field: $kind,)* }

        const _: () = assert!(size_of::<$name>() == $size, "not the size that the struct has in fuse.h");
    )*};
}
use wire_structs;
