//! Large and strange: names of any bytes, depth, listings that change while they are read, files that are no
//! files, full and read-only file systems, other file systems inside the share.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(180);
const ROOT: u64 = 1;

fn start(share: &Share, options: &[&str]) -> Session {
    let command = DaemonCommand::serving(&Implementation::Ours, share.path()).args(options);
    Session::start(command, DeviceConfig::default())
}

fn with_client(options: &[&str], test: impl FnOnce(&Share, &mut Client) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = start(&share, options);
        test(&share, session.client());
        finish(session);
    });
}

fn finish(session: Session) {
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
}

#[test]
fn names_have_any_bytes_and_255_of_them() {
    with_client(&[], |share, client| {
        let mut names: Vec<Vec<u8>> = (1..=255u8).filter(|byte| *byte != b'/').map(|byte| vec![byte; 2]).collect();
        names.push(vec![0xff; 255]);
        for name in &names {
            client.mkdir(ROOT, OsStr::from_bytes(name), 0o755).unwrap_or_else(|e| panic!("{name:?}: {e}"));
            assert!(share.join(OsStr::from_bytes(name)).is_dir(), "{name:?}");
        }
        // ".." is the one of them that was there before.
        let listed: BTreeSet<Vec<u8>> = client.list(ROOT).unwrap().into_iter().map(|entry| entry.name).collect();
        assert!(names.iter().all(|name| listed.contains(name)));
        let long = OsStr::from_bytes(&[b'n'; 256]);
        assert_eq!(client.lookup(ROOT, long).unwrap_err(), Errno::ENAMETOOLONG);
        assert_eq!(client.mkdir(ROOT, long, 0o755).unwrap_err(), Errno::ENAMETOOLONG);
    });
}

#[test]
fn paths_are_as_deep_as_one_likes() {
    const DEPTH: usize = 600;
    with_client(&[], |_, client| {
        let name = "d".repeat(200);
        let mut nodes = vec![ROOT];
        for _ in 0..DEPTH {
            nodes.push(client.mkdir(nodes[nodes.len() - 1], &name, 0o755).unwrap().nodeid);
        }
        // Far beyond what a path in one system call could say.
        let deepest = nodes[DEPTH];
        let made = client.create(deepest, "file", libc::O_RDWR, 0o600).unwrap();
        client.write(made.entry.nodeid, made.open.fh, 0, b"deep").unwrap();
        assert_eq!(client.read(made.entry.nodeid, made.open.fh, 0, 10).unwrap(), b"deep");
        client.release(made.entry.nodeid, made.open.fh).unwrap();
        client.unlink(deepest, "file").unwrap();
        for parent in nodes[..DEPTH].iter().rev() {
            client.rmdir(*parent, &name).unwrap();
        }
    });
}

/// Number of entries; `VIRTIOFSD_TEST_ENTRIES=1000000` makes it a million, in some minutes.
fn entries() -> usize {
    std::env::var("VIRTIOFSD_TEST_ENTRIES").map_or(30_000, |text| text.parse().expect("a number"))
}

#[test]
fn a_large_directory_is_listed_while_entries_come_and_go() {
    let count = entries();
    bounded(Duration::from_secs(180 + count as u64 / 1000), || {
        let share = Share::new();
        for n in 0..count {
            fs::write(share.join(format!("stays-{n}")), "").unwrap();
        }
        let mut session = start(&share, &[]);
        let client = session.client();
        let fh = client.opendir(ROOT).unwrap().fh;
        let (mut seen, mut offset, mut page) = (Vec::new(), 0, 0);
        loop {
            let batch = client.readdir(ROOT, fh, offset, 4096).unwrap();
            let Some(last) = batch.last() else { break };
            offset = last.offset;
            seen.extend(batch.into_iter().map(|entry| entry.name));
            // Others come and go meanwhile; those that stay are seen once each.
            page += 1;
            fs::write(share.join(format!("comes-{page}")), "").unwrap();
            if page > 3 {
                fs::remove_file(share.join(format!("comes-{}", page - 3))).unwrap();
            }
        }
        client.releasedir(ROOT, fh).unwrap();
        seen.retain(|name| name.starts_with(b"stays-"));
        assert_eq!(seen.len(), count, "no entry twice");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), count, "each entry once");
        finish(session);
    });
}

