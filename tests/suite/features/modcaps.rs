//! `--modcaps=+mknod` and `+sys_admin`: what the broker does for the guest's root.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{ATTR_SUBMOUNT, ROOT, fattr, init};
use tests::fuse::{Caller, Client, Session, SetAttr};
use tests::share::{Mounted, Share};

use super::{LIMIT, command, with_client};

const CHARACTER: u32 = libc::S_IFCHR | 0o666;
const BLOCK: u32 = libc::S_IFBLK | 0o640;
/// `/dev/null` and a block device in the kernel's 32-bit coding, the second with a large minor number.
const NULL: u32 = 0x103;
const LARGE: u32 = 7 << 8 | 0x34 | 0x12 << 20;

fn on_host(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    let mut value = vec![0; 256];
    // SAFETY: both strings are NUL-terminated, and `value` has the room that the call is told of.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(n).ok()?);
    Some(value)
}

#[test]
fn without_the_option_there_are_whiteouts_only() {
    with_client(&["--xattr"], |share, client| {
        assert_eq!(client.mknod(ROOT, "null", CHARACTER, NULL), Err(Errno::EPERM));
        client.mknod(ROOT, "whiteout", libc::S_IFCHR, 0).unwrap();
        assert!(share.join("whiteout").symlink_metadata().unwrap().file_type().is_char_device());
        assert!(!share.join("null").exists());
        assert_eq!(client.setxattr(ROOT, "trusted.a", b"1", 0), Err(Errno::EPERM));
        assert_eq!(client.getxattr(ROOT, "trusted.a", 64), Err(Errno::ENODATA));
    });
}

#[test]
fn root_makes_device_nodes() {
    with_client(&["--modcaps=+mknod"], |share, client| {
        client.caller.gid = 5;
        let null = client.mknod(ROOT, "null", CHARACTER, NULL).unwrap();
        assert_eq!((null.attr.mode, null.attr.rdev), (CHARACTER, NULL));
        assert_eq!((null.attr.uid, null.attr.gid), (0, 5));
        let block = client.mknod(ROOT, "block", BLOCK, LARGE).unwrap();
        assert_eq!((block.attr.mode, block.attr.rdev), (BLOCK, LARGE));
        let host = share.join("block").symlink_metadata().unwrap();
        assert!(host.file_type().is_block_device());
        assert_eq!((libc::major(host.rdev()), libc::minor(host.rdev())), (7, 0x1234));
        assert_eq!((host.uid(), host.gid(), host.permissions().mode() & 0o7777), (0, 5, 0o640));
        // A device is never opened on the host, and a name is only taken once.
        assert_eq!(client.open(null.nodeid, libc::O_RDONLY), Err(Errno::EBADF));
        assert_eq!(client.mknod(ROOT, "null", CHARACTER, NULL), Err(Errno::EEXIST));
        assert_eq!(client.mknod(ROOT, "x".repeat(256), CHARACTER, NULL), Err(Errno::ENAMETOOLONG));
    });
}

#[test]
fn nobody_else_makes_device_nodes() {
    with_client(&["--modcaps=+mknod"], |share, client| {
        client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
        assert_eq!(client.mknod(ROOT, "null", CHARACTER, NULL), Err(Errno::EPERM));
        assert!(!share.join("null").exists());
        // The thread is itself again for the next request.
        client.caller = Caller::default();
        client.mknod(ROOT, "null", CHARACTER, NULL).unwrap();
        client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
        let file = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
        assert_eq!((file.entry.attr.uid, file.entry.attr.gid), (1000, 1000));
    });
}

#[test]
fn a_read_only_share_stays_as_it_is() {
    with_client(&["--modcaps=+mknod:+sys_admin", "--readonly", "--xattr"], |share, client| {
        assert_eq!(client.mknod(ROOT, "null", CHARACTER, NULL), Err(Errno::EROFS));
        assert_eq!(client.setxattr(ROOT, "trusted.a", b"1", 0), Err(Errno::EROFS));
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
    });
}

#[test]
fn the_umask_counts_where_the_guest_left_it_to_us() {
    with_client(&["--modcaps=+mknod", "--posix-acl"], |_, client| {
        client.umask = 0o027;
        let null = client.mknod(ROOT, "null", CHARACTER, NULL).unwrap();
        assert_eq!(null.attr.mode & 0o777, 0o640);
    });
}

fn names(client: &mut Client, node: u64) -> Vec<String> {
    let list = client.listxattr(node, 4096).unwrap();
    let mut names: Vec<String> = list
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into())
        .collect();
    names.sort();
    names
}

