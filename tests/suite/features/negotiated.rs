//! What a session gets when the guest offers it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::errno::Errno;
use tests::bounded::bounded;
use tests::bridge::Bridge;
use tests::daemon::PATIENCE;
use tests::frontend::{Device, DeviceConfig};
use tests::fuse::wire::{self, ROOT, init, opcode};
use tests::fuse::{Caller, Client, Session};
use tests::share::{Share, TempDir};
use zerocopy::{FromBytes, IntoBytes};

use super::{LIMIT, command, with_client, with_session};

fn flags_of(session: &Session) -> u64 {
    u64::from(session.init.flags) | u64::from(session.init.flags2) << 32
}

fn statx(client: &mut Client, node: u64, request: wire::StatxIn) -> Result<wire::Statx, Errno> {
    let reply = wire::OUT_HEADER + size_of::<wire::StatxOut>();
    let body = client.raw(opcode::STATX, node, request.as_bytes(), reply)?;
    Ok(wire::StatxOut::read_from_bytes(&body).unwrap().stat)
}

#[test]
fn statx_tells_the_birth_time() {
    with_client(&[], |share, client| {
        let path = share.write("file", "contents");
        let born = fs::metadata(&path).unwrap().created().unwrap();
        let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
        let by_node = wire::StatxIn { sx_mask: mask, ..Default::default() };
        let by_handle = wire::StatxIn { getattr_flags: wire::GETATTR_FH, fh, ..by_node };
        for request in [by_node, by_handle] {
            let stat = statx(client, node, request).unwrap();
            assert_eq!(stat.mask & mask, mask);
            assert_eq!((stat.btime.tv_sec as u64, stat.btime.tv_nsec), (born.as_secs(), born.subsec_nanos()));
            assert_eq!((stat.size, u32::from(stat.mode)), (8, libc::S_IFREG | 0o644));
            assert_eq!((stat.uid, stat.gid), (0, 0));
            assert_eq!(stat.ino, fs::metadata(&path).unwrap().ino());
        }
        let unknown = wire::StatxIn { fh: fh + 1, ..by_handle };
        assert_eq!(statx(client, node, unknown), Err(Errno::EBADF));
        assert_eq!(statx(client, 99, by_node), Err(Errno::EBADF));
        let both = libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC;
        let nonsense = wire::StatxIn { sx_flags: both as u32, ..by_node };
        assert_eq!(statx(client, node, nonsense), Err(Errno::EINVAL));
    });
}

#[test]
fn statx_translates_ids() {
    with_client(&["--translate-uid=map:5:1000:1"], |share, client| {
        let path = share.write("file", "");
        std::os::unix::fs::chown(path, Some(1000), None).unwrap();
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let request = wire::StatxIn { sx_mask: libc::STATX_BASIC_STATS, ..Default::default() };
        assert_eq!(statx(client, node, request).unwrap().uid, 5);
    });
}

#[test]
fn tmpfile_is_made_by_the_caller_and_can_be_linked() {
    with_client(&["--xattr"], |share, client| {
        client.caller = Caller { uid: 1000, gid: 1001, pid: 1 };
        let open = |flags: i32| {
            let flags = (flags | libc::O_TMPFILE).cast_unsigned();
            let request = wire::CreateIn { flags, mode: 0o640, umask: 0, open_flags: 0 };
            [request.as_bytes(), b"/\0"].concat()
        };
        let reply = wire::OUT_HEADER + size_of::<wire::CreateOut>();
        let body = client.raw(opcode::TMPFILE, ROOT, &open(libc::O_RDWR), reply).unwrap();
        let made = wire::CreateOut::read_from_bytes(&body).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        assert_eq!((made.entry.attr.uid, made.entry.attr.gid), (1000, 1001));
        assert_eq!((made.entry.attr.nlink, made.entry.attr.mode & 0o7777), (0, 0o640));
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0, "it has no name");
        client.write(node, fh, 0, b"contents").unwrap();
        client.caller = Caller::default();
        let linked = client.link(node, ROOT, "named").unwrap();
        assert_eq!((linked.nodeid, linked.attr.nlink), (node, 1));
        client.release(node, fh).unwrap();
        assert_eq!(share.read("named"), b"contents");
        assert_eq!(fs::metadata(share.join("named")).unwrap().uid(), 1000);
        // Not for reading only, and only in a directory.
        assert_eq!(client.raw(opcode::TMPFILE, ROOT, &open(libc::O_RDONLY), reply), Err(Errno::EINVAL));
        assert_eq!(client.raw(opcode::TMPFILE, node, &open(libc::O_RDWR), reply), Err(Errno::ENOTDIR));
    });
}