#[test]
fn offsets_reach_to_the_end_of_the_range() {
    with_client(&[], |share, client| {
        let made = client.create(ROOT, "sparse", libc::O_RDWR, 0o600).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let native = fs::File::create_new(share.join("native")).unwrap();
        for offset in [0, 4095, 1 << 20, 1 << 32, 1 << 43, i64::MAX as u64 - 1, i64::MAX as u64] {
            let expected = native.write_at(b"x", offset).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap()));
            let got = client.write(node, fh, offset, b"x").map(|n| n as usize);
            assert_eq!(got, expected, "write at {offset}");
            let read = client.read(node, fh, offset, 1);
            assert_eq!(read.is_ok_and(|data| data == b"x"), expected.is_ok(), "read at {offset}");
        }
        for offset in [1 << 63, u64::MAX] {
            assert_eq!(client.write(node, fh, offset, b"x").unwrap_err(), Errno::EINVAL);
            assert_eq!(client.read(node, fh, offset, 1).unwrap_err(), Errno::EINVAL);
        }
        let data = client.lseek(node, fh, 1 << 21, libc::SEEK_DATA).unwrap();
        assert_eq!(data, 1 << 32);
        assert_eq!(client.lseek(node, fh, 1 << 32, libc::SEEK_HOLE).unwrap(), (1 << 32) + 4096);
        client.fallocate(node, fh, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 1 << 32, 4096).unwrap();
        assert!(client.lseek(node, fh, 1 << 21, libc::SEEK_DATA).unwrap() > 1 << 32);
        client.release(node, fh).unwrap();
    });
}

