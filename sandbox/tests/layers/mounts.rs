use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, makedev, mknod};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};
use sandbox::capabilities::{CapabilitySet, limit_to};
use sandbox::id_maps::IdMaps;
use sandbox::mounts::{
    MountError, ShareAttrs, attach_over_root, clone_own_fd_directory, clone_share, enter_empty_root,
    enter_empty_root_by_chroot, enter_own_namespace,
};
use sandbox::namespaces::Namespaces;
use sandbox::process::Child;

use crate::harness::{
    Case, FIRST_FD, NOBODY, RENDEZVOUS_FD, Rendezvous, Role, TempDir, cases, errno, everything, expect_role,
    inherited, private_tmpfs, roles, shifted, start_role, tmpfs,
};

pub const CASES: &[Case] = cases![
    Root: a_clone_takes_away_what_is_dangerous, a_clone_may_be_read_only, a_clone_may_be_one_mount,
        a_clone_of_a_file_works, a_clone_has_no_parent, later_mounts_stay_out,
        owners_are_the_guests_with_an_id_map, owners_are_nobody_without_an_id_map,
        overlayfs_refuses_an_id_map, an_idmapped_mount_refuses_another, the_new_root_is_empty,
        the_new_root_is_empty_with_unmapped_ids, mounts_of_an_attached_clone_hold_their_directories,
        the_root_by_chroot_is_empty,
        a_process_opens_its_own_fds_only, a_file_system_that_is_not_proc_is_refused;
    Ordinary: cloning_needs_privilege, changing_root_needs_privilege, own_namespaces_are_enough;
];

pub const ROLES: &[Role] = roles![
    sees_guest_owners,
    sees_no_owners,
    enters_the_empty_root,
    attaches_the_share,
    clones_its_working_directory,
    opens_by_directory,
    opens_for_another
];

fn directory(path: &Path) -> OwnedFd {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

fn read_at(at: BorrowedFd<'_>, path: &str) -> Result<String, Errno> {
    let file = openat(at, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).unwrap();
    Ok(text)
}

fn create_at(at: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o644))
}

fn stat_at(at: impl AsFd, path: &str) -> Result<FileStat, Errno> {
    fstatat(at, path, nix::fcntl::AtFlags::empty())
}

/// A tmpfs with a file and a directory `sub`, on which another one is mounted, with a file too.
fn share() -> &'static Path {
    let root = private_tmpfs();
    fs::write(root.join("file"), "outer").unwrap();
    fs::create_dir(root.join("sub")).unwrap();
    tmpfs(&root.join("sub"));
    fs::write(root.join("sub/file"), "inner").unwrap();
    root
}

fn a_clone_takes_away_what_is_dangerous() {
    let root = share();
    for at in ["", "sub/"] {
        let node = root.join(format!("{at}null"));
        mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        File::open(&node).unwrap();
        fs::copy("/bin/true", root.join(format!("{at}true"))).unwrap();
        assert!(Command::new(root.join(format!("{at}true"))).status().unwrap().success());
    }
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), None).unwrap();
    for at in ["", "sub/"] {
        assert_eq!(read_at(clone.as_fd(), &format!("{at}null")), Err(Errno::EACCES));
        let program = format!("/proc/self/fd/{}/{at}true", clone.as_raw_fd());
        assert_eq!(errno(Command::new(program).status()), Errno::EACCES);
        let place = openat(&clone, format!("./{at}").as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();
        let flags = fstatvfs(&place).unwrap().flags();
        assert!(flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC), "{flags:?}");
        assert!(!flags.contains(FsFlags::ST_RDONLY));
        create_at(clone.as_fd(), &format!("{at}new")).unwrap();
        assert!(root.join(format!("{at}new")).exists());
    }
}

fn a_clone_may_be_read_only() {
    let root = share();
    let attrs = ShareAttrs { read_only: true, ..ShareAttrs::default() };
    let clone = clone_share(directory(root).as_fd(), attrs, None).unwrap();
    for (path, content) in [("file", "outer"), ("sub/file", "inner")] {
        assert_eq!(read_at(clone.as_fd(), path).unwrap(), content);
        assert_eq!(create_at(clone.as_fd(), path).unwrap_err(), Errno::EROFS);
    }
    fs::write(root.join("file"), "the original is not").unwrap();
}

