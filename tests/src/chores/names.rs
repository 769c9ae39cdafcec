//! What has names: listings, files without one, renames, many threads in a directory, special files, programs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::stat::{Mode, SFlag, mknod};

use super::sys::{Entry, read_entries, rename};

/// Lists a directory from a cookie to its end.
fn list_from(dir: &mut File, cookie: i64) -> Vec<Entry> {
    dir.seek(SeekFrom::Start(cookie as u64)).unwrap();
    let mut all = Vec::new();
    loop {
        let mut some = read_entries(dir).unwrap();
        if some.is_empty() {
            return all;
        }
        all.append(&mut some);
    }
}

/// Thousands of entries, which go while they are listed, and cookies that one comes back to.
pub(super) fn listing(dir: &Path) -> String {
    const COUNT: usize = 2000;
    /// How many are looked at for removal after each look.
    const STEP: usize = 160;
    let name = |n: usize| OsString::from(format!("{n}-{}", "n".repeat(n % 60)));
    for n in 0..COUNT {
        mknod(&dir.join(name(n)), SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0).unwrap();
    }
    let mut open = File::open(dir).unwrap();
    let all = list_from(&mut open, 0);
    let names: BTreeSet<_> = all.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!((all.len(), names.len()), (COUNT + 2, COUNT + 2), "each once");
    for at in [1, 1500, COUNT] {
        let rest: Vec<_> = list_from(&mut open, all[at].next).into_iter().map(|entry| entry.name).collect();
        let expected: Vec<_> = all[at + 1..].iter().map(|entry| entry.name.clone()).collect();
        assert!(rest == expected, "from cookie {at}: {} entries for {}", rest.len(), expected.len());
    }
    // Two thirds go, bit by bit, while it is read; what stays is seen once.
    open.seek(SeekFrom::Start(0)).unwrap();
    let (mut seen, mut gone) = (Vec::new(), 0);
    loop {
        let some = read_entries(&open).unwrap();
        if some.is_empty() {
            break;
        }
        seen.extend(some.into_iter().map(|entry| entry.name));
        for n in (gone..COUNT.min(gone + STEP)).filter(|n| n % 3 != 0) {
            fs::remove_file(dir.join(name(n))).unwrap();
        }
        gone = COUNT.min(gone + STEP);
    }
    let stayed: BTreeSet<_> = (0..COUNT).step_by(3).map(name).collect();
    seen.retain(|name| stayed.contains(name));
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "none twice");
    assert_eq!(seen.len(), stayed.len(), "none left out");
    assert!(gone == COUNT, "the listing ended after {gone} of {COUNT} had gone");
    format!("{} left", fs::read_dir(dir).unwrap().count())
}

/// A file lives as long as it is open, and a name is another file's at once.
pub(super) fn unlinked(dir: &Path) -> String {
    let path = dir.join("file");
    let mut options = OpenOptions::new();
    let first = options.read(true).write(true).create_new(true).open(&path).unwrap();
    first.write_all_at(b"first", 0).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "second").unwrap();
    first.write_all_at(b" lives", 5).unwrap();
    first.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    first.set_len(9).unwrap();
    // Renamed over while it is open: the third one.
    let second = File::open(&path).unwrap();
    fs::write(dir.join("new"), "third").unwrap();
    fs::rename(dir.join("new"), &path).unwrap();
    let read = |mut file: &File| {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let metadata = file.metadata().unwrap();
        format!("{text} links {} mode {:o}", metadata.nlink(), metadata.mode() & 0o7777)
    };
    // A directory that is gone is empty, and nothing can be made in it.
    let gone = dir.join("gone");
    fs::create_dir(&gone).unwrap();
    let handle = File::open(&gone).unwrap();
    fs::remove_dir(&gone).unwrap();
    let inside = format!("/proc/self/fd/{}/new", handle.as_raw_fd());
    let refused = File::create(inside).unwrap_err().raw_os_error();
    format!("{}; {}; {}; {refused:?}", read(&first), read(&second), fs::read_to_string(&path).unwrap())
}

