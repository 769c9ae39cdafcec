//! Kinds of share and of confinement: a single file, chroot and none, an ordinary user with one id or many, file
//! systems that can't be idmapped.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{ROOT, fattr};
use tests::fuse::{Caller, Client, Session, SetAttr};
use tests::peers::Implementation;
use tests::share::{Mounted, Share, TempDir};

use super::{LIMIT, command, with_client};

/// An ordinary user: `nobody`.
const NOBODY: u32 = 65_534;

/// Our daemon, started by an ordinary user.
pub fn as_nobody(dir: &Path) -> DaemonCommand {
    as_nobody_in(Path::new("/"), dir)
}

/// The same in a working directory.
fn as_nobody_in(place: &Path, dir: &Path) -> DaemonCommand {
    let mut args: Vec<OsString> = vec!["--chdir".into(), place.into(), "setpriv".into()];
    args.extend(["--reuid=65534", "--regid=65534", "--clear-groups", "--"].map(OsString::from));
    args.push(Implementation::Ours.binary().into());
    args.extend(["--shared-dir".into(), dir.into()]);
    DaemonCommand::new("env").args(args)
}

/// Starts, runs and ends a session in the orderly way; what the daemon wrote to stderr.
fn run(command: DaemonCommand, test: impl FnOnce(&mut Client)) -> String {
    let mut session = Session::start(command, DeviceConfig::default());
    test(session.client());
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
    stderr
}

/// Files and directories made, written, read, renamed, listed and removed.
fn ordinary_work(share: &Path, client: &mut Client) {
    let file = client.create(ROOT, "file", libc::O_RDWR, 0o640).unwrap();
    let (node, fh) = (file.entry.nodeid, file.open.fh);
    client.write(node, fh, 0, b"contents").unwrap();
    assert_eq!(fs::read(share.join("file")).unwrap(), b"contents");
    assert_eq!(client.read(node, fh, 0, 100).unwrap(), b"contents");
    client.setattr(node, SetAttr { valid: fattr::MODE, mode: 0o600, ..Default::default() }).unwrap();
    assert_eq!(fs::metadata(share.join("file")).unwrap().permissions().mode() & 0o7777, 0o600);
    client.fsync(node, fh, false).unwrap();
    client.release(node, fh).unwrap();
    // Opened again through the fd directory.
    let again = client.open(node, libc::O_RDONLY).unwrap().fh;
    assert_eq!(client.read(node, again, 0, 100).unwrap(), b"contents");
    client.release(node, again).unwrap();
    let dir = client.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    client.rename((ROOT, "file"), (dir, "moved"), 0).unwrap();
    client.link(node, ROOT, "second").unwrap();
    client.symlink(dir, "link", "moved").unwrap();
    let mut names: Vec<_> = client.list(dir).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    assert_eq!(names, [&b"."[..], b"..", b"link", b"moved"]);
    // The way up ends at the share.
    assert_eq!(client.lookup(ROOT, "..").unwrap().nodeid, ROOT);
    client.setxattr(node, "user.a", b"1", 0).unwrap();
    assert_eq!(client.getxattr(node, "user.a", 10).unwrap(), b"1");
    client.unlink(dir, "moved").unwrap();
    client.unlink(dir, "link").unwrap();
    client.unlink(ROOT, "second").unwrap();
    client.rmdir(ROOT, "dir").unwrap();
    assert_eq!(fs::read_dir(share).unwrap().count(), 0);
    assert_eq!(client.lookup(ROOT, "file"), Err(Errno::ENOENT));
}

#[test]
fn a_single_file() {
    for landlock in ["--landlock=free", "--landlock=full"] {
        bounded(LIMIT, || {
            let share = Share::new();
            let path = share.write("one", "contents");
            share.write("other", "not shared");
            let command = DaemonCommand::serving(&Implementation::Ours, &path).args([landlock]);
            run(command, a_file_as_root);
            assert_eq!(share.read("one"), b"CONTENTS");
        });
    }
}

