//! What published vulnerabilities of this kind of server were about (docs/threat-model.md).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tests::fuse::wire::{self, ROOT, fattr, opcode};
use tests::fuse::{Caller, SetAttr};
use tests::share::TempDir;
use zerocopy::IntoBytes;

use crate::{VICTIM, with_options};

/// CVE-2020-35517, CVE-2023-2861.
#[test]
fn special_files_are_never_opened() {
    with_options(&["--xattr"], |share, session| {
        let mode = Mode::from_bits_truncate(0o666);
        let kinds = [
            ("char", SFlag::S_IFCHR, makedev(1, 3)),
            ("block", SFlag::S_IFBLK, makedev(7, 0)),
            ("fifo", SFlag::S_IFIFO, 0),
            ("socket", SFlag::S_IFSOCK, 0),
        ];
        for (name, kind, device) in kinds {
            mknod(&share.join(name), kind, mode, device).expect("mknod on the host");
            let client = &mut session.clients[VICTIM];
            let node = client.lookup(ROOT, name).unwrap().nodeid;
            // A FIFO that were opened would block the queue.
            for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_NONBLOCK] {
                client.open(node, flags).expect_err(name);
                client.create(ROOT, name, flags, 0o100_666).expect_err(name);
            }
            client.opendir(node).expect_err(name);
            let size = SetAttr { valid: fattr::SIZE, size: 0, ..Default::default() };
            client.setattr(node, size).expect_err(name);
        }
    });
}

/// CVE-2021-20263.
#[test]
fn a_write_drops_a_renamed_security_capability() {
    let map = "--xattrmap=:map:security.capability:user.renamed.:";
    with_options(&["--xattr", map], |_, session| {
        let client = &mut session.clients[VICTIM];
        // VFS_CAP_REVISION_2, cap_net_raw permitted and effective.
        let capability: Vec<u8> =
            [0x0200_0001u32, 1 << 13, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        let change: [fn(&mut tests::fuse::Client, u64, u64); 2] = [
            |client, node, fh| assert_eq!(client.write(node, fh, 0, b"x"), Ok(1)),
            |client, node, _| {
                let size = SetAttr { valid: fattr::SIZE, size: 0, ..Default::default() };
                client.setattr(node, size).unwrap();
            },
        ];
        for (round, change) in change.into_iter().enumerate() {
            client.caller = Caller::default();
            let made = client.create(ROOT, format!("program{round}"), libc::O_RDWR, 0o100_777).unwrap();
            let node = made.entry.nodeid;
            let mode = SetAttr { valid: fattr::MODE, mode: 0o777, ..Default::default() };
            client.setattr(node, mode).unwrap();
            client.setxattr(node, "security.capability", &capability, 0).unwrap();
            assert_eq!(client.getxattr(node, "security.capability", 100).as_ref(), Ok(&capability));
            client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
            let fh = client.open(node, libc::O_RDWR).unwrap().fh;
            change(client, node, fh);
            let after = client.getxattr(node, "security.capability", 100);
            assert_eq!(after, Err(Errno::ENODATA), "round {round}");
        }
        client.caller = Caller::default();
    });
}

/// CVE-2022-0358 (and CVE-2018-13405).
#[test]
fn set_gid_is_dropped_when_the_creator_is_not_in_the_group() {
    with_options(&[], |share, session| {
        let dir = share.join("shared");
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(0), Some(2000)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777)).unwrap();
        let client = &mut session.clients[VICTIM];
        let node = client.lookup(ROOT, "shared").unwrap().nodeid;
        client.umask = 0;
        client.caller = Caller { uid: 1000, gid: 1000, pid: 1 };
        client.create(node, "created", libc::O_RDWR, 0o102_777).unwrap();
        client.mknod(node, "made", 0o102_777, 0).unwrap();
        client.caller = Caller::default();
        for name in ["created", "made"] {
            let metadata = fs::metadata(dir.join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1000, 2000), "{name}");
            assert_eq!(
                metadata.mode() & libc::S_ISGID,
                0,
                "{name} runs with a group that its maker isn't in"
            );
        }
    });
}