/// Across directories, over files and directories, exchanged.
pub(super) fn renames(dir: &Path) -> String {
    let path = |name: &str| dir.join(name);
    for name in ["a/deep/er", "b", "empty", "full/x"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::write(path("a/deep/er/file"), "file").unwrap();
    fs::write(path("b/other"), "other").unwrap();
    let mut results = Vec::new();
    let mut step = |from: &str, to: &str, flags: u32| {
        results.push(rename(&path(from), &path(to), flags).err());
    };
    step("a/deep", "b/deep", 0);
    step("b/deep/er/file", "b/other", libc::RENAME_NOREPLACE);
    step("b/deep/er/file", "b/other", libc::RENAME_EXCHANGE);
    step("b", "b/deep/inside", 0);
    step("a", "empty", 0);
    step("b", "full", 0);
    step("b/other", "empty", 0);
    step("b/deep", "full/x", libc::RENAME_EXCHANGE);
    step("absent", "b/other", libc::RENAME_EXCHANGE);
    let up = fs::canonicalize(path("full/x/er/..")).unwrap();
    format!("{results:?} {}", up.strip_prefix(fs::canonicalize(dir).unwrap()).unwrap().display())
}

/// Threads make, rename and remove in the same directory.
pub(super) fn threads(dir: &Path) -> String {
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..40 {
                    let (first, second) =
                        (dir.join(format!("{thread}-{n}")), dir.join(format!("{thread}+{n}")));
                    fs::write(&first, format!("{thread} {n}")).unwrap();
                    fs::rename(&first, &second).unwrap();
                    match n % 4 {
                        0 => fs::remove_file(&second).unwrap(),
                        1 => fs::hard_link(&second, &first).unwrap(),
                        2 => symlink("nowhere", &first).unwrap(),
                        _ => {}
                    }
                    // Everybody's: whoever comes first makes it.
                    drop(File::create_new(dir.join(format!("shared-{n}"))));
                }
            });
        }
    });
    format!("{} entries", fs::read_dir(dir).unwrap().count())
}

/// FIFOs and sockets work between processes of one kernel.
pub(super) fn special(dir: &Path) -> String {
    let fifo = dir.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    let text = thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, "through a FIFO").unwrap());
        fs::read_to_string(&fifo).unwrap()
    });
    // A socket's path has to be short.
    let handle = File::open(dir).unwrap();
    let path = format!("/proc/self/fd/{}/socket", handle.as_raw_fd());
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let mut server = listener.accept().unwrap().0;
    client.write_all(b"through a socket").unwrap();
    drop(client);
    let mut answer = String::new();
    server.read_to_string(&mut answer).unwrap();
    format!("{text}, {answer}")
}

/// A program is copied there and run, a script too; what is being run can't be written.
///
/// Other programs write them: a descriptor of ours would be open in the children of other tests, too, between their fork and
/// their exec, and what is open for writing can't be run (40 of 6000 on the host's own disk, beside two threads that start
/// programs).
pub(super) fn programs(dir: &Path) -> String {
    let (shell, script) = (dir.join("sh"), dir.join("script"));
    assert!(Command::new("cp").arg("/bin/sh").arg(&shell).status().unwrap().success());
    let mut tee = Command::new("tee");
    let mut tee = tee.arg(&script).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    tee.stdin.take().unwrap().write_all(b"#!/bin/sh\necho from a script\n").unwrap();
    assert!(tee.wait().unwrap().success());
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&shell, &["-c", "echo from the share"]) + &run(&script, &[]);
    let mut waiting = Command::new(&shell).args(["-c", "read word"]).stdin(Stdio::piped()).spawn().unwrap();
    let busy = OpenOptions::new().write(true).open(&shell).unwrap_err().raw_os_error();
    waiting.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(waiting.wait().unwrap().success());
    // It isn't the same program everywhere.
    fs::remove_file(&shell).unwrap();
    format!("{said:?} {busy:?}")
}
