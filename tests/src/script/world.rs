//! Applies a script to a directory, with ordinary system calls, and writes down what each says.

use std::ffi::CString;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Op, SLOTS, Step, USERS, User};

type Outcome = Result<String, Errno>;

/// A directory and what the script has open in it.
struct World {
    root: PathBuf,
    slots: [Option<OwnedFd>; SLOTS],
}

/// Runs a script; one line a step.
pub fn run(root: &Path, script: &[Step]) -> Vec<String> {
    let mut world = World { root: root.to_owned(), slots: Default::default() };
    let lines = script
        .iter()
        .enumerate()
        .map(|(number, step)| {
            become_user(step.user);
            // SAFETY: umask can't fail and passes no memory. It is this thread's own: so is its mount namespace.
            unsafe { libc::umask(step.umask) };
            let outcome = world.apply(number, &step.op);
            become_user(USERS[0]);
            // SAFETY: as above.
            unsafe { libc::umask(0o022) };
            format!("{number} {}/{:03o} {:?} -> {outcome:?}", step.user.uid, step.umask, step.op)
        })
        .collect();
    drop(world);
    lines
}

/// Changes who this thread is to file systems, and only this thread.
fn become_user(user: User) {
    // SAFETY: the calls pass a live slice of group ids and integers. By number, since the C library's setgroups
    // changes all threads.
    unsafe {
        libc::setfsuid(0);
        libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr());
        libc::setfsgid(user.gid);
        libc::setfsuid(user.uid);
    }
}

fn check(result: i64) -> Result<i64, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// Bytes that tell which step wrote them, and where.
fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number.wrapping_mul(31) ^ at ^ (at >> 8)) as u8 | 1).collect()
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

impl World {
    fn path(&self, path: &str) -> CString {
        CString::new(self.root.join(path).as_os_str().as_bytes()).expect("no NUL in our paths")
    }

    fn fd(&self, slot: usize) -> Result<RawFd, Errno> {
        self.slots[slot].as_ref().map(AsRawFd::as_raw_fd).ok_or(Errno::EBADF)
    }

