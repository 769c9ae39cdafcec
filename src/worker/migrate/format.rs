//! The migration stream, byte-compatible with virtiofsd 1.13.3 and 1.14.0: version 1 is read, version 2 read
//! and written.
//!
//! The stream is one value in postcard encoding: integers as LEB128 varints (signed ones zigzag), an enum's
//! variant by its index, strings and sequences after their length, fields without names or tags. It ends where
//! the value ends. The types here have upstream's field order; serde derives both directions, and [`decode`]
//! walks the stream record by record, so that each count is held against its limit and against what the stream
//! can still hold before anything is allocated for it, and an error says which record is at fault.
//!
//! Here is the form only. What a stream's ids, paths and handles mean on this host, and whether they may be
//! used, is for the restorer to find out: a stream is as hostile as the guest.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest stream in bytes: ten million inodes with paths of a hundred bytes.
pub const MAX_STREAM: usize = 1 << 30;
/// Most inodes in a stream.
pub const MAX_INODES: usize = 1 << 24;
/// Most open handles in a stream: above any `RLIMIT_NOFILE` in use.
pub const MAX_HANDLES: usize = 1 << 22;
/// Most mounts in a stream.
pub const MAX_MOUNTS: usize = 1 << 16;
/// Longest path in bytes; longer than what one system call takes, as a path may be walked in steps.
pub const MAX_PATH: usize = 1 << 16;
/// Longest handle that `name_to_handle_at` gives (`MAX_HANDLE_SZ`).
pub const MAX_HANDLE: usize = 128;

/// Index of the variant of version 1.
const V1: u32 = 0;
/// Index of the variant of version 2.
const V2: u32 = 1;

/// What a stream tells, of either version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// All nodes that the guest has references to, in any order; at most [`MAX_INODES`].
    pub inodes: Vec<Inode>,
    /// The node id to give out next.
    pub next_inode: u64,
    /// All open files and directories; at most [`MAX_HANDLES`].
    pub handles: Vec<Handle>,
    /// The handle id to give out next.
    pub next_handle: u64,
    /// What INIT agreed on.
    pub negotiated: NegotiatedOptions,
    /// The source's mount ids, each with the path of that mount relative to the share (`.` for its root); at
    /// most [`MAX_MOUNTS`]. Not in version 1, where it is empty.
    pub mount_paths: BTreeMap<u64, String>,
}

/// Options that were negotiated with the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegotiatedOptions {
    /// The write-back cache.
    pub writeback: bool,
    /// Marking of submounts.
    pub announce_submounts: bool,
    /// POSIX ACLs.
    pub posix_acl: bool,
    /// A supplementary group in creating requests.
    pub sup_group_extension: bool,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Node id; the guest goes on using it.
    pub id: u64,
    /// The guest's references.
    pub refcount: u64,
    /// How to find it.
    pub location: InodeLocation,
    /// Only to compare with that of the file that was found; never to open.
    pub file_handle: Option<FileHandle>,
}

/// How the destination finds a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InodeLocation {
    /// The root of the share.
    RootNode,
    /// By its name in another node, to which this is a reference beyond those that the stream counts.
    Path {
        /// The directory's node id.
        parent: u64,
        /// Relative to it; checked as the other paths are.
        filename: String,
    },
    /// The source lost it: the destination refuses the stream or answers errors for this node.
    Invalid,
    /// By its path in the share.
    FullPath {
        /// Relative to the share; at most [`MAX_PATH`] bytes, not empty, not absolute, without `..` and NUL.
        filename: String,
    },
    /// By its file handle.
    FileHandle {
        /// The handle, with the source's mount id.
        handle: FileHandle,
    },
}

/// A file handle as `name_to_handle_at` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHandle {
    /// The source's mount id; a key of [`DeviceState::mount_paths`], without meaning on this host.
    pub mnt_id: u64,
    /// `handle_type`
    pub handle_type: i32,
    /// `f_handle`; at most [`MAX_HANDLE`] bytes.
    pub handle: Vec<u8>,
}

/// One open file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// Handle id; the guest goes on using it.
    pub id: u64,
    /// The node that is open.
    pub inode: u64,
    /// How to open it.
    pub source: HandleSource,
}

/// How the destination opens a handle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandleSource {
    /// By opening the node.
    OpenInode {
        /// `O_*` for `openat`, as the source saw them.
        flags: i32,
    },
}

