//! What a guest can ask for: one variant per FUSE request, with every field already checked.
//!
//! Borrowed data (`&'a`) points into the queue thread's private copy of the message, never into guest
//! memory, so it can't change after it was checked. The file data of `Write` is the exception: it stays in
//! guest memory and is only ever handed to the kernel.

use std::ffi::CStr;
use std::num::NonZeroU32;

/// A node id, as given out by this daemon in an earlier reply (or invented by a hostile guest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node id of the root of the share (`FUSE_ROOT_ID` in the kernel's `fuse.h`).
    pub const ROOT: NodeId = NodeId(1);
}

/// A file or directory handle id (`fh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

/// A user id as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestUid(pub u32);

/// A group id as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestGid(pub u32);

/// One path component: not empty, not `.` or `..`, without `/`; of any length up to the message's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileName<'a>(pub(super) &'a CStr);

impl<'a> FileName<'a> {
    /// The name with its terminating NUL, ready for a system call.
    pub fn as_cstr(&self) -> &'a CStr {
        self.0
    }
}

/// The name in a LOOKUP: a [`FileName`], or one of the two names that the kernel's export support uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupName<'a> {
    /// `.`: the node itself.
    Current,
    /// `..`: its parent; at the root of the share, the root itself.
    Parent,
    /// An ordinary component.
    Name(FileName<'a>),
}

/// The part of the header that every operation may need.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Identifies the request; goes back in the reply.
    pub unique: u64,
    /// The node that the request is about (0 for the requests that have none).
    pub node: NodeId,
    /// The calling process's file-system user.
    pub uid: GuestUid,
    /// Its file-system group.
    pub gid: GuestGid,
    /// Its pid in the guest; only good for logs.
    pub pid: u32,
}

/// What a creating request carries beyond its fixed part (`FUSE_CREATE_SUPP_GROUP`, `FUSE_SECURITY_CTX`).
#[derive(Clone, Debug, Default)]
pub struct CreateExtensions<'a> {
    /// The supplementary groups that the new file may belong to (at most [`MAX_SUPP_GROUPS`]).
    pub groups: SuppGroups,
    /// The security context to set on the new file: xattr name and value.
    pub security_context: Option<(&'a CStr, &'a [u8])>,
}

/// More supplementary groups than this in one request is `EINVAL`. The Linux driver sends at most one.
pub const MAX_SUPP_GROUPS: usize = 32;

/// A bounded list of supplementary groups, kept without allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuppGroups {
    len: u8,
    gids: [u32; MAX_SUPP_GROUPS],
}

impl SuppGroups {
    /// Adds a group; `false` when the list is full.
    pub fn push(&mut self, gid: GuestGid) -> bool {
        let Some(slot) = self.gids.get_mut(usize::from(self.len)) else { return false };
        *slot = gid.0;
        self.len += 1;
        true
    }

    /// The groups, in the order of the request.
    pub fn as_slice(&self) -> &[u32] {
        self.gids.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// A time to set (`SETATTR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The host's time now.
    Now,
    /// This time; `nanos` is below 1,000,000,000.
    At {
        /// Seconds since the epoch.
        seconds: i64,
        /// Nanoseconds within that second.
        nanos: u32,
    },
}

/// The attributes that a SETATTR changes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// An open handle to act through, when the guest named one.
    pub handle: Option<HandleId>,
    /// New permission bits (07777).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<GuestUid>,
    /// New group.
    pub gid: Option<GuestGid>,
    /// New size in bytes; fits an `i64`.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time: only sent with the write-back cache; the host can't set it.
    pub ctime: bool,
    /// Drop set-id bits (`FATTR_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

impl Default for SetTime {
    fn default() -> Self {
        SetTime::Now
    }
}

/// What an INIT request offers.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    /// Protocol version of the guest.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Largest read-ahead, in bytes.
    pub max_readahead: u32,
    /// All 64 offered feature flags (`flags | flags2 << 32`; `flags2` only counts with `FUSE_INIT_EXT`).
    pub flags: u64,
}

