//! What a guest can ask for: one variant per FUSE request, with every field already checked.
//!
//! Borrowed data (`&'a`) points into the queue thread's private copy of the message, never into guest
//! memory, so it can't change after it was checked. The file data of `Write` is the exception: it stays in
//! guest memory and is only ever handed to the kernel.

use std::ffi::CStr;
use std::fmt;
use std::num::NonZeroU32;

use zerocopy::FromBytes;

use super::wire::{ForgetOne, InHeader, InitFlags};

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
    /// `None` when `name` is empty, `.`, `..`, or has a `/` in it.
    pub fn new(name: &'a CStr) -> Option<Self> {
        match name.to_bytes() {
            b"" | b"." | b".." => None,
            bytes if bytes.contains(&b'/') => None,
            _ => Some(FileName(name)),
        }
    }

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
    /// The calling process's file-system user. With `FUSE_ALLOW_IDMAP`, only requests that create a file tell
    /// it, and all others come with `u32::MAX`; a creating one with `u32::MAX` is refused by the decoder.
    pub uid: GuestUid,
    /// Its file-system group; as for `uid`.
    pub gid: GuestGid,
    /// Its pid in the guest; only good for logs.
    pub pid: u32,
}

impl From<&InHeader> for Context {
    fn from(header: &InHeader) -> Self {
        Context {
            unique: header.unique,
            node: NodeId(header.nodeid),
            uid: GuestUid(header.uid),
            gid: GuestGid(header.gid),
            pid: header.pid,
        }
    }
}

/// What a creating request carries beyond its fixed part (`FUSE_CREATE_SUPP_GROUP`, `FUSE_SECURITY_CTX`).
#[derive(Clone, Debug, Default)]
pub struct CreateExtensions<'a> {
    /// The supplementary groups that the new file may belong to (at most [`MAX_SUPP_GROUPS`]).
    pub groups: SuppGroups<'a>,
    /// The security context to set on the new file: xattr name and value.
    pub security_context: Option<(&'a CStr, &'a [u8])>,
}

/// More supplementary groups than this in one request is `EINVAL`. The Linux driver sends at most one.
pub const MAX_SUPP_GROUPS: usize = 32;

/// The supplementary groups of a request, as they lie in its message: none is `u32::MAX`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SuppGroups<'a>(&'a [u8]);

impl<'a> SuppGroups<'a> {
    /// `None` when there are more than [`MAX_SUPP_GROUPS`], one is no group, or the last is cut.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let groups = SuppGroups(bytes);
        let whole = bytes.len().is_multiple_of(size_of::<u32>());
        let few = bytes.len() / size_of::<u32>() <= MAX_SUPP_GROUPS;
        (whole && few && groups.iter().all(|gid| gid.0 != u32::MAX)).then_some(groups)
    }

    /// The groups, in the order of the request.
    pub fn iter(self) -> impl ExactSizeIterator<Item = GuestGid> + use<'a> {
        let (ids, _) = self.0.as_chunks();
        ids.iter().map(|id| GuestGid(u32::from_ne_bytes(*id)))
    }
}

impl fmt::Debug for SuppGroups<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|gid| gid.0)).finish()
    }
}

/// A time to set (`SETATTR`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// The host's time now.
    #[default]
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
    /// New owner; never `u32::MAX`.
    pub uid: Option<GuestUid>,
    /// New group; never `u32::MAX`.
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

/// What an INIT request offers.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    /// Protocol version of the guest.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Largest read-ahead, in bytes.
    pub max_readahead: u32,
    /// The offered feature flags that we know (`flags2` only counts with `FUSE_INIT_EXT`).
    pub flags: InitFlags,
}

/// An open file lock request (GETLK, SETLK, SETLKW).
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// The open file.
    pub handle: HandleId,
    /// The guest's lock owner.
    pub owner: u64,
    /// First byte; fits an `i64`.
    pub start: u64,
    /// Last byte, inclusive and not before `start`; `u64::MAX >> 1` (`OFFSET_MAX`) means to the end of the
    /// file.
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
    /// Bytes wanted, cut where the largest possible file ends.
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
    /// Largest reply payload in bytes; at most [`MAX_DIR_REPLY`](super::decode::MAX_DIR_REPLY).
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
        /// Type (a file, FIFO, socket or device node; 0 is a file) and permission bits.
        mode: u32,
        /// Device number in the kernel's 32-bit coding, for device nodes.
        rdev: u32,
        /// The process's umask, at most 0777 (counts with `FUSE_DONT_MASK`).
        umask: u32,
        /// Groups and security context.
        ext: CreateExtensions<'a>,
    },
    /// Makes a directory.
    MkDir {
        /// The new name.
        name: FileName<'a>,
        /// Permission bits (07777).
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
        /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT` and no other; 0 for RENAME.
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
        /// Permission bits (07777).
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
        /// Permission bits (07777).
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
        /// `SEEK_SET`, `SEEK_CUR`, `SEEK_END`, `SEEK_DATA` or `SEEK_HOLE`.
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
        /// Bytes, cut so that both ranges end within an `i64` and the count fits the reply: a `u32` unless
        /// `wide`.
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
        /// Its value; at most [`MAX_XATTR`](super::decode::MAX_XATTR) bytes.
        value: &'a [u8],
        /// 0, `XATTR_CREATE` or `XATTR_REPLACE`, or both.
        flags: u32,
        /// `FUSE_SETXATTR_ACL_KILL_SGID`.
        acl_kill_sgid: bool,
    },
    /// Reads an extended attribute.
    GetXattr {
        /// Its name, any bytes but not empty.
        name: &'a CStr,
        /// Room for the value, cut to [`MAX_XATTR`](super::decode::MAX_XATTR); `None` asks for its size only.
        size: Option<NonZeroU32>,
    },
    /// Lists extended attributes.
    ListXattr {
        /// Room for the names, cut to [`MAX_XATTR`](super::decode::MAX_XATTR); `None` asks for their size
        /// only.
        size: Option<NonZeroU32>,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// Its name, any bytes but not empty.
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
        /// Input; at most [`MAX_IOCTL`](super::decode::MAX_IOCTL) bytes.
        input: &'a [u8],
        /// Room for output; at most [`MAX_IOCTL`](super::decode::MAX_IOCTL).
        out_size: u32,
    },
    /// Extended attributes of a node (`statx`).
    Statx {
        /// An open handle, when the guest named one.
        handle: Option<HandleId>,
        /// `AT_STATX_FORCE_SYNC` or `AT_STATX_DONT_SYNC`, or neither.
        flags: u32,
        /// `STATX_*` wanted, without the reserved bit.
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
pub struct ForgetList<'a>(pub(super) &'a [u8]);

impl ForgetList<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / size_of::<ForgetOne>()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Node ids with the number of references given up for each.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let records = self.0.chunks_exact(size_of::<ForgetOne>());
        records
            .filter_map(|bytes| ForgetOne::read_from_bytes(bytes).ok())
            .map(|one| (NodeId(one.nodeid), one.nlookup))
    }
}
