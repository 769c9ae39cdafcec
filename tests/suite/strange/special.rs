//! FIFOs, sockets and device nodes in the share: a FIFO that was opened would block the daemon, a device would act.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tests::fuse::SetAttr;
use tests::fuse::wire::{ROOT, fattr};

use super::with_client;

#[test]
fn special_files_are_never_opened() {
    with_client(&["--xattr"], |share, client| {
        nix::unistd::mkfifo(&share.join("fifo"), Mode::S_IRWXU).unwrap();
        // A socket's path has to be short.
        let dir = fs::File::open(share.path()).unwrap();
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/socket", dir.as_raw_fd())).unwrap();
        listener.set_nonblocking(true).unwrap();
        mknod(&share.join("full"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).unwrap();
        mknod(&share.join("loop"), SFlag::S_IFBLK, Mode::S_IRWXU, makedev(7, 0)).unwrap();
        for (name, kind) in [
            ("fifo", libc::S_IFIFO),
            ("socket", libc::S_IFSOCK),
            ("full", libc::S_IFCHR),
            ("loop", libc::S_IFBLK),
        ] {
            let entry = client.lookup(ROOT, name).unwrap();
            let node = entry.nodeid;
            assert_eq!(entry.attr.mode & libc::S_IFMT, kind, "{name}");
            for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC | libc::O_NONBLOCK] {
                assert_eq!(client.open(node, flags), Err(Errno::EBADF), "{name}");
                assert_eq!(client.create(ROOT, name, flags, 0o600).map(drop), Err(Errno::EBADF), "{name}");
            }
            assert!(client.opendir(node).is_err(), "{name}");
            let size = SetAttr { valid: fattr::SIZE, size: 0, ..Default::default() };
            assert!(client.setattr(node, size).is_err(), "{name}");
            // Everything that isn't about contents works.
            let mode = SetAttr { valid: fattr::MODE, mode: 0o640, ..Default::default() };
            client.setattr(node, mode).unwrap();
            assert_eq!(fs::metadata(share.join(name)).unwrap().mode(), kind | 0o640);
            assert_eq!(client.getxattr(node, "user.x", 10), Err(Errno::ENODATA), "{name}");
            assert_eq!(client.setxattr(node, "user.x", b"x", 0), Err(Errno::EPERM), "{name}");
            client.link(node, ROOT, "second").unwrap();
            client.rename((ROOT, "second"), (ROOT, "third"), 0).unwrap();
            client.unlink(ROOT, "third").unwrap();
        }
        let nobody = listener.accept().map(drop).unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "somebody connected");
    });
}

/// Links are the guest's to follow.
#[test]
fn links_are_never_followed() {
    with_client(&[], |share, client| {
        share.write("target", "x");
        for (name, to) in [("out", "/etc/passwd"), ("up", "../.."), ("in", "target"), ("self", "self")] {
            symlink(to, share.join(name)).unwrap();
            let node = client.lookup(ROOT, name).unwrap().nodeid;
            assert_eq!(client.readlink(node).unwrap(), to.as_bytes());
            assert!(client.open(node, libc::O_RDONLY).is_err(), "{name}");
            assert!(client.opendir(node).is_err(), "{name}");
            assert_eq!(client.create(ROOT, name, libc::O_RDWR, 0o600).map(drop), Err(Errno::ELOOP), "{name}");
            assert_eq!(client.lookup(node, "anything"), Err(Errno::ENOTDIR), "{name}");
            let owner = SetAttr { valid: fattr::UID, uid: 7, ..Default::default() };
            client.setattr(node, owner).unwrap();
            assert_eq!(fs::symlink_metadata(share.join(name)).unwrap().uid(), 7);
        }
        assert_eq!(fs::metadata(share.join("target")).unwrap().uid(), 0);
    });
}
