//! Turns the bytes of a request into an [`Operation`], or into the errno that answers it.
//!
//! Total: for any bytes, under any negotiated features, there is an answer; no panic, no system call, no
//! allocation. Everything that the comments in [`operation`](super::operation) promise is established here.
//!
//! The caller reads the header, asks [`frame`] how much of the rest to copy out of guest memory, copies it
//! (once), and calls [`decode`] on the copy.
//!
//! Strictness: a message that is shorter than its parts is `EINVAL`. Bytes behind a fixed part are ignored, as
//! by all FUSE servers, because a later minor version may lengthen a struct; bytes behind the last name,
//! value or extension are `EINVAL`, because there the length is what says where it ends.

mod cursor;
mod extensions;
mod io;
#[cfg(test)]
mod tests;

use nix::errno::Errno;

use self::cursor::Cursor;
use self::extensions::extensions;
use super::negotiate::Negotiated;
use super::operation::{
    ForgetList, GuestGid, GuestUid, HandleId, Init, LookupName, NodeId, Open, Operation, SetAttr, SetTime,
};
use super::wire::{self, InHeader, InitFlags, Opcode, SetAttrValid};

/// Bytes of the header that begins each request.
pub const HEADER: usize = size_of::<InHeader>();
/// Longest body that is copied out of guest memory, for all but BATCH_FORGET. The longest honest one is a
/// SETXATTR with a full value ([`MAX_XATTR`]) and name, or a SYMLINK with a security context.
pub const MAX_BODY: usize = 128 << 10;
/// Longest body of a BATCH_FORGET: what fits a kernel's request buffer of 1 MiB and a page.
pub const MAX_FORGET_BODY: usize = (1 << 20) + 4096;
/// Longest value of an extended attribute and longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
pub const MAX_XATTR: usize = 65536;
/// Longest reply payload to a READDIR or READDIRPLUS; more entries come with the next request.
pub const MAX_DIR_REPLY: u32 = 1 << 20;
/// Longest input and output of an ioctl: what a command number can say (`_IOC_SIZEMASK`).
pub const MAX_IOCTL: usize = (1 << 14) - 1;

/// How a message's bytes behind the header divide into what is copied and what stays in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes directly behind the header to copy; at most [`MAX_BODY`], for BATCH_FORGET [`MAX_FORGET_BODY`].
    pub body: usize,
    /// Bytes behind those that are the data of a WRITE; 0 for all other requests.
    pub data: usize,
}

/// Divides a message of which the chain holds `available` bytes, with the header. Bytes beyond the header's
/// `len` don't belong to it.
///
/// # Errors
///
/// `EINVAL` when `len` is shorter than a header or longer than the chain; for a body that is too long,
/// `E2BIG` (SETXATTR), `ENAMETOOLONG` (requests with names), `ENOSYS` (requests that we don't know) or
/// `EINVAL`.
pub fn frame(header: &InHeader, available: usize) -> Result<Frame, Errno> {
    let len = usize::try_from(header.len).map_err(|_| Errno::EINVAL)?;
    let rest = len.checked_sub(HEADER).filter(|_| len <= available).ok_or(Errno::EINVAL)?;
    let opcode = Opcode::from_raw(header.opcode).ok_or(Errno::ENOSYS)?;
    let (limit, errno) = match opcode {
        Opcode::Write => {
            let body = rest.min(size_of::<wire::WriteIn>());
            return Ok(Frame { body, data: rest - body });
        }
        Opcode::BatchForget => (MAX_FORGET_BODY, Errno::EINVAL),
        Opcode::SetXattr => (MAX_BODY, Errno::E2BIG),
        opcode if has_name(opcode) => (MAX_BODY, Errno::ENAMETOOLONG),
        _ => (MAX_BODY, Errno::EINVAL),
    };
    if rest > limit {
        return Err(errno);
    }
    Ok(Frame { body: rest, data: 0 })
}

/// Requests whose length depends on a name more than on anything else.
fn has_name(opcode: Opcode) -> bool {
    use Opcode::*;
    let in_directory = matches!(
        opcode,
        Lookup | Unlink | RmDir | Rename | Rename2 | Link | SymLink | MkNod | MkDir | Create
    );
    in_directory || matches!(opcode, TmpFile | GetXattr | RemoveXattr)
}

/// Whether a request gets a reply, be it an error: also one whose opcode we don't know.
pub fn has_reply(header: &InHeader) -> bool {
    Opcode::from_raw(header.opcode).is_none_or(Opcode::has_reply)
}

