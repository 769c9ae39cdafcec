//! The FUSE client: one request at a time on a request queue, FORGET on the high-priority queue.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Result;
use super::wire::{self, IN_HEADER, OUT_HEADER, opcode};
use crate::frontend::{Completion, Queue, Shape};

/// Who asks, as it stands in the request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// File-system user.
    pub uid: u32,
    /// File-system group.
    pub gid: u32,
    /// Process.
    pub pid: u32,
}

impl Default for Caller {
    fn default() -> Caller {
        Caller { uid: 0, gid: 0, pid: 1 }
    }
}

/// What a request's reply can hold beyond its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The protocol has no reply.
    Never,
    /// A fixed part of this many bytes.
    Fixed(usize),
    /// Data in pages, up to this many bytes.
    Pages(usize),
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the next entry begins.
    pub offset: u64,
    /// `DT_*`.
    pub kind: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// What a LOOKUP would have returned (READDIRPLUS).
    pub entry: Option<wire::EntryOut>,
}

/// Attributes to change; see [`wire::fattr`].
pub type SetAttr = wire::SetAttrIn;

/// A FUSE client on one request queue.
#[derive(Debug)]
pub struct Client {
    queue: Queue,
    hiprio: Arc<Mutex<Queue>>,
    unique: u64,
    /// Stands in the header of each request.
    pub caller: Caller,
    /// The umask that creating requests carry.
    pub umask: u32,
    /// Whether SETXATTR has its long form (negotiated with [`wire::init::SETXATTR_EXT`]).
    pub setxattr_ext: bool,
}

impl Client {
    /// A client on this queue; `hiprio` is shared by all clients of a device.
    pub fn new(queue: Queue, hiprio: Arc<Mutex<Queue>>) -> Client {
        Client { queue, hiprio, unique: 0, caller: Caller::default(), umask: 0o022, setxattr_ext: false }
    }

    /// The queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue, for requests that this client can't make.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Gives the queue back.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// The header of this client's next request; `body` bytes follow it.
    pub fn header(&mut self, opcode: u32, nodeid: u64, body: usize) -> wire::InHeader {
        // Linux counts in twos; odd numbers are interrupts.
        self.unique += 2;
        wire::InHeader {
            len: u32::try_from(IN_HEADER + body).expect("a small request"),
            opcode,
            unique: self.unique,
            nodeid,
            uid: self.caller.uid,
            gid: self.caller.gid,
            pid: self.caller.pid,
            total_extlen: 0,
            padding: 0,
        }
    }

    /// Makes a request of these arguments, and of file data behind them, and returns its reply's body.
    pub fn call(
        &mut self,
        opcode: u32,
        nodeid: u64,
        args: &[&[u8]],
        data: &[u8],
        reply: Reply,
    ) -> Result<Vec<u8>> {
        let args_len: usize = args.iter().map(|arg| arg.len()).sum();
        let header = self.header(opcode, nodeid, args_len + data.len());
        let fixed = match reply {
            Reply::Never => 0,
            Reply::Fixed(len) => OUT_HEADER + len,
            Reply::Pages(_) => OUT_HEADER,
        };
        let pages = if let Reply::Pages(len) = reply { len } else { 0 };
        let [head, data_in, fixed, pages] = [IN_HEADER + args_len, data.len(), fixed, pages]
            .map(|size| u32::try_from(size).expect("requests and replies are small"));
        let shape = Shape::new(head, data_in, fixed, pages);
        let slot = self.queue.take().expect("this client has one request at a time");
        let buffer = self.queue.request(slot);
        let mut at = shape.start as usize;
        for part in [&[header.as_bytes()][..], args, &[data]].concat() {
            buffer.write(at, part);
            at += part.len();
        }
        self.queue.submit(slot, shape);
        self.queue.flush();
        let completion = self.queue.wait().unwrap_or_else(|e| panic!("{header:?}: {e}"));
        assert_eq!(completion.slot, slot, "only one request is in flight");
        let message = take_message(&mut self.queue, completion);
        if reply == Reply::Never {
            assert!(message.is_empty(), "{header:?} has no reply, but {} bytes came", message.len());
            return Ok(message);
        }
        body_of(&message, &header)
    }

