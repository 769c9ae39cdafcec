//! The structs of the kernel's `fuse.h` (protocol 7.x), byte for byte.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct fuse_forget_one`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetOne {
    /// The node.
    pub nodeid: u64,
    /// References given up.
    pub nlookup: u64,
}