/// A request in the queue thread's private memory.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its header.
    pub header: &'a InHeader,
    /// [`Frame::body`] bytes.
    pub body: &'a [u8],
    /// [`Frame::data`]: how many bytes of WRITE data are in guest memory.
    pub data: usize,
}

/// Decodes and checks a request.
///
/// # Errors
///
/// The errno to answer with, for the requests that have a reply: `EINVAL` for anything malformed, `E2BIG` for
/// an xattr value that no file system takes, `ENXIO` for a search for data beyond all files, `EOVERFLOW` for a
/// creation by ids that have no number here.
pub fn decode<'a>(message: &Message<'a>, negotiated: &Negotiated) -> Result<Operation<'a>, Errno> {
    let Some(opcode) = Opcode::from_raw(message.header.opcode) else {
        return Ok(Operation::Unsupported { opcode: message.header.opcode });
    };
    let mut body = Cursor(message.body);
    match opcode {
        Opcode::Lookup => Ok(Operation::Lookup(lookup_name(&mut body)?)),
        Opcode::Forget => Ok(Operation::Forget { nlookup: body.fixed::<wire::ForgetIn>()?.nlookup }),
        Opcode::BatchForget => batch_forget(body),
        Opcode::GetAttr => get_attr(body),
        Opcode::SetAttr => set_attr(body),
        Opcode::Statx => statx(body),
        Opcode::ReadLink => Ok(Operation::ReadLink),
        Opcode::SymLink | Opcode::MkNod | Opcode::MkDir | Opcode::Create | Opcode::TmpFile => {
            caller_has_ids(message.header)?;
            create(opcode, body, negotiated)
        }
        Opcode::Unlink => Ok(Operation::Unlink(body.last_name()?)),
        Opcode::RmDir => Ok(Operation::RmDir(body.last_name()?)),
        Opcode::Rename | Opcode::Rename2 => rename(opcode, message.header, body),
        Opcode::Link => {
            let source = NodeId(body.fixed::<wire::LinkIn>()?.oldnodeid);
            Ok(Operation::Link { source, name: body.last_name()? })
        }
        Opcode::Open => Ok(Operation::Open(open(body)?)),
        Opcode::OpenDir => Ok(Operation::OpenDir(open(body)?)),
        Opcode::SetXattr => set_xattr(body, negotiated),
        Opcode::GetXattr => {
            let size = xattr_room(body.fixed::<wire::GetXattrIn>()?.size);
            Ok(Operation::GetXattr { name: body.last_text()?, size })
        }
        Opcode::ListXattr => {
            Ok(Operation::ListXattr { size: xattr_room(body.fixed::<wire::GetXattrIn>()?.size) })
        }
        Opcode::RemoveXattr => Ok(Operation::RemoveXattr { name: body.last_text()? }),
        Opcode::Access => access(body),
        Opcode::StatFs => Ok(Operation::StatFs),
        Opcode::SyncFs => Ok(Operation::SyncFs),
        Opcode::Init => init(body),
        Opcode::Destroy => Ok(Operation::Destroy),
        Opcode::Interrupt => Ok(Operation::Interrupt { unique: body.fixed::<wire::InterruptIn>()?.unique }),
        Opcode::Write => io::write(body, message.data),
        Opcode::Read | Opcode::ReadDir | Opcode::ReadDirPlus => io::read(opcode, body),
        Opcode::Release | Opcode::ReleaseDir | Opcode::Flush => io::close(opcode, body),
        Opcode::FSync | Opcode::FSyncDir => io::fsync(opcode, body),
        Opcode::FAllocate => io::fallocate(body),
        Opcode::LSeek => io::lseek(body),
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => io::copy_file_range(opcode, body),
        Opcode::GetLk | Opcode::SetLk | Opcode::SetLkWait => io::lock(opcode, body),
        Opcode::Ioctl => io::ioctl(body),
        Opcode::BMap | Opcode::Poll | Opcode::NotifyReply | Opcode::SetupMapping | Opcode::RemoveMapping => {
            Ok(Operation::Unsupported { opcode: message.header.opcode })
        }
    }
}

/// A creation needs an owner: with `u32::MAX`, setfsuid and its like would keep the daemon's own id.
fn caller_has_ids(header: &InHeader) -> Result<(), Errno> {
    if header.uid == wire::INVALID_ID || header.gid == wire::INVALID_ID {
        return Err(Errno::EOVERFLOW);
    }
    Ok(())
}

