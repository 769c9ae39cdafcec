//! Replies. What follows [`OutHeader`] depends on the request.

use super::{FileLock, wire_structs};

wire_structs! {
    /// `struct fuse_out_header`: begins every reply.
    struct OutHeader, 16 {
        len: u32, "Length of the whole reply with this header, in bytes.";
        error: i32, "0, or a negated errno.";
        unique: u64, "That of the request.";
    }

    /// `struct fuse_attr`
    struct Attr, 88 {
        ino: u64, "Inode number that `stat` shows.";
        size: u64, "Bytes.";
        blocks: u64, "Units of 512 bytes.";
        atime: u64, "Access time: seconds, signed.";
        mtime: u64, "Modification time: seconds, signed.";
        ctime: u64, "Change time: seconds, signed.";
        atimensec: u32, "Its nanoseconds.";
        mtimensec: u32, "Its nanoseconds.";
        ctimensec: u32, "Its nanoseconds.";
        mode: u32, "Type and permission bits.";
        nlink: u32, "Hard links.";
        uid: u32, "Owner, as the guest counts.";
        gid: u32, "Group, as the guest counts.";
        rdev: u32, "Device number in the kernel's 32-bit coding.";
        blksize: u32, "Preferred block size; 0 leaves it to the guest.";
        flags: u32, "[`AttrFlags`](super::AttrFlags).";
    }

    /// `struct fuse_entry_out` (LOOKUP, SYMLINK, MKNOD, MKDIR, LINK)
    struct EntryOut, 128 {
        nodeid: u64, "The node; 0 says that there is no such name.";
        generation: u64, "Tells nodes of one id apart.";
        entry_valid: u64, "How long the name may be cached: seconds.";
        attr_valid: u64, "How long the attributes may be cached: seconds.";
        entry_valid_nsec: u32, "Its nanoseconds.";
        attr_valid_nsec: u32, "Its nanoseconds.";
        attr: Attr, "Attributes.";
    }

    /// `struct fuse_attr_out` (GETATTR, SETATTR)
    struct AttrOut, 104 {
        attr_valid: u64, "How long the attributes may be cached: seconds.";
        attr_valid_nsec: u32, "Its nanoseconds.";
        dummy: u32, "Unused.";
        attr: Attr, "Attributes.";
    }

    /// `struct fuse_sx_time`
    struct StatxTime, 16 {
        tv_sec: i64, "Seconds.";
        tv_nsec: u32, "Nanoseconds.";
        reserved: i32, "Unused.";
    }

    /// `struct fuse_statx`, laid out as the kernel's `struct statx`.
    struct Statx, 256 {
        mask: u32, "`STATX_*` that are filled in.";
        blksize: u32, "Preferred block size.";
        attributes: u64, "`STATX_ATTR_*`.";
        nlink: u32, "Hard links.";
        uid: u32, "Owner, as the guest counts.";
        gid: u32, "Group, as the guest counts.";
        mode: u16, "Type and permission bits.";
        spare0: u16, "Unused.";
        ino: u64, "Inode number that `stat` shows.";
        size: u64, "Bytes.";
        blocks: u64, "Units of 512 bytes.";
        attributes_mask: u64, "`STATX_ATTR_*` that `attributes` tells.";
        atime: StatxTime, "Access time.";
        btime: StatxTime, "Birth time.";
        ctime: StatxTime, "Change time.";
        mtime: StatxTime, "Modification time.";
        rdev_major: u32, "Device number, for device nodes.";
        rdev_minor: u32, "Device number, for device nodes.";
        dev_major: u32, "Device that holds the file; the guest has its own.";
        dev_minor: u32, "Device that holds the file; the guest has its own.";
        spare2: [u64; 14], "Unused.";
    }

    /// `struct fuse_statx_out` (STATX)
    struct StatxOut, 288 {
        attr_valid: u64, "How long the attributes may be cached: seconds.";
        attr_valid_nsec: u32, "Its nanoseconds.";
        flags: u32, "Unused.";
        spare: [u64; 2], "Unused.";
        stat: Statx, "Attributes.";
    }

    /// `struct fuse_open_out` (OPEN, OPENDIR; CREATE and TMPFILE behind an [`EntryOut`])
    struct OpenOut, 16 {
        fh: u64, "Handle.";
        open_flags: u32, "[`OpenReplyFlags`](super::OpenReplyFlags).";
        backing_id: i32, "Only for `/dev/fuse`.";
    }

    /// `struct fuse_write_out` (WRITE, COPY_FILE_RANGE)
    struct WriteOut, 8 {
        size: u32, "Bytes written.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_copy_file_range_out` (COPY_FILE_RANGE_64)
    struct CopyFileRangeOut, 8 {
        bytes_copied: u64, "Bytes copied.";
    }

    /// `struct fuse_statfs_out` (STATFS), which is one `struct fuse_kstatfs`.
    struct StatFsOut, 80 {
        blocks: u64, "Size in units of `frsize`.";
        bfree: u64, "Free.";
        bavail: u64, "Free for ordinary users.";
        files: u64, "Inodes.";
        ffree: u64, "Free inodes.";
        bsize: u32, "Preferred block size.";
        namelen: u32, "Longest name.";
        frsize: u32, "Unit of the block counts.";
        padding: u32, "Unused.";
        spare: [u32; 6], "Unused.";
    }

    /// `struct fuse_getxattr_out` (GETXATTR and LISTXATTR that asked for the size)
    struct GetXattrOut, 8 {
        size: u32, "Length of the value or of the list.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_lk_out` (GETLK)
    struct LkOut, 24 {
        lk: FileLock, "The lock in the way, or `F_UNLCK`.";
    }

    /// `struct fuse_init_out` (INIT); of this length since 7.23.
    struct InitOut, 64 {
        major: u32, "Protocol version.";
        minor: u32, "Minor version.";
        max_readahead: u32, "Largest read-ahead in bytes.";
        flags: u32, "Low half of [`InitFlags`](super::InitFlags).";
        max_background: u16, "Background requests at a time.";
        congestion_threshold: u16, "Background requests from which the guest holds back.";
        max_write: u32, "Largest WRITE in bytes.";
        time_gran: u32, "Granularity of times in nanoseconds.";
        max_pages: u16, "Largest request in pages of the guest.";
        map_alignment: u16, "DAX alignment.";
        flags2: u32, "High half of [`InitFlags`](super::InitFlags).";
        max_stack_depth: u32, "Only for `/dev/fuse`.";
        request_timeout: u16, "Seconds after which the guest aborts; 0 for never.";
        unused: [u16; 11], "Unused.";
    }

    /// `struct fuse_bmap_out` (BMAP)
    struct BMapOut, 8 {
        block: u64, "Block number on the device.";
    }

    /// `struct fuse_ioctl_out` (IOCTL); the output follows.
    struct IoctlOut, 16 {
        result: i32, "What the call returned.";
        flags: u32, "`FUSE_IOCTL_*`.";
        in_iovs: u32, "Only for unrestricted ioctls.";
        out_iovs: u32, "Only for unrestricted ioctls.";
    }

    /// `struct fuse_poll_out` (POLL)
    struct PollOut, 8 {
        revents: u32, "`POLL*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_lseek_out` (LSEEK)
    struct LSeekOut, 8 {
        offset: u64, "Byte offset found.";
    }

    /// The fixed part of `struct fuse_dirent` (READDIR); the name follows, padded to 8 bytes.
    struct Dirent, 24 {
        ino: u64, "Inode number that `readdir` shows.";
        off: u64, "Cookie of the entry after this one.";
        namelen: u32, "Bytes of the name.";
        kind: u32, "`DT_*`.";
    }

    /// The fixed part of `struct fuse_direntplus` (READDIRPLUS).
    struct DirentPlus, 152 {
        entry: EntryOut, "As in a reply to LOOKUP; node 0 gives the name only.";
        dirent: Dirent, "As in READDIR.";
    }
}
