//! `--follow-mounts` with file systems of several kinds, with many mounts, with a guest that disturbs, over a migration,
//! and under a kernel's client.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::stat::Mode;
use tests::bounded::bounded;
use tests::bridge::Bridge;
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::ROOT;
use tests::fuse::{Client, Session};
use tests::mounts::{Disk, MountsBelow};
use tests::share::{Share, TempDir};

use super::follow::{ALWAYS, bind, comes, eventually, exists, find, following, goes, tmpfs};
use super::shares::overlay;
use super::{LIMIT, command};

/// The daemon lets go of a file system that was unmounted when the guest does: its device can be used for something
/// else then, while the daemon serves.
#[test]
fn an_unmounted_file_system_is_free_once_the_guest_has_forgotten_it() {
    following(&[], |share, session| {
        let client = session.client();
        let disk = Disk::new();
        fs::create_dir(share.join("sub")).unwrap();
        let device = Some(disk.device());
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

/// The same for one that was there from the start.
#[test]
fn what_was_mounted_at_the_start_is_freed_too() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        let (disk, place) = (Disk::new(), share.join("early"));
        fs::create_dir(&place).unwrap();
        mount(Some(disk.device()), &place, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        share.write("early/file", "");
        let mut session = Session::start(command(&share).args(ALWAYS), DeviceConfig::default());
        let client = session.client();
        let early = client.lookup(ROOT, "early").unwrap().nodeid;
        let file = client.lookup(early, "file").unwrap().nodeid;
        umount(&place).unwrap();
        goes(client, "early/file");
        assert!(!disk.is_free());
        for node in [file, early] {
            client.forget(node, 10);
        }
        eventually("the device is free", || {
            client.statfs(ROOT).unwrap();
            disk.is_free()
        });
        assert!(session.finish().0.success());
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
        let merged = TempDir::short();
        let (layers, _mounted) = overlay(merged.path());
        File::create(merged.path().join("file")).unwrap();
        fs::create_dir(share.join("rootfs")).unwrap();
        bind(merged.path(), &share.join("rootfs"));
        comes(client, "rootfs/file");
        let rootfs = find(client, "rootfs").unwrap().nodeid;
        client.mkdir(rootfs, "by-guest", 0o755).unwrap();
        assert!(layers.join("upper/by-guest").is_dir());
        umount(&share.join("rootfs")).unwrap();
        goes(client, "rootfs/file");
    });
}

/// A guest migrates with a file open on a mount that came while the source served, and with one on a mount that went.
#[test]
fn what_came_later_migrates_and_what_went_is_lost() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
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
    // As in the suite bridge: a process that is aborted with requests under way does not go away.
    bounded(4 * LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        let _mounts = MountsBelow(share.path());
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