    /// Sends a request whose reply has no body, and doesn't wait for it; its number.
    pub fn submit(&mut self, opcode: u32, nodeid: u64, arg: &[u8]) -> u64 {
        let unique = self.enqueue(opcode, nodeid, arg, 0);
        self.queue.flush();
        unique
    }

    /// Puts a request into the queue whose reply may have so many bytes; its number. The daemon sees it after
    /// [`Queue::flush`].
    pub fn enqueue(&mut self, opcode: u32, nodeid: u64, arg: &[u8], room: usize) -> u64 {
        let header = self.header(opcode, nodeid, arg.len());
        let slot = self.queue.take().expect("a free slot");
        let small = |size: usize| u32::try_from(size).expect("small");
        let shape = Shape::new(small(IN_HEADER + arg.len()), 0, small(OUT_HEADER + room), 0);
        let message = [header.as_bytes(), arg].concat();
        self.queue.request(slot).write(shape.start as usize, &message);
        self.queue.submit(slot, shape);
        header.unique
    }

    /// The next reply to a request that was submitted so: its number and its result.
    pub fn collect(&mut self) -> (u64, Result<()>) {
        let (unique, result) = self.collect_body();
        (unique, result.map(|body| assert!(body.is_empty(), "a body that was not asked for")))
    }

    /// The next reply, with its body.
    pub fn collect_body(&mut self) -> (u64, Result<Vec<u8>>) {
        let completion = self.queue.wait().unwrap_or_else(|e| panic!("a late reply: {e}"));
        let message = take_message(&mut self.queue, completion);
        let (header, body) = wire::OutHeader::read_from_prefix(&message).expect("a header");
        assert_eq!(header.len as usize, message.len());
        let result = if header.error == 0 { Ok(body.to_vec()) } else { Err(Errno::from_raw(-header.error)) };
        (header.unique, result)
    }

    /// Makes a request of any bytes behind a good header. `reply_len` is the room for the whole reply, the
    /// header included.
    pub fn raw(&mut self, opcode: u32, nodeid: u64, bytes: &[u8], reply_len: usize) -> Result<Vec<u8>> {
        let header = self.header(opcode, nodeid, bytes.len());
        let message = self.raw_message(&[header.as_bytes(), bytes].concat(), reply_len);
        body_of(&message, &header)
    }

    /// Sends any bytes and returns as many bytes of the reply as the daemon says that it wrote; nothing is
    /// checked but that it doesn't claim more than there is room for.
    pub fn raw_message(&mut self, message: &[u8], reply_len: usize) -> Vec<u8> {
        self.queue.exchange(message, reply_len).unwrap_or_else(|e| panic!("a raw message: {e}"))
    }

    fn fixed<T: FromBytes>(&mut self, op: u32, node: u64, args: &[&[u8]]) -> Result<T> {
        let body = self.call(op, node, args, &[], Reply::Fixed(size_of::<T>()))?;
        Ok(T::read_from_bytes(&body)
            .unwrap_or_else(|_| panic!("opcode {op}: a reply of {} bytes", body.len())))
    }

    fn empty(&mut self, op: u32, node: u64, args: &[&[u8]]) -> Result<()> {
        let body = self.call(op, node, args, &[], Reply::Fixed(0))?;
        assert!(body.is_empty(), "opcode {op}: {} bytes too many", body.len());
        Ok(())
    }

    /// INIT with these flags (INIT_EXT is set when needed).
    pub fn init(&mut self, flags: u64) -> Result<wire::InitOut> {
        self.init_as(wire::MINOR, flags)
    }

    /// INIT as a kernel that speaks another minor version.
    pub fn init_as(&mut self, minor: u32, flags: u64) -> Result<wire::InitOut> {
        let flags = if flags >> 32 != 0 { flags | wire::init::INIT_EXT } else { flags };
        let request = wire::InitIn {
            major: wire::MAJOR,
            minor,
            max_readahead: 128 << 10,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            unused: [0; 11],
        };
        let reply: wire::InitOut = self.fixed(opcode::INIT, 0, &[request.as_bytes()])?;
        self.setxattr_ext = u64::from(reply.flags) & wire::init::SETXATTR_EXT != 0;
        Ok(reply)
    }