/// Older kernels have it, but overlays on the share break with it there.
#[test]
fn tmpfile_is_for_linux_6_12_and_later() {
    for (minor, expected) in [(37, Err(Errno::ENOSYS)), (40, Err(Errno::ENOSYS)), (41, Ok(()))] {
        with_client(&[], |_, client| {
            client.init_as(minor, init::GUEST).unwrap();
            let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
            let request = wire::CreateIn { flags, mode: 0o600, umask: 0, open_flags: 0 };
            let request = [request.as_bytes(), b"/\0"].concat();
            let reply = wire::OUT_HEADER + size_of::<wire::CreateOut>();
            assert_eq!(client.raw(opcode::TMPFILE, ROOT, &request, reply).map(drop), expected, "7.{minor}");
        });
    }
}

#[test]
fn tmpfile_leaves_nothing() {
    with_client(&["--readonly"], |_, client| {
        let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
        let request = wire::CreateIn { flags, mode: 0o600, umask: 0, open_flags: 0 };
        let request = [request.as_bytes(), b"/\0"].concat();
        let reply = wire::OUT_HEADER + size_of::<wire::CreateOut>();
        assert_eq!(client.raw(opcode::TMPFILE, ROOT, &request, reply), Err(Errno::EROFS));
    });
}

#[test]
fn copy_file_range_with_a_long_answer() {
    with_client(&[], |share, client| {
        share.write("from", "0123456789");
        let from = client.lookup(ROOT, "from").unwrap().nodeid;
        let fh_in = client.open(from, libc::O_RDONLY).unwrap().fh;
        let to = client.create(ROOT, "to", libc::O_RDWR, 0o600).unwrap();
        let request = wire::CopyFileRangeIn {
            fh_in,
            off_in: 2,
            nodeid_out: to.entry.nodeid,
            fh_out: to.open.fh,
            off_out: 1,
            len: u64::MAX >> 1,
            flags: 0,
        };
        let reply = wire::OUT_HEADER + size_of::<u64>();
        let body = client.raw(opcode::COPY_FILE_RANGE_64, from, request.as_bytes(), reply).unwrap();
        assert_eq!(u64::from_le_bytes(body.try_into().unwrap()), 8);
        assert_eq!(share.read("to"), b"\x0023456789");
    });
}

#[test]
fn links_are_cached_where_names_are_for_long() {
    for (policy, wanted) in [("always", true), ("metadata", true), ("auto", false), ("never", false)] {
        with_session(&[&format!("--cache={policy}")], |_, session| {
            assert_eq!(flags_of(session) & init::CACHE_SYMLINKS != 0, wanted, "{policy}");
            assert_eq!(flags_of(session) & (init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT), 0);
        });
    }
}

/// A link that is replaced shows its new target to a kernel that caches targets.
#[test]
fn a_replaced_link_is_another_inode() {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        symlink("one", share.join("link")).unwrap();
        let mut daemon = command(&share).args(["--cache=metadata"]).start();
        let bridge = Bridge::mount(&daemon, mountpoint.path());
        let link = bridge.path().join("link");
        for target in ["one", "two", "three"] {
            if target != "one" {
                fs::remove_file(&link).unwrap();
                symlink(target, &link).unwrap();
            }
            let before = bridge.forwarded();
            assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(target));
            let first = bridge.forwarded();
            assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(target));
            assert!(bridge.forwarded() == first, "{target}: {} then {}", first - before, bridge.forwarded());
        }
        bridge.unmount().unwrap();
        assert!(daemon.wait(PATIENCE).success());
    });
}

#[test]
fn transfers_beyond_a_mebibyte() {
    bounded(LIMIT, || {
        let share = Share::new();
        let config =
            DeviceConfig { max_data: 4 << 20, depth: 2, queue_size: 1024, ..DeviceConfig::default() };
        let mut session = Session::start(command(&share), config);
        assert_eq!((session.init.max_write, session.init.max_pages), (4 << 20, 1024));
        let client = session.client();
        let file = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
        let (node, fh) = (file.entry.nodeid, file.open.fh);
        let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i ^ (i >> 11)) as u8).collect();
        assert_eq!(client.write(node, fh, 7, &data), Ok(4 << 20));
        assert!(client.read(node, fh, 7, 4 << 20).unwrap() == data);
        assert!(share.read("file")[7..] == data);
        assert!(session.finish().0.success());
    });
}