/// Why a stream can't be used.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The state file descriptor can't be read.
    #[error("cannot read the migration stream from the front end: {0}")]
    Read(#[source] io::Error),
    /// More than [`MAX_STREAM`].
    #[error(
        "the migration stream is longer than {MAX_STREAM} bytes; let the guest drop caches before it migrates"
    )]
    TooLong,
    /// Neither version 1 nor 2.
    #[error(
        "the migration stream has format version {}, but this daemon reads versions 1 and 2: the source is newer, \
         or this is no stream of virtiofsd", u64::from(*.0) + 1
    )]
    Version(u32),
    /// A record can't be decoded.
    #[error("the migration stream is damaged at byte {offset}, in {part} {index}: {source}")]
    Malformed {
        /// Which kind of record.
        part: Part,
        /// Which of them, from 0.
        index: usize,
        /// Where the record begins.
        offset: usize,
        /// What is wrong with it.
        source: postcard::Error,
    },
    /// A count above its limit, or above what the rest of the stream can hold.
    #[error("the migration stream announces {count} records ({part}), but at most {limit} can follow")]
    Count {
        /// Which kind of record.
        part: Part,
        /// How many are announced.
        count: u64,
        /// How many there can be.
        limit: usize,
    },
    /// A path that must not be used.
    #[error("{part} {id} of the migration stream has the path {path:?}, which {problem}")]
    Path {
        /// Which kind of record.
        part: Part,
        /// Its id (node id or mount id).
        id: u64,
        /// The beginning of the path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file handle that is longer than the kernel gives.
    #[error(
        "inode {id} of the migration stream has a file handle of {len} bytes; the kernel's have at most 128"
    )]
    HandleLength {
        /// The node.
        id: u64,
        /// Length in bytes.
        len: usize,
    },
    /// Two entries for one mount id.
    #[error("mount {id} is twice in the migration stream")]
    DuplicateMount {
        /// The mount id.
        id: u64,
    },
    /// Bytes behind the value.
    #[error("the migration stream has {0} bytes behind its end")]
    Trailing(usize),
}

/// Parts of a stream, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The version, at the beginning.
    Version,
    /// [`DeviceState::inodes`]
    Inode,
    /// [`DeviceState::handles`]
    Handle,
    /// [`DeviceState::next_inode`] (0) and [`DeviceState::next_handle`] (1)
    NextId,
    /// [`DeviceState::negotiated`]
    Negotiated,
    /// [`DeviceState::mount_paths`]
    Mount,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Version => "version",
            Part::Inode => "inode",
            Part::Handle => "handle",
            Part::NextId => "next id",
            Part::Negotiated => "negotiated options",
            Part::Mount => "mount",
        })
    }
}

