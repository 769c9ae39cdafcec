//! Names and paths.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use tests::fuse::Client;
use tests::fuse::wire::ROOT;

use super::with_client;

/// One name for each byte that can be in one, and the longest.
fn strange_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> =
        (1..=255u8).filter(|byte| !b"/.".contains(byte)).map(|byte| vec![byte; 2]).collect();
    names.extend([vec![0xff; 255], b"...".to_vec(), b" ".to_vec(), b"-rf".to_vec(), b"new\nline\t".to_vec()]);
    names.push("\u{1F980}\u{202E}".into());
    names
}

#[test]
fn names_have_any_bytes_and_255_of_them() {
    with_client(&["--xattr"], |share, client| {
        let names = strange_names();
        for name in &names {
            let name = OsStr::from_bytes(name);
            let file =
                client.create(ROOT, name, libc::O_RDWR, 0o644).unwrap_or_else(|e| panic!("{name:?}: {e}"));
            client.write(file.entry.nodeid, file.open.fh, 0, name.as_bytes()).unwrap();
            client.release(file.entry.nodeid, file.open.fh).unwrap();
            assert_eq!(share.read(name), name.as_bytes());
        }
        let listed = list(client);
        assert!(names.iter().all(|name| listed.contains(name)));
        assert_eq!(listed.len(), names.len() + 2);
        for name in &names {
            let (name, other) = (OsStr::from_bytes(name), OsStr::from_bytes(b"\x80other"));
            let node = client.lookup(ROOT, name).unwrap().nodeid;
            client.symlink(ROOT, other, OsStr::from_bytes(name.as_bytes())).unwrap();
            let link = client.lookup(ROOT, other).unwrap().nodeid;
            assert_eq!(client.readlink(link).unwrap(), name.as_bytes());
            client.unlink(ROOT, other).unwrap();
            client.rename((ROOT, name), (ROOT, other), 0).unwrap();
            assert_eq!(client.lookup(ROOT, other).unwrap().nodeid, node);
            client.unlink(ROOT, other).unwrap();
        }
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
    });
}

fn list(client: &mut Client) -> BTreeSet<Vec<u8>> {
    client.list(ROOT).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn names_that_cannot_be_are_refused() {
    with_client(&[], |share, client| {
        share.write("file", "x");
        let long = "n".repeat(256);
        assert_eq!(client.lookup(ROOT, &long), Err(Errno::ENAMETOOLONG));
        assert_eq!(client.mkdir(ROOT, &long, 0o755).map(drop), Err(Errno::ENAMETOOLONG));
        assert_eq!(client.rename((ROOT, "file"), (ROOT, &long), 0), Err(Errno::ENAMETOOLONG));
        for name in ["", "a/b", "/", "../x"] {
            assert_eq!(client.mkdir(ROOT, name, 0o755).map(drop), Err(Errno::EINVAL), "{name:?}");
        }
        // What a kernel resolves by itself, and a guest could send all the same.
        for name in [".", ".."] {
            client.mkdir(ROOT, name, 0o755).unwrap_err();
            client.unlink(ROOT, name).unwrap_err();
            client.rename((ROOT, "file"), (ROOT, name), 0).unwrap_err();
        }
        assert_eq!(share.read("file"), b"x");
    });
}

/// Deeper than a path in one system call could say, and found again from the top.
#[test]
fn paths_are_as_deep_as_one_likes() {
    const DEPTH: usize = 600;
    with_client(&["--rlimit-nofile=400"], |share, client| {
        let name = "d".repeat(200);
        let mut nodes = vec![ROOT];
        for _ in 0..DEPTH {
            nodes.push(client.mkdir(nodes[nodes.len() - 1], &name, 0o755).unwrap().nodeid);
        }
        let deepest = nodes[DEPTH];
        let made = client.create(deepest, "file", libc::O_RDWR, 0o600).unwrap();
        client.write(made.entry.nodeid, made.open.fh, 0, b"deep").unwrap();
        client.release(made.entry.nodeid, made.open.fh).unwrap();
        for node in nodes[1..].iter().rev() {
            client.forget(*node, 1);
        }
        let mut node = ROOT;
        for _ in 0..DEPTH {
            node = client.lookup(node, &name).unwrap().nodeid;
        }
        let file = client.lookup(node, "file").unwrap().nodeid;
        let fh = client.open(file, libc::O_RDONLY).unwrap().fh;
        assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"deep");
        client.release(file, fh).unwrap();
        client.rename((node, "file"), (ROOT, "up"), 0).unwrap();
        assert_eq!(share.read("up"), b"deep");
        // The whole of it moves below itself as little as any other.
        let top = client.lookup(ROOT, &name).unwrap().nodeid;
        assert_eq!(client.rename((ROOT, &name), (node, "below"), 0), Err(Errno::EINVAL));
        assert_eq!(client.rmdir(ROOT, &name), Err(Errno::ENOTEMPTY));
        client.rename((top, &name), (ROOT, "rest"), 0).unwrap();
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 3);
    });
}
