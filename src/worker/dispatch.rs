//! (4) From an operation to the file-system call that serves it, and from its answer to the reply. Nothing else
//! happens here.

use nix::errno::Errno;
use vm_memory::bitmap::Bitmap;

use super::buffers::Buffers;
use super::fs::{Attempt, Attr, DirSink, Entry, FileSystem, Opened, RawEntry, Thread};
use super::fuse::decode::MAX_XATTR;
use super::fuse::dirent::{DirEntry, DirWriter};
use super::fuse::negotiate::{self, Agreement};
use super::fuse::operation::{Context, GuestGid, GuestUid, Init, Operation};
use super::fuse::reply::{self, Owner, ReplyBuf};
use super::fuse::wire::{AttrFlags, StatFsOut};
use super::request::OUT_HEADER;

/// Longest target of a symbolic link (`PATH_MAX`).
const MAX_TARGET: usize = libc::PATH_MAX as usize;

type Result<T> = std::result::Result<T, Errno>;

/// What became of an operation that is no error.
pub enum Outcome {
    /// The reply is there.
    Done,
    /// The guest waits for this lock.
    Waits(Attempt),
    /// Another thread is to do it.
    Moves,
}

/// Runs one operation. File data of a WRITE begins at byte `data` of the message.
pub fn dispatch<B: Bitmap + 'static>(
    fs: &FileSystem,
    thread: &mut Thread,
    ctx: &Context,
    operation: Operation<'_>,
    buffers: &mut Buffers<'_, B>,
    data: usize,
    out: &mut ReplyBuf,
) -> Result<Outcome> {
    let result = match operation {
        Operation::Lookup(name) => entry(out, fs.lookup(thread, ctx.node, name)?),
        Operation::Forget { nlookup } => {
            fs.forget(ctx.node, nlookup);
            Ok(())
        }
        Operation::BatchForget(list) => {
            fs.batch_forget(list);
            Ok(())
        }
        Operation::GetAttr { handle } => attr(out, fs.getattr(ctx, handle)?),
        Operation::Statx { handle, flags, mask } => {
            let attr = fs.statx(ctx, handle, flags, mask)?;
            out.statx(&reply::statx(&attr.st, owner(&attr)), attr.valid)
        }
        Operation::SetAttr(set) => attr(out, fs.setattr(thread, ctx, &set)?),
        Operation::ReadLink => out.fill(MAX_TARGET, |buf| fs.readlink(ctx, buf)),
        Operation::SymLink { name, target, ext } => entry(out, fs.symlink(thread, ctx, name, target, &ext)?),
        Operation::MkNod { name, mode, rdev, umask, ext } => {
            entry(out, fs.mknod(thread, ctx, name, mode, rdev, umask, &ext)?)
        }
        Operation::MkDir { name, mode, umask, ext } => {
            entry(out, fs.mkdir(thread, ctx, name, mode, umask, &ext)?)
        }
        Operation::Unlink(name) => fs.unlink(thread, ctx, name),
        Operation::RmDir(name) => fs.rmdir(thread, ctx, name),
        Operation::Rename { name, new_parent, new_name, flags } => {
            fs.rename(thread, ctx, name, new_parent, new_name, flags)
        }
        Operation::Link { source, name } => entry(out, fs.link(thread, ctx, source, name)?),
        Operation::Open(open) => opened(out, fs.open(thread, ctx, open)?),
        Operation::Create { name, open, mode, umask, ext } => {
            created(out, fs.create(thread, ctx, name, open, mode, umask, &ext)?)
        }
        Operation::TmpFile { open, mode, umask, ext } => {
            created(out, fs.tmpfile(thread, ctx, open, mode, umask, &ext)?)
        }
        Operation::Read(read) => {
            let size = (read.size as usize).min(out.room());
            let read = super::fuse::operation::Read { size: size as u32, ..read };
            out.in_place(fs.read(ctx, read, &mut buffers.room(OUT_HEADER))?);
            Ok(())
        }
        Operation::Write(write) => {
            let written = fs.write(thread, ctx, write, &mut buffers.data(data))?;
            out.written(u32::try_from(written).map_err(|_| Errno::EOVERFLOW)?)
        }
        Operation::StatFs => out.statfs(&statfs(&fs.statfs(ctx)?)),
        Operation::Release { handle, .. } | Operation::ReleaseDir { handle } => fs.release(ctx, handle),
        Operation::FSync { handle, datasync } | Operation::FSyncDir { handle, datasync } => {
            fs.fsync(ctx, handle, datasync)
        }
        Operation::Flush { handle, lock_owner } => fs.flush(ctx, handle, lock_owner),
        Operation::OpenDir(open) => opened(out, fs.opendir(thread, ctx, open)?),
        Operation::ReadDir(read) => fs.readdir(ctx, read, &mut Listing(out.dir(read.size)?)),
        Operation::ReadDirPlus(read) => fs.readdirplus(thread, ctx, read, &mut Listing(out.dir(read.size)?)),
        Operation::Access { mask } => fs.access(ctx, mask),
        Operation::FAllocate { handle, offset, length, mode } => {
            fs.fallocate(thread, ctx, handle, mode, offset, length)
        }
        Operation::LSeek { handle, offset, whence } => out.seek(fs.lseek(ctx, handle, offset, whence)?),
        Operation::CopyFileRange {
            handle_in,
            offset_in,
            node_out,
            handle_out,
            offset_out,
            length,
            flags,
            wide,
        } => {
            let copied = fs.copy_file_range(
                thread, ctx, handle_in, offset_in, node_out, handle_out, offset_out, length, flags,
            )?;
            out.copied(copied as u64, wide)
        }
        Operation::SyncFs => fs.syncfs(ctx),
        Operation::SetXattr { name, value, flags, acl_kill_sgid } => {
            fs.setxattr(thread, ctx, name, value, flags, acl_kill_sgid)
        }
        Operation::GetXattr { name, size: None } => {
            out.xattr_size(length(fs.getxattr(thread, ctx, name, &mut [])?)?)
        }
        Operation::GetXattr { name, size: Some(size) } => {
            out.fill((size.get() as usize).min(MAX_XATTR), |buf| fs.getxattr(thread, ctx, name, buf))
        }
        Operation::ListXattr { size } => {
            let list = fs.listxattr(thread, ctx)?;
            match size {
                None => out.xattr_size(length(list.len())?),
                Some(size) if list.len() > size.get() as usize => Err(Errno::ERANGE),
                Some(_) => out.bytes_from(list),
            }
        }
        Operation::RemoveXattr { name } => fs.removexattr(thread, ctx, name),
        Operation::Init(init) => begin(fs, thread, &init, out),
        Operation::Destroy => fs.end_session(),
        Operation::Interrupt { unique } => {
            fs.interrupt(unique);
            Ok(())
        }
        Operation::GetLk(lock) => out.lock(fs.getlk(thread, ctx, &lock)?),
        Operation::SetLk { lock, wait } => match fs.setlk(thread, ctx, &lock, wait)? {
            None => Ok(()),
            Some(attempt) => return Ok(Outcome::Waits(attempt)),
        },
        Operation::Ioctl { handle, command, input, out_size, .. } => {
            let argument = fs.ioctl(thread, ctx, handle, command, input, out_size as usize)?;
            out.ioctl(0, argument.as_slice())
        }
        _ => Err(Errno::ENOSYS),
    };
    result.map(|()| Outcome::Done)
}