/// Why a stream can't be written.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The state file descriptor doesn't take it.
    #[error("cannot write the migration stream to the front end: {0}")]
    Write(#[source] io::Error),
    /// The state can't be encoded.
    #[error("cannot encode the migration stream: {0}")]
    Encode(#[source] postcard::Error),
}

/// Writes a stream of version 2. Pass a buffered writer: a record is many small writes.
///
/// # Errors
///
/// [`EncodeError`] when `to` fails.
pub fn write(state: &DeviceState, mut to: impl Write) -> Result<(), EncodeError> {
    // postcard hides the writer's error; keep it.
    let mut sink = Sink { to: &mut to, error: None };
    let written = postcard::to_io(&(V2, state), &mut sink).map(|_| ());
    match (written, sink.error) {
        (_, Some(error)) => Err(EncodeError::Write(error)),
        (Err(error), None) => Err(EncodeError::Encode(error)),
        (Ok(()), None) => to.flush().map_err(EncodeError::Write),
    }
}

/// Remembers the first error of a writer.
struct Sink<W> {
    to: W,
    error: Option<io::Error>,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.to.write(buf).map_err(|error| {
            let kind = error.kind();
            self.error = (kind != io::ErrorKind::Interrupted).then_some(error);
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads a stream to its end and decodes it.
///
/// # Errors
///
/// As [`decode`]; [`DecodeError::Read`] when `from` fails.
pub fn read(from: impl Read) -> Result<DeviceState, DecodeError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_STREAM).unwrap_or(u64::MAX);
    from.take(limit + 1).read_to_end(&mut bytes).map_err(DecodeError::Read)?;
    decode(&bytes)
}

/// Decodes a whole stream of version 1 or 2.
///
/// # Errors
///
/// [`DecodeError`]: nothing of a stream that is wrong anywhere is used.
pub fn decode(bytes: &[u8]) -> Result<DeviceState, DecodeError> {
    if bytes.len() > MAX_STREAM {
        return Err(DecodeError::TooLong);
    }
    let mut walk = Walk { len: bytes.len(), rest: bytes };
    let version: u32 = walk.take(Part::Version, 0)?;
    if version > V2 {
        return Err(DecodeError::Version(version));
    }
    let mut state = DeviceState {
        inodes: walk.records(Part::Inode, MAX_INODES, MIN_INODE, check_inode)?,
        next_inode: walk.take(Part::NextId, 0)?,
        handles: walk.records(Part::Handle, MAX_HANDLES, MIN_HANDLE, |_| Ok(()))?,
        next_handle: walk.take(Part::NextId, 1)?,
        negotiated: walk.take(Part::Negotiated, 0)?,
        mount_paths: BTreeMap::new(),
    };
    if version != V1 {
        let check = |(id, path): &(u64, String)| check_path(Part::Mount, *id, path);
        for (id, path) in walk.records(Part::Mount, MAX_MOUNTS, MIN_MOUNT, check)? {
            if state.mount_paths.insert(id, path).is_some() {
                return Err(DecodeError::DuplicateMount { id });
            }
        }
    }
    if !walk.rest.is_empty() {
        return Err(DecodeError::Trailing(walk.rest.len()));
    }
    Ok(state)
}

/// Fewest bytes of an [`Inode`]: id, reference count, variant, no handle.
const MIN_INODE: usize = 4;
/// Fewest bytes of a [`Handle`]: id, node, variant, flags.
const MIN_HANDLE: usize = 4;
/// Fewest bytes of a mount: id, length of the path.
const MIN_MOUNT: usize = 2;

/// A stream from its front to its end.
struct Walk<'a> {
    len: usize,
    rest: &'a [u8],
}

impl Walk<'_> {
    /// The next value. It may own no more memory than the stream has bytes for it: strings and byte sequences
    /// only, which postcard holds against the rest of the stream.
    fn take<T: DeserializeOwned>(&mut self, part: Part, index: usize) -> Result<T, DecodeError> {
        let offset = self.len - self.rest.len();
        let (value, rest) = postcard::take_from_bytes(self.rest)
            .map_err(|source| DecodeError::Malformed { part, index, offset, source })?;
        self.rest = rest;
        Ok(value)
    }

    /// A sequence of at most `most` records, each of at least `least` bytes.
    fn records<T: DeserializeOwned>(
        &mut self,
        part: Part,
        most: usize,
        least: usize,
        check: impl Fn(&T) -> Result<(), DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count: u64 = self.take(part, 0)?;
        let limit = most.min(self.rest.len() / least);
        let number = usize::try_from(count).ok().filter(|number| *number <= limit);
        let number = number.ok_or(DecodeError::Count { part, count, limit })?;
        let mut records = Vec::with_capacity(number);
        for index in 0..number {
            let record = self.take(part, index)?;
            check(&record)?;
            records.push(record);
        }
        Ok(records)
    }
}

fn check_inode(inode: &Inode) -> Result<(), DecodeError> {
    let at_location = match &inode.location {
        InodeLocation::Path { filename, .. } | InodeLocation::FullPath { filename } => {
            check_path(Part::Inode, inode.id, filename)?;
            None
        }
        InodeLocation::FileHandle { handle } => Some(handle),
        InodeLocation::RootNode | InodeLocation::Invalid => None,
    };
    for handle in at_location.into_iter().chain(&inode.file_handle) {
        if handle.handle.len() > MAX_HANDLE {
            return Err(DecodeError::HandleLength { id: inode.id, len: handle.handle.len() });
        }
    }
    Ok(())
}

/// Paths go down from where they begin. Symbolic links in them are the restorer's matter.
fn check_path(part: Part, id: u64, path: &str) -> Result<(), DecodeError> {
    let problem = if path.is_empty() {
        "is empty"
    } else if path.len() > MAX_PATH {
        "is too long"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.contains('\0') {
        "has a NUL in it"
    } else if path.split('/').any(|component| component == "..") {
        "has a `..` in it"
    } else {
        return Ok(());
    };
    Err(DecodeError::Path { part, id, path: path.chars().take(80).collect(), problem })
}