/// CVE-2026-47243, libkrun issue 329: the names are refused by their form, not by the sandbox.
#[test]
fn names_are_refused_without_a_sandbox_too() {
    with_options(&["--sandbox=none", "--seccomp=none"], |_, session| {
        let outside = TempDir::on_disk();
        let target = outside.path().join("made-by-the-guest");
        let path = target.to_str().expect("a plain path");
        let client = &mut session.clients[VICTIM];
        for name in [path.to_owned(), format!("{}{path}", "../".repeat(20))] {
            assert_eq!(client.symlink(ROOT, &name, "anything"), Err(Errno::EINVAL));
            assert_eq!(client.mkdir(ROOT, &name, 0o755), Err(Errno::EINVAL));
            assert_eq!(client.mknod(ROOT, &name, 0o100_644, 0), Err(Errno::EINVAL));
            assert_eq!(client.create(ROOT, &name, libc::O_RDWR, 0o100_644), Err(Errno::EINVAL));
            assert_eq!(client.rename((ROOT, "file"), (ROOT, &*name), 0), Err(Errno::EINVAL));
            assert_eq!(client.lookup(ROOT, &name), Err(Errno::EINVAL));
        }
        assert!(!target.exists());
    });
}

/// GHSA-g6ww-w5j2-r7x3: a read-only share that only the guest's mount options keep read-only is not.
#[test]
fn a_read_only_share_is_not_changed_whatever_the_guest_sends() {
    with_options(&["--xattr", "--readonly"], |share, session| {
        share.write("dir/entry", "");
        let client = &mut session.clients[VICTIM];
        let file = client.lookup(ROOT, "file").unwrap().nodeid;
        let read_only =
            |what: &str, result: Result<(), Errno>| assert_eq!(result, Err(Errno::EROFS), "{what}");
        read_only("CREATE", client.create(ROOT, "new", libc::O_RDWR, 0o100_644).map(drop));
        read_only("MKDIR", client.mkdir(ROOT, "new", 0o755).map(drop));
        read_only("MKNOD", client.mknod(ROOT, "new", 0o100_644, 0).map(drop));
        read_only("SYMLINK", client.symlink(ROOT, "new", "file").map(drop));
        read_only("LINK", client.link(file, ROOT, "new").map(drop));
        read_only("UNLINK", client.unlink(ROOT, "file"));
        read_only("RMDIR", client.rmdir(ROOT, "dir"));
        read_only("RENAME", client.rename((ROOT, "file"), (ROOT, "new"), 0));
        read_only("OPEN to write", client.open(file, libc::O_RDWR).map(drop));
        read_only("OPEN to cut", client.open(file, libc::O_RDONLY | libc::O_TRUNC).map(drop));
        read_only("SETXATTR", client.setxattr(file, "user.x", b"x", 0));
        read_only("REMOVEXATTR", client.removexattr(file, "user.x"));
        for valid in [fattr::MODE, fattr::UID, fattr::SIZE, fattr::MTIME] {
            let change = SetAttr { valid, mode: 0o777, uid: 1, size: 1, ..Default::default() };
            read_only("SETATTR", client.setattr(file, change).map(drop));
        }
        // By a handle that was opened to read.
        let fh = client.open(file, libc::O_RDONLY).unwrap().fh;
        read_only("WRITE", client.write(file, fh, 0, b"bad!").map(drop));
        read_only("FALLOCATE", client.fallocate(file, fh, 0, 0, 4096));
        let copy = wire::CopyFileRangeIn {
            fh_in: fh,
            nodeid_out: file,
            fh_out: fh,
            off_out: 2,
            len: 2,
            ..Default::default()
        };
        let copied = client.raw(opcode::COPY_FILE_RANGE, file, copy.as_bytes(), 64);
        read_only("COPY_FILE_RANGE", copied.map(drop));
        assert_eq!(share.read("file"), b"good");
    });
}