    /// DESTROY. Upstream returns the chain without a reply (used length 0), the C daemon with one; Linux takes
    /// either, and so do we.
    pub fn destroy(&mut self) -> Result<()> {
        let header = self.header(opcode::DESTROY, 0, 0);
        match self.raw_message(header.as_bytes(), OUT_HEADER) {
            message if message.is_empty() => Ok(()),
            message => body_of(&message, &header).map(|body| assert!(body.is_empty(), "DESTROY: {body:?}")),
        }
    }

    /// LOOKUP.
    pub fn lookup(&mut self, parent: u64, name: impl AsRef<OsStr>) -> Result<wire::EntryOut> {
        self.fixed(opcode::LOOKUP, parent, &[&terminated(name)])
    }

    /// LOOKUP of each component of a path below the root. The nodes on the way stay looked up.
    pub fn walk(&mut self, path: &str) -> Result<wire::EntryOut> {
        let mut entry = wire::EntryOut { nodeid: wire::ROOT, ..Default::default() };
        for name in path.split('/') {
            entry = self.lookup(entry.nodeid, name)?;
        }
        Ok(entry)
    }

    /// FORGET on the high-priority queue; returns when the daemon has taken it.
    pub fn forget(&mut self, nodeid: u64, nlookup: u64) {
        let header = self.header(opcode::FORGET, nodeid, size_of::<wire::ForgetIn>());
        self.send_forget(&[header.as_bytes(), wire::ForgetIn { nlookup }.as_bytes()].concat());
    }

    /// BATCH_FORGET on the high-priority queue.
    pub fn batch_forget(&mut self, nodes: &[wire::ForgetOne]) {
        let count = u32::try_from(nodes.len()).expect("a small batch");
        let fixed = wire::BatchForgetIn { count, dummy: 0 };
        let header = self.header(opcode::BATCH_FORGET, 0, size_of_val(&fixed) + size_of_val(nodes));
        self.send_forget(&[header.as_bytes(), fixed.as_bytes(), nodes.as_bytes()].concat());
    }

    fn send_forget(&mut self, message: &[u8]) {
        let mut queue = self.hiprio.lock().expect("no panic while it is held");
        let slot = queue.take().expect("forgets are waited for");
        let shape = Shape::forget(u32::try_from(message.len()).expect("small"));
        queue.request(slot).write(shape.start as usize, message);
        queue.submit(slot, shape);
        queue.flush();
        let completion = queue.wait().unwrap_or_else(|e| panic!("FORGET: {e}"));
        assert_eq!((completion.slot, completion.len), (slot, 0), "FORGET has no reply");
        queue.put(slot);
    }

    /// GETATTR, through a handle if one is given.
    pub fn getattr(&mut self, node: u64, handle: Option<u64>) -> Result<wire::AttrOut> {
        let getattr_flags = if handle.is_some() { wire::GETATTR_FH } else { 0 };
        let request = wire::GetAttrIn { getattr_flags, dummy: 0, fh: handle.unwrap_or(0) };
        self.fixed(opcode::GETATTR, node, &[request.as_bytes()])
    }

    /// SETATTR.
    pub fn setattr(&mut self, node: u64, change: SetAttr) -> Result<wire::AttrOut> {
        self.fixed(opcode::SETATTR, node, &[change.as_bytes()])
    }

    /// READLINK.
    pub fn readlink(&mut self, node: u64) -> Result<Vec<u8>> {
        // Linux gives a page and keeps one byte for itself.
        self.call(opcode::READLINK, node, &[], &[], Reply::Pages(4095))
    }

    /// SYMLINK.
    pub fn symlink(
        &mut self,
        parent: u64,
        name: impl AsRef<OsStr>,
        to: impl AsRef<OsStr>,
    ) -> Result<wire::EntryOut> {
        self.fixed(opcode::SYMLINK, parent, &[&terminated(name), &terminated(to)])
    }

    /// MKNOD.
    pub fn mknod(
        &mut self,
        parent: u64,
        name: impl AsRef<OsStr>,
        mode: u32,
        rdev: u32,
    ) -> Result<wire::EntryOut> {
        let request = wire::MknodIn { mode, rdev, umask: self.umask, padding: 0 };
        self.fixed(opcode::MKNOD, parent, &[request.as_bytes(), &terminated(name)])
    }

