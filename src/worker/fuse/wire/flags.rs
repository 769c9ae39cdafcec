//! Flag words of the protocol.

use bitflags::bitflags;

bitflags! {
    /// What guest and daemon agree on in INIT: `flags` in bits 0–31, `flags2` in bits 32–63.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct InitFlags: u64 {
        /// Several reads of one file at a time.
        const ASYNC_READ = 1 << 0;
        /// GETLK and SETLK reach the daemon.
        const POSIX_LOCKS = 1 << 1;
        /// Not used by any kernel.
        const FILE_OPS = 1 << 2;
        /// OPEN carries O_TRUNC; the guest sends no SETATTR for it.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// LOOKUP of `.` and `..` works for every node (NFS export in the guest).
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes larger than a page.
        const BIG_WRITES = 1 << 5;
        /// The daemon applies the umask.
        const DONT_MASK = 1 << 6;
        /// Only for `/dev/fuse`.
        const SPLICE_WRITE = 1 << 7;
        /// Only for `/dev/fuse`.
        const SPLICE_MOVE = 1 << 8;
        /// Only for `/dev/fuse`.
        const SPLICE_READ = 1 << 9;
        /// BSD locks reach the daemon.
        const FLOCK_LOCKS = 1 << 10;
        /// IOCTL on directories.
        const HAS_IOCTL_DIR = 1 << 11;
        /// The guest drops its cached data when size or mtime changed.
        const AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS is used.
        const DO_READDIRPLUS = 1 << 13;
        /// The guest chooses between READDIR and READDIRPLUS by what it sees.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Several direct requests of one file at a time.
        const ASYNC_DIO = 1 << 15;
        /// The guest's page cache collects writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// ENOSYS to OPEN means: never ask again.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and readdirs of one directory at a time.
        const PARALLEL_DIROPS = 1 << 18;
        /// The daemon drops set-id bits (first version).
        const HANDLE_KILLPRIV = 1 << 19;
        /// The daemon checks nothing, the guest checks permissions with ACLs.
        const POSIX_ACL = 1 << 20;
        /// Only for `/dev/fuse`.
        const ABORT_ERROR = 1 << 21;
        /// `max_pages` of the reply counts.
        const MAX_PAGES = 1 << 22;
        /// The guest caches the targets of symbolic links.
        const CACHE_SYMLINKS = 1 << 23;
        /// ENOSYS to OPENDIR means: never ask again.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached data is only dropped on request.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// `map_alignment` of the reply counts (DAX).
        const MAP_ALIGNMENT = 1 << 26;
        /// The guest mounts submounts where [`AttrFlags::SUBMOUNT`] says so.
        const SUBMOUNTS = 1 << 27;
        /// The daemon drops set-id bits when a request says so.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR has the longer fixed part.
        const SETXATTR_EXT = 1 << 29;
        /// `flags2` counts.
        const INIT_EXT = 1 << 30;
        /// Reserved.
        const INIT_RESERVED = 1 << 31;
        /// Creating requests carry a security context.
        const SECURITY_CTX = 1 << 32;
        /// DAX by inode.
        const HAS_INODE_DAX = 1 << 33;
        /// Creating requests carry a supplementary group.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// Only for notifications.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// Shared mappings of files that are open with `DIRECT_IO`.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Only for `/dev/fuse`.
        const PASSTHROUGH = 1 << 37;
        /// The guest refuses to export the file system.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// Only for notifications.
        const HAS_RESEND = 1 << 39;
        /// Idmapped mounts of this file system in the guest.
        const ALLOW_IDMAP = 1 << 40;
        /// Only for `/dev/fuse`.
        const OVER_IO_URING = 1 << 41;
        /// `request_timeout` of the reply counts.
        const REQUEST_TIMEOUT = 1 << 42;
        /// Only for `/dev/fuse`.
        const HAS_IO_URING_BUFPOOL = 1 << 43;
    }
}

bitflags! {
    /// Which fields of a SETATTR count (`FATTR_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetAttrValid: u32 {
        /// `mode`
        const MODE = 1 << 0;
        /// `uid`
        const UID = 1 << 1;
        /// `gid`
        const GID = 1 << 2;
        /// `size`
        const SIZE = 1 << 3;
        /// `atime`
        const ATIME = 1 << 4;
        /// `mtime`
        const MTIME = 1 << 5;
        /// `fh`
        const FH = 1 << 6;
        /// The access time becomes the host's time now.
        const ATIME_NOW = 1 << 7;
        /// The modification time becomes the host's time now.
        const MTIME_NOW = 1 << 8;
        /// `lock_owner`
        const LOCKOWNER = 1 << 9;
        /// `ctime`
        const CTIME = 1 << 10;
        /// Drop set-id bits.
        const KILL_SUIDGID = 1 << 11;
    }
}

bitflags! {
    /// What a reply to OPEN, CREATE or OPENDIR asks of the guest (`FOPEN_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenReplyFlags: u32 {
        /// Bypass the guest's page cache.
        const DIRECT_IO = 1 << 0;
        /// Keep what is cached from earlier opens.
        const KEEP_CACHE = 1 << 1;
        /// The file can't seek.
        const NONSEEKABLE = 1 << 2;
        /// Cache the entries of this directory.
        const CACHE_DIR = 1 << 3;
        /// The file has no position.
        const STREAM = 1 << 4;
        /// Don't send FLUSH (without the write-back cache).
        const NOFLUSH = 1 << 5;
        /// Several direct writes at a time.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

bitflags! {
    /// `flags` of the attributes (`FUSE_ATTR_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttrFlags: u32 {
        /// Another file system begins here.
        const SUBMOUNT = 1 << 0;
        /// DAX for this file.
        const DAX = 1 << 1;
    }
}

/// `getattr_flags` of GETATTR and STATX: `fh` counts.
pub const GETATTR_FH: u32 = 1 << 0;
/// `lk_flags`: a BSD lock.
pub const LK_FLOCK: u32 = 1 << 0;
/// `open_flags` of OPEN and CREATE: drop set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `release_flags`: drop the owner's BSD lock.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `setxattr_flags`: clear the set-group-id bit with the ACL.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `write_flags`: the data is from the guest's page cache.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `write_flags`: drop set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fsync_flags`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
