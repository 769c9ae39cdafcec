//! The same work as plain system calls of this process: what no daemon can do for less.
//!
//! Each call is the cheapest way to do what the request asks for, on paths that are as short as a daemon's:
//! directories are open, names have one component.

use std::ffi::CStr;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::engine::{Measurement, Span, thread_cpu};
use super::fixture::{self, BLOCK, Fixture};

/// Does it once; returns how many operations that was.
pub type Work = Box<dyn FnMut() -> io::Result<u64> + Send>;

/// Operations between two looks at the clock, in the part that isn't timed one by one.
const BATCH: usize = 16;

/// Runs it on a thread of its own, as this user, and measures it as if that thread were the daemon.
pub fn measure(mut work: Work, uid: u32, span: Span) -> Measurement {
    let thread = std::thread::spawn(move || {
        become_user(uid);
        let mut warm_up = Measurement::default();
        repeat(&mut work, span.warm_up, &mut warm_up, false);
        let mut done = Measurement::default();
        let (cpu, start) = (thread_cpu(), Instant::now());
        repeat(&mut work, span.measured.mul_f64(0.8), &mut done, false);
        (done.elapsed, done.daemon_cpu) = (start.elapsed(), thread_cpu() - cpu);
        // Looking at the clock twice an operation would count as work.
        let mut timed = Measurement::default();
        repeat(&mut work, span.measured.mul_f64(0.2), &mut timed, true);
        done.latency = timed.latency;
        done.failure = warm_up.failure.or(done.failure).or(timed.failure);
        done
    });
    thread.join().expect("native work reports failures, it doesn't panic")
}

fn repeat(work: &mut Work, length: std::time::Duration, done: &mut Measurement, timed: bool) {
    let end = Instant::now() + length;
    let mut now = Instant::now();
    while now < end {
        for _ in 0..if timed { 1 } else { BATCH } {
            match work() {
                Ok(count) => done.operations += count,
                Err(e) => {
                    done.failure = Some(e.to_string());
                    return;
                }
            }
        }
        let after = Instant::now();
        if timed {
            done.latency.record(after - now);
        }
        now = after;
    }
}

/// File-system ids of this thread only, by the system calls themselves.
fn become_user(uid: u32) {
    if uid != 0 {
        // SAFETY: these take an integer and change this thread's credentials; the thread ends with the work.
        unsafe { libc::syscall(libc::SYS_setfsgid, uid) };
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn open_at(dir: RawFd, name: &CStr, flags: i32, mode: libc::mode_t) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a NUL and lives during the call.
    let fd = check(unsafe { libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the kernel just returned it, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn stat_at(dir: RawFd, name: &CStr, flags: i32) -> io::Result<()> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the name ends with a NUL, and the kernel writes one `stat` to where there is room for it.
    check(unsafe { libc::fstatat(dir, name.as_ptr(), stat.as_mut_ptr(), flags) }).map(drop)
}

fn directory(fixture: &Fixture, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(&fixture.join(name), flags, Mode::empty())?)
}

fn names(count: usize) -> Vec<CString> {
    (0..count).map(|index| CString::new(fixture::name(index)).expect("no NUL in it")).collect()
}

/// Calls `act` with one name after another, for ever.
fn in_turn(count: usize, mut act: impl FnMut(&CStr) -> io::Result<u64> + Send + 'static) -> Work {
    let names = names(count);
    let mut next = 0;
    Box::new(move || {
        let name = &names[next];
        next = (next + 1) % names.len();
        act(name)
    })
}

/// Of open files.
pub fn getattr(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, fixture::WARM)?;
    let open = |name: CString| open_at(dir.as_raw_fd(), &name, libc::O_PATH, 0);
    let files: Vec<OwnedFd> = names(64).into_iter().map(open).collect::<io::Result<_>>()?;
    let mut next = 0;
    Ok(Box::new(move || {
        next = (next + 1) % files.len();
        stat_at(files[next].as_raw_fd(), c"", libc::AT_EMPTY_PATH).map(|()| 1)
    }))
}

/// An `O_PATH` descriptor and its attributes.
pub fn lookup(fixture: &Fixture, name: &str, count: usize) -> io::Result<Work> {
    let dir = directory(fixture, name)?;
    Ok(in_turn(count, move |name| {
        let fd = open_at(dir.as_raw_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
        stat_at(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH).map(|()| 1)
    }))
}

/// open and close.
pub fn open_release(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, fixture::WARM)?;
    let count = fixture.sizes.warm;
    Ok(in_turn(count, move |name| open_at(dir.as_raw_fd(), name, libc::O_RDONLY, 0).map(|_| 1)))
}

/// getdents64 with large buffers, and the attributes of each entry; an operation is an entry, one call is a
/// buffer.
pub fn readdir(fixture: &Fixture, directories: &[String]) -> io::Result<Work> {
    let directories: Vec<OwnedFd> =
        directories.iter().map(|name| directory(fixture, name)).collect::<io::Result<_>>()?;
    let mut current = 0;
    let mut buffer = vec![0_u8; 32 << 10];
    Ok(Box::new(move || {
        let dir = directories[current].as_raw_fd();
        // SAFETY: the kernel writes at most the buffer's length into it.
        let len = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len()) };
        let len = check_size(len as isize)?;
        if len == 0 {
            current = (current + 1) % directories.len();
            nix::unistd::lseek(directories[current].as_fd(), 0, nix::unistd::Whence::SeekSet)?;
        }
        stat_entries(dir, &buffer[..len])
    }))
}