    fn apply(&mut self, number: usize, op: &Op) -> Outcome {
        match op {
            Op::Open { .. } | Op::Close { .. } | Op::Tmpfile { .. } => self.open_or_close(op),
            Op::Write { .. }
            | Op::Append { .. }
            | Op::Read { .. }
            | Op::Fallocate { .. }
            | Op::Seek { .. }
            | Op::Ftruncate { .. }
            | Op::Fstat { .. }
            | Op::Fsync { .. }
            | Op::CopyRange { .. } => self.on_file(number, op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::ListXattr { .. } | Op::RemoveXattr { .. } => {
                self.on_xattr(number, op)
            }
            Op::Stat { .. } | Op::Access { .. } | Op::List { .. } | Op::Readlink { .. } => self.look(op),
            _ => self.change_name(op),
        }
    }

    fn open_or_close(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { slot, path, flags, mode } => {
                let path = self.path(path);
                // SAFETY: the path is a C string that lives through the call.
                let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, *mode) }.into())?;
                // SAFETY: the kernel has just made this fd for us.
                self.slots[*slot] = Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
                Ok("open".into())
            }
            Op::Close { slot } => self.slots[*slot].take().map(|_| "closed".into()).ok_or(Errno::EBADF),
            Op::Tmpfile { path, link } => self.tmpfile(path, link.as_deref()),
            _ => unreachable!("apply() sorts"),
        }
    }

    /// Makes a file without a name, and gives it one.
    fn tmpfile(&self, path: &str, link: Option<&str>) -> Outcome {
        let dir = self.path(path);
        let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
        // SAFETY: the path is a C string that lives through the call.
        let fd = check(unsafe { libc::open(dir.as_ptr(), flags, 0o640) }.into())? as RawFd;
        // SAFETY: the kernel has just made this fd for us.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the buffer has four bytes.
        check(unsafe { libc::pwrite(fd, c"temp".as_ptr().cast(), 4, 0) } as i64)?;
        let Some(link) = link else { return self.fstat(file.as_raw_fd()) };
        let source = CString::new(format!("/proc/self/fd/{fd}")).expect("no NUL");
        let target = self.path(link);
        // SAFETY: both paths are C strings that live through the call.
        let linked = unsafe {
            libc::linkat(
                libc::AT_FDCWD,
                source.as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::AT_SYMLINK_FOLLOW,
            )
        };
        check(linked.into())?;
        self.fstat(file.as_raw_fd())
    }

    /// Seeking in a directory stays in the client, which knows nothing of the host's cookies.
    fn is_directory(&self, slot: usize) -> bool {
        self.fd(slot).is_ok_and(|fd| Path::new(&format!("/proc/self/fd/{fd}")).is_dir())
    }

    fn on_file(&self, number: usize, op: &Op) -> Outcome {
        if matches!(op, Op::Seek { slot, .. } if self.is_directory(*slot)) {
            return Ok("left out".into());
        }
        // SAFETY: every pointer is to a live buffer or integer of the length that is passed.
        let done = unsafe {
            match op {
                Op::Write { slot, offset, len } => {
                    let data = pattern(number, *len);
                    libc::pwrite(self.fd(*slot)?, data.as_ptr().cast(), *len, *offset) as i64
                }
                Op::Append { slot, len } => {
                    let data = pattern(number, *len);
                    let fd = self.fd(*slot)?;
                    libc::lseek(fd, 0, libc::SEEK_END);
                    libc::write(fd, data.as_ptr().cast(), *len) as i64
                }
                Op::Read { slot, offset, len } => {
                    let mut data = vec![0u8; *len];
                    let got =
                        check(libc::pread(self.fd(*slot)?, data.as_mut_ptr().cast(), *len, *offset) as i64)?;
                    return Ok(digest(&data[..got as usize]));
                }
                Op::Fallocate { slot, mode, offset, len } => {
                    libc::fallocate(self.fd(*slot)?, *mode, *offset, *len).into()
                }
                Op::Seek { slot, offset, whence } => libc::lseek(self.fd(*slot)?, *offset, *whence),
                Op::Ftruncate { slot, size } => libc::ftruncate(self.fd(*slot)?, *size).into(),
                Op::Fsync { slot } => libc::fsync(self.fd(*slot)?).into(),
                Op::Fstat { slot } => return self.fstat(self.fd(*slot)?),
                Op::CopyRange { from, to, from_offset, to_offset, len } => {
                    let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                    libc::copy_file_range(
                        self.fd(*from)?,
                        &raw mut from_offset,
                        self.fd(*to)?,
                        &raw mut to_offset,
                        *len,
                        0,
                    ) as i64
                }
                _ => unreachable!("apply() sorts"),
            }
        };
        check(done).map(|n| n.to_string())
    }

    fn on_xattr(&self, number: usize, op: &Op) -> Outcome {
        let name = |name: &str| CString::new(name).expect("no NUL");
        let mut buf = vec![0u8; 4096];
        // SAFETY: every pointer is to a live C string or to a buffer of the length that is passed.
        let done = unsafe {
            match op {
                Op::SetXattr { path, name: attr, len, flags } => {
                    let (path, attr, value) = (self.path(path), name(attr), pattern(number, *len));
                    libc::lsetxattr(path.as_ptr(), attr.as_ptr(), value.as_ptr().cast(), *len, *flags).into()
                }
                Op::GetXattr { path, name: attr } => {
                    let (path, attr) = (self.path(path), name(attr));
                    libc::lgetxattr(path.as_ptr(), attr.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) as i64
                }
                Op::ListXattr { path } => {
                    libc::llistxattr(self.path(path).as_ptr(), buf.as_mut_ptr().cast(), buf.len()) as i64
                }
                Op::RemoveXattr { path, name: attr } => {
                    libc::lremovexattr(self.path(path).as_ptr(), name(attr).as_ptr()).into()
                }
                _ => unreachable!("apply() sorts"),
            }
        };
        let mut got = buf[..check(done)? as usize].to_vec();
        if let Op::ListXattr { .. } = op {
            let mut names: Vec<&[u8]> = got.split_inclusive(|byte| *byte == 0).collect();
            names.sort_unstable();
            got = names.concat();
        }
        Ok(digest(&got))
    }

    fn look(&self, op: &Op) -> Outcome {
        match op {
            Op::Stat { path } => {
                let metadata = fs::symlink_metadata(self.root.join(path)).map_err(errno)?;
                Ok(describe(&metadata))
            }
            Op::Access { path, mask } => {
                let path = self.path(path);
                // SAFETY: the path is a C string. AT_EACCESS makes the kernel take the ids of file-system access.
                let result =
                    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), *mask, libc::AT_EACCESS) };
                check(result.into()).map(|_| "yes".into())
            }
            Op::List { path } => {
                let mut names = Vec::new();
                for entry in fs::read_dir(self.root.join(path)).map_err(errno)? {
                    let entry = entry.map_err(errno)?;
                    names.push(format!(
                        "{:?} {:?}",
                        entry.file_name(),
                        kind(entry.file_type().map_err(errno)?)
                    ));
                }
                names.sort();
                Ok(names.join(" "))
            }
            Op::Readlink { path } => {
                fs::read_link(self.root.join(path)).map(|target| format!("{target:?}")).map_err(errno)
            }
            _ => unreachable!("apply() sorts"),
        }
    }

    fn change_name(&self, op: &Op) -> Outcome {
        let at = libc::AT_FDCWD;
        // SAFETY: every pointer is to a C string that lives through the call, or to two timespecs.
        let done = unsafe {
            match op {
                Op::Mkdir { path, mode } => libc::mkdir(self.path(path).as_ptr(), *mode),
                Op::Rmdir { path } => libc::rmdir(self.path(path).as_ptr()),
                Op::Unlink { path } => libc::unlink(self.path(path).as_ptr()),
                Op::Rename { from, to, flags } => {
                    libc::renameat2(at, self.path(from).as_ptr(), at, self.path(to).as_ptr(), *flags)
                }
                Op::Link { from, to } => libc::link(self.path(from).as_ptr(), self.path(to).as_ptr()),
                Op::Symlink { target, path } => {
                    let target = CString::new(target.as_str()).expect("no NUL");
                    libc::symlink(target.as_ptr(), self.path(path).as_ptr())
                }
                Op::Mknod { path, kind, mode } => libc::mknod(self.path(path).as_ptr(), kind | mode, 0),
                Op::Chmod { path, mode } => libc::chmod(self.path(path).as_ptr(), *mode),
                Op::Chown { path, uid, gid } => libc::lchown(self.path(path).as_ptr(), *uid, *gid),
                Op::Truncate { path, size } => libc::truncate(self.path(path).as_ptr(), *size),
                Op::Utimens { path, seconds } => {
                    let time = libc::timespec { tv_sec: *seconds, tv_nsec: 123_456_789 };
                    let times = [time, time];
                    libc::utimensat(at, self.path(path).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
                }
                _ => unreachable!("apply() sorts"),
            }
        };
        check(done.into()).map(|_| "done".into())
    }

    fn fstat(&self, fd: RawFd) -> Outcome {
        let metadata = fs::metadata(format!("/proc/self/fd/{fd}")).map_err(errno)?;
        Ok(describe(&metadata))
    }
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn kind(kind: fs::FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

/// What two file systems must agree on: not the space that they take, nor when.
pub fn describe(m: &fs::Metadata) -> String {
    let size = if m.is_dir() { 0 } else { m.size() };
    // A time that the script set; any other is the moment of the run. Those of a FIFO change in the guest only.
    let set = m.mtime_nsec() == 123_456_789 && !m.file_type().is_fifo();
    let mtime = if set { m.mtime() } else { -1 };
    format!(
        "{:o} {}:{} links {} size {size} device {:x} mtime {mtime}",
        m.mode(),
        m.uid(),
        m.gid(),
        m.nlink(),
        m.rdev()
    )
}

/// Everything below a directory: attributes, contents, targets, and attributes by name.
pub fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("nobody else changes the tree");
        let contents = match () {
            () if metadata.is_dir() => {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
            () if metadata.is_file() => digest(&fs::read(&path).unwrap()),
            () if metadata.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => String::new(),
        };
        let world = World { root: path.clone(), slots: Default::default() };
        let xattrs = world.on_xattr(0, &Op::ListXattr { path: String::new() });
        let name = path.strip_prefix(root).expect("below the root");
        lines.push(format!("{name:?} {} {contents} {xattrs:?}", describe(&metadata)));
    }
    lines.sort();
    lines
}
