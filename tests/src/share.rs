//! Temporary directories: the shares that daemons serve, mount points and socket directories. Each is removed
//! with all its contents when its owner is dropped, also when the test panics.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::paths;

/// A new, empty directory that is removed on drop. Removal doesn't cross into another file system: what is
/// mounted in it stays untouched (and the removal fails, which is reported).
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    device: u64,
}

impl TempDir {
    /// A directory with a short path in the system's temporary directory: for sockets, whose paths may have
    /// only 107 bytes.
    pub fn short() -> TempDir {
        TempDir::below(&std::env::temp_dir())
    }

    /// A directory on the disk that holds the build: for data, and for file systems with attributes.
    pub fn on_disk() -> TempDir {
        TempDir::below(&paths::target_dir().join("tmp"))
    }

    /// A directory in `parent`, which is made when it is missing.
    pub fn below(parent: &Path) -> TempDir {
        fs::create_dir_all(parent).unwrap_or_else(|e| panic!("cannot make {}: {e}", parent.display()));
        let template = parent.join("vfs-test-XXXXXX");
        let path = nix::unistd::mkdtemp(&template)
            .unwrap_or_else(|e| panic!("cannot make a directory like {}: {e}", template.display()));
        let device = fs::symlink_metadata(&path).expect("stat of an own directory").dev();
        TempDir { path, device }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(e) = remove_tree(&self.path, self.device) {
            eprintln!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Removes a directory with all that lies in it on its own file system.
fn remove_tree(path: &Path, device: u64) -> io::Result<()> {
    empty(open(path, DIRECTORY, Mode::empty())?, device)?;
    fs::remove_dir(path)
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes what is in a directory, by names in it: paths may be longer than a system call takes.
fn empty(directory: OwnedFd, device: u64) -> io::Result<()> {
    if fstat(&directory)?.st_dev != device {
        return Err(io::Error::other("another file system is mounted in it"));
    }
    let names = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    for entry in names.collect::<Vec<_>>() {
        let name = entry?.file_name();
        let flag = match openat(&directory, &*name, DIRECTORY, Mode::empty()) {
            Ok(below) => {
                empty(below, device)?;
                UnlinkatFlags::RemoveDir
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => UnlinkatFlags::NoRemoveDir,
            Err(e) => return Err(e.into()),
        };
        unlinkat(&directory, &*name, flag)?;
    }
    Ok(())
}

/// A directory to be served, with helpers to look at it from the host's side.
#[derive(Debug)]
pub struct Share {
    /// Unmounted before the directory is removed.
    _mount: Option<Mounted>,
    dir: TempDir,
}

impl Default for Share {
    fn default() -> Share {
        Share::new()
    }
}

impl Share {
    /// An empty share, mode 0777 so that any guest user can create in it.
    pub fn new() -> Share {
        let dir = TempDir::on_disk();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod of an own directory");
        Share { _mount: None, dir }
    }

    /// An empty share on a tmpfs. What syncs a file system, as the unmounting of an overlay does that lies on it, waits for
    /// nothing there.
    pub fn in_memory() -> Share {
        let dir = TempDir::short();
        mount(Some("share"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=777"))
            .unwrap_or_else(|e| panic!("cannot mount a tmpfs on {}: {e}", dir.path().display()));
        Share { _mount: Some(Mounted(dir.path().to_owned())), dir }
    }

    /// An empty share on a new ext4 that has room for so many small files: making them takes the same time whatever
    /// else happens on the disk, and removing them takes none.
    pub fn on_own_file_system(files: usize) -> Share {
        let dir = TempDir::on_disk();
        let mount = new_file_system(dir.path(), files).unwrap_or_else(|e| panic!("{e}"));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod of an own directory");
        Share { _mount: Some(mount), dir }
    }

    /// Its path on the host.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The host path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file on the host's side; makes the directories on the way.
    pub fn write(&self, name: impl AsRef<Path>, data: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().expect("below the share")).expect("make directories in the share");
        fs::write(&path, data).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        path
    }

    /// Reads a file on the host's side.
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
    }
}

/// A file system in a file that is gone already, mounted on a directory.
fn new_file_system(on: &Path, files: usize) -> io::Result<Mounted> {
    let image = on.with_extension("ext4");
    File::create_new(&image)?.set_len((1 << 30) + files as u64 * 1024)?;
    let mut mkfs = Command::new("mkfs.ext4");
    // Contents of some bytes lie in the inodes.
    mkfs.args(["-q", "-F", "-O", "inline_data", "-N", &(files + files / 50 + 1000).to_string()]);
    let made = succeed(mkfs.arg(&image))
        .and_then(|()| succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(on)));
    // From now on the loop device keeps it.
    fs::remove_file(&image)?;
    made.map(|()| Mounted(on.to_owned()))
}

/// What is mounted on a directory; detached when this is dropped.
#[derive(Debug)]
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Daemons that were just killed may still have their copies of it.
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {e}", self.0.display());
        }
    }
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status().map_err(|e| io::Error::new(e.kind(), format!("{command:?}: {e}")))?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