fn a_clone_may_be_one_mount() {
    let root = share();
    let attrs = ShareAttrs { recursive: false, ..ShareAttrs::default() };
    let clone = clone_share(directory(root).as_fd(), attrs, None).unwrap();
    assert_eq!(read_at(clone.as_fd(), "file").unwrap(), "outer");
    assert_eq!(read_at(clone.as_fd(), "sub/file"), Err(Errno::ENOENT));
}

fn a_clone_of_a_file_works() {
    let root = share();
    let file = File::open(root.join("file")).unwrap();
    let clone = clone_share(file.as_fd(), ShareAttrs::default(), None).unwrap();
    let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
    assert_eq!(fs::read_to_string(path).unwrap(), "outer");
}

fn a_clone_has_no_parent() {
    let root = share();
    let clone = clone_share(directory(&root.join("sub")).as_fd(), ShareAttrs::default(), None).unwrap();
    assert_eq!(read_at(clone.as_fd(), "file").unwrap(), "inner");
    assert_eq!(read_at(clone.as_fd(), "../file").unwrap(), "inner");
    assert_eq!(read_at(clone.as_fd(), "../../../../etc/passwd"), Err(Errno::ENOENT));
}

fn later_mounts_stay_out() {
    let root = share();
    mount(None::<&str>, root, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    fs::create_dir(root.join("later")).unwrap();
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), None).unwrap();
    tmpfs(&root.join("later"));
    fs::write(root.join("later/file"), "new").unwrap();
    assert_eq!(read_at(clone.as_fd(), "later/file"), Err(Errno::ENOENT));
    umount2(&root.join("sub"), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(read_at(clone.as_fd(), "sub/file").unwrap(), "inner");
}

/// A worker that has a clone of the share at FIRST_FD, idmapped or not, and does what its role says with it.
fn worker(role: &str, idmapped: bool) {
    let root = private_tmpfs();
    fs::write(root.join("file"), "x").unwrap();
    chown(root.join("file"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o777)).unwrap();
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let (channel, channel_theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds = [(theirs.as_fd(), RENDEZVOUS_FD), (channel_theirs.as_fd(), FIRST_FD)];
    let mut child = start_role(role, everything(), Some(shifted()), &fds).unwrap();
    drop(channel_theirs);
    rendezvous.wait();
    let namespace = child.user_namespace().unwrap();
    let idmap = idmapped.then(|| namespace.as_fd());
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), idmap).unwrap();
    send_fd(&channel, clone.as_fd());
    assert!(child.wait().unwrap().success());
    if idmapped {
        let owner = |name| fs::metadata(root.join(name)).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!((owner("by-root"), owner("by-1234")), ((0, 0), (1234, 0)));
    }
}

fn send_fd(channel: &std::os::unix::net::UnixStream, fd: BorrowedFd<'_>) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let data = [std::io::IoSlice::new(&[0])];
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(channel.as_raw_fd(), &data, &control, MsgFlags::empty(), None).unwrap();
}

fn receive_fd() -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let channel = inherited(FIRST_FD);
    let mut byte = [0];
    let mut data = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut data, Some(&mut space), flags).unwrap();
    match message.cmsgs().unwrap().next() {
        Some(ControlMessageOwned::ScmRights(fds)) => inherited(fds[0]),
        other => panic!("{other:?}"),
    }
}

fn owners_are_the_guests_with_an_id_map() {
    worker("sees_guest_owners", true);
}

fn sees_guest_owners() {
    Rendezvous::inherited().signal();
    let share = receive_fd();
    let file = stat_at(&share, "file").unwrap();
    assert_eq!((file.st_uid, file.st_gid), (1000, 2000));
    drop(create_at(share.as_fd(), "by-root").unwrap());
    drop(create_at(share.as_fd(), "by-1234").unwrap());
    let (user, group) = (Some(nix::unistd::Uid::from_raw(1234)), None);
    nix::unistd::fchownat(&share, "by-1234", user, group, nix::fcntl::AtFlags::empty()).unwrap();
}