    /// MKDIR.
    pub fn mkdir(&mut self, parent: u64, name: impl AsRef<OsStr>, mode: u32) -> Result<wire::EntryOut> {
        let request = wire::MkdirIn { mode, umask: self.umask };
        self.fixed(opcode::MKDIR, parent, &[request.as_bytes(), &terminated(name)])
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: u64, name: impl AsRef<OsStr>) -> Result<()> {
        self.empty(opcode::UNLINK, parent, &[&terminated(name)])
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: impl AsRef<OsStr>) -> Result<()> {
        self.empty(opcode::RMDIR, parent, &[&terminated(name)])
    }

    /// RENAME, or RENAME2 when there are flags.
    pub fn rename(
        &mut self,
        from: (u64, impl AsRef<OsStr>),
        to: (u64, impl AsRef<OsStr>),
        flags: u32,
    ) -> Result<()> {
        let names = (terminated(from.1), terminated(to.1));
        if flags == 0 {
            let request = wire::RenameIn { newdir: to.0 };
            return self.empty(opcode::RENAME, from.0, &[request.as_bytes(), &names.0, &names.1]);
        }
        let request = wire::Rename2In { newdir: to.0, flags, padding: 0 };
        self.empty(opcode::RENAME2, from.0, &[request.as_bytes(), &names.0, &names.1])
    }

    /// LINK.
    pub fn link(&mut self, node: u64, parent: u64, name: impl AsRef<OsStr>) -> Result<wire::EntryOut> {
        let request = wire::LinkIn { oldnodeid: node };
        self.fixed(opcode::LINK, parent, &[request.as_bytes(), &terminated(name)])
    }

    /// OPEN with `O_*` flags.
    pub fn open(&mut self, node: u64, flags: i32) -> Result<wire::OpenOut> {
        let request = wire::OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        self.fixed(opcode::OPEN, node, &[request.as_bytes()])
    }

    /// OPENDIR.
    pub fn opendir(&mut self, node: u64) -> Result<wire::OpenOut> {
        let flags = (libc::O_RDONLY | libc::O_DIRECTORY).cast_unsigned();
        self.fixed(opcode::OPENDIR, node, &[wire::OpenIn { flags, open_flags: 0 }.as_bytes()])
    }

    /// CREATE.
    pub fn create(
        &mut self,
        parent: u64,
        name: impl AsRef<OsStr>,
        flags: i32,
        mode: u32,
    ) -> Result<wire::CreateOut> {
        let request = wire::CreateIn { flags: flags.cast_unsigned(), mode, umask: self.umask, open_flags: 0 };
        self.fixed(opcode::CREATE, parent, &[request.as_bytes(), &terminated(name)])
    }