fn stat_entries(dir: RawFd, mut entries: &[u8]) -> io::Result<u64> {
    /// Where a `linux_dirent64` has its length and its name.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let mut count = 0;
    while !entries.is_empty() {
        let len = usize::from(u16::from_ne_bytes([entries[LENGTH], entries[LENGTH + 1]]));
        let (entry, rest) = entries.split_at(len);
        let name = CStr::from_bytes_until_nul(&entry[NAME..]).map_err(io::Error::other)?;
        stat_at(dir, name, libc::AT_SYMLINK_NOFOLLOW)?;
        (count, entries) = (count + 1, rest);
    }
    Ok(count)
}

/// Create, write a block, close, unlink.
pub fn create_unlink(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, &format!("{}/file-0000000", fixture::CREATE))?;
    let data = vec![b'n'; BLOCK as usize];
    Ok(in_turn(16, move |name| {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = open_at(dir.as_raw_fd(), name, flags, 0o644)?;
        nix::unistd::write(&file, &data)?;
        drop(file);
        // SAFETY: the name ends with a NUL and lives during the call.
        check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(|_| 1)
    }))
}

/// pread.
pub fn read(
    fixture: &Fixture,
    file: &str,
    size: u32,
    mut offsets: impl FnMut() -> u64 + Send + 'static,
) -> io::Result<Work> {
    let file = open(&fixture.join(file), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut data = vec![0; size as usize];
    Ok(Box::new(move || {
        nix::sys::uio::pread(&file, &mut data, offsets().cast_signed())?;
        Ok(1)
    }))
}

/// pwrite.
pub fn write(
    fixture: &Fixture,
    file: &str,
    size: u32,
    mut offsets: impl FnMut() -> u64 + Send + 'static,
) -> io::Result<Work> {
    let file = open(&fixture.join(file), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let data = vec![b'n'; size as usize];
    Ok(Box::new(move || {
        nix::sys::uio::pwrite(&file, &data, offsets().cast_signed())?;
        Ok(1)
    }))
}

/// fgetxattr.
pub fn getxattr(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, fixture::WARM)?;
    let open = |name: CString| open_at(dir.as_raw_fd(), &name, libc::O_RDONLY, 0);
    let files: Vec<OwnedFd> = names(64).into_iter().map(open).collect::<io::Result<_>>()?;
    let name = CString::new(fixture::XATTR_NAME)?;
    let mut value = [0_u8; 64];
    let mut next = 0;
    Ok(Box::new(move || {
        next = (next + 1) % files.len();
        let fd = files[next].as_raw_fd();
        // SAFETY: the name ends with a NUL; the kernel writes at most the value's length.
        let len = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        check_size(len).map(|_| 1)
    }))
}

/// readlinkat.
pub fn readlink(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, fixture::LINKS)?;
    let mut target = [0_u8; 4096];
    let count = fixture.sizes.warm;
    Ok(in_turn(count, move |name| {
        // SAFETY: the name ends with a NUL; the kernel writes at most the buffer's length.
        let len = unsafe {
            libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), target.as_mut_ptr().cast(), target.len())
        };
        check_size(len).map(|_| 1)
    }))
}

/// fstatfs.
pub fn statfs(fixture: &Fixture) -> io::Result<Work> {
    let dir = directory(fixture, "")?;
    Ok(Box::new(move || {
        let mut stat = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the kernel writes one `statfs` to where there is room for it.
        check(unsafe { libc::fstatfs(dir.as_raw_fd(), stat.as_mut_ptr()) }).map(|_| 1)
    }))
}