fn owners_are_nobody_without_an_id_map() {
    worker("sees_no_owners", false);
}

fn sees_no_owners() {
    Rendezvous::inherited().signal();
    let share = receive_fd();
    let file = stat_at(&share, "file").unwrap();
    assert_eq!((file.st_uid, file.st_gid), (NOBODY, NOBODY));
    let (user, group) = (Some(nix::unistd::Uid::from_raw(0)), None);
    let flags = nix::fcntl::AtFlags::empty();
    assert_eq!(nix::unistd::fchownat(&share, "file", user, group, flags), Err(Errno::EPERM));
}

/// A child in namespaces of its own that waits.
fn idle_child(maps: IdMaps) -> (Child, Rendezvous) {
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let child = start_role("idle", everything(), Some(maps), &[(theirs.as_fd(), RENDEZVOUS_FD)]).unwrap();
    rendezvous.wait();
    (child, rendezvous)
}

fn overlayfs_refuses_an_id_map() {
    let root = private_tmpfs();
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work";
    let merged = root.join("merged");
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options)).unwrap();
    let (child, _rendezvous) = idle_child(shifted());
    let namespace = child.user_namespace().unwrap();
    // As the whole tree, and as a mount below it.
    for path in [merged.as_path(), root] {
        let result = clone_share(directory(path).as_fd(), ShareAttrs::default(), Some(namespace.as_fd()));
        assert!(matches!(result, Err(MountError::IdmapUnsupported { errno: Errno::EINVAL })), "{result:?}");
        clone_share(directory(path).as_fd(), ShareAttrs::default(), None).unwrap();
    }
}

fn an_idmapped_mount_refuses_another() {
    let root = private_tmpfs();
    let (child, _rendezvous) = idle_child(shifted());
    let namespace = child.user_namespace().unwrap();
    let idmap = Some(namespace.as_fd());
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), idmap).unwrap();
    let again = clone_share(clone.as_fd(), ShareAttrs::default(), idmap);
    // Kernels before 6.15 don't clone detached mounts.
    assert!(
        matches!(again, Err(MountError::IdmapUnsupported { errno: Errno::EPERM } | MountError::Clone { .. })),
        "{again:?}"
    );
}

fn the_new_root_is_empty() {
    empties_its_root(shifted());
}

fn the_new_root_is_empty_with_unmapped_ids() {
    empties_its_root(IdMaps::identity().unwrap());
}

fn empties_its_root(maps: IdMaps) {
    let root = share();
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), None).unwrap();
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let fds = [(theirs.as_fd(), RENDEZVOUS_FD), (clone.as_fd(), FIRST_FD)];
    let mut child = start_role("enters_the_empty_root", everything(), Some(maps), &fds).unwrap();
    rendezvous.wait();
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.pid())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec") && mounts.contains("tmpfs"), "{mounts}");
    rendezvous.signal();
    assert!(child.wait().unwrap().success());
}

fn enters_the_empty_root() {
    let mut rendezvous = Rendezvous::inherited();
    let share = inherited(FIRST_FD);
    enter_empty_root().unwrap();
    sees_an_empty_root(share.as_fd());
    assert_eq!(errno(File::create("/new")), Errno::EROFS);
    assert_eq!(mkdir("/new", Mode::S_IRWXU), Err(Errno::EROFS));
    rendezvous.signal();
    rendezvous.wait();
}

