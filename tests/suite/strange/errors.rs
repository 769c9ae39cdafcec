//! What the host's file system refuses arrives in the guest: ENOSPC, EDQUOT, EIO, EROFS.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::bounded::bounded;
use tests::fuse::wire::{ROOT, fattr};
use tests::fuse::{Client, SetAttr};
use tests::program::program;
use tests::share::TempDir;

use super::{BTRFS, EXT4, Image, LIMIT, finish, start, with_client};

const CHUNK: usize = 1 << 18;

/// Writes to a new file until it is refused, at most so many chunks: the node, the handle, the error.
fn fill(client: &mut Client, chunks: u64) -> (u64, u64, Option<Errno>) {
    let made = client.create(ROOT, "filling", libc::O_RDWR, 0o600).unwrap();
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    let chunk = vec![b'x'; CHUNK];
    let mut at = 0;
    while at < chunks * CHUNK as u64 {
        match client.write(node, fh, at, &chunk) {
            // A short write is what fitted; the next one is refused.
            Ok(written) => at += u64::from(written),
            Err(e) => return (node, fh, Some(e)),
        }
    }
    (node, fh, None)
}

fn full(dir: &Path, expected: Errno) {
    let mut session = start(dir, &["--xattr"]);
    let client = session.client();
    let (node, fh, error) = fill(client, 64);
    assert_eq!(error, Some(expected));
    assert_eq!(client.fallocate(node, fh, 0, 0, 1 << 30), Err(expected));
    // What is there can still be read, and room that comes back be used.
    assert_eq!(client.read(node, fh, 0, 4).unwrap(), b"xxxx");
    let none = SetAttr { valid: fattr::SIZE, size: 0, ..Default::default() };
    client.setattr(node, none).unwrap();
    client.fsync(node, fh, false).unwrap();
    client.syncfs(ROOT).unwrap();
    assert_eq!(client.write(node, fh, 0, &[b'y'; 4096]), Ok(4096));
    client.release(node, fh).unwrap();
    client.unlink(ROOT, "filling").unwrap();
    finish(session);
}