    /// READ.
    pub fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let request = wire::ReadIn { fh, offset, size, ..Default::default() };
        self.call(opcode::READ, node, &[request.as_bytes()], &[], Reply::Pages(size as usize))
    }

    /// WRITE; returns how many bytes were written.
    pub fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_with(node, wire::WriteIn { fh, offset, ..Default::default() }, data)
    }

    /// WRITE with any flags; `size` is filled in.
    pub fn write_with(&mut self, node: u64, request: wire::WriteIn, data: &[u8]) -> Result<u32> {
        let request = wire::WriteIn { size: u32::try_from(data.len()).expect("small"), ..request };
        let reply = Reply::Fixed(size_of::<wire::WriteOut>());
        let body = self.call(opcode::WRITE, node, &[request.as_bytes()], data, reply)?;
        Ok(wire::WriteOut::read_from_bytes(&body).expect("a WRITE reply has eight bytes").size)
    }

    /// STATFS.
    pub fn statfs(&mut self, node: u64) -> Result<wire::StatfsOut> {
        self.fixed(opcode::STATFS, node, &[])
    }

    /// FLUSH.
    pub fn flush(&mut self, node: u64, fh: u64) -> Result<()> {
        self.empty(opcode::FLUSH, node, &[wire::FlushIn { fh, ..Default::default() }.as_bytes()])
    }

    /// FSYNC.
    pub fn fsync(&mut self, node: u64, fh: u64, data_only: bool) -> Result<()> {
        let fsync_flags = if data_only { wire::FSYNC_FDATASYNC } else { 0 };
        self.empty(opcode::FSYNC, node, &[wire::FsyncIn { fh, fsync_flags, padding: 0 }.as_bytes()])
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&mut self, node: u64, fh: u64) -> Result<()> {
        self.empty(opcode::FSYNCDIR, node, &[wire::FsyncIn { fh, ..Default::default() }.as_bytes()])
    }

    /// SYNCFS.
    pub fn syncfs(&mut self, node: u64) -> Result<()> {
        self.empty(opcode::SYNCFS, node, &[wire::SyncfsIn::default().as_bytes()])
    }

    /// RELEASE.
    pub fn release(&mut self, node: u64, fh: u64) -> Result<()> {
        self.empty(opcode::RELEASE, node, &[wire::ReleaseIn { fh, ..Default::default() }.as_bytes()])
    }

    /// RELEASEDIR.
    pub fn releasedir(&mut self, node: u64, fh: u64) -> Result<()> {
        self.empty(opcode::RELEASEDIR, node, &[wire::ReleaseIn { fh, ..Default::default() }.as_bytes()])
    }

    /// ACCESS.
    pub fn access(&mut self, node: u64, mask: u32) -> Result<()> {
        self.empty(opcode::ACCESS, node, &[wire::AccessIn { mask, padding: 0 }.as_bytes()])
    }

    /// FALLOCATE.
    pub fn fallocate(&mut self, node: u64, fh: u64, mode: i32, offset: u64, length: u64) -> Result<()> {
        let request = wire::FallocateIn { fh, offset, length, mode: mode.cast_unsigned(), padding: 0 };
        self.empty(opcode::FALLOCATE, node, &[request.as_bytes()])
    }

    /// LSEEK.
    pub fn lseek(&mut self, node: u64, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        let request = wire::LseekIn { fh, offset, whence: whence.cast_unsigned(), padding: 0 };
        self.fixed::<wire::LseekOut>(opcode::LSEEK, node, &[request.as_bytes()]).map(|out| out.offset)
    }

    /// COPY_FILE_RANGE; returns how many bytes were copied.
    pub fn copy_file_range(&mut self, node: u64, request: wire::CopyFileRangeIn) -> Result<u32> {
        let request = request.as_bytes();
        self.fixed::<wire::WriteOut>(opcode::COPY_FILE_RANGE, node, &[request]).map(|out| out.size)
    }

    /// READDIR: the entries of one reply of at most `size` bytes.
    pub fn readdir(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<DirEntry>> {
        let request = wire::ReadIn { fh, offset, size, ..Default::default() };
        let data =
            self.call(opcode::READDIR, node, &[request.as_bytes()], &[], Reply::Pages(size as usize))?;
        Ok(dir_entries(&data, false))
    }

    /// READDIRPLUS: the same, each entry but `.` and `..` looked up.
    pub fn readdirplus(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<DirEntry>> {
        let request = wire::ReadIn { fh, offset, size, ..Default::default() };
        let reply = Reply::Pages(size as usize);
        let data = self.call(opcode::READDIRPLUS, node, &[request.as_bytes()], &[], reply)?;
        Ok(dir_entries(&data, true))
    }

    /// All entries of a directory, by READDIR in pages.
    pub fn list(&mut self, node: u64) -> Result<Vec<DirEntry>> {
        let fh = self.opendir(node)?.fh;
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |entry| entry.offset);
            match self.readdir(node, fh, offset, 4096)? {
                batch if batch.is_empty() => break,
                batch => all.extend(batch),
            }
        }
        self.releasedir(node, fh)?;
        Ok(all)
    }

    /// SETXATTR.
    pub fn setxattr(&mut self, node: u64, name: impl AsRef<OsStr>, value: &[u8], flags: i32) -> Result<()> {
        let size = u32::try_from(value.len()).expect("small");
        let flags = flags.cast_unsigned();
        let long = wire::SetxattrExtIn { size, flags, ..Default::default() };
        let short = wire::SetxattrIn { size, flags };
        let fixed = if self.setxattr_ext { long.as_bytes() } else { short.as_bytes() };
        self.empty(opcode::SETXATTR, node, &[fixed, &terminated(name), value])
    }

    /// GETXATTR with a buffer of `size` bytes.
    pub fn getxattr(&mut self, node: u64, name: impl AsRef<OsStr>, size: u32) -> Result<Vec<u8>> {
        let request = wire::GetxattrIn { size, padding: 0 };
        let args: [&[u8]; 2] = [request.as_bytes(), &terminated(name)];
        self.call(opcode::GETXATTR, node, &args, &[], Reply::Fixed(size as usize))
    }

    /// GETXATTR that only asks for the size.
    pub fn getxattr_size(&mut self, node: u64, name: impl AsRef<OsStr>) -> Result<u32> {
        let request = wire::GetxattrIn::default();
        let args: [&[u8]; 2] = [request.as_bytes(), &terminated(name)];
        self.fixed::<wire::GetxattrOut>(opcode::GETXATTR, node, &args).map(|out| out.size)
    }

    /// LISTXATTR with a buffer of `size` bytes: names, each with a NUL behind it.
    pub fn listxattr(&mut self, node: u64, size: u32) -> Result<Vec<u8>> {
        let request = wire::GetxattrIn { size, padding: 0 };
        self.call(opcode::LISTXATTR, node, &[request.as_bytes()], &[], Reply::Fixed(size as usize))
    }

    /// REMOVEXATTR.
    pub fn removexattr(&mut self, node: u64, name: impl AsRef<OsStr>) -> Result<()> {
        self.empty(opcode::REMOVEXATTR, node, &[&terminated(name)])
    }
}

