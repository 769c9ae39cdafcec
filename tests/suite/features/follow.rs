//! `--follow-mounts`: what `docs/submounts.md` says of mounts that come, move, change and go while the daemon serves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tests::bounded::bounded;
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{ATTR_SUBMOUNT, EntryOut, ROOT};
use tests::fuse::{Client, Session};
use tests::mounts::MountsBelow;
use tests::share::{Share, TempDir};

use super::{LIMIT, command};

pub const ALWAYS: &[&str] = &["--follow-mounts=always"];

pub fn tmpfs(path: &Path) {
    fs::create_dir_all(path).unwrap();
    mount(Some("t"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

pub fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn remount(path: &Path, flags: MsFlags) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
}

/// Asks until the answer is yes.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let (mut last, mut waited, mut longest) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    while !is_so() {
        assert!(waited < PATIENCE, "{what}: not within {PATIENCE:?}; longest try {longest:?}");
        std::thread::yield_now();
        // A moment in which the machine does something else is no reason to give up.
        let now = Instant::now();
        longest = longest.max(now - last);
        waited += (now - last).min(Duration::from_millis(200));
        last = now;
    }
}

/// Looks a path up, as a guest does that remembers nothing.
pub fn find(client: &mut Client, path: &str) -> Result<EntryOut, Errno> {
    let mut at = None;
    for name in path.split('/') {
        let found = client.lookup(at.map_or(ROOT, |entry: EntryOut| entry.nodeid), name);
        if let Some(entry) = at {
            client.forget(entry.nodeid, 1);
        }
        at = Some(found?);
    }
    Ok(at.expect("a path has a name"))
}

pub fn exists(client: &mut Client, path: &str) -> bool {
    let found = find(client, path);
    if let Ok(entry) = &found {
        client.forget(entry.nodeid, 1);
    }
    found.is_ok()
}

pub fn comes(client: &mut Client, path: &str) {
    eventually(&format!("{path} comes"), || exists(client, path));
}

pub fn goes(client: &mut Client, path: &str) {
    eventually(&format!("{path} goes"), || !exists(client, path));
}

/// Runs `test` with a daemon that follows mounts, which are all gone again after it, and gives what it logged.
pub fn following(args: &[&str], test: impl FnOnce(&Share, &mut Session) + Send) -> String {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        let mut session = Session::start(command(&share).args(ALWAYS).args(args), DeviceConfig::default());
        test(&share, &mut session);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        stderr
    })
}

#[test]
fn a_mount_comes_and_goes() {
    for options in [&[][..], &["--landlock=full"], &["--cache=never", "--inode-file-handles=never"]] {
        comes_and_goes(options);
    }
}

fn comes_and_goes(options: &[&str]) {
    following(options, |share, session| {
        share.write("late/covered", "covered");
        let client = session.client();
        assert!(exists(client, "late/covered"));
        tmpfs(&share.join("late"));
        share.write("late/file", "late");
        comes(client, "late/file");
        let late = find(client, "late").unwrap();
        assert_eq!(late.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
        assert!(!exists(client, "late/covered"));
        // The guest can't unmount it.
        assert_eq!(client.rmdir(ROOT, "late"), Err(Errno::EBUSY));
        assert_eq!(client.rename((ROOT, "late"), (ROOT, "x"), 0), Err(Errno::EBUSY));

        let file = find(client, "late/file").unwrap().nodeid;
        let fh = client.open(file, libc::O_RDWR).unwrap().fh;
        client.write(file, fh, 0, b"LATE").unwrap();
        assert_eq!(share.read("late/file"), b"LATE");
        // The host is not told that it is busy.
        umount(&share.join("late")).unwrap();
        comes(client, "late/covered");
        assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"LATE");
        client.release(file, fh).unwrap();
    });
}

#[test]
fn mounts_below_mounts_and_over_mounts() {
    following(&[], |share, session| {
        let client = session.client();
        tmpfs(&share.join("a"));
        tmpfs(&share.join("a/b"));
        share.write("a/b/lower", "");
        comes(client, "a/b/lower");
        tmpfs(&share.join("a/b"));
        share.write("a/b/upper", "");
        comes(client, "a/b/upper");
        assert!(!exists(client, "a/b/lower"));
        umount(&share.join("a/b")).unwrap();
        comes(client, "a/b/lower");
        assert!(!exists(client, "a/b/upper"));
        // All at once, with what is below.
        umount2(&share.join("a"), MntFlags::MNT_DETACH).unwrap();
        goes(client, "a/b");
        assert!(exists(client, "a"));
    });
}