/// `always` refuses a guest without the feature, `auto` goes on without it.
#[test]
fn modes_of_posix_acl_and_security_label() {
    for (option, flag) in [("--posix-acl", init::POSIX_ACL), ("--security-label", init::SECURITY_CTX)] {
        for (mode, without) in [("", false), ("=always", false), ("=auto", true), ("=never", true)] {
            bounded(LIMIT, || {
                let share = Share::new();
                let daemon = command(&share).args([format!("{option}{mode}")]).start();
                let (_device, mut queues) = Device::boot(daemon.connect(), DeviceConfig::default()).unwrap();
                let hiprio = queues.remove(0);
                let hiprio = std::sync::Arc::new(std::sync::Mutex::new(hiprio));
                let mut client = Client::new(queues.remove(0), hiprio);
                let result = client.init(init::GUEST & !flag);
                if without {
                    result.unwrap();
                } else {
                    assert_eq!(result, Err(Errno::EPROTO), "{option}{mode}");
                    // The line comes by the broker, after the reply; `bounded` ends the wait for one that doesn't.
                    while !daemon.stderr().contains(option) {
                        std::thread::yield_now();
                    }
                }
                let all = client.init(init::GUEST).unwrap();
                let all = u64::from(all.flags) | u64::from(all.flags2) << 32;
                assert_eq!(all & flag != 0, mode != "=never", "{option}{mode}");
            });
        }
    }
}

/// The label of a new file is there before anybody sees the file, or the file isn't.
#[test]
fn security_labels_of_new_files() {
    let args = ["--security-label", "--xattrmap=:map:security.selinux:user.v.:"];
    with_client(&args, |share, client| {
        let create = |name: &str, attribute: &str, value: &[u8]| {
            let request = wire::CreateIn { flags: libc::O_RDWR as u32, mode: 0o600, umask: 0, open_flags: 0 };
            let context =
                [&(value.len() as u32).to_le_bytes()[..], &[0; 4], attribute.as_bytes(), b"\0", value];
            let mut context = context.concat();
            context.resize((context.len() + 8).next_multiple_of(8) - 8, 0);
            // struct fuse_secctx_header: size of all, number of contexts.
            let header = [(context.len() as u32 + 8).to_le_bytes(), 1u32.to_le_bytes()].concat();
            [request.as_bytes(), name.as_bytes(), b"\0", &header, &context].concat()
        };
        let reply = wire::OUT_HEADER + size_of::<wire::CreateOut>();
        let good = create("good", "security.selinux", b"a:label");
        client.raw(opcode::CREATE, ROOT, &good, reply).unwrap();
        let node = client.lookup(ROOT, "good").unwrap().nodeid;
        assert_eq!(client.getxattr(node, "security.selinux", 64).unwrap(), b"a:label");
        assert_eq!(client.getxattr(node, "user.v.security.selinux", 64), Err(Errno::EPERM));
        // One that the host refuses leaves no file.
        let bad = create("bad", "user.v.security.selinux", b"a:label");
        assert_eq!(client.raw(opcode::CREATE, ROOT, &bad, reply), Err(Errno::EPERM));
        assert!(!share.join("bad").exists());
    });
}

/// The bits go on request only. (In a user namespace the kernel takes them away from a file that is written to
/// whatever the request says, since it asks for CAP_FSETID on the host: the worker puts them back.)
#[test]
fn killpriv_v2_drops_set_id_bits() {
    for sandbox in ["--sandbox=none", "--sandbox=namespace"] {
        with_client(&["--killpriv-v2", sandbox], |share, client| {
            let path = share.write("file", "contents");
            let node = client.lookup(ROOT, "file").unwrap().nodeid;
            let fh = client.open(node, libc::O_RDWR).unwrap().fh;
            let set = || fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
            let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            for (write_flags, wanted) in [(0, 0o6777), (wire::WRITE_KILL_SUIDGID, 0o777)] {
                set();
                let request = wire::WriteIn { fh, write_flags, ..Default::default() };
                client.write_with(node, request, b"x").unwrap();
                assert_eq!(mode(), wanted, "{sandbox}, write {write_flags}");
            }
            for (open_flags, wanted) in [(0, 0o6777), (wire::OPEN_KILL_SUIDGID, 0o777)] {
                set();
                let request = wire::OpenIn { flags: (libc::O_WRONLY | libc::O_TRUNC) as u32, open_flags };
                let reply = wire::OUT_HEADER + size_of::<wire::OpenOut>();
                client.raw(opcode::OPEN, node, request.as_bytes(), reply).unwrap();
                assert_eq!(mode(), wanted, "{sandbox}, open {open_flags}");
            }
        });
    }
}