/// An open file lock request (GETLK, SETLK, SETLKW).
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// The open file.
    pub handle: HandleId,
    /// The guest's lock owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX >> 1` (`OFFSET_MAX`) means to the end of the file.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    /// The guest's process that asks.
    pub pid: u32,
    /// A BSD lock over the whole file (`FUSE_LK_FLOCK`), not a byte-range lock.
    pub flock: bool,
}

/// Open flags and what comes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// `O_*` flags of the guest's open, unfiltered.
    pub flags: u32,
    /// `FUSE_OPEN_KILL_SUIDGID` was set.
    pub kill_suidgid: bool,
}

/// A READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The open file.
    pub handle: HandleId,
    /// Byte offset; `offset + size` fits an `i64`.
    pub offset: u64,
    /// Bytes wanted.
    pub size: u32,
    /// The file's current `O_*` flags in the guest.
    pub flags: u32,
}

/// A WRITE, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The open file.
    pub handle: HandleId,
    /// Byte offset; `offset + size` fits an `i64`.
    pub offset: u64,
    /// Bytes that follow; never more than the message holds.
    pub size: u32,
    /// The file's current `O_*` flags in the guest.
    pub flags: u32,
    /// The data comes from the guest's page cache (`FUSE_WRITE_CACHE`), not from a write call.
    pub from_cache: bool,
    /// `FUSE_WRITE_KILL_SUIDGID`.
    pub kill_suidgid: bool,
}

/// A READDIR or READDIRPLUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDir {
    /// The open directory.
    pub handle: HandleId,
    /// Opaque cookie of an earlier entry, or 0 for the start.
    pub offset: u64,
    /// Largest reply payload in bytes.
    pub size: u32,
}

