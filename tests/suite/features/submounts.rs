//! What `docs/submounts.md` says of file systems that are mounted and unmounted while the daemon serves and does not
//! follow.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::wire::{ATTR_SUBMOUNT, ROOT};
use tests::mounts::{Disk, MountsBelow};
use tests::share::{Share, TempDir};

use super::follow::eventually;
use super::{LIMIT, command};

/// A daemon whose mounts are those of the start.
fn unfollowed(share: &Share) -> DaemonCommand {
    command(share).args(["--follow-mounts=never"])
}

fn tmpfs(path: &Path) {
    fs::create_dir_all(path).unwrap();
    mount(Some("t"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// The daemon's processes begin in copies of the host's whole tree of mounts, and keep nothing of them.
#[test]
fn what_is_mounted_elsewhere_is_freed_when_the_host_unmounts_it() {
    bounded(LIMIT, || {
        let (share, place, disk) = (Share::new(), TempDir::short(), Disk::new());
        let _mounts = MountsBelow(place.path());
        let metrics = place.path().join("metrics");
        fs::create_dir(place.path().join("disk")).unwrap();
        let disk_place = place.path().join("disk");
        mount(Some(disk.device()), &disk_place, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        for options in [&[][..], &["--metrics-socket", metrics.to_str().unwrap()]] {
            let mut session = Session::start(unfollowed(&share).args(options), DeviceConfig::default());
            session.client().statfs(ROOT).unwrap();
            assert!(!disk.is_free());
            umount(&disk_place).unwrap();
            eventually("the device is free", || disk.is_free());
            mount(Some(disk.device()), &disk_place, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
            assert!(session.finish().0.success());
        }
    });
}

#[test]
fn the_tree_of_mounts_is_that_of_the_start() {
    bounded(LIMIT, || {
        let share = Share::new();
        tmpfs(&share.join("early"));
        share.write("early/file", "early");
        share.write("late/covered", "covered");
        let mut session = Session::start(unfollowed(&share), DeviceConfig::default());
        let client = session.client();
        let early = client.lookup(ROOT, "early").unwrap();
        assert_eq!(early.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);

        // What comes is not seen; what it covers is, by names that are known and by new ones.
        tmpfs(&share.join("late"));
        share.write("late/file", "late");
        let late = client.lookup(ROOT, "late").unwrap();
        assert_eq!(late.attr.flags & ATTR_SUBMOUNT, 0);
        assert_eq!(client.lookup(late.nodeid, "file"), Err(Errno::ENOENT));
        client.lookup(late.nodeid, "covered").unwrap();
        tmpfs(&share.join("early"));
        client.lookup(early.nodeid, "file").unwrap();
        umount(&share.join("early")).unwrap();

        // What goes stays, and can be used.
        umount(&share.join("early")).unwrap();
        assert!(!share.join("early/file").exists());
        let again = client.lookup(ROOT, "early").unwrap();
        assert_eq!(again.nodeid, early.nodeid);
        let file = client.lookup(early.nodeid, "file").unwrap().nodeid;
        let fh = client.open(file, libc::O_RDWR).unwrap().fh;
        client.write(file, fh, 0, b"EARLY").unwrap();
        assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"EARLY");
        client.release(file, fh).unwrap();
        assert!(session.finish().0.success());
        umount(&share.join("late")).unwrap();
    });
}

/// The directories that something is mounted on are the kernel's to guard, as far as the copy has the mount: without
/// that, removing the directory would unmount the host's, as it does where the mount came later.
#[test]
fn the_guest_cannot_unmount_what_was_mounted_at_the_start() {
    bounded(LIMIT, || {
        let share = Share::new();
        for name in ["early", "late"] {
            fs::create_dir(share.join(name)).unwrap();
        }
        tmpfs(&share.join("early"));
        let is_mounted = |name: &str| {
            fs::metadata(share.join(name)).is_ok_and(|m| m.dev() != fs::metadata(share.path()).unwrap().dev())
        };
        for options in [&[][..], &["--sandbox=chroot"], &["--sandbox=none"], &["--worker-ids=identity"]] {
            let mut session = Session::start(unfollowed(&share).args(options), DeviceConfig::default());
            tmpfs(&share.join("late"));
            let client = session.client();
            assert_eq!(client.rmdir(ROOT, "early"), Err(Errno::EBUSY), "{options:?}");
            assert_eq!(client.rename((ROOT, "early"), (ROOT, "x"), 0), Err(Errno::EBUSY), "{options:?}");
            assert!(is_mounted("early") && is_mounted("late"), "{options:?}");
            // In the host's own namespace also what came later is guarded.
            let own_namespace = !options.iter().any(|option| option.starts_with("--sandbox"));
            let expected = if own_namespace { Ok(()) } else { Err(Errno::EBUSY) };
            assert_eq!(client.rmdir(ROOT, "late"), expected, "{options:?}");
            assert_eq!(is_mounted("late"), !own_namespace, "{options:?}");
            assert!(session.finish().0.success());
            if is_mounted("late") {
                umount(&share.join("late")).unwrap();
            }
        }
        umount(&share.join("early")).unwrap();
    });
}

#[test]
fn a_read_only_mount_is_the_hosts_own_and_a_read_only_file_system_everybodys() {
    bounded(LIMIT, || {
        let share = Share::new();
        tmpfs(&share.join("sub"));
        let mut session = Session::start(unfollowed(&share), DeviceConfig::default());
        let client = session.client();
        let sub = client.lookup(ROOT, "sub").unwrap().nodeid;
        let remount = |flags| {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags;
            mount(None::<&str>, &share.join("sub"), None::<&str>, flags, None::<&str>).unwrap();
        };
        remount(MsFlags::MS_BIND);
        assert!(fs::create_dir(share.join("sub/host")).is_err());
        client.mkdir(sub, "guest", 0o755).unwrap();
        remount(MsFlags::empty());
        assert_eq!(client.mkdir(sub, "more", 0o755), Err(Errno::EROFS));
        assert!(session.finish().0.success());
        umount(&share.join("sub")).unwrap();
    });
}