#[test]
fn a_full_file_system_says_so() {
    bounded(LIMIT, || {
        let dir = TempDir::short();
        let image = Image::mount(&EXT4, "e2fsprogs", 8, dir.path(), "rw");
        full(dir.path(), Errno::ENOSPC);
        image.unmount();
        mount(Some("t"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m,nr_inodes=20")).unwrap();
        full(dir.path(), Errno::ENOSPC);
        // No inode left.
        let mut session = start(dir.path(), &[]);
        let client = session.client();
        let error = (0..30).find_map(|n| client.mkdir(ROOT, n.to_string(), 0o755).err());
        assert_eq!(error, Some(Errno::ENOSPC));
        assert_eq!(client.symlink(ROOT, "link", "x").map(drop), Err(Errno::ENOSPC));
        // One that is removed is there until the guest forgets it.
        let known = client.lookup(ROOT, "0").unwrap().nodeid;
        client.rmdir(ROOT, "0").unwrap();
        client.forget(known, 2);
        client.mkdir(ROOT, "again", 0o755).unwrap();
        finish(session);
        umount2(dir.path(), MntFlags::empty()).unwrap();
    });
}

/// A quota of btrfs: a matter of the mount alone, on any kernel.
#[test]
fn an_exhausted_quota_says_so() {
    bounded(LIMIT, || {
        let dir = TempDir::short();
        let image = Image::mount(&BTRFS, "btrfs-progs", 128, dir.path(), "rw");
        let btrfs = |args: &[&str]| {
            program("btrfs", "btrfs-progs").args(args).arg(dir.path()).succeed();
        };
        btrfs(&["quota", "enable"]);
        btrfs(&["qgroup", "limit", "4M", "0/5"]);
        let mut session = start(dir.path(), &[]);
        let client = session.client();
        let (node, fh, error) = fill(client, 64);
        assert_eq!(error, Some(Errno::EDQUOT));
        assert_eq!(client.read(node, fh, 0, 4).unwrap(), b"xxxx");
        client.release(node, fh).unwrap();
        finish(session);
        image.unmount();
    });
}

/// A disk that ends early: its image was cut off.
#[test]
fn a_broken_disk_says_so() {
    bounded(LIMIT, || {
        let dir = TempDir::short();
        let image = Image::mount(&EXT4, "e2fsprogs", 64, dir.path(), "rw");
        fs::write(dir.path().join("file"), vec![b'x'; 40 << 20]).unwrap();
        image.unmount();
        image.mount_again("ro,noload");
        let mut session = start(dir.path(), &["--readonly"]);
        let client = session.client();
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
        File::options().write(true).open(image.file()).unwrap().set_len(24 << 20).unwrap();
        let native = File::open(dir.path().join("file")).unwrap();
        let mut outcomes = (0, 0);
        for at in (0..40 << 20).step_by(CHUNK) {
            let mut buffer = vec![0; CHUNK];
            let expected = native.read_exact_at(&mut buffer, at).map_err(|e| e.raw_os_error());
            let got = client.read(node, fh, at, CHUNK as u32);
            match expected {
                Ok(()) => assert_eq!(got.as_deref(), Ok(&buffer[..]), "at {at}"),
                // Where the broken part begins within the chunk, what lies before it may come.
                Err(_) => assert!(got.is_err_and(|e| e == Errno::EIO), "at {at}: {expected:?}"),
            }
            if expected.is_ok() { outcomes.0 += 1 } else { outcomes.1 += 1 }
        }
        assert!(outcomes.0 > 10 && outcomes.1 > 10, "{outcomes:?} good and broken");
        client.release(node, fh).unwrap();
        finish(session);
        drop(native);
        image.unmount();
    });
}

/// A read-only share refuses everything that would change it, without a trace, and reads as ever.
#[test]
fn a_read_only_share_changes_nothing() {
    with_client(&["--readonly", "--xattr", "--modcaps=+mknod"], |share, client| {
        share.write("dir/file", "text");
        let path = share.join("dir/file");
        let before = fs::metadata(&path).unwrap();
        let (dir, file) = (client.walk("dir").unwrap().nodeid, client.walk("dir/file").unwrap().nodeid);
        let set = |valid| SetAttr { valid, ..Default::default() };
        let refused = [
            client.mkdir(dir, "new", 0o755).map(drop),
            client.mknod(dir, "new", libc::S_IFREG | 0o600, 0).map(drop),
            client.create(dir, "new", libc::O_RDWR, 0o644).map(drop),
            client.symlink(dir, "new", "x").map(drop),
            client.unlink(dir, "file"),
            client.rmdir(ROOT, "dir"),
            client.rename((dir, "file"), (dir, "other"), 0),
            client.link(file, dir, "other").map(drop),
            client.setattr(file, set(fattr::MODE)).map(drop),
            client.setattr(file, set(fattr::UID)).map(drop),
            client.setattr(file, set(fattr::SIZE)).map(drop),
            client.setattr(file, set(fattr::MTIME)).map(drop),
            client.open(file, libc::O_RDWR).map(drop),
            client.open(file, libc::O_RDONLY | libc::O_TRUNC).map(drop),
            client.setxattr(file, "user.x", b"x", 0),
            client.removexattr(file, "user.x"),
        ];
        for (n, result) in refused.iter().enumerate() {
            assert_eq!(*result, Err(Errno::EROFS), "number {n}");
        }
        let fh = client.open(file, libc::O_RDONLY).unwrap().fh;
        assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"text");
        assert_eq!(client.write(file, fh, 0, b"x"), Err(Errno::EROFS));
        assert_eq!(client.fallocate(file, fh, 0, 0, 10), Err(Errno::EROFS));
        client.release(file, fh).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.modified().unwrap(), before.modified().unwrap());
        assert_eq!(share.read("dir/file"), b"text");
        assert_eq!(fs::read_dir(share.join("dir")).unwrap().count(), 1);
    });
}