/// ... in which the share works as before.
fn sees_an_empty_root(share: BorrowedFd<'_>) {
    assert_eq!(fs::read_dir("/").unwrap().count(), 0);
    for path in ["/etc/passwd", "/proc/self/status", "etc/passwd", "../etc/passwd", "/../../etc/passwd"] {
        assert_eq!(errno(File::open(path)), Errno::ENOENT, "{path}");
        assert_eq!(read_at(share, &format!("../../../{path}").replace("//", "/")), Err(Errno::ENOENT));
    }
    let (here, root) = (fs::metadata(".").unwrap(), fs::metadata("/").unwrap());
    assert_eq!((here.dev(), here.ino()), (root.dev(), root.ino()));
    assert_eq!(read_at(share, "file").unwrap(), "outer");
    assert_eq!(read_at(share, "sub/file").unwrap(), "inner");
    let mut new = File::from(create_at(share, "new").unwrap());
    new.write_all(b"works").unwrap();
    unlinkat(share, "new", UnlinkatFlags::NoRemoveDir).unwrap();
}

/// Where a clone is detached, removing a directory that something is mounted on unmounts that everywhere.
fn mounts_of_an_attached_clone_hold_their_directories() {
    let root = share();
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), None).unwrap();
    let (mut rendezvous, theirs) = Rendezvous::pair();
    let fds = [(theirs.as_fd(), RENDEZVOUS_FD), (clone.as_fd(), FIRST_FD)];
    let mut child = start_role("attaches_the_share", everything(), Some(shifted()), &fds).unwrap();
    rendezvous.wait();
    rendezvous.signal();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(root.join("sub/file")).unwrap(), "inner");
}

fn attaches_the_share() {
    let mut rendezvous = Rendezvous::inherited();
    let share = inherited(FIRST_FD);
    enter_empty_root().unwrap();
    attach_over_root(share.as_fd()).unwrap();
    sees_an_empty_root(share.as_fd());
    assert_eq!(unlinkat(share.as_fd(), "sub", UnlinkatFlags::RemoveDir), Err(Errno::EBUSY));
    assert_eq!(renameat(share.as_fd(), "sub", share.as_fd(), "other"), Err(Errno::EBUSY));
    assert_eq!(read_at(share.as_fd(), "sub/file").unwrap(), "inner");
    let up = nix::sys::stat::fstatat(share.as_fd(), "..", nix::fcntl::AtFlags::empty()).unwrap();
    let root = nix::sys::stat::fstat(&share).unwrap();
    assert_eq!((up.st_dev, up.st_ino), (root.st_dev, root.st_ino), "the way up ends at the share");
    rendezvous.signal();
    rendezvous.wait();
}

fn the_root_by_chroot_is_empty() {
    let root = share();
    let clone = clone_share(directory(root).as_fd(), ShareAttrs::default(), None).unwrap();
    let parents = ["/run", "/tmp"].map(|path| directory(Path::new(path)));
    let nothing_is_left = || {
        parents.iter().for_each(|parent| {
            nix::unistd::fchdir(parent).unwrap();
            let mut entries = fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name());
            assert!(!entries.any(|name| name.to_str().unwrap().starts_with("empty-root")));
        });
    };
    enter_empty_root_by_chroot().unwrap();
    limit_to(CapabilitySet::EMPTY).unwrap();
    // Without capabilities, so that what follows is the root's doing and not the caller's.
    sees_an_empty_root(clone.as_fd());
    assert_eq!(errno(File::create("/new")), Errno::ENOENT);
    assert_eq!(nix::unistd::chroot("/"), Err(Errno::EPERM));
    nothing_is_left();
}

