//! Directory listings: the packed records of READDIR and READDIRPLUS replies.

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::reply::Entry;
use super::wire::{Dirent, DirentPlus, EntryOut, RECORD_ALIGN};

/// One name in a directory, as `getdents64` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Cookie with which the next READDIR goes on behind this entry.
    pub offset: u64,
    /// `DT_*`.
    pub kind: u8,
    /// The name, without NUL. Longer than [`MAX_NAME`] is no name of a Linux file system.
    pub name: &'a [u8],
}

/// Longest name that goes into a listing (`NAME_MAX`); kernels refuse a whole listing with a longer one.
pub const MAX_NAME: usize = 255;

/// Packs entries into a reply, up to a fixed size. What doesn't fit changes nothing.
#[derive(Debug)]
pub struct DirWriter<'a> {
    /// The listing's share of the reply.
    buf: &'a mut [u8],
    /// Bytes of it in use.
    used: usize,
    /// The reply's length, kept in step.
    reply_len: &'a mut usize,
}

impl<'a> DirWriter<'a> {
    pub(super) fn new(buf: &'a mut [u8], reply_len: &'a mut usize) -> Self {
        DirWriter { buf, used: 0, reply_len }
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether a READDIRPLUS entry with a name of that length still fits: to be asked before its node is
    /// looked up and referenced.
    pub fn fits_plus(&self, name_len: usize) -> bool {
        record(size_of::<DirentPlus>(), name_len).is_some_and(|len| len <= self.buf.len() - self.used)
    }

    /// Adds an entry of READDIR; `false` when it doesn't fit.
    pub fn push(&mut self, entry: &DirEntry<'_>) -> bool {
        self.append(dirent(entry).as_bytes(), entry.name).is_ok()
    }

    /// Adds an entry of READDIRPLUS; `false` when it doesn't fit, and then the guest has no reference to the
    /// node. Without a node (`.`, `..`, what could not be looked up) the guest learns the name only.
    #[inline(always)]
    pub fn push_plus(&mut self, entry: &DirEntry<'_>, node: Option<&Entry>) -> bool {
        let node = node.map_or_else(EntryOut::default, EntryOut::from);
        let fixed = DirentPlus { entry: node, dirent: dirent(entry) };
        self.append(fixed.as_bytes(), entry.name).is_ok()
    }

    #[inline(always)]
    fn append(&mut self, fixed: &[u8], name: &[u8]) -> Result<(), Errno> {
        let len = record(fixed.len(), name.len()).ok_or(Errno::ENAMETOOLONG)?;
        let slot = self.buf.get_mut(self.used..).and_then(|rest| rest.get_mut(..len)).ok_or(Errno::ENOSPC)?;
        let (head, tail) = slot.split_at_mut(fixed.len());
        let (text, padding) = tail.split_at_mut(name.len());
        head.copy_from_slice(fixed);
        text.copy_from_slice(name);
        padding.fill(0);
        self.used += len;
        *self.reply_len += len;
        Ok(())
    }
}

fn dirent(entry: &DirEntry<'_>) -> Dirent {
    // Names that are longer than MAX_NAME are refused by `record`.
    let namelen = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    Dirent { ino: entry.ino, off: entry.offset, namelen, kind: u32::from(entry.kind) }
}

/// Length of a record with its padding; `None` for a name that must not be listed.
fn record(fixed: usize, name_len: usize) -> Option<usize> {
    (1..=MAX_NAME).contains(&name_len).then(|| (fixed + name_len).next_multiple_of(RECORD_ALIGN))
}