fn a_file_as_root(client: &mut Client) {
    let attr = client.getattr(ROOT, None).unwrap().attr;
    assert_eq!((attr.mode & libc::S_IFMT, attr.size), (libc::S_IFREG, 8));
    let fh = client.open(ROOT, libc::O_RDWR).unwrap().fh;
    assert_eq!(client.read(ROOT, fh, 0, 100).unwrap(), b"contents");
    client.write(ROOT, fh, 0, b"CONTENTS").unwrap();
    client.fsync(ROOT, fh, true).unwrap();
    client.release(ROOT, fh).unwrap();
    // It leads nowhere.
    for name in ["other", "one", "..", "."] {
        assert_eq!(client.lookup(ROOT, name), Err(Errno::ENOTDIR), "{name}");
    }
    assert_eq!(client.opendir(ROOT), Err(Errno::ENOTDIR));
    assert_eq!(client.mkdir(ROOT, "dir", 0o777), Err(Errno::ENOTDIR));
    assert_eq!(client.statfs(ROOT).map(|st| st.namelen), Ok(255));
}

#[test]
fn chroot_and_none() {
    for mode in ["--sandbox=chroot", "--sandbox=none"] {
        for landlock in ["--landlock=off", "--landlock=free", "--landlock=full"] {
            with_client(&[mode, landlock, "--xattr"], |share, client| {
                ordinary_work(share.path(), client);
                // Ids are the host's own.
                client.caller = Caller { uid: 1000, gid: 1001, pid: 1 };
                let made = client.create(ROOT, "by-user", libc::O_RDWR, 0o600).unwrap();
                assert_eq!((made.entry.attr.uid, made.entry.attr.gid), (1000, 1001));
                let host = fs::metadata(share.join("by-user")).unwrap();
                assert_eq!((host.uid(), host.gid()), (1000, 1001));
            });
        }
    }
}

#[test]
fn chroot_and_none_serve_a_single_file() {
    for mode in ["--sandbox=chroot", "--sandbox=none"] {
        bounded(LIMIT, || {
            let share = Share::new();
            let path = share.write("one", "contents");
            run(DaemonCommand::serving(&Implementation::Ours, &path).args([mode]), a_file_as_root);
        });
    }
}

/// A share that belongs to `nobody`.
pub fn share_of_nobody() -> Share {
    let share = Share::new();
    chown(share.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(share.path(), Permissions::from_mode(0o755)).unwrap();
    share
}

/// Neither the share's owner's mode nor where the daemon is started keeps it from being served.
#[test]
fn a_share_that_only_its_owner_may_enter_is_served() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        fs::set_permissions(share.path(), Permissions::from_mode(0o700)).unwrap();
        run(command(&share).args(["--xattr"]), |client| ordinary_work(share.path(), client));
    });
    // An ordinary user, in a directory to which it could not come back.
    bounded(LIMIT, || {
        let (share, closed) = (share_of_nobody(), TempDir::short());
        fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
        let file = share.write("one", "contents");
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        for path in [share.path(), file.as_path()] {
            let started = as_nobody_in(closed.path(), path);
            run(started, |client| {
                client.getattr(ROOT, None).unwrap();
            });
        }
    });
}

#[test]
fn an_ordinary_user_serves_as_itself() {
    for args in [&["--xattr"][..], &["--xattr", "--sandbox=none"], &["--xattr", "--landlock=full"]] {
        bounded(LIMIT, || {
            let share = share_of_nobody();
            let stderr = run(as_nobody(share.path()).args(args), |client| {
                // Within namespaces the user is the guest's root; without, itself.
                let own = if args.contains(&"--sandbox=none") { NOBODY } else { 0 };
                client.caller = Caller { uid: own, gid: own, pid: 1 };
                assert_eq!(client.getattr(ROOT, None).unwrap().attr.uid, own);
                ordinary_work(share.path(), client);
                let file = client.create(ROOT, "kept", libc::O_RDWR, 0o600).unwrap();
                assert_eq!(file.entry.attr.uid, own);
                // Nobody else's id can be had, and asking does no harm.
                client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
                assert_eq!(client.mkdir(ROOT, "of-1000", 0o755), Err(Errno::EPERM));
                client.caller = Caller { uid: own, gid: own, pid: 1 };
                client.mkdir(ROOT, "own", 0o755).unwrap();
            });
            let host = fs::metadata(share.join("kept")).unwrap();
            assert_eq!((host.uid(), host.gid()), (NOBODY, NOBODY));
            assert!(!stderr.contains("ERROR"), "{stderr}");
        });
    }
}