#[test]
fn trusted_attributes() {
    with_client(&["--modcaps=+sys_admin", "--xattr"], |share, client| {
        let path = share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        client.setxattr(node, "trusted.a", b"value", 0).unwrap();
        assert_eq!(on_host(&path, "trusted.a").as_deref(), Some(&b"value"[..]));
        assert_eq!(client.getxattr(node, "trusted.a", 64).unwrap(), b"value");
        assert_eq!(client.getxattr_size(node, "trusted.a").unwrap(), 5);
        assert_eq!(client.getxattr(node, "trusted.a", 4), Err(Errno::ERANGE));
        assert_eq!(client.setxattr(node, "trusted.a", b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
        assert_eq!(client.setxattr(node, "trusted.b", b"", libc::XATTR_REPLACE), Err(Errno::ENODATA));
        client.setxattr(node, "user.u", b"1", 0).unwrap();
        assert_eq!(names(client, node), ["trusted.a", "user.u"]);
        client.removexattr(node, "trusted.a").unwrap();
        assert_eq!(client.getxattr(node, "trusted.a", 64), Err(Errno::ENODATA));
        // What is no such name gets what the kernel says of it, and does no harm.
        assert!(client.setxattr(node, "trusted.", b"1", 0).is_err());
        let long = format!("trusted.{}", "n".repeat(300));
        assert!(client.setxattr(node, &long, b"1", 0).is_err());
        assert_eq!(names(client, node), ["user.u"]);
    });
}

#[test]
fn trusted_attributes_of_special_files() {
    with_client(&["--modcaps=+sys_admin:+mknod", "--xattr"], |share, client| {
        let link = client.symlink(ROOT, "link", "nowhere").unwrap().nodeid;
        let device = client.mknod(ROOT, "null", CHARACTER, NULL).unwrap().nodeid;
        for (node, name) in [(link, "link"), (device, "null")] {
            client.setxattr(node, "trusted.t", name.as_bytes(), 0).unwrap();
            assert_eq!(client.getxattr(node, "trusted.t", 64).unwrap(), name.as_bytes());
            assert_eq!(on_host(&share.join(name), "trusted.t").as_deref(), Some(name.as_bytes()));
        }
    });
}

#[test]
fn only_names_that_the_map_makes() {
    let args = ["--modcaps=+sys_admin", "--xattrmap=:map:security.selinux:trusted.v.:"];
    with_client(&args, |share, client| {
        let path = share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        client.setxattr(node, "security.selinux", b"label", 0).unwrap();
        assert_eq!(on_host(&path, "trusted.v.security.selinux").as_deref(), Some(&b"label"[..]));
        assert_eq!(client.getxattr(node, "security.selinux", 64).unwrap(), b"label");
        assert_eq!(names(client, node), ["security.selinux"]);
        assert_eq!(client.setxattr(node, "trusted.v.security.selinux", b"x", 0), Err(Errno::EPERM));
    });
}

/// A map that keeps file capabilities as trusted attributes: a write drops them, however often they are set.
#[test]
fn renamed_capabilities_are_dropped_on_write() {
    let args = ["--modcaps=+sys_admin", "--xattrmap=:map::trusted.v.:"];
    with_client(&args, |share, client| {
        let path = share.write("file", "x");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDWR).unwrap().fh;
        for round in 0..3 {
            client.setxattr(node, "security.capability", b"any bytes", 0).unwrap();
            assert!(on_host(&path, "trusted.v.security.capability").is_some());
            client.write(node, fh, round, b"y").unwrap();
            client.write(node, fh, round, b"z").unwrap();
            assert_eq!(on_host(&path, "trusted.v.security.capability"), None, "round {round}");
        }
        client.release(node, fh).unwrap();
    });
}

/// What can't have a `user.*` attribute can still be given to another owner, where the map makes such names of all.
#[test]
fn links_and_special_files_change_owners_under_a_map() {
    for args in
        [&["--xattrmap=:map::user.v.:"][..], &["--modcaps=+sys_admin", "--xattrmap=:map::trusted.v.:"]]
    {
        with_client(args, |share, client| {
            symlink("nowhere", share.join("link")).unwrap();
            nix::unistd::mkfifo(&share.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
            share.write("file", "x");
            share.write("dir/inside", "x");
            for name in ["link", "fifo", "file", "dir"] {
                let node = client.lookup(ROOT, name).unwrap().nodeid;
                let owner =
                    SetAttr { valid: fattr::UID | fattr::GID, uid: 12, gid: 34, ..Default::default() };
                client.setattr(node, owner).unwrap_or_else(|e| panic!("{args:?}: {name}: {e}"));
                assert_eq!(fs::symlink_metadata(share.join(name)).unwrap().uid(), 12, "{name}");
            }
        });
    }
}

/// The broker acts on mounts below the share once the guest has reached them, also where there are no handles.
#[test]
fn submounts_without_handles_are_reached() {
    tests::bounded::bounded(LIMIT, || {
        let share = Share::new();
        fs::create_dir(share.join("sub")).unwrap();
        mount(Some("t"), &share.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let _mounted = Mounted(share.join("sub"));
        for mode in ["--inode-file-handles=never", "--inode-file-handles=prefer"] {
            let command = command(&share).args([mode, "--modcaps=+mknod:+sys_admin", "--xattr"]);
            let mut session = Session::start_with(command, DeviceConfig::default(), init::GUEST);
            let client = session.client();
            let sub = client.lookup(ROOT, "sub").unwrap();
            assert_eq!(sub.attr.flags, ATTR_SUBMOUNT);
            client.mknod(sub.nodeid, mode, CHARACTER, NULL).unwrap();
            client.setxattr(sub.nodeid, "trusted.a", b"1", 0).unwrap();
            assert!(session.finish().0.success());
        }
    });
}