/// What is mounted over a directory hides what is mounted further down, and does not end it.
#[test]
fn mounts_behind_mounts() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        for name in ["early", "late"] {
            fs::create_dir_all(share.join(name).join("dir")).unwrap();
        }
        tmpfs(&share.join("early/dir"));
        share.write("early/dir/file", "");
        tmpfs(&share.join("early"));
        let mut session = Session::start(command(&share).args(ALWAYS), DeviceConfig::default());
        let client = session.client();
        tmpfs(&share.join("late/dir"));
        share.write("late/dir/file", "");
        comes(client, "late/dir/file");
        let known = find(client, "late/dir/file").unwrap().nodeid;
        tmpfs(&share.join("late"));
        goes(client, "late/dir");
        tmpfs(&share.join("other"));
        share.write("other/file", "");
        comes(client, "other/file");
        for name in ["early", "late"] {
            umount(&share.join(name)).unwrap();
            comes(client, &format!("{name}/dir/file"));
        }
        assert_eq!(find(client, "late/dir/file").unwrap().nodeid, known, "it was there all the time");
        for name in ["early", "late"] {
            umount(&share.join(name).join("dir")).unwrap();
            goes(client, &format!("{name}/dir/file"));
        }
        let (status, stderr) = session.finish();
        assert!(status.success() && !stderr.contains("mounts: "), "{stderr}");
    });
}

