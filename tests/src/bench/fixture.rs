//! The served directory that all daemons share: the same files for all of them, made once.
//!
//! It lies on a file system of its own: a new ext4 with usual options, in a file, mounted where nobody else sees
//! it. On the machine's own one the same work may cost ten times as much from one second to the next: ext4
//! without a journal, for one, passes over inodes that were freed within the last seconds, so that each
//! deletion makes the next creations slower.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::share::TempDir;

/// Name of the extended attribute on the files of [`WARM`].
pub const XATTR_NAME: &str = "user.bench";
/// Its value.
pub const XATTR_VALUE: [u8; 64] = [b'x'; 64];

/// Directory of files that stay looked up.
pub const WARM: &str = "warm";
/// Directory of symbolic links.
pub const LINKS: &str = "links";
/// Directory of files that are looked up and forgotten.
pub const COLD: &str = "cold";
/// Directory of directories of many files.
pub const DIRECTORIES: &str = "directories";
/// Directory of directories in which files come and go, one for each queue.
pub const CREATE: &str = "create";
/// File that is read in pieces of 4 KiB, as which it was written, too; each begins with its number. The host's page cache
/// keeps what was written at a time together, and ext4 (Linux 6.18) needs the longer for a write the more that is.
pub const READ_SMALL: &str = "read-4k";
/// File that is written in pieces of 4 KiB.
pub const WRITE_SMALL: &str = "write-4k";
/// As [`READ_SMALL`], in pieces of 1 MiB; its 4 KiB blocks begin with their number all the same.
pub const READ_LARGE: &str = "read-1m";
/// As [`WRITE_SMALL`], in pieces of 1 MiB.
pub const WRITE_LARGE: &str = "write-1m";
/// Directory of a million files.
pub const MILLION: &str = "million";

/// Bytes of a small block.
pub const BLOCK: u64 = 4096;
/// Bytes of a large one.
pub const LARGE: u64 = 1 << 20;
/// Directories for creating in: as many as queues.
pub const MAX_QUEUES: u16 = 4;

/// How large it all is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Files in [`WARM`] and in [`LINKS`].
    pub warm: usize,
    /// Files in [`COLD`].
    pub cold: usize,
    /// Directories in [`DIRECTORIES`].
    pub directories: usize,
    /// Files in each of them.
    pub entries: usize,
    /// Bytes of each of the four data files.
    pub data: u64,
}

/// The sizes of a full run.
pub const FULL: Sizes = Sizes { warm: 1000, cold: 10_000, directories: 16, entries: 1000, data: 256 << 20 };
/// The sizes of a quick run.
pub const QUICK: Sizes = Sizes { warm: 1000, cold: 5_000, directories: 16, entries: 1000, data: 64 << 20 };

/// Bytes of the file system's file; it has holes.
const IMAGE_SIZE: u64 = 16 << 30;
/// Its inodes: a million and some more.
const IMAGE_INODES: u64 = 1_500_000;

/// The directory; removed when dropped.
#[derive(Debug)]
pub struct Fixture {
    /// Unmounted before the directory is removed.
    _mount: Option<Mount>,
    dir: TempDir,
    /// How large it is.
    pub sizes: Sizes,
    million: usize,
}

impl Fixture {
    /// Makes it in `parent`, or on a file system of its own. For the latter this process leaves its mount
    /// namespace, so that no other thread may run yet.
    pub fn new(parent: Option<&Path>, sizes: Sizes) -> io::Result<Fixture> {
        let dir = parent.map_or_else(TempDir::on_disk, TempDir::below);
        let mount = match parent {
            Some(_) => None,
            None => Some(Mount::new(dir.path()).map_err(|e| {
                io::Error::new(e.kind(), format!("{e}; --dir takes a directory of any file system instead"))
            })?),
        };
        let fixture = Fixture { _mount: mount, dir, sizes, million: 0 };
        let root = fixture.path();
        open_to_all(root)?;
        for name in fixture.directory(WARM, sizes.warm)? {
            let path = root.join(WARM).join(&name);
            fs::write(&path, [b'w'; BLOCK as usize])?;
            set_xattr(&path)?;
        }
        for name in fixture.directory(LINKS, sizes.warm)? {
            symlink("../warm/some-target-of-usual-length", root.join(LINKS).join(name))?;
        }
        fixture.fill(COLD, sizes.cold)?;
        for index in 0..sizes.directories {
            fixture.fill(&format!("{DIRECTORIES}/{}", text(index)), sizes.entries)?;
        }
        for index in 0..usize::from(MAX_QUEUES) {
            let path = root.join(CREATE).join(text(index));
            fs::create_dir_all(&path)?;
            open_to_all(&path)?;
        }
        for (name, piece) in
            [(READ_SMALL, BLOCK), (WRITE_SMALL, BLOCK), (READ_LARGE, LARGE), (WRITE_LARGE, LARGE)]
        {
            write_blocks(&root.join(name), sizes.data, piece)?;
        }
        // What is written back later would disturb the measurements.
        nix::unistd::sync();
        Ok(fixture)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The host path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes the directory of `count` files, once.
    pub fn make_million(&mut self, count: usize) -> io::Result<()> {
        if self.million < count {
            self.fill(MILLION, count)?;
            nix::unistd::sync();
            self.million = count;
        }
        Ok(())
    }

    fn directory(&self, name: &str, count: usize) -> io::Result<impl Iterator<Item = String> + use<>> {
        fs::create_dir_all(self.join(name))?;
        Ok((0..count).map(text))
    }

    /// A directory of empty files.
    fn fill(&self, name: &str, count: usize) -> io::Result<()> {
        let path = self.join(name);
        self.directory(name, count)?.try_for_each(|name| File::create(path.join(name)).map(drop))
    }
}

/// The file system on a directory; unmounted when dropped, and at the latest when this process ends.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(on: &Path) -> io::Result<Mount> {
        let image = on.with_extension("ext4");
        File::create_new(&image)?.set_len(IMAGE_SIZE)?;
        let made = make_file_system(&image).and_then(|()| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(on))
        });
        // From now on the loop device keeps it.
        fs::remove_file(&image)?;
        made.map(|()| Mount(on.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Daemons that were just killed may still have their copies of it.
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {e}", self.0.display());
        }
    }
}

fn make_file_system(image: &Path) -> io::Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    // Nothing is left to be initialised in the background.
    mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    succeed(mkfs.args(["-N", &IMAGE_INODES.to_string()]).arg(image))
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status().map_err(|e| io::Error::new(e.kind(), format!("{command:?}: {e}")))?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}

/// The name of the file of this number; all are of the same length.
pub fn name(index: usize) -> Vec<u8> {
    text(index).into_bytes()
}

fn text(index: usize) -> String {
    format!("file-{index:07}")
}

fn open_to_all(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// A file of numbered blocks, written in pieces of a size.
fn write_blocks(path: &Path, len: u64, piece: u64) -> io::Result<()> {
    let file = File::create(path)?;
    open_to_all(path)?;
    let mut data = vec![b'd'; piece as usize];
    for at in (0..len).step_by(data.len()) {
        for (index, block) in data.chunks_mut(BLOCK as usize).enumerate() {
            let number = at / BLOCK + index as u64;
            block[..8].copy_from_slice(&number.to_ne_bytes());
        }
        file.write_all_at(&data, at)?;
    }
    (&file).flush()
}

fn set_xattr(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(XATTR_NAME)?;
    // SAFETY: both strings end with a NUL and live during the call; the value's length is its own.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), XATTR_VALUE.as_ptr().cast(), XATTR_VALUE.len(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
