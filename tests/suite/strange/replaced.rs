//! Files that programs of the host replace, change and remove behind the guest's back.

use std::fs;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use tests::fuse::wire::ROOT;

use super::with_client;

#[test]
fn a_name_becomes_another_file() {
    // With a descriptor for each inode, and with handles for most.
    for options in [&["--inode-file-handles=never"][..], &["--rlimit-nofile=400"]] {
        with_client(options, |share, client| {
            share.write("file", "old");
            let old = client.lookup(ROOT, "file").unwrap();
            let fh = client.open(old.nodeid, libc::O_RDONLY).unwrap().fh;
            share.write("new", "new!");
            fs::rename(share.join("new"), share.join("file")).unwrap();
            let new = client.lookup(ROOT, "file").unwrap();
            assert_ne!(new.nodeid, old.nodeid);
            assert_ne!((new.attr.ino, new.attr.size), (old.attr.ino, old.attr.size));
            // The old one is there as long as it is known.
            assert_eq!(client.read(old.nodeid, fh, 0, 10).unwrap(), b"old");
            assert_eq!(client.getattr(old.nodeid, None).unwrap().attr.nlink, 0);
            client.release(old.nodeid, fh).unwrap();
            let again = client.open(old.nodeid, libc::O_RDONLY).unwrap().fh;
            assert_eq!(client.read(old.nodeid, again, 0, 10).unwrap(), b"old");
            client.release(old.nodeid, again).unwrap();
        });
    }
}

#[test]
fn a_name_becomes_another_kind_of_file() {
    with_client(&[], |share, client| {
        let path = share.write("it", "file");
        let file = client.lookup(ROOT, "it").unwrap().nodeid;
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let dir = client.lookup(ROOT, "it").unwrap();
        assert_eq!(dir.attr.mode & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(client.opendir(file), Err(Errno::ENOTDIR));
        assert_eq!(client.lookup(file, "x"), Err(Errno::ENOTDIR));
        client.mkdir(dir.nodeid, "inside", 0o755).unwrap();
        // A directory that is gone, with the guest in it.
        fs::remove_dir_all(&path).unwrap();
        symlink("elsewhere", &path).unwrap();
        assert_eq!(client.mkdir(dir.nodeid, "more", 0o755).map(drop), Err(Errno::ENOENT));
        assert_eq!(client.lookup(dir.nodeid, "inside"), Err(Errno::ENOENT));
        assert_eq!(client.list(dir.nodeid).map(|entries| entries.len()), Err(Errno::ENOENT));
        let link = client.lookup(ROOT, "it").unwrap().nodeid;
        assert_eq!(client.readlink(link).unwrap(), b"elsewhere");
        assert_eq!(client.readlink(file), Err(Errno::EINVAL));
    });
}

#[test]
fn contents_change_under_an_open_file() {
    with_client(&[], |share, client| {
        let path = share.write("file", vec![b'a'; 10_000]);
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDWR).unwrap().fh;
        fs::write(&path, "short").unwrap();
        assert_eq!(client.getattr(node, None).unwrap().attr.size, 5);
        assert_eq!(client.read(node, fh, 0, 20_000).unwrap(), b"short");
        assert_eq!(client.read(node, fh, 9000, 100).unwrap(), b"");
        client.write(node, fh, 5, b" and long").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short and long");
        // Moved away and back: the node is the file's, not the name's.
        fs::create_dir(share.join("dir")).unwrap();
        fs::rename(&path, share.join("dir/moved")).unwrap();
        assert_eq!(client.lookup(ROOT, "file"), Err(Errno::ENOENT));
        assert_eq!(client.walk("dir/moved").unwrap().nodeid, node);
        client.write(node, fh, 0, b"SHORT").unwrap();
        assert_eq!(share.read("dir/moved"), b"SHORT and long");
        client.release(node, fh).unwrap();
    });
}