/// INIT
fn begin(fs: &FileSystem, thread: &mut Thread, init: &Init, out: &mut ReplyBuf) -> Result<()> {
    match negotiate::negotiate(init, fs.config(), &fs.service()) {
        Ok(Agreement::OlderMajor(reply)) => out.init(&reply),
        Ok(Agreement::Session { reply, negotiated, missing }) => {
            if !missing.is_empty() {
                log::warn!("the guest's kernel does not offer what options ask for: {missing:?}");
            }
            fs.begin_session(thread, negotiated)?;
            out.init(&reply)
        }
        Err(refusal) => {
            log::error!("{refusal}");
            Err(refusal.errno())
        }
    }
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Errno::E2BIG)
}

fn owner(attr: &Attr) -> Owner {
    Owner { uid: GuestUid(attr.st.stx_uid), gid: GuestGid(attr.st.stx_gid) }
}

#[inline(always)]
fn wire_attr(attr: &Attr) -> super::fuse::wire::Attr {
    let mut flags = AttrFlags::empty();
    flags.set(AttrFlags::SUBMOUNT, attr.submount);
    reply::attr(&attr.st, owner(attr), flags)
}

#[inline(always)]
fn wire_entry(entry: &Entry) -> reply::Entry {
    reply::Entry {
        node: entry.node,
        // Node ids are never used twice.
        generation: 0,
        attr: wire_attr(&entry.attr),
        entry_timeout: entry.valid,
        attr_timeout: entry.attr.valid,
    }
}

#[inline(always)]
fn entry(out: &mut ReplyBuf, answer: Entry) -> Result<()> {
    out.entry(&wire_entry(&answer))
}

#[inline(always)]
fn attr(out: &mut ReplyBuf, answer: Attr) -> Result<()> {
    out.attr(&wire_attr(&answer), answer.valid)
}

fn opened(out: &mut ReplyBuf, answer: Opened) -> Result<()> {
    out.open(answer.handle, answer.flags)
}

#[inline(always)]
fn created(out: &mut ReplyBuf, (node, file): (Entry, Opened)) -> Result<()> {
    out.create(&wire_entry(&node), file.handle, file.flags)
}

fn statfs(st: &libc::statfs64) -> StatFsOut {
    StatFsOut {
        blocks: st.f_blocks,
        bfree: st.f_bfree,
        bavail: st.f_bavail,
        files: st.f_files,
        ffree: st.f_ffree,
        bsize: u32::try_from(st.f_bsize).unwrap_or(u32::MAX),
        namelen: u32::try_from(st.f_namelen).unwrap_or(u32::MAX),
        frsize: u32::try_from(st.f_frsize).unwrap_or(u32::MAX),
        ..StatFsOut::default()
    }
}

/// A directory listing as a sink for entries.
struct Listing<'a>(DirWriter<'a>);

fn wire_dirent<'a>(entry: &RawEntry<'a>) -> DirEntry<'a> {
    DirEntry { ino: entry.ino, offset: entry.next, kind: entry.kind, name: entry.name.to_bytes() }
}

impl DirSink for Listing<'_> {
    fn push(&mut self, entry: &RawEntry<'_>) -> bool {
        self.0.push(&wire_dirent(entry))
    }

    fn has_room_plus(&self, name_len: usize) -> bool {
        self.0.fits_plus(name_len)
    }

    fn push_plus(&mut self, entry: &RawEntry<'_>, looked_up: Option<&Entry>) -> bool {
        self.0.push_plus(&wire_dirent(entry), looked_up.map(wire_entry).as_ref())
    }
}