/// One request, decoded and checked. See `fuse.h` for the meaning of each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Finds a name in a directory.
    Lookup(LookupName<'a>),
    /// Gives up `nlookup` references to the context's node. Has no reply.
    Forget {
        /// References given up.
        nlookup: u64,
    },
    /// Many forgets at once. Has no reply.
    BatchForget(ForgetList<'a>),
    /// Reads attributes.
    GetAttr {
        /// An open handle, when the guest named one.
        handle: Option<HandleId>,
    },
    /// Changes attributes.
    SetAttr(SetAttr),
    /// Reads the target of a symbolic link.
    ReadLink,
    /// Makes a symbolic link.
    SymLink {
        /// The new name.
        name: FileName<'a>,
        /// What the link says: any bytes, not empty.
        target: &'a CStr,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Makes a file, FIFO, socket or device node.
    MkNod {
        /// The new name.
        name: FileName<'a>,
        /// Type and permission bits.
        mode: u32,
        /// Device number in the kernel's 32-bit coding, for device nodes.
        rdev: u32,
        /// The process's umask (counts with `FUSE_DONT_MASK`).
        umask: u32,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Makes a directory.
    MkDir {
        /// The new name.
        name: FileName<'a>,
        /// Permission bits.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Removes a name that is not a directory.
    Unlink(FileName<'a>),
    /// Removes an empty directory.
    RmDir(FileName<'a>),
    /// RENAME and RENAME2.
    Rename {
        /// The old name, in the context's node.
        name: FileName<'a>,
        /// The directory of the new name.
        new_parent: NodeId,
        /// The new name.
        new_name: FileName<'a>,
        /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`; 0 for RENAME.
        flags: u32,
    },
    /// Makes a hard link in the context's node.
    Link {
        /// The node to link.
        source: NodeId,
        /// The new name.
        name: FileName<'a>,
    },
    /// Opens a file.
    Open(Open),
    /// Creates and opens a file.
    Create {
        /// The new name.
        name: FileName<'a>,
        /// Open flags.
        open: Open,
        /// Permission bits.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Creates an unnamed file in the context's node, and opens it.
    TmpFile {
        /// Open flags.
        open: Open,
        /// Permission bits.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Reads from a file.
    Read(Read),
    /// Writes to a file.
    Write(Write),
    /// File-system statistics.
    StatFs,
    /// Closes a file handle.
    Release {
        /// The handle.
        handle: HandleId,
        /// `FUSE_RELEASE_FLOCK_UNLOCK`: drop the owner's BSD lock.
        flock_unlock: bool,
        /// The guest's lock owner.
        lock_owner: u64,
    },
    /// Writes a file's data (or all of it) to storage.
    FSync {
        /// The handle.
        handle: HandleId,
        /// Data only.
        datasync: bool,
    },
    /// A file descriptor of this handle was closed in the guest.
    Flush {
        /// The handle.
        handle: HandleId,
        /// The guest's lock owner: its byte-range locks end here.
        lock_owner: u64,
    },
    /// Opens a directory.
    OpenDir(Open),
    /// Lists a directory.
    ReadDir(ReadDir),
    /// Lists a directory with attributes, taking a reference to each entry's node.
    ReadDirPlus(ReadDir),
    /// Closes a directory handle.
    ReleaseDir {
        /// The handle.
        handle: HandleId,
    },
    /// `FSync` for a directory.
    FSyncDir {
        /// The handle.
        handle: HandleId,
        /// Data only.
        datasync: bool,
    },
    /// Checks permissions for the caller.
    Access {
        /// `R_OK | W_OK | X_OK`.
        mask: u32,
    },
    /// Preallocates, punches holes, zeroes ranges.
    FAllocate {
        /// The handle.
        handle: HandleId,
        /// Byte offset; `offset + length` fits an `i64`.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// Finds data or a hole.
    LSeek {
        /// The handle.
        handle: HandleId,
        /// Where to start; fits an `i64`.
        offset: u64,
        /// `SEEK_*`.
        whence: u32,
    },
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64 (which differ in the reply).
    CopyFileRange {
        /// Source handle (of the context's node).
        handle_in: HandleId,
        /// Source offset.
        offset_in: u64,
        /// Destination node.
        node_out: NodeId,
        /// Destination handle.
        handle_out: HandleId,
        /// Destination offset.
        offset_out: u64,
        /// Bytes.
        length: u64,
        /// Flags; 0 today.
        flags: u64,
        /// The reply is `fuse_copy_file_range_out`.
        wide: bool,
    },
    /// Writes the node's file system to storage.
    SyncFs,
    /// Sets an extended attribute.
    SetXattr {
        /// Its name, any bytes but not empty.
        name: &'a CStr,
        /// Its value.
        value: &'a [u8],
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
        /// `FUSE_SETXATTR_ACL_KILL_SGID`.
        acl_kill_sgid: bool,
    },
    /// Reads an extended attribute.
    GetXattr {
        /// Its name.
        name: &'a CStr,
        /// Room for the value; `None` asks for its size only.
        size: Option<NonZeroU32>,
    },
    /// Lists extended attributes.
    ListXattr {
        /// Room for the names; `None` asks for their size only.
        size: Option<NonZeroU32>,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// Its name.
        name: &'a CStr,
    },
    /// Tests for a lock.
    GetLk(Lock),
    /// Takes or drops a lock.
    SetLk {
        /// The lock.
        lock: Lock,
        /// Wait until it is free (SETLKW).
        wait: bool,
    },
    /// An ioctl on an open file.
    Ioctl {
        /// The handle.
        handle: HandleId,
        /// `FUSE_IOCTL_*`.
        flags: u32,
        /// The command.
        command: u32,
        /// Input, at most `in_size` bytes of the request.
        input: &'a [u8],
        /// Room for output.
        out_size: u32,
    },
    /// Extended attributes of a node (`statx`).
    Statx {
        /// An open handle, when the guest named one.
        handle: Option<HandleId>,
        /// `AT_STATX_*` sync flags.
        flags: u32,
        /// `STATX_*` wanted.
        mask: u32,
    },
    /// Starts the session.
    Init(Init),
    /// Ends the session.
    Destroy,
    /// Gives up on another request. Has no reply of its own here.
    Interrupt {
        /// The `unique` of that request.
        unique: u64,
    },
    /// A request that exists but that this daemon doesn't serve: ENOSYS.
    Unsupported {
        /// The opcode.
        opcode: u32,
    },
}

/// The body of a BATCH_FORGET: pairs of node id and count, read on demand from the private copy.
#[derive(Clone, Copy, Debug)]
pub struct ForgetList<'a>(pub(super) &'a [super::wire::ForgetOne]);

impl ForgetList<'_> {
    /// Node ids with the number of references given up for each.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        self.0.iter().map(|one| (NodeId(one.nodeid), one.nlookup))
    }
}
