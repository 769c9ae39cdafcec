//! File systems of other types as the share, and mounted inside it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::bounded::bounded;
use tests::fuse::Client;
use tests::fuse::wire::{ATTR_SUBMOUNT, ROOT};
use tests::share::Share;

use super::{BTRFS, EXT4, Image, LIMIT, finish, start};

/// Each is announced, has its own device and space, and nothing moves between them.
#[test]
fn file_systems_of_other_types_in_the_share() {
    bounded(LIMIT, || {
        let share = Share::new();
        for name in ["plain", "memory", "ext4", "btrfs", "readonly"] {
            fs::create_dir(share.join(name)).unwrap();
        }
        mount(Some("t"), &share.join("memory"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let ext4 = Image::mount(&EXT4, "e2fsprogs", 8, &share.join("ext4"), "rw");
        let btrfs = Image::mount(&BTRFS, "btrfs-progs", 128, &share.join("btrfs"), "rw");
        let read_only = Image::mount(&EXT4, "e2fsprogs", 8, &share.join("readonly"), "ro");
        for (options, flag) in [(&["--xattr"][..], ATTR_SUBMOUNT), (&["--no-announce-submounts"], 0)] {
            let mut session = start(share.path(), options);
            let client = session.client();
            assert_eq!(client.lookup(ROOT, "plain").unwrap().attr.flags, 0);
            let mut spaces = vec![client.statfs(ROOT).unwrap().blocks];
            for name in ["memory", "ext4", "btrfs", "readonly"] {
                let root = client.lookup(ROOT, name).unwrap();
                assert_eq!(root.attr.flags, flag, "{name}");
                spaces.push(client.statfs(root.nodeid).unwrap().blocks);
                if name == "readonly" {
                    assert_eq!(client.mkdir(root.nodeid, "dir", 0o755).map(drop), Err(Errno::EROFS));
                } else {
                    stays_where_it_is(client, root.nodeid, &share, name);
                }
            }
            spaces.sort_unstable();
            spaces.dedup();
            assert!(spaces.len() >= 4, "spaces of five file systems, two of them alike: {spaces:?}");
            finish(session);
        }
        drop((ext4, btrfs, read_only));
        umount2(&share.join("memory"), MntFlags::empty()).unwrap();
    });
}

fn stays_where_it_is(client: &mut Client, root: u64, share: &Share, name: &str) {
    let file = client.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    let (node, fh) = (file.entry.nodeid, file.open.fh);
    assert_eq!(file.entry.attr.flags, 0);
    client.write(node, fh, 0, name.as_bytes()).unwrap();
    client.fsync(node, fh, false).unwrap();
    client.release(node, fh).unwrap();
    assert_eq!(share.read(format!("{name}/file")), name.as_bytes());
    assert_eq!(client.rename((root, "file"), (ROOT, "file"), 0), Err(Errno::EXDEV));
    assert_eq!(client.link(node, ROOT, "file").map(drop), Err(Errno::EXDEV));
    client.unlink(root, "file").unwrap();
    // Empty here and empty below: it is the mount that holds it, and the host's is there afterwards.
    assert_eq!(client.rmdir(ROOT, name), Err(Errno::EBUSY));
    assert_eq!(client.rename((ROOT, name), (ROOT, "elsewhere"), 0), Err(Errno::EBUSY));
    assert_eq!(client.rename((ROOT, "plain"), (ROOT, name), 0), Err(Errno::EBUSY));
    assert_eq!(client.rename((ROOT, "plain"), (ROOT, name), libc::RENAME_EXCHANGE), Err(Errno::EBUSY));
    assert_ne!(
        fs::metadata(share.join(name)).unwrap().dev(),
        fs::metadata(share.path()).unwrap().dev(),
        "the host's {name}"
    );
}