#[test]
fn an_ordinary_user_serves_a_single_file() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        let path = share.write("one", "contents");
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        run(as_nobody(&path), a_file_as_root);
        assert_eq!(share.read("one"), b"CONTENTS");
    });
}

/// A read-only share stays read-only where the worker makes its own mount of it.
#[test]
fn an_ordinary_user_serves_read_only() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        let path = share.write("one", "contents");
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        run(as_nobody(share.path()).args(["--readonly"]), |client| {
            let node = client.lookup(ROOT, "one").unwrap().nodeid;
            assert_eq!(client.open(node, libc::O_RDWR), Err(Errno::EROFS));
            assert_eq!(client.mkdir(ROOT, "dir", 0o755), Err(Errno::EROFS));
        });
    });
}

#[test]
fn an_ordinary_user_with_squashed_ids() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        let all =
            ["--translate-uid=squash-guest:0:0:4294967295", "--translate-gid=squash-guest:0:0:4294967295"];
        run(as_nobody(share.path()).args(all), |client| {
            client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
            client.mkdir(ROOT, "by-1000", 0o755).unwrap();
        });
        assert_eq!(fs::metadata(share.join("by-1000")).unwrap().uid(), NOBODY);
    });
}

/// Gives `nobody` sub-ids, for the processes of this test only.
fn subordinate_ids(first: u32, count: u32) -> SubidFiles {
    let line = format!("nobody:{first}:{count}\n");
    subid_files(&line, &line)
}

const SUBID_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Contents of [`SUBID_FILES`], for the processes of this test only, until it is dropped.
struct SubidFiles(TempDir);

fn subid_files(users: &str, groups: &str) -> SubidFiles {
    let files = SubidFiles(TempDir::short());
    for (path, lines) in SUBID_FILES.into_iter().zip([users, groups]) {
        let file = files.0.path().join(Path::new(path).file_name().unwrap());
        fs::write(&file, lines).unwrap();
        mount(Some(&file), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    files
}

impl Drop for SubidFiles {
    fn drop(&mut self) {
        for path in SUBID_FILES {
            umount2(path, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

#[test]
fn an_ordinary_user_with_subordinate_ids_serves_many() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        fs::set_permissions(share.path(), Permissions::from_mode(0o777)).unwrap();
        let _ids = subordinate_ids(500_000, 5000);
        let stderr = run(as_nobody(share.path()).args(["--xattr"]), |client| {
            ordinary_work(share.path(), client);
            client.caller = Caller { uid: 1000, gid: 2000, pid: 1 };
            client.mkdir(ROOT, "by-1000", 0o755).unwrap();
            // Beyond the range there is nobody.
            client.caller = Caller { uid: 6000, gid: 2000, pid: 1 };
            assert_eq!(client.mkdir(ROOT, "by-6000", 0o755), Err(Errno::EPERM));
        });
        // The guest's root is the user itself, its user 1 the first sub-id.
        let made = fs::metadata(share.join("by-1000")).unwrap();
        assert_eq!((made.uid(), made.gid()), (500_999, 501_999));
        assert!(stderr.contains("worker ids: the user's own and its sub-ids"), "{stderr}");
        assert!(
            stderr.contains("confinement: shifted ids: weakened: the worker's ids are the user's"),
            "{stderr}"
        );
    });
}

#[test]
fn an_ordinary_user_with_maps_of_its_own() {
    bounded(LIMIT, || {
        let share = share_of_nobody();
        let _ids = subordinate_ids(500_000, 5000);
        let maps = ["--uid-map=:0:65534:1:", "--uid-map=:100:500000:10:", "--gid-map=:0:65534:1:"];
        run(as_nobody(share.path()).args(maps), |client| {
            let dir = client.mkdir(ROOT, "dir", 0o777).unwrap().nodeid;
            let chmod = SetAttr { valid: fattr::MODE, mode: 0o777, ..Default::default() };
            client.setattr(dir, chmod).unwrap();
            client.caller = Caller { uid: 105, gid: 0, pid: 1 };
            client.mkdir(dir, "by-105", 0o755).unwrap();
        });
        let made = fs::metadata(share.join("dir/by-105")).unwrap();
        assert_eq!((made.uid(), made.gid()), (500_005, NOBODY));
    });
}

/// Mounts an overlay on a directory; overlayfs refuses idmapped mounts. Its layers are `lower` and `upper` in what is
/// returned. Both are there until it is dropped.
pub(super) fn overlay(on: &Path) -> (Share, Mounted) {
    let layers = Share::in_memory();
    for name in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(name)).unwrap();
    }
    fs::set_permissions(layers.join("upper"), Permissions::from_mode(0o777)).unwrap();
    let root = layers.path().display();
    let options = format!("lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work");
    mount(Some("o"), on, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    (layers, Mounted(on.to_owned()))
}

#[test]
fn overlayfs_falls_back_to_the_hosts_ids() {
    bounded(LIMIT, || {
        let share = Share::new();
        let (layers, _mounted) = overlay(share.path());
        let stderr = run(command(&share).args(["--xattr"]), |client| {
            ordinary_work(share.path(), client);
            client.caller = Caller { uid: 1000, gid: 1001, pid: 1 };
            client.mkdir(ROOT, "by-1000", 0o755).unwrap();
        });
        let made = fs::metadata(layers.join("upper/by-1000")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1001));
        assert!(stderr.contains("worker ids: the host's own, in a user namespace"), "{stderr}");
    });
}

#[test]
fn shifted_ids_that_cannot_be_had_are_an_error() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _layers = overlay(share.path());
        let mut daemon = command(&share).args(["--worker-ids=shifted"]).start();
        assert_eq!(daemon.wait(tests::daemon::PATIENCE).code(), Some(1));
        assert!(daemon.stderr().contains("--worker-ids"), "{}", daemon.stderr());
    });
}

