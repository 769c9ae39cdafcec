//! Fixed parts of requests. Names, values and data follow them in the message.

use super::wire_structs;

wire_structs! {
    /// `struct fuse_in_header`: begins every request.
    struct InHeader, 40 {
        len: u32, "Length of the whole message with this header, in bytes.";
        opcode: u32, "Which request; see [`Opcode`](super::Opcode).";
        unique: u64, "Identifies the request; goes back in the reply.";
        nodeid: u64, "The node that it is about.";
        uid: u32, "The caller's file-system user, or [`INVALID_ID`](super::INVALID_ID).";
        gid: u32, "The caller's file-system group, or [`INVALID_ID`](super::INVALID_ID).";
        pid: u32, "The caller's process.";
        total_extlen: u16, "Length of the extensions in units of 8 bytes; 0 before 7.38 even with extensions.";
        padding: u16, "Unused.";
    }

    /// `struct fuse_forget_in` (FORGET)
    struct ForgetIn, 8 {
        nlookup: u64, "References given up.";
    }

    /// `struct fuse_batch_forget_in` (BATCH_FORGET); `count` [`ForgetOne`] follow.
    struct BatchForgetIn, 8 {
        count: u32, "How many follow.";
        dummy: u32, "Unused.";
    }

    /// `struct fuse_forget_one`
    struct ForgetOne, 16 {
        nodeid: u64, "The node.";
        nlookup: u64, "References given up.";
    }

    /// `struct fuse_getattr_in` (GETATTR)
    struct GetAttrIn, 16 {
        getattr_flags: u32, "[`GETATTR_FH`](super::GETATTR_FH).";
        dummy: u32, "Unused.";
        fh: u64, "Handle.";
    }

    /// `struct fuse_statx_in` (STATX)
    struct StatxIn, 24 {
        getattr_flags: u32, "[`GETATTR_FH`](super::GETATTR_FH).";
        reserved: u32, "Unused.";
        fh: u64, "Handle.";
        sx_flags: u32, "`AT_STATX_*`.";
        sx_mask: u32, "`STATX_*` wanted.";
    }

    /// `struct fuse_setattr_in` (SETATTR)
    struct SetAttrIn, 88 {
        valid: u32, "[`SetAttrValid`](super::SetAttrValid).";
        padding: u32, "Unused.";
        fh: u64, "Handle.";
        size: u64, "Size in bytes.";
        lock_owner: u64, "Lock owner.";
        atime: u64, "Access time: seconds, signed.";
        mtime: u64, "Modification time: seconds, signed.";
        ctime: u64, "Change time: seconds, signed.";
        atimensec: u32, "Its nanoseconds.";
        mtimensec: u32, "Its nanoseconds.";
        ctimensec: u32, "Its nanoseconds.";
        mode: u32, "Type and permission bits.";
        unused4: u32, "Unused.";
        uid: u32, "Owner.";
        gid: u32, "Group.";
        unused5: u32, "Unused.";
    }

    /// `struct fuse_mknod_in` (MKNOD); a name follows.
    struct MkNodIn, 16 {
        mode: u32, "Type and permission bits.";
        rdev: u32, "Device number in the kernel's 32-bit coding.";
        umask: u32, "The process's umask.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_mkdir_in` (MKDIR); a name follows.
    struct MkDirIn, 8 {
        mode: u32, "Permission bits.";
        umask: u32, "The process's umask.";
    }

    /// `struct fuse_rename_in` (RENAME); two names follow.
    struct RenameIn, 8 {
        newdir: u64, "Directory of the new name.";
    }

    /// `struct fuse_rename2_in` (RENAME2); two names follow.
    struct Rename2In, 16 {
        newdir: u64, "Directory of the new name.";
        flags: u32, "`RENAME_*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_link_in` (LINK); a name follows.
    struct LinkIn, 8 {
        oldnodeid: u64, "The node to link.";
    }

    /// `struct fuse_open_in` (OPEN, OPENDIR)
    struct OpenIn, 8 {
        flags: u32, "`O_*`.";
        open_flags: u32, "[`OPEN_KILL_SUIDGID`](super::OPEN_KILL_SUIDGID).";
    }

    /// `struct fuse_create_in` (CREATE, TMPFILE); a name follows.
    struct CreateIn, 16 {
        flags: u32, "`O_*`.";
        mode: u32, "Type and permission bits.";
        umask: u32, "The process's umask.";
        open_flags: u32, "[`OPEN_KILL_SUIDGID`](super::OPEN_KILL_SUIDGID).";
    }

    /// `struct fuse_release_in` (RELEASE, RELEASEDIR)
    struct ReleaseIn, 24 {
        fh: u64, "Handle.";
        flags: u32, "`O_*`.";
        release_flags: u32, "[`RELEASE_FLOCK_UNLOCK`](super::RELEASE_FLOCK_UNLOCK).";
        lock_owner: u64, "Lock owner.";
    }

    /// `struct fuse_flush_in` (FLUSH)
    struct FlushIn, 24 {
        fh: u64, "Handle.";
        unused: u32, "Unused.";
        padding: u32, "Unused.";
        lock_owner: u64, "Lock owner.";
    }

    /// `struct fuse_read_in` (READ, READDIR, READDIRPLUS)
    struct ReadIn, 40 {
        fh: u64, "Handle.";
        offset: u64, "Byte offset, or directory cookie.";
        size: u32, "Bytes wanted.";
        read_flags: u32, "Whether `lock_owner` counts.";
        lock_owner: u64, "Lock owner.";
        flags: u32, "`O_*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_write_in` (WRITE); the data follows.
    struct WriteIn, 40 {
        fh: u64, "Handle.";
        offset: u64, "Byte offset.";
        size: u32, "Bytes that follow.";
        write_flags: u32, "[`WRITE_CACHE`](super::WRITE_CACHE) and others.";
        lock_owner: u64, "Lock owner.";
        flags: u32, "`O_*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_fsync_in` (FSYNC, FSYNCDIR)
    struct FSyncIn, 16 {
        fh: u64, "Handle.";
        fsync_flags: u32, "[`FSYNC_FDATASYNC`](super::FSYNC_FDATASYNC).";
        padding: u32, "Unused.";
    }

    /// The first 8 bytes of `struct fuse_setxattr_in`: all of it unless `SETXATTR_EXT` was negotiated
    /// (`FUSE_COMPAT_SETXATTR_IN_SIZE`). Name and value follow.
    struct SetXattrIn, 8 {
        size: u32, "Length of the value.";
        flags: u32, "`XATTR_CREATE`, `XATTR_REPLACE`.";
    }

    /// The other 8 bytes of `struct fuse_setxattr_in`, with `SETXATTR_EXT`.
    struct SetXattrExt, 8 {
        setxattr_flags: u32, "[`SETXATTR_ACL_KILL_SGID`](super::SETXATTR_ACL_KILL_SGID).";
        padding: u32, "Unused.";
    }

    /// `struct fuse_getxattr_in` (GETXATTR, with a name behind it; LISTXATTR)
    struct GetXattrIn, 8 {
        size: u32, "Room for the answer; 0 asks for its size.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_file_lock`
    struct FileLock, 24 {
        start: u64, "First byte.";
        end: u64, "Last byte, inclusive.";
        kind: u32, "`F_RDLCK`, `F_WRLCK`, `F_UNLCK`.";
        pid: u32, "Owner's process.";
    }

    /// `struct fuse_lk_in` (GETLK, SETLK, SETLKW)
    struct LkIn, 48 {
        fh: u64, "Handle.";
        owner: u64, "Lock owner.";
        lk: FileLock, "The lock.";
        lk_flags: u32, "[`LK_FLOCK`](super::LK_FLOCK).";
        padding: u32, "Unused.";
    }

    /// `struct fuse_access_in` (ACCESS)
    struct AccessIn, 8 {
        mask: u32, "`R_OK`, `W_OK`, `X_OK`.";
        padding: u32, "Unused.";
    }

    /// The first 16 bytes of `struct fuse_init_in` (INIT): all of it before 7.36.
    struct InitIn, 16 {
        major: u32, "Protocol version.";
        minor: u32, "Minor version.";
        max_readahead: u32, "Largest read-ahead in bytes.";
        flags: u32, "Low half of [`InitFlags`](super::InitFlags).";
    }

    /// The other 48 bytes of `struct fuse_init_in`, with `INIT_EXT`.
    struct InitInExt, 48 {
        flags2: u32, "High half of [`InitFlags`](super::InitFlags).";
        unused: [u32; 11], "Unused.";
    }

    /// `struct fuse_interrupt_in` (INTERRUPT)
    struct InterruptIn, 8 {
        unique: u64, "The request to give up.";
    }

    /// `struct fuse_bmap_in` (BMAP)
    struct BMapIn, 16 {
        block: u64, "Block number.";
        blocksize: u32, "Bytes a block.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_ioctl_in` (IOCTL); the input follows.
    struct IoctlIn, 32 {
        fh: u64, "Handle.";
        flags: u32, "`FUSE_IOCTL_*`.";
        cmd: u32, "Command.";
        arg: u64, "The caller's argument, a guest address.";
        in_size: u32, "Bytes of input that follow.";
        out_size: u32, "Room for output.";
    }

    /// `struct fuse_poll_in` (POLL)
    struct PollIn, 24 {
        fh: u64, "Handle.";
        kh: u64, "The guest's handle for notifications.";
        flags: u32, "`FUSE_POLL_*`.";
        events: u32, "`POLL*`.";
    }

    /// `struct fuse_fallocate_in` (FALLOCATE)
    struct FAllocateIn, 32 {
        fh: u64, "Handle.";
        offset: u64, "Byte offset.";
        length: u64, "Bytes.";
        mode: u32, "`FALLOC_FL_*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_lseek_in` (LSEEK)
    struct LSeekIn, 24 {
        fh: u64, "Handle.";
        offset: u64, "Byte offset.";
        whence: u32, "`SEEK_*`.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_copy_file_range_in` (COPY_FILE_RANGE, COPY_FILE_RANGE_64)
    struct CopyFileRangeIn, 56 {
        fh_in: u64, "Source handle.";
        off_in: u64, "Source offset.";
        nodeid_out: u64, "Destination node.";
        fh_out: u64, "Destination handle.";
        off_out: u64, "Destination offset.";
        len: u64, "Bytes.";
        flags: u64, "Flags; none are defined.";
    }

    /// `struct fuse_setupmapping_in` (SETUPMAPPING)
    struct SetupMappingIn, 40 {
        fh: u64, "Handle.";
        foffset: u64, "Byte offset in the file.";
        len: u64, "Bytes.";
        flags: u64, "`FUSE_SETUPMAPPING_FLAG_*`.";
        moffset: u64, "Byte offset in the DAX window.";
    }

    /// `struct fuse_removemapping_in` (REMOVEMAPPING); `count` [`RemoveMappingOne`] follow.
    struct RemoveMappingIn, 4 {
        count: u32, "How many follow.";
    }

    /// `struct fuse_removemapping_one`
    struct RemoveMappingOne, 16 {
        moffset: u64, "Byte offset in the DAX window.";
        len: u64, "Bytes.";
    }

    /// `struct fuse_syncfs_in` (SYNCFS)
    struct SyncFsIn, 8 {
        padding: u64, "Unused.";
    }

    /// `struct fuse_ext_header`: begins an extension. As `struct fuse_secctx_header`, `kind` is the number of
    /// security contexts that follow.
    struct ExtHeader, 8 {
        size: u32, "Length of this extension with this header and padding, in bytes.";
        kind: u32, "[`EXT_GROUPS`](super::EXT_GROUPS), or 0–31 for security contexts.";
    }

    /// `struct fuse_secctx`; the name with its NUL and then the context follow.
    struct SecCtx, 8 {
        size: u32, "Length of the context in bytes.";
        padding: u32, "Unused.";
    }

    /// `struct fuse_supp_groups`; as many `u32` follow.
    struct SuppGroupsHeader, 4 {
        nr_groups: u32, "How many follow.";
    }
}
