//! `--follow-mounts`: what `docs/submounts.md` says of mounts that come, move, change and go while the daemon serves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tests::bounded::bounded;
use tests::bridge::Bridge;
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{ATTR_SUBMOUNT, EntryOut, ROOT};
use tests::fuse::{Client, Session};
use tests::program::program;
use tests::share::{Share, TempDir};

use super::{LIMIT, command};

const ALWAYS: &[&str] = &["--follow-mounts=always"];

pub fn tmpfs(path: &Path) {
    fs::create_dir_all(path).unwrap();
    mount(Some("t"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn remount(path: &Path, flags: MsFlags) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
}

/// Asks until the answer is yes.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Looks a path up, as a guest does that remembers nothing.
fn find(client: &mut Client, path: &str) -> Result<EntryOut, Errno> {
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
fn following(args: &[&str], test: impl FnOnce(&Share, &mut Session) + Send) -> String {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(&share).args(ALWAYS).args(args), DeviceConfig::default());
        test(&share, &mut session);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        stderr
    })
}

#[test]
fn a_mount_comes_and_goes() {
    following(&[], |share, session| {
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

/// A new ext4 on a loop device, which is taken down when this is dropped.
struct Disk {
    device: String,
    _image: TempDir,
}

impl Disk {
    fn new() -> Disk {
        let image = TempDir::on_disk();
        let path = image.path().join("image");
        fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        program("mkfs.ext4", "e2fsprogs").args(["-q", "-F"]).arg(&path).succeed();
        let device = program("losetup", "mount").args(["--find", "--show"]).arg(&path).succeed();
        Disk { device: device.trim().to_owned(), _image: image }
    }

    /// Whether nothing on the host uses it, as who formats it wants to know.
    fn is_free(&self) -> bool {
        let flags = OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        match open(self.device.as_str(), flags, Mode::empty()) {
            Ok(_) => true,
            Err(errno) => {
                assert_eq!(errno, Errno::EBUSY);
                false
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// The daemon lets go of a file system that was unmounted when the guest does: its device can be used for something
/// else then, while the daemon serves.
#[test]
fn an_unmounted_file_system_is_free_once_the_guest_has_forgotten_it() {
    following(&[], |share, session| {
        let client = session.client();
        let disk = Disk::new();
        fs::create_dir(share.join("sub")).unwrap();
        let device = Some(disk.device.as_str());
        mount(device, &share.join("sub"), Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        share.write("sub/dir/file", "");
        comes(client, "sub/dir/file");
        let sub = client.lookup(ROOT, "sub").unwrap().nodeid;
        let dir = client.lookup(sub, "dir").unwrap().nodeid;
        umount(&share.join("sub")).unwrap();
        goes(client, "sub/dir");
        // By what it still knows the guest can use it.
        let file = client.lookup(dir, "file").unwrap().nodeid;
        assert!(!disk.is_free());
        for node in [file, dir, sub] {
            client.forget(node, 10);
        }
        eventually("the device is free", || {
            client.statfs(ROOT).unwrap();
            disk.is_free()
        });
        // And the next one there is the next one.
        mount(device, &share.join("sub"), Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        comes(client, "sub/dir");
        umount(&share.join("sub")).unwrap();
        goes(client, "sub/dir");
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

#[test]
fn what_cannot_have_the_guest_s_ids_stays_hidden() {
    let stderr = following(&[], |share, session| {
        let client = session.client();
        share.write("proc/covered", "");
        mount(Some("p"), &share.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
        tmpfs(&share.join("after"));
        share.write("after/file", "");
        comes(client, "after/file");
        assert!(exists(client, "proc/covered"));
        for name in ["proc", "after"] {
            umount(&share.join(name)).unwrap();
        }
        goes(client, "after/file");
    });
    let told: Vec<&str> = stderr.lines().filter(|line| line.contains("does not see")).collect();
    assert!(
        told.len() == 1 && told[0].contains("\"proc\"") && told[0].contains("With --worker-ids=identity"),
        "{stderr}"
    );
}

#[test]
fn ids_that_are_the_host_s_stay_so() {
    following(&["--worker-ids=identity"], |share, session| {
        let client = session.client();
        share.write("proc/covered", "");
        mount(Some("p"), &share.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
        comes(client, "proc/self");
        tmpfs(&share.join("sub"));
        chown(share.write("sub/file", ""), Some(7), Some(8)).unwrap();
        comes(client, "sub/file");
        let found = find(client, "sub/file").unwrap().attr;
        assert_eq!((found.uid, found.gid), (7, 8));
        for name in ["proc", "sub"] {
            umount(&share.join(name)).unwrap();
        }
        goes(client, "sub/file");
    });
}

/// A burst, and the bound on it (`MAX_COPIES` of the follower).
#[test]
fn many_mounts_come_and_too_many_do_not() {
    const MOST: usize = 512;
    let stderr = following(&[], |share, session| {
        let other = TempDir::on_disk();
        fs::write(other.path().join("file"), "").unwrap();
        let name = |number: usize| format!("m{number}");
        for number in 0..MOST + 3 {
            fs::create_dir(share.join(name(number))).unwrap();
            bind(other.path(), &share.join(name(number)));
        }
        session.daemon.wait_for_stderr("mounts are shown in the share", 1);
        let client_sees = |client: &mut Client| {
            (0..MOST + 3).filter(|number| exists(client, &format!("{}/file", name(*number)))).count()
        };
        let client = session.client();
        eventually("as many as may be", || client_sees(client) == MOST);
        let visible = (0..MOST + 3).find(|number| exists(client, &format!("{}/file", name(*number))));
        umount(&share.join(name(visible.unwrap()))).unwrap();
        eventually("another one comes", || {
            !exists(client, &format!("{}/file", name(visible.unwrap()))) && client_sees(client) == MOST
        });
        for number in (0..MOST + 3).filter(|number| Some(*number) != visible) {
            umount(&share.join(name(number))).unwrap();
        }
        eventually("all go", || client_sees(client) == 0);
    });
    let told =
        stderr.lines().filter(|line| line.contains("mounts: 512 mounts are shown in the share")).count();
    assert_eq!(told, 1, "{stderr}");
}

/// The guest moves the directories that lead to the mount, and puts links in their place, while it comes and goes.
#[test]
fn a_guest_that_renames_meanwhile_gains_nothing() {
    following(&[], |share, session| {
        let outside = TempDir::on_disk();
        fs::create_dir_all(outside.path().join("sub")).unwrap();
        fs::create_dir_all(share.join("dir/sub")).unwrap();
        // The host finds it whatever the guest does.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open(&share.join("dir/sub"), flags, Mode::empty()).unwrap();
        let place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
        let place = Path::new(&place);
        let worker = session.daemon.worker();
        let client = session.client();
        for round in 0..300 {
            mount(Some("t"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            client.rename((ROOT, "dir"), (ROOT, "away"), 0).unwrap();
            let link = client.symlink(ROOT, "dir", outside.path()).unwrap();
            if round % 10 == 0 {
                // No mount of the worker is anywhere but in the share.
                let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
                for line in mounts.lines() {
                    let point = line.split(' ').nth(4).unwrap();
                    assert!(["/", "/dir/sub", "/away/sub"].contains(&point), "{mounts}");
                }
                assert_eq!(fs::read_dir(outside.path().join("sub")).unwrap().count(), 0);
            }
            client.unlink(ROOT, "dir").unwrap();
            client.forget(link.nodeid, 1);
            client.rename((ROOT, "away"), (ROOT, "dir"), 0).unwrap();
            umount2(&fs::read_link(place).unwrap(), MntFlags::MNT_DETACH).unwrap();
        }
        // Left alone, it is what the host has.
        mount(Some("t"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        share.write("dir/sub/file", "");
        comes(client, "dir/sub/file");
        umount(&share.join("dir/sub")).unwrap();
        goes(client, "dir/sub/file");
    });
}

/// As container run times have it: an overlay, which can't have mapped ids.
#[test]
fn an_overlay_is_shown_where_ids_are_the_host_s() {
    following(&["--worker-ids=identity"], |share, session| {
        let client = session.client();
        let layers = TempDir::on_disk();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(layers.path().join(name)).unwrap();
        }
        fs::write(layers.path().join("lower/file"), "").unwrap();
        let (root, merged) = (layers.path().display(), layers.path().join("merged"));
        let options = format!("lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work");
        mount(Some("o"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        fs::create_dir(share.join("rootfs")).unwrap();
        bind(&merged, &share.join("rootfs"));
        comes(client, "rootfs/file");
        let rootfs = find(client, "rootfs").unwrap().nodeid;
        client.mkdir(rootfs, "by-guest", 0o755).unwrap();
        assert!(layers.path().join("upper/by-guest").is_dir());
        umount(&share.join("rootfs")).unwrap();
        goes(client, "rootfs/file");
        umount(&merged).unwrap();
    });
}

/// A guest migrates with a file open on a mount that came while the source served, and with one on a mount that went.
#[test]
fn what_came_later_migrates_and_what_went_is_lost() {
    bounded(LIMIT, || {
        let share = Share::new();
        let args = ["--follow-mounts=always", "--migration-on-error=guest-error"];
        let start = || command(&share).args(args);
        let mut session = Session::start(start(), DeviceConfig::default());
        let client = session.client();
        for name in ["late", "gone"] {
            tmpfs(&share.join(name));
            share.write(format!("{name}/file"), name);
            comes(client, &format!("{name}/file"));
        }
        let late = client.walk("late/file").unwrap().nodeid;
        let gone = client.walk("gone/file").unwrap().nodeid;
        let fh = client.open(late, libc::O_RDONLY).unwrap().fh;
        umount(&share.join("gone")).unwrap();
        goes(client, "gone/file");
        assert!(client.getattr(gone, None).is_ok());
        let (state, bases) = session.save().unwrap();
        let Ok((mut session, left)) = session.load(start().start(), DeviceConfig::default(), &state, &bases)
        else {
            panic!("the destination took its own kind's state");
        };
        let client = session.client();
        assert_eq!(client.read(late, fh, 0, 10).unwrap(), b"late");
        assert!(client.getattr(gone, None).is_err());
        client.release(late, fh).unwrap();
        // And the destination follows.
        umount(&share.join("late")).unwrap();
        goes(client, "late/file");
        assert!(session.finish().0.success());
        drop(left.device);
        let mut source = left.daemon;
        source.wait(PATIENCE);
    });
}

/// Through the kernel's own client, which remembers names for a second.
#[test]
fn a_kernel_sees_them_come_and_go() {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        share.write("late/covered", "covered");
        let mut daemon = command(&share).args(ALWAYS).start();
        let bridge = Bridge::mount(&daemon, mountpoint.path());
        let late = bridge.path().join("late");
        assert_eq!(fs::read_to_string(late.join("covered")).unwrap(), "covered");
        tmpfs(&share.join("late"));
        share.write("late/file", "late");
        eventually("the kernel sees it", || fs::read(late.join("file")).is_ok_and(|data| data == b"late"));
        assert!(!late.join("covered").exists());
        let open = fs::File::open(late.join("file")).unwrap();
        umount(&share.join("late")).unwrap();
        eventually("and what it covered", || late.join("covered").exists());
        assert_eq!(std::io::read_to_string(open).unwrap(), "late");
        bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
        let status = daemon.wait(PATIENCE);
        assert!(status.success(), "{}", daemon.stderr());
    });
}