/// A name as it stands in a message. A name with a NUL in it goes as it is: a test may want that.
fn terminated(name: impl AsRef<OsStr>) -> Vec<u8> {
    [name.as_ref().as_bytes(), b"\0"].concat()
}

/// Copies as much of a reply as the daemon says that it wrote, and frees the slot.
fn take_message(queue: &mut Queue, completion: Completion) -> Vec<u8> {
    let (buffer, start) = queue.reply(completion.slot);
    let message = buffer.to_vec(start, completion.len as usize);
    queue.put(completion.slot);
    message
}

/// Checks a reply's form as Linux's driver does, and takes its header off.
pub(super) fn body_of(message: &[u8], request: &wire::InHeader) -> Result<Vec<u8>> {
    let Ok((header, body)) = wire::OutHeader::read_from_prefix(message) else {
        panic!("{request:?}: a reply of {} bytes", message.len());
    };
    assert_eq!(header.len as usize, message.len(), "{request:?}: used length and header differ");
    assert_eq!(header.unique, request.unique, "{request:?}: another request's reply");
    if header.error == 0 {
        return Ok(body.to_vec());
    }
    assert!((-4095..0).contains(&header.error), "{request:?}: no errno: {}", header.error);
    assert!(body.is_empty(), "{request:?}: an error with {} bytes of data", body.len());
    Err(Errno::from_raw(-header.error))
}

/// Takes a READDIR or READDIRPLUS reply apart.
fn dir_entries(mut data: &[u8], plus: bool) -> Vec<DirEntry> {
    let mut entries = Vec::new();
    while !data.is_empty() {
        let before = data.len();
        let entry = plus.then(|| take_prefix::<wire::EntryOut>(&mut data));
        let dirent: wire::Dirent = take_prefix(&mut data);
        let (name, rest) = data.split_at(dirent.namelen as usize);
        let used = before - rest.len();
        let padding = used.next_multiple_of(8) - used;
        data = &rest[padding..];
        let (ino, offset, kind) = (dirent.ino, dirent.off, dirent.kind);
        entries.push(DirEntry { ino, offset, kind, name: name.to_vec(), entry });
    }
    entries
}

fn take_prefix<T: FromBytes + FromZeros + Immutable>(data: &mut &[u8]) -> T {
    let (value, rest) = T::read_from_prefix(data).unwrap_or_else(|_| panic!("a cut entry: {data:?}"));
    *data = rest;
    value
}