fn a_process_opens_its_own_fds_only() {
    let root = private_tmpfs();
    fs::write(root.join("file"), "content").unwrap();
    let path_only = open(&root.join("file"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    let start = |role| {
        let (mut rendezvous, theirs) = Rendezvous::pair();
        let (channel, channel_theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let fds = [
            (theirs.as_fd(), RENDEZVOUS_FD),
            (channel_theirs.as_fd(), FIRST_FD),
            (path_only.as_fd(), FIRST_FD + 1),
        ];
        let child = start_role(role, everything(), Some(IdMaps::identity().unwrap()), &fds).unwrap();
        rendezvous.wait();
        (child, channel, rendezvous)
    };
    let (mut owner, channel, mut rendezvous) = start("opens_by_directory");
    let directory = owner.fd_directory().unwrap();
    send_fd(&channel, directory.as_fd());
    rendezvous.wait();
    let (mut other, channel, _other_rendezvous) = start("opens_for_another");
    send_fd(&channel, directory.as_fd());
    assert!(other.wait().unwrap().success());
    rendezvous.signal();
    assert!(owner.wait().unwrap().success());
}

fn opens_by_directory() {
    let mut rendezvous = Rendezvous::inherited();
    rendezvous.signal();
    enter_empty_root().unwrap();
    let directory = receive_fd();
    let number = (FIRST_FD + 1).to_string();
    assert_eq!(read_at(directory.as_fd(), &number).unwrap(), "content");
    let written =
        openat(&directory, number.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    File::from(written).write_all(b"CONTENT").unwrap();
    // Nothing of the rest of the proc file system.
    for path in ["../status", "../../self/status", "../../../etc/passwd"] {
        assert_eq!(read_at(directory.as_fd(), path), Err(Errno::ENOENT), "{path}");
    }
    let (up, here) = (stat_at(&directory, "..").unwrap(), stat_at(&directory, ".").unwrap());
    assert_eq!((up.st_dev, up.st_ino), (here.st_dev, here.st_ino));
    rendezvous.signal();
    rendezvous.wait();
}

fn opens_for_another() {
    Rendezvous::inherited().signal();
    let directory = receive_fd();
    let number = (FIRST_FD + 1).to_string();
    let refused = read_at(directory.as_fd(), &number).unwrap_err();
    assert_eq!(refused, Errno::EACCES);
}

fn a_file_system_that_is_not_proc_is_refused() {
    private_tmpfs();
    tmpfs(Path::new("/proc"));
    fs::create_dir_all("/proc/self/fd").unwrap();
    let error = clone_own_fd_directory().unwrap_err();
    assert!(matches!(error, MountError::NotProc { .. }), "{error}");
}

fn cloning_needs_privilege() {
    let error = clone_share(directory(Path::new("/tmp")).as_fd(), ShareAttrs::default(), None).unwrap_err();
    assert!(matches!(error, MountError::Clone { errno: Errno::EPERM, .. }), "{error}");
    let error = clone_own_fd_directory().unwrap_err();
    assert!(matches!(error, MountError::Clone { errno: Errno::EPERM, .. }), "{error}");
}

fn changing_root_needs_privilege() {
    let error = enter_empty_root().unwrap_err();
    assert!(matches!(error, MountError::Namespace { errno: Errno::EPERM }), "{error}");
    let error = enter_empty_root_by_chroot().unwrap_err();
    assert!(matches!(error, MountError::Root { step: "chroot", errno: Errno::EPERM }), "{error}");
    std::env::set_current_dir("/").unwrap();
}

/// The way of an ordinary user: the worker inherits a working directory in the share and clones it itself.
fn own_namespaces_are_enough() {
    let share = TempDir::new();
    fs::write(share.0.join("file"), "outer").unwrap();
    fs::create_dir(share.0.join("sub")).unwrap();
    fs::write(share.0.join("sub/file"), "inner").unwrap();
    std::env::set_current_dir(&share.0).unwrap();
    expect_role("clones_its_working_directory", everything(), Some(IdMaps::own()), &[]);
    // Without the other namespaces too: these two are what it takes.
    let namespaces = Namespaces::USER | Namespaces::MOUNT;
    expect_role("clones_its_working_directory", namespaces, Some(IdMaps::own()), &[]);
}

fn clones_its_working_directory() {
    let inherited = directory(Path::new("."));
    enter_own_namespace().unwrap();
    let share = clone_share(inherited.as_fd(), ShareAttrs::default(), None).unwrap();
    let fds = clone_own_fd_directory().unwrap();
    enter_empty_root().unwrap();
    sees_an_empty_root(share.as_fd());
    let path_only = openat(&share, "file", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(read_at(fds.as_fd(), &path_only.as_raw_fd().to_string()).unwrap(), "outer");
}
