//! Landlock in force: what a worker does works in every mode, what it never does fails. Each operation runs in a
//! child process with a mount namespace of its own, on a share that is a detached mount with another file system
//! mounted below it, as the worker's is. Needs root and a kernel with Landlock (ABI 6).

// Clippy's allowances for tests reach only functions marked #[test], not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "seccomp/child.rs"]
mod child;

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::{env, fs, io, thread};

use child::{End, run};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode as Permissions, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{Pid, UnlinkatFlags, ftruncate, getppid, linkat, symlinkat, unlinkat};
use sandbox::landlock::{LandlockError, Layer, Mode, Obstacle, Status, restrict};

const RW: Permissions = Permissions::S_IRUSR.union(Permissions::S_IWUSR);
/// Where a child mounts its files; hidden to all others by its namespace.
const PLACE: &str = env!("CARGO_TARGET_TMPDIR");

/// What an operation works on.
struct Fixture {
    /// A detached mount: a/f, b, sub (another mount)/{x, d}.
    share: OwnedFd,
    tcp: TcpListener,
    abstract_name: SocketAddr,
    _abstract: UnixListener,
}

impl Fixture {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount file systems: run them as root");
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let tmpfs = |at: &Path| mount(Some("t"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let place = Path::new(PLACE);
        tmpfs(place);
        for directory in ["share/a", "share/b", "share/sub"] {
            fs::create_dir_all(place.join(directory)).unwrap();
        }
        tmpfs(&place.join("share/sub"));
        fs::create_dir(place.join("share/sub/d")).unwrap();
        for file in ["outside", "share/a/f", "share/sub/x"] {
            fs::write(place.join(file), "contents").unwrap();
        }
        let name = format!("virtiofsd-landlock-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(name).unwrap();
        Self {
            share: detached(&place.join("share")),
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&abstract_name).unwrap(),
            abstract_name,
        }
    }

    fn open(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.share, path, flags | OFlag::O_CLOEXEC, RW)
    }
}

/// A recursive clone of the mounts at `path`, attached nowhere.
fn detached(path: &Path) -> OwnedFd {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let flags = libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32 | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd).unwrap() as i32;
    // SAFETY: the kernel has just made this fd for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// How `operation` ends in `mode`: 0, or an error number.
fn errno_in(mode: Mode, operation: Operation) -> Errno {
    let end = run(|| {
        let fixture = Fixture::new();
        restrict(mode, Some(fixture.share.as_fd())).unwrap();
        operation(&fixture).err().map_or(0, |errno| errno as i32)
    });
    match end {
        End::Returned(errno @ 0..255) => Errno::from_raw(errno),
        other => panic!("{other:?}"),
    }
}

type Operation = fn(&Fixture) -> nix::Result<()>;

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}

const NO_ERROR: Errno = Errno::UnknownErrno;

