//! Names that change under open files: unlinked, renamed over, exchanged, and hard links.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::errno::Errno;
use tests::fuse::wire::ROOT;
use tests::fuse::{Caller, Client};

use super::with_client;

/// Makes a file that holds its name, and leaves it open: node, handle.
fn open_file(client: &mut Client, parent: u64, name: &str) -> (u64, u64) {
    let made = client.create(parent, name, libc::O_RDWR, 0o644).unwrap();
    client.write(made.entry.nodeid, made.open.fh, 0, name.as_bytes()).unwrap();
    (made.entry.nodeid, made.open.fh)
}

#[test]
fn open_files_survive_their_names() {
    with_client(&[], |share, client| {
        let dir = client.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
        let (over, over_fh) = open_file(client, dir, "over");
        let (moved, moved_fh) = open_file(client, ROOT, "moved");
        client.rename((ROOT, "moved"), (dir, "over"), 0).unwrap();
        // The file that lost its name, and the one that got it.
        assert_eq!(client.getattr(over, Some(over_fh)).unwrap().attr.nlink, 0);
        assert_eq!(client.getattr(over, None).unwrap().attr.nlink, 0);
        client.write(over, over_fh, 4, b" and out").unwrap();
        assert_eq!(client.read(over, over_fh, 0, 100).unwrap(), b"over and out");
        assert_eq!(client.read(moved, moved_fh, 0, 100).unwrap(), b"moved");
        assert_eq!(client.lookup(dir, "over").unwrap().nodeid, moved);
        assert_eq!(share.read("dir/over"), b"moved");
        // Opened again though it has no name, and given one.
        let again = client.open(over, libc::O_RDONLY).unwrap().fh;
        assert_eq!(client.read(over, again, 0, 100).unwrap(), b"over and out");
        assert_eq!(client.link(over, ROOT, "back").map(drop), Err(Errno::ENOENT));
        for (node, fh) in [(over, over_fh), (over, again), (moved, moved_fh)] {
            client.release(node, fh).unwrap();
        }
    });
}

#[test]
fn flags_of_rename() {
    with_client(&[], |share, client| {
        share.write("a", "a");
        share.write("b/inside", "b");
        let a = client.lookup(ROOT, "a").unwrap().nodeid;
        let b = client.lookup(ROOT, "b").unwrap().nodeid;
        let no_replace = libc::RENAME_NOREPLACE;
        assert_eq!(client.rename((ROOT, "a"), (b, "inside"), no_replace), Err(Errno::EEXIST));
        // A file and a directory change places; both nodes stay what they are.
        client.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_EXCHANGE).unwrap();
        assert_eq!(client.lookup(ROOT, "b").unwrap().nodeid, a);
        assert_eq!(client.lookup(ROOT, "a").unwrap().nodeid, b);
        assert_eq!((share.read("b"), share.read("a/inside")), (b"a".to_vec(), b"b".to_vec()));
        assert_eq!(client.rename((ROOT, "a"), (ROOT, "absent"), libc::RENAME_EXCHANGE), Err(Errno::ENOENT));
        let both = libc::RENAME_EXCHANGE | no_replace;
        assert_eq!(client.rename((ROOT, "a"), (ROOT, "b"), both), Err(Errno::EINVAL));
        assert_eq!(client.rename((ROOT, "a"), (ROOT, "b"), 1 << 10), Err(Errno::EINVAL));
        client.rename((ROOT, "b"), (b, "gone"), no_replace | libc::RENAME_WHITEOUT).unwrap();
        let whiteout = fs::symlink_metadata(share.join("b")).unwrap();
        assert_eq!((whiteout.file_type().is_char_device(), whiteout.rdev()), (true, 0));
        assert_eq!(client.lookup(b, "gone").unwrap().nodeid, a);
    });
}

/// Any user's whiteout is the user's own.
#[test]
fn whiteouts_belong_to_who_renamed() {
    with_client(&[], |share, client| {
        client.caller = Caller { uid: 1000, gid: 1001, pid: 1 };
        let (node, fh) = open_file(client, ROOT, "file");
        client.release(node, fh).unwrap();
        client.rename((ROOT, "file"), (ROOT, "moved"), libc::RENAME_WHITEOUT).unwrap();
        let whiteout = fs::symlink_metadata(share.join("file")).unwrap();
        assert_eq!((whiteout.uid(), whiteout.gid(), whiteout.rdev()), (1000, 1001, 0));
    });
}

#[test]
fn hard_links_are_one_file() {
    const LINKS: u32 = 3000;
    with_client(&["--rlimit-nofile=400"], |share, client| {
        let dir = client.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
        let (node, fh) = open_file(client, ROOT, "first");
        for n in 1..LINKS {
            let entry = client.link(node, if n % 2 == 0 { dir } else { ROOT }, format!("link-{n}")).unwrap();
            assert_eq!((entry.nodeid, entry.attr.nlink), (node, n + 1));
        }
        client.write(node, fh, 0, b"shared by all").unwrap();
        for n in [1, 2, LINKS - 1] {
            let parent = if n % 2 == 0 { dir } else { ROOT };
            assert_eq!(client.lookup(parent, format!("link-{n}")).unwrap().nodeid, node);
            let path = if n % 2 == 0 { format!("dir/link-{n}") } else { format!("link-{n}") };
            assert_eq!(share.read(path), b"shared by all");
        }
        client.unlink(ROOT, "first").unwrap();
        assert_eq!(client.getattr(node, None).unwrap().attr.nlink, LINKS - 1);
        // Links of a link itself, and of a directory, which has none.
        let link = client.symlink(ROOT, "soft", "nowhere").unwrap().nodeid;
        assert_eq!(client.link(link, ROOT, "soft too").unwrap().nodeid, link);
        assert_eq!(client.link(dir, ROOT, "dir too").map(drop), Err(Errno::EPERM));
        client.release(node, fh).unwrap();
    });
}
