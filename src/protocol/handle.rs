//! File handles (`name_to_handle_at(2)`) and their sealed form.

use serde::{Deserialize, Serialize};

use super::bounded::Bytes;

/// Longest handle that the kernel makes (`MAX_HANDLE_SZ`).
pub const MAX_HANDLE_BYTES: usize = 128;

/// Bytes of a seal's authentication code.
pub const MAC_BYTES: usize = 16;

/// A file handle as the kernel made it: meaningful to the file system of one mount only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileHandle {
    /// The file system's own type number.
    pub handle_type: i32,
    /// What the file system finds the inode by: usually inode number and generation. 0–128 bytes.
    pub bytes: Bytes<0, MAX_HANDLE_BYTES>,
}

/// A file handle that the broker made from an fd of the worker, and that only this broker can have made.
///
/// To the worker it is opaque but for comparison: two seals of one inode through one mount are equal, whatever fd
/// they were made from, and an inode number that was used again gives another seal. About 72 bytes of memory with
/// the usual 8-byte handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealedHandle {
    /// The mount, as an index into the broker's table of the share's mounts.
    pub mount: u32,
    /// The handle on that mount.
    pub handle: FileHandle,
    /// Authentication code over mount, type and bytes under the broker's key for this device.
    pub mac: [u8; MAC_BYTES],
}