/// What is mounted before it looks comes right as well: it knows the lower one of two only by the list.
#[test]
fn what_is_stacked_at_once_is_shown_as_the_host_sees_it() {
    following(&[], |share, session| {
        let client = session.client();
        let outside = TempDir::on_disk();
        tmpfs(outside.path());
        for name in ["a", "a/b"] {
            tmpfs(&outside.path().join(name));
        }
        fs::write(outside.path().join("a/b/lower"), "").unwrap();
        tmpfs(&outside.path().join("a/b"));
        fs::write(outside.path().join("a/b/upper"), "").unwrap();
        fs::create_dir(share.join("tree")).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(outside.path()), &share.join("tree"), None::<&str>, flags, None::<&str>).unwrap();
        comes(client, "tree/a/b/upper");
        umount(&share.join("tree/a/b")).unwrap();
        comes(client, "tree/a/b/lower");
        umount2(&share.join("tree"), MntFlags::MNT_DETACH).unwrap();
        goes(client, "tree/a");
        umount2(outside.path(), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn files_are_mount_points_too() {
    following(&[], |share, session| {
        let client = session.client();
        let size = |client: &mut Client| {
            let entry = find(client, "file").unwrap();
            client.forget(entry.nodeid, 1);
            entry.attr.size
        };
        share.write("file", "host");
        let other = TempDir::on_disk();
        fs::write(other.path().join("long"), "a longer one").unwrap();
        bind(&other.path().join("long"), &share.join("file"));
        eventually("the file is covered", || size(client) == 12);
        umount(&share.join("file")).unwrap();
        eventually("the file is back", || size(client) == 4);
    });
}

/// Both from the start and later: ids are the guest's, devices, set-id bits and programs are dead, and it can't be got
/// rid of.
#[test]
fn what_comes_is_as_what_was_there() {
    let device = |path: &Path| {
        mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    };
    following(&["--modcaps=+mknod"], |share, session| {
        let client = session.client();
        tmpfs(&share.join("sub"));
        let file = share.write("sub/file", "x");
        chown(&file, Some(1234), Some(5678)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        device(&share.join("sub/null"));
        comes(client, "sub/null");
        let found = find(client, "sub/file").unwrap();
        assert_eq!((found.attr.uid, found.attr.gid, found.attr.mode & 0o7777), (1234, 5678, 0o4755));
        let sub = find(client, "sub").unwrap().nodeid;
        let made = client.create(sub, "made", libc::O_RDWR, 0o100_600).unwrap();
        client.release(made.entry.nodeid, made.open.fh).unwrap();
        let made = fs::metadata(share.join("sub/made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
        let worker = session.daemon.worker();
        let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
        let line = mounts.lines().find(|line| line.contains(" /sub ")).unwrap();
        for option in ["nosuid", "nodev", "noexec", "idmapped"] {
            assert!(line.split(' ').nth(5).unwrap().split(',').any(|o| o == option), "{option}: {line}");
        }
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
        // The broker knows it, once the guest has seen it.
        let client = session.client();
        client.mknod(sub, "zero", libc::S_IFCHR | 0o666, 0x105).unwrap();
        assert_eq!(fs::metadata(share.join("sub/zero")).unwrap().rdev(), makedev(1, 5));
        umount(&share.join("sub")).unwrap();
        goes(session.client(), "sub/null");
    });
}

#[test]
fn what_moves_is_where_the_host_has_it() {
    following(&[], |share, session| {
        let client = session.client();
        for name in ["from", "to", "outside"] {
            fs::create_dir(share.join(name)).unwrap();
        }
        tmpfs(&share.join("from"));
        share.write("from/file", "");
        tmpfs(&share.join("from/below"));
        share.write("from/below/file", "");
        comes(client, "from/below/file");
        let flags = MsFlags::MS_MOVE;
        let none = None::<&str>;
        mount(Some(&share.join("from")), &share.join("to"), none, flags, none).unwrap();
        comes(client, "to/below/file");
        assert!(exists(client, "to/file") && !exists(client, "from/file"));
        // A directory that is renamed takes what is mounted in it along, on both sides.
        let (moved, again) = (share.join("dir/mount"), share.join("renamed/mount"));
        tmpfs(&moved);
        share.write("dir/mount/file", "");
        comes(client, "dir/mount/file");
        let before = find(client, "dir/mount/file").unwrap().nodeid;
        client.rename((ROOT, "dir"), (ROOT, "renamed"), 0).unwrap();
        assert!(again.join("file").exists());
        // Something else happens, so that it looks at the list.
        tmpfs(&share.join("other"));
        share.write("other/file", "");
        comes(client, "other/file");
        assert_eq!(find(client, "renamed/mount/file").unwrap().nodeid, before, "it was not attached anew");
        umount(&again).unwrap();
        goes(client, "renamed/mount/file");
        for path in ["to/below", "to", "other"] {
            umount(&share.join(path)).unwrap();
        }
        goes(client, "to/file");
    });
}

#[test]
fn what_is_made_read_only_is_read_only_for_the_guest() {
    following(&[], |share, session| {
        let client = session.client();
        tmpfs(&share.join("sub"));
        share.write("sub/file", "");
        comes(client, "sub/file");
        let sub = find(client, "sub").unwrap().nodeid;
        client.mkdir(sub, "before", 0o755).unwrap();
        let mut number = 0;
        let mut writable = |client: &mut Client| {
            number += 1;
            match client.mkdir(sub, number.to_string(), 0o755) {
                Ok(_) => true,
                Err(errno) => {
                    assert_eq!(errno, Errno::EROFS);
                    false
                }
            }
        };
        // While the guest writes, the kernel refuses.
        let file = find(client, "sub/file").unwrap().nodeid;
        let fh = client.open(file, libc::O_WRONLY).unwrap().fh;
        remount(&share.join("sub"), MsFlags::MS_RDONLY);
        session.daemon.wait_for_stderr("\"sub\" can't be made read-only", 1);
        let client = session.client();
        assert!(writable(client));
        client.release(file, fh).unwrap();
        eventually("read-only", || !writable(client));
        remount(&share.join("sub"), MsFlags::empty());
        eventually("writable again", || writable(client));
        umount(&share.join("sub")).unwrap();
    });
}

#[test]
fn a_read_only_share_has_only_read_only_mounts() {
    following(&["--readonly"], |share, session| {
        let client = session.client();
        tmpfs(&share.join("sub"));
        share.write("sub/file", "");
        comes(client, "sub/file");
        let worker = session.daemon.worker();
        let options = || {
            let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
            let line = mounts.lines().find(|line| line.contains(" /sub ")).unwrap();
            line.split(' ').nth(5).unwrap().to_owned()
        };
        assert!(options().starts_with("ro,"), "{}", options());
        remount(&share.join("sub"), MsFlags::MS_RDONLY);
        remount(&share.join("sub"), MsFlags::empty());
        tmpfs(&share.join("other"));
        share.write("other/file", "");
        comes(session.client(), "other/file");
        assert!(options().starts_with("ro,"), "{}", options());
        for name in ["sub", "other"] {
            umount(&share.join(name)).unwrap();
        }
    });
}

#[test]
fn what_was_there_from_the_start_goes_too() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        for name in ["early", "early/below", "stacked", "stacked"] {
            tmpfs(&share.join(name));
            share.write(format!("{name}/file"), "");
        }
        let mut session = Session::start(command(&share).args(ALWAYS), DeviceConfig::default());
        let client = session.client();
        let known = find(client, "early/below/file").unwrap().nodeid;
        assert!(exists(client, "stacked/file"));
        // It has not been attached anew once something else has been.
        tmpfs(&share.join("late"));
        share.write("late/file", "");
        comes(client, "late/file");
        assert_eq!(find(client, "early/below/file").unwrap().nodeid, known);
        for name in ["stacked", "early/below", "early", "late"] {
            umount(&share.join(name)).unwrap();
        }
        goes(client, "early/file");
        goes(client, "late/file");
        assert!(exists(client, "stacked/file"));
        umount(&share.join("stacked")).unwrap();
        goes(client, "stacked/file");
        let (status, stderr) = session.finish();
        assert!(status.success() && !stderr.contains("can't be found"), "{stderr}");
    });
}

#[test]
fn what_is_mounted_elsewhere_is_not_seen() {
    following(&[], |share, session| {
        let client = session.client();
        let other = TempDir::on_disk();
        fs::create_dir(share.join("link-target")).unwrap();
        let beside = share.path().with_extension("beside");
        tmpfs(&beside);
        tmpfs(other.path());
        // Over the share itself: the daemon serves what is below.
        share.write("file", "");
        tmpfs(share.path());
        tmpfs(&share.join("new"));
        umount(&share.join("new")).unwrap();
        umount(share.path()).unwrap();
        tmpfs(&share.join("sub"));
        share.write("sub/file", "");
        comes(client, "sub/file");
        assert!(exists(client, "file") && !exists(client, "new"));
        let worker = session.daemon.worker();
        let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 3, "root, share and one more:\n{mounts}");
        for path in [&share.join("sub"), &beside, &other.path().to_owned()] {
            umount(path).unwrap();
        }
        fs::remove_dir(&beside).unwrap();
    });
}