fn lookup_name<'a>(body: &mut Cursor<'a>) -> Result<LookupName<'a>, Errno> {
    let text = body.last_text()?;
    match text.to_bytes() {
        b"." => Ok(LookupName::Current),
        b".." => Ok(LookupName::Parent),
        _ => cursor::file_name(text).map(LookupName::Name),
    }
}

fn batch_forget(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let count = usize::try_from(body.fixed::<wire::BatchForgetIn>()?.count).map_err(|_| Errno::EINVAL)?;
    let len = count.checked_mul(size_of::<wire::ForgetOne>()).ok_or(Errno::EINVAL)?;
    Ok(Operation::BatchForget(ForgetList(body.bytes(len)?)))
}

fn get_attr(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::GetAttrIn = body.fixed()?;
    Ok(Operation::GetAttr {
        handle: (fixed.getattr_flags & wire::GETATTR_FH != 0).then_some(HandleId(fixed.fh)),
    })
}

fn statx(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    const SYNC_TYPE: u32 = libc::AT_STATX_SYNC_TYPE.cast_unsigned();
    const RESERVED: u32 = libc::STATX__RESERVED.cast_unsigned();
    let fixed: wire::StatxIn = body.fixed()?;
    let flags = fixed.sx_flags & SYNC_TYPE;
    if flags == SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    let handle = (fixed.getattr_flags & wire::GETATTR_FH != 0).then_some(HandleId(fixed.fh));
    Ok(Operation::Statx { handle, flags, mask: fixed.sx_mask & !RESERVED })
}

fn set_attr(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::SetAttrIn = body.fixed()?;
    let valid = SetAttrValid::from_bits_truncate(fixed.valid);
    let when = |flag, value| valid.contains(flag).then_some(value);
    let time = |given, now, seconds: u64, nanos| {
        if valid.contains(now) {
            Ok(Some(SetTime::Now))
        } else if !valid.contains(given) {
            Ok(None)
        } else if nanos < 1_000_000_000 {
            Ok(Some(SetTime::At { seconds: seconds.cast_signed(), nanos }))
        } else {
            Err(Errno::EINVAL)
        }
    };
    let set = SetAttr {
        handle: when(SetAttrValid::FH, fixed.fh).map(HandleId),
        mode: valid.contains(SetAttrValid::MODE).then_some(fixed.mode & 0o7777),
        uid: valid.contains(SetAttrValid::UID).then_some(GuestUid(fixed.uid)),
        gid: valid.contains(SetAttrValid::GID).then_some(GuestGid(fixed.gid)),
        size: when(SetAttrValid::SIZE, fixed.size),
        atime: time(SetAttrValid::ATIME, SetAttrValid::ATIME_NOW, fixed.atime, fixed.atimensec)?,
        mtime: time(SetAttrValid::MTIME, SetAttrValid::MTIME_NOW, fixed.mtime, fixed.mtimensec)?,
        ctime: valid.contains(SetAttrValid::CTIME),
        kill_suidgid: valid.contains(SetAttrValid::KILL_SUIDGID),
    };
    let id_is_valid = set.uid.is_none_or(|uid| uid.0 != wire::INVALID_ID)
        && set.gid.is_none_or(|gid| gid.0 != wire::INVALID_ID);
    if !id_is_valid || set.size.is_some_and(|size| i64::try_from(size).is_err()) {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::SetAttr(set))
}