/// What the worker does for a guest.
const NEEDED: &[(&str, Operation)] = &[
    ("rename across directories", |f| renameat(&f.share, "a/f", &f.share, "b/f")),
    ("link across directories", |f| linkat(&f.share, "a/f", &f.share, "b/f", AtFlags::empty())),
    ("rename across directories of a submount", |f| renameat(&f.share, "sub/x", &f.share, "sub/d/x")),
    ("exchange across directories", |f| {
        f.open("b/g", OFlag::O_CREAT)?;
        renameat2(&f.share, "a/f", &f.share, "b/g", RenameFlags::RENAME_EXCHANGE)
    }),
    ("rename that leaves a whiteout", |f| {
        renameat2(&f.share, "a/f", &f.share, "b/f", RenameFlags::RENAME_WHITEOUT)
    }),
    ("make a whiteout", |f| mknodat(&f.share, "a/w", SFlag::S_IFCHR, RW, makedev(0, 0))),
    ("make a FIFO", |f| mknodat(&f.share, "a/p", SFlag::S_IFIFO, RW, 0)),
    ("make a socket", |f| mknodat(&f.share, "a/s", SFlag::S_IFSOCK, RW, 0)),
    ("rename and link a block device", |f| {
        mknodat(&f.share, "a/b", SFlag::S_IFBLK, RW, makedev(7, 0))?;
        renameat(&f.share, "a/b", &f.share, "b/b")?;
        linkat(&f.share, "b/b", &f.share, "a/b", AtFlags::empty())
    }),
    ("make a directory and remove it", |f| {
        mkdirat(&f.share, "a/d", RW)?;
        unlinkat(&f.share, "a/d", UnlinkatFlags::RemoveDir)
    }),
    ("make a symlink and remove it", |f| {
        symlinkat("f", &f.share, "a/l")?;
        unlinkat(&f.share, "a/l", UnlinkatFlags::NoRemoveDir)
    }),
    ("create, truncate", |f| ftruncate(f.open("a/n", OFlag::O_CREAT | OFlag::O_RDWR)?, 100)),
    ("open with O_TRUNC", |f| f.open("sub/x", OFlag::O_WRONLY | OFlag::O_TRUNC).map(drop)),
    ("O_TMPFILE", |f| f.open("b", OFlag::O_TMPFILE | OFlag::O_RDWR).map(drop)),
    ("list a directory", |f| f.open("sub", OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(drop)),
    ("reopen an O_PATH fd", |f| {
        let path = f.open("sub/x", OFlag::O_PATH)?;
        let link = format!("/proc/self/fd/{}", path.as_raw_fd());
        openat(AT_FDCWD, link.as_str(), OFlag::O_RDWR, RW).map(drop)
    }),
    ("ioctl on a file", |f| {
        let file = f.open("a/f", OFlag::O_RDONLY)?;
        let mut flags: libc::c_long = 0;
        // SAFETY: FS_IOC_GETFLAGS writes an int, for which there is room.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
        Errno::result(result).map(drop)
    }),
];

/// What it never does, with what the kernel answers: without Landlock, with it.
const NEVER_NEEDED: &[(&str, Layer, Operation, Errno, Errno)] = &[
    ("execve", Layer::Programs, execute, NO_ERROR, Errno::EACCES),
    ("device ioctl", Layer::DeviceIoctls, device_ioctl, Errno::ENOTTY, Errno::EACCES),
    ("TCP bind", Layer::Tcp, tcp_bind, NO_ERROR, Errno::EACCES),
    ("TCP connect", Layer::Tcp, tcp_connect, NO_ERROR, Errno::EACCES),
    ("UDP bind", Layer::Udp, udp_bind, NO_ERROR, Errno::EACCES),
    ("socket file", Layer::SocketFiles, connect_to_socket_file, Errno::ECONNREFUSED, Errno::EACCES),
    ("abstract socket", Layer::AbstractSockets, connect_to_abstract_socket, NO_ERROR, Errno::EPERM),
    ("signal", Layer::Signals, signal_parent, NO_ERROR, Errno::EPERM),
];

fn execute(_: &Fixture) -> nix::Result<()> {
    nix::unistd::execv(c"/bin/true", &[c"true"]).map(|never| match never {})
}

fn device_ioctl(_: &Fixture) -> nix::Result<()> {
    let device = fs::File::open("/dev/null").map_err(errno)?;
    let mut size = [0u16; 4];
    // SAFETY: TIOCGWINSZ writes a winsize, four 16-bit numbers.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }).map(drop)
}

fn tcp_bind(_: &Fixture) -> nix::Result<()> {
    TcpListener::bind("127.0.0.1:0").map(drop).map_err(errno)
}

fn tcp_connect(f: &Fixture) -> nix::Result<()> {
    TcpStream::connect(f.tcp.local_addr().unwrap()).map(drop).map_err(errno)
}

fn udp_bind(_: &Fixture) -> nix::Result<()> {
    UdpSocket::bind("127.0.0.1:0").map(drop).map_err(errno)
}

/// A socket file that nothing listens on: refused, unless Landlock says something first.
fn connect_to_socket_file(f: &Fixture) -> nix::Result<()> {
    mknodat(&f.share, "a/s", SFlag::S_IFSOCK, RW, 0)?;
    UnixStream::connect(Path::new(PLACE).join("share/a/s")).map(drop).map_err(errno)
}

fn connect_to_abstract_socket(f: &Fixture) -> nix::Result<()> {
    UnixStream::connect_addr(&f.abstract_name).map(drop).map_err(errno)
}

fn signal_parent(_: &Fixture) -> nix::Result<()> {
    kill(getppid(), None::<nix::sys::signal::Signal>)
}

/// What lies outside the share.
const OUTSIDE: &[(&str, Operation)] = &[
    ("read", |_| fs::read(Path::new(PLACE).join("outside")).map(drop).map_err(errno)),
    ("list", |_| fs::read_dir(PLACE).map(drop).map_err(errno)),
    ("create", |_| fs::write(Path::new(PLACE).join("new"), "").map_err(errno)),
    ("remove", |_| fs::remove_file(Path::new(PLACE).join("outside")).map_err(errno)),
    ("make a directory", |_| fs::create_dir(Path::new(PLACE).join("d")).map_err(errno)),
];

/// What `restrict` says of itself, in a child: the parent must stay unconfined.
fn status_is(mode: Mode, share: bool, check: fn(&Status) -> bool) -> bool {
    let end = run(|| {
        let fixture = Fixture::new();
        let status = restrict(mode, share.then(|| fixture.share.as_fd())).unwrap();
        i32::from(!check(&status))
    });
    end == End::Returned(0)
}

fn is_in_force(mode: Mode, layer: Layer) -> bool {
    let code = LAYERS.iter().position(|l| *l == layer).unwrap() as i32;
    let end = run(|| {
        let fixture = Fixture::new();
        let status = restrict(mode, Some(fixture.share.as_fd())).unwrap();
        if status.in_force.contains(&layer) { code } else { 100 }
    });
    end == End::Returned(code)
}

const LAYERS: &[Layer] = &[
    Layer::Programs,
    Layer::DeviceIoctls,
    Layer::SocketFiles,
    Layer::OutsideShare,
    Layer::Tcp,
    Layer::Udp,
    Layer::AbstractSockets,
    Layer::Signals,
];

#[test]
fn what_the_worker_needs_works_in_every_mode() {
    for mode in [Mode::Off, Mode::Free, Mode::Full] {
        for (name, operation) in NEEDED {
            assert_eq!(errno_in(mode, *operation), NO_ERROR, "{mode:?}: {name}");
        }
    }
}

#[test]
fn what_it_never_needs_fails_in_free_and_full() {
    for (name, layer, operation, without, with) in NEVER_NEEDED {
        assert_eq!(errno_in(Mode::Off, *operation), *without, "Off: {name}");
        for mode in [Mode::Free, Mode::Full] {
            let expected = if is_in_force(mode, *layer) { *with } else { *without };
            assert_eq!(errno_in(mode, *operation), expected, "{mode:?}: {name}");
        }
    }
}

#[test]
fn only_full_closes_what_is_outside_the_share() {
    for (name, operation) in OUTSIDE {
        assert_eq!(errno_in(Mode::Off, *operation), NO_ERROR, "Off: {name}");
        assert_eq!(errno_in(Mode::Free, *operation), NO_ERROR, "Free: {name}");
        assert_eq!(errno_in(Mode::Full, *operation), Errno::EACCES, "Full: {name}");
    }
}

/// A kernel that lacks one of these cannot run this suite: the tests above would compare nothing.
#[test]
fn this_kernel_has_the_layers_that_are_tested() {
    for layer in [
        Layer::Programs,
        Layer::DeviceIoctls,
        Layer::OutsideShare,
        Layer::Tcp,
        Layer::AbstractSockets,
        Layer::Signals,
    ] {
        assert!(is_in_force(Mode::Full, layer), "{layer}");
    }
}

#[test]
fn the_status_accounts_for_every_layer() {
    let each_once = |status: &Status| {
        let missing = status.missing.iter().map(|(layer, _)| layer);
        let all: Vec<_> = status.in_force.iter().chain(missing).collect();
        LAYERS.iter().all(|layer| all.iter().filter(|l| **l == layer).count() == 1)
    };
    assert!(status_is(Mode::Full, true, each_once));
    assert!(status_is(Mode::Off, true, |status| *status == Status::default()));
    // Without a share nobody could rename, so no file right is given up.
    assert!(status_is(Mode::Free, false, |status| {
        status.missing.contains(&(Layer::Programs, Obstacle::NoShare))
            && status.in_force.contains(&Layer::Tcp)
    }));
    let status = Status {
        in_force: vec![Layer::Tcp, Layer::Signals],
        missing: vec![(Layer::Programs, Obstacle::NoShare)],
    };
    assert_eq!(status.to_string(), "given up: TCP, signals; not programs: no share was given");
    // One reason for several is given once.
    let missing = [Layer::Udp, Layer::Programs, Layer::Tcp].map(|layer| (layer, Obstacle::NoShare));
    let status = Status { in_force: Vec::new(), missing: missing.to_vec() };
    assert_eq!(status.to_string(), "given up: nothing; not UDP, programs, TCP: no share was given");
}

#[test]
fn full_needs_a_share_and_takes_a_single_file() {
    assert!(matches!(restrict(Mode::Full, None), Err(LandlockError::NoShare)));
    let end = run(|| {
        let fixture = Fixture::new();
        let file = fixture.open("a/f", OFlag::O_PATH).unwrap();
        restrict(Mode::Full, Some(file.as_fd())).unwrap();
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let inside = openat(AT_FDCWD, link.as_str(), OFlag::O_RDWR | OFlag::O_TRUNC, RW).is_ok();
        let beside = fixture.open("sub/x", OFlag::O_RDONLY).map(drop);
        i32::from(!inside || beside != Err(Errno::EACCES))
    });
    assert_eq!(end, End::Returned(0));
}

#[test]
fn threads_started_later_are_confined() {
    let end = run(|| {
        let fixture = Fixture::new();
        restrict(Mode::Free, Some(fixture.share.as_fd())).unwrap();
        let parent = getppid();
        let signal = |pid: Pid| kill(pid, None::<nix::sys::signal::Signal>);
        let result = thread::spawn(move || signal(parent)).join().unwrap();
        i32::from(result != Err(Errno::EPERM))
    });
    assert_eq!(end, End::Returned(0));
}