#[test]
fn a_tenants_ids_come_from_the_subid_files() {
    bounded(LIMIT, || {
        let share = Share::new();
        let users = "other:1:1\ntenant-a:700000:1000\ntenant-a:800000:5000\n";
        let _ids = subid_files(users, "tenant-a:900000:4000\n");
        let mut session =
            Session::start(command(&share).args(["--worker-ids=subids:tenant-a"]), DeviceConfig::default());
        let worker = session.daemon.worker();
        let map = |name: &str| -> Vec<u32> {
            let text = fs::read_to_string(format!("/proc/{worker}/{name}")).unwrap();
            text.split_whitespace().map(|number| number.parse().unwrap()).collect()
        };
        // As many as both files have.
        assert_eq!(map("uid_map"), [0, 700_000, 1000, 1000, 800_000, 3000]);
        assert_eq!(map("gid_map"), [0, 900_000, 4000]);
        let owner = fs::metadata(format!("/proc/{worker}")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (700_000, 900_000));
        // On disk are the guest's.
        let client = session.client();
        client.setattr(ROOT, SetAttr { valid: fattr::MODE, mode: 0o777, ..Default::default() }).unwrap();
        client.caller = Caller { uid: 3999, gid: 3998, pid: 1 };
        client.mkdir(ROOT, "by-3999", 0o755).unwrap();
        let made = fs::metadata(share.join("by-3999")).unwrap();
        assert_eq!((made.uid(), made.gid()), (3999, 3998));
        client.caller = Caller { uid: 4000, gid: 0, pid: 1 };
        assert!(client.mkdir(ROOT, "by-4000", 0o755).is_err(), "beyond the ranges there is nobody");
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        assert!(stderr.contains("users 700000:1000 800000:3000, groups 900000:4000"), "{stderr}");
    });
}

#[test]
fn a_tenant_without_sub_ids_is_told() {
    bounded(LIMIT, || {
        let share = Share::new();
        for (users, groups, complaint) in [
            ("other:1:1\n", "tenant-a:5:5\n", "tenant-a has no line in /etc/subuid"),
            ("tenant-a:5:5\n", "", "tenant-a has no line in /etc/subgid"),
            ("tenant-a:5\n", "tenant-a:5:5\n", "/etc/subuid line 1"),
        ] {
            let _ids = subid_files(users, groups);
            let mut daemon = command(&share).args(["--worker-ids=subids:tenant-a"]).start();
            assert_eq!(daemon.wait(tests::daemon::PATIENCE).code(), Some(1));
            assert!(daemon.stderr().contains(complaint), "{}", daemon.stderr());
        }
    });
}