/// SYMLINK, MKNOD, MKDIR, CREATE and TMPFILE: fixed part, name, what else there is, extensions.
fn create<'a>(opcode: Opcode, mut body: Cursor<'a>, negotiated: &Negotiated) -> Result<Operation<'a>, Errno> {
    match opcode {
        Opcode::SymLink => {
            let name = body.name()?;
            let target = body.text()?;
            Ok(Operation::SymLink { name, target, ext: extensions(body, negotiated)? })
        }
        Opcode::MkNod => {
            let fixed: wire::MkNodIn = body.fixed()?;
            let (mode, umask) = (node_mode(fixed.mode)?, fixed.umask & 0o777);
            let name = body.name()?;
            let ext = extensions(body, negotiated)?;
            Ok(Operation::MkNod { name, mode, rdev: fixed.rdev, umask, ext })
        }
        Opcode::MkDir => {
            let fixed: wire::MkDirIn = body.fixed()?;
            let (mode, umask) = (fixed.mode & 0o7777, fixed.umask & 0o777);
            let name = body.name()?;
            Ok(Operation::MkDir { name, mode, umask, ext: extensions(body, negotiated)? })
        }
        _ => {
            let fixed: wire::CreateIn = body.fixed()?;
            let (mode, umask) = (fixed.mode & 0o7777, fixed.umask & 0o777);
            let open =
                Open { flags: fixed.flags, kill_suidgid: fixed.open_flags & wire::OPEN_KILL_SUIDGID != 0 };
            if opcode == Opcode::TmpFile {
                // The kernel sends the name of its unnamed dentry, "/"; it means nothing.
                body.c_str()?;
                let ext = extensions(body, negotiated)?;
                return Ok(Operation::TmpFile { open, mode, umask, ext });
            }
            let name = body.name()?;
            Ok(Operation::Create { name, open, mode, umask, ext: extensions(body, negotiated)? })
        }
    }
}

/// Type and permission bits of a MKNOD.
fn node_mode(mode: u32) -> Result<u32, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => {
            Ok(mode & (libc::S_IFMT | 0o7777))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn rename<'a>(opcode: Opcode, header: &InHeader, mut body: Cursor<'a>) -> Result<Operation<'a>, Errno> {
    const KNOWN: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    let (new_parent, flags) = if opcode == Opcode::Rename {
        (body.fixed::<wire::RenameIn>()?.newdir, 0)
    } else {
        let fixed: wire::Rename2In = body.fixed()?;
        (fixed.newdir, fixed.flags)
    };
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & libc::RENAME_WHITEOUT != 0 {
        caller_has_ids(header)?;
    }
    let name = body.name()?;
    Ok(Operation::Rename { name, new_parent: NodeId(new_parent), new_name: body.last_name()?, flags })
}

fn open(mut body: Cursor<'_>) -> Result<Open, Errno> {
    let fixed: wire::OpenIn = body.fixed()?;
    Ok(Open { flags: fixed.flags, kill_suidgid: fixed.open_flags & wire::OPEN_KILL_SUIDGID != 0 })
}

fn set_xattr<'a>(mut body: Cursor<'a>, negotiated: &Negotiated) -> Result<Operation<'a>, Errno> {
    const KNOWN: u32 = (libc::XATTR_CREATE | libc::XATTR_REPLACE).cast_unsigned();
    let fixed: wire::SetXattrIn = body.fixed()?;
    let setxattr_flags = if negotiated.has(InitFlags::SETXATTR_EXT) {
        body.fixed::<wire::SetXattrExt>()?.setxattr_flags
    } else {
        0
    };
    let size = usize::try_from(fixed.size).map_err(|_| Errno::E2BIG)?;
    if size > MAX_XATTR {
        return Err(Errno::E2BIG);
    }
    let name = body.text()?;
    if fixed.flags & !KNOWN != 0 || body.0.len() != size {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::SetXattr {
        name,
        value: body.0,
        flags: fixed.flags,
        acl_kill_sgid: setxattr_flags & wire::SETXATTR_ACL_KILL_SGID != 0,
    })
}

/// Room for a value or list: no longer than any value can be.
fn xattr_room(size: u32) -> Option<std::num::NonZeroU32> {
    const MAX: u32 = MAX_XATTR as u32;
    std::num::NonZeroU32::new(size.min(MAX))
}

fn access(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    const KNOWN: u32 = (libc::R_OK | libc::W_OK | libc::X_OK).cast_unsigned();
    let mask = body.fixed::<wire::AccessIn>()?.mask;
    if mask & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::Access { mask })
}

/// INIT: 16 bytes before 7.36, 64 bytes with `INIT_EXT`. Of another major version, only these 16 have a
/// meaning that we know.
fn init(mut body: Cursor<'_>) -> Result<Operation<'_>, Errno> {
    let fixed: wire::InitIn = body.fixed()?;
    let mut flags = u64::from(fixed.flags);
    if fixed.major == wire::MAJOR && flags & InitFlags::INIT_EXT.bits() != 0 {
        flags |= u64::from(body.fixed::<wire::InitInExt>()?.flags2) << 32;
    }
    Ok(Operation::Init(Init {
        major: fixed.major,
        minor: fixed.minor,
        max_readahead: fixed.max_readahead,
        flags: InitFlags::from_bits_truncate(flags),
    }))
}