/// A FIFO that was opened would block the daemon, a device would act.
#[test]
fn special_files_are_never_opened() {
    with_client(&[], |share, client| {
        nix::unistd::mkfifo(&share.join("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(share.join("socket")).unwrap();
        let device = nix::sys::stat::makedev(1, 7);
        nix::sys::stat::mknod(&share.join("full"), nix::sys::stat::SFlag::S_IFCHR, Mode::S_IRWXU, device).unwrap();
        for name in ["fifo", "socket", "full"] {
            let node = client.lookup(ROOT, name).unwrap().nodeid;
            for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
                assert_eq!(client.open(node, flags).unwrap_err(), Errno::EBADF, "{name}");
                assert!(client.create(ROOT, name, flags, 0o600).is_err(), "{name}");
            }
            client.getattr(node, None).unwrap();
        }
    });
}

#[test]
fn files_are_replaced_behind_the_guest_s_back() {
    with_client(&[], |share, client| {
        share.write("file", "old");
        let old = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(old, libc::O_RDONLY).unwrap().fh;
        share.write("new", "new!");
        fs::rename(share.join("new"), share.join("file")).unwrap();
        let entry = client.lookup(ROOT, "file").unwrap();
        assert_ne!(entry.nodeid, old);
        assert_eq!(entry.attr.size, 4);
        assert_eq!(client.read(old, fh, 0, 10).unwrap(), b"old");
        client.release(old, fh).unwrap();
        // A directory in the place of a file.
        fs::remove_file(share.join("file")).unwrap();
        fs::create_dir(share.join("file")).unwrap();
        let dir = client.lookup(ROOT, "file").unwrap();
        assert_eq!(dir.attr.mode & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(client.opendir(old).unwrap_err(), Errno::ENOTDIR);
    });
}

#[test]
fn a_full_file_system_says_so() {
    bounded(LIMIT, || {
        let share = Share::new();
        let options = Some("size=1m,nr_inodes=20");
        mount(Some("none"), share.path(), Some("tmpfs"), MsFlags::empty(), options).unwrap();
        let mut session = start(&share, &[]);
        let client = session.client();
        let made = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let chunk = vec![1; 1 << 18];
        let error = (0..8).find_map(|n| match client.write(node, fh, n << 18, &chunk) {
            Ok(written) if written as usize == chunk.len() => None,
            Ok(_) => client.write(node, fh, n << 18, &chunk).err(),
            Err(e) => Some(e),
        });
        assert_eq!(error, Some(Errno::ENOSPC));
        let error = (0..30).find_map(|n| client.mkdir(ROOT, n.to_string(), 0o755).err());
        assert_eq!(error, Some(Errno::ENOSPC));
        // Room again, and all works.
        client.release(node, fh).unwrap();
        client.unlink(ROOT, "file").unwrap();
        client.forget(node, 1);
        client.create(ROOT, "again", libc::O_RDWR, 0o600).unwrap();
        finish(session);
        umount2(share.path(), MntFlags::MNT_DETACH).unwrap();
    });
}

/// Bit of `fuse_attr.flags`.
const ATTR_SUBMOUNT: u32 = 1;

#[test]
fn other_file_systems_in_the_share_are_announced() {
    bounded(LIMIT, || {
        let share = Share::new();
        fs::create_dir(share.join("mounted")).unwrap();
        fs::create_dir(share.join("plain")).unwrap();
        mount(Some("none"), &share.join("mounted"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        share.write("mounted/file", "inside");
        for (options, flag) in [(&[][..], ATTR_SUBMOUNT), (&["--no-announce-submounts"], 0)] {
            let mut session = start(&share, options);
            let client = session.client();
            assert_eq!(client.lookup(ROOT, "mounted").unwrap().attr.flags & ATTR_SUBMOUNT, flag);
            assert_eq!(client.lookup(ROOT, "plain").unwrap().attr.flags & ATTR_SUBMOUNT, 0);
            let file = client.walk("mounted/file").unwrap();
            assert_eq!((file.attr.size, file.attr.flags & ATTR_SUBMOUNT), (6, 0));
            let dir = client.lookup(ROOT, "mounted").unwrap().nodeid;
            assert_eq!(client.rename((dir, "file"), (ROOT, "file"), 0).unwrap_err(), Errno::EXDEV);
            assert_eq!(client.link(file.nodeid, ROOT, "file").unwrap_err(), Errno::EXDEV);
            finish(session);
        }
        umount2(&share.join("mounted"), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_read_only_share_changes_nothing() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("dir/file", "text");
        let before = fs::metadata(share.join("dir/file")).unwrap();
        let mut session = start(&share, &["--readonly", "--xattr"]);
        let client = session.client();
        let (dir, file) = (client.walk("dir").unwrap().nodeid, client.walk("dir/file").unwrap().nodeid);
        let set = tests::fuse::SetAttr { valid: tests::fuse::wire::fattr::MODE, mode: 0o777, ..Default::default() };
        let refused = [
            client.mkdir(dir, "new", 0o755).map(drop),
            client.create(dir, "new", libc::O_RDWR, 0o644).map(drop),
            client.unlink(dir, "file"),
            client.rmdir(ROOT, "dir"),
            client.rename((dir, "file"), (dir, "other"), 0),
            client.link(file, dir, "other").map(drop),
            client.setattr(file, set).map(drop),
            client.open(file, libc::O_RDWR).map(drop),
            client.open(file, libc::O_RDONLY | libc::O_TRUNC).map(drop),
            client.setxattr(file, "user.x", b"x", 0),
            client.removexattr(file, "user.x"),
        ];
        assert!(refused.iter().all(|result| *result == Err(Errno::EROFS)), "{refused:?}");
        let fh = client.open(file, libc::O_RDONLY).unwrap().fh;
        assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"text");
        finish(session);
        let after = fs::metadata(share.join("dir/file")).unwrap();
        assert_eq!((after.modified().unwrap(), after.permissions()), (before.modified().unwrap(), before.permissions()));
    });
}
