use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;

use super::*;

/// A temporary directory, and a umask of this test's own: the process's would be changed by others at any time.
fn own_directory() -> tempfile::TempDir {
    unshare(CloneFlags::CLONE_FS).unwrap();
    tempfile::tempdir().unwrap()
}

fn at(path: &Path) -> SocketSource {
    SocketSource::Path { path: path.to_owned(), group: None }
}

#[test]
fn a_socket_is_made_listens_and_is_removed() {
    let directory = own_directory();
    let path = directory.path().join("vhost.sock");
    let listener = Listener::open(&at(&path)).unwrap();
    let made = fs::symlink_metadata(&path).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(made.mode() & 0o7777, 0o700);
    let lock = directory.path().join("vhost.sock.pid");
    assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{}\n", std::process::id()));
    assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o7777, 0o600);
    UnixStream::connect(&path).unwrap();
    listener.files.unwrap().remove();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_group_gets_the_socket() {
    let directory = own_directory();
    let path = directory.path().join("s");
    let with = |group: &str| SocketSource::Path { path: path.clone(), group: Some(group.to_owned()) };
    let listener = Listener::open(&with("54321")).unwrap();
    let made = fs::symlink_metadata(&path).unwrap();
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o770, 54321));
    listener.files.unwrap().remove();
    let error = Listener::open(&with("no such group")).unwrap_err();
    assert!(error.to_string().contains("no such group"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let directory = own_directory();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let stale = fs::symlink_metadata(&path).unwrap().ino();
    let listener = Listener::open(&at(&path)).unwrap();
    UnixStream::connect(&path).unwrap_or_else(|error| panic!("inode {stale} still there: {error}"));
    listener.files.unwrap().remove();

    fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::open(&at(&path)), Err(SocketError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert!(matches!(Listener::open(&at(&path)), Err(SocketError::NotASocket { .. })));
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
}

/// The lock belongs to a process, so the second daemon is a child. It says by its exit status what it saw.
#[test]
fn a_second_daemon_is_kept_out_until_the_first_is_gone() {
    let directory = own_directory();
    let path = directory.path().join("s");
    let listener = Listener::open(&at(&path)).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let second = || {
        // SAFETY: the child takes no lock that another thread could hold (the C library's allocator survives a
        // fork), and leaves by _exit.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let status = match Listener::open(&at(&path)) {
                    Ok(_) => 0,
                    Err(SocketError::Lock(LockError::Held { pid, .. })) if pid == Some(own) => 1,
                    Err(_) => 2,
                };
                // SAFETY: _exit does not return and runs nothing of this process's.
                unsafe { libc::_exit(status) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, status) => status,
                other => panic!("{other:?}"),
            },
        }
    };
    assert_eq!(second(), 1, "kept out, and told by whom");
    UnixStream::connect(&path).expect("the first one's socket is untouched");
    // The first one dies without cleaning up: socket and lock file stay, the lock does not.
    drop(listener);
    assert!(path.exists());
    assert_eq!(second(), 0, "a dead daemon's files keep nobody out");
}

#[test]
fn only_our_own_socket_is_removed() {
    let directory = own_directory();
    let path = directory.path().join("s");
    let listener = Listener::open(&at(&path)).unwrap();
    fs::rename(&path, directory.path().join("moved")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    listener.files.unwrap().remove();
    UnixStream::connect(&path).expect("somebody else's socket is still there");
}

#[test]
fn bad_paths_are_explained() {
    let error = |path: &str| Listener::open(&at(Path::new(path))).unwrap_err().to_string();
    assert!(error("/").contains("does not name a file"));
    assert!(error("/no/such/directory/s").contains("/no/such/directory"));
    let directory = own_directory();
    let long = directory.path().join("x".repeat(120));
    let error = Listener::open(&at(&long)).unwrap_err();
    assert!(matches!(error, SocketError::Io { step: "listen at", .. }), "{error}");
}

#[test]
fn an_inherited_fd_must_be_a_listening_unix_stream_socket() {
    let directory = own_directory();
    let path = directory.path().join("s");
    let listening = UnixListener::bind(&path).unwrap();
    let number = listening.as_raw_fd();
    let duplicate = listening.try_clone().unwrap().into_raw_fd();
    nix::fcntl::fcntl(&listening, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let taken = Listener::open(&SocketSource::Fd(duplicate)).unwrap();
    assert_eq!(taken.socket.as_raw_fd(), duplicate);
    assert!(taken.files.is_none());
    let flags = nix::fcntl::fcntl(&taken.socket, FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    assert_ne!(number, duplicate);

    let refused = |fd: RawFd| match Listener::open(&SocketSource::Fd(fd)) {
        Err(SocketError::BadFd { wanted, .. }) => wanted,
        other => panic!("{other:?}"),
    };
    let connected = UnixStream::connect(&path).unwrap();
    assert_eq!(refused(connected.into_raw_fd()), "listening");
    assert_eq!(refused(UnixDatagram::unbound().unwrap().into_raw_fd()), "a stream socket");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(refused(tcp.into_raw_fd()), "a UNIX socket");
    assert_eq!(refused(fs::File::open("/dev/null").unwrap().into_raw_fd()), "a socket");
    for number in [-1, 0, 2, 999_999] {
        assert_eq!(refused(number), "an open file descriptor above 2");
    }
}
