//! Large and strange: names of any bytes, depth, directories of a million entries that change while they are read,
//! files of holes, files that are no files, files that others replace, and file systems that are full, broken,
//! read-only or of another kind. All of it by a FUSE client of our own, which sees what a kernel would smooth over.
//!
//! `VIRTIOFSD_TEST_ENTRIES=1000000` makes the large directory a million entries (100,000 without it).
//!
//! Needs e2fsprogs, btrfs-progs and mount.

mod directory;
mod errors;
mod filesystems;
mod names;
mod offsets;
mod renames;
mod replaced;
mod special;

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::program::program;
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(180);

/// Serves `dir` with these options.
fn start(dir: &Path, options: &[&str]) -> Session {
    let command = DaemonCommand::serving(&Implementation::Ours, dir).args(options);
    Session::start(command, DeviceConfig::default())
}

fn finish(session: Session) {
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
}

/// Runs `test` with a client of a daemon that serves a new share, and ends all in the orderly way.
fn with_client(options: &[&str], test: impl FnOnce(&Share, &mut Client) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = start(share.path(), options);
        test(&share, session.client());
        finish(session);
    });
}

/// A file system in an image file, mounted in this test's own mount namespace.
struct Image {
    /// Where it is mounted.
    mountpoint: std::path::PathBuf,
    dir: TempDir,
}

impl Image {
    /// Makes and mounts one: `mkfs` is the program and its arguments, `package` Debian's for it.
    fn mount(mkfs: &[&str], package: &'static str, mib: u64, on: &Path, options: &str) -> Image {
        let image = Image { mountpoint: on.to_owned(), dir: TempDir::on_disk() };
        let file = std::fs::File::create(image.file()).expect("make an image");
        file.set_len(mib << 20).expect("size an image");
        program(mkfs[0], package).args(&mkfs[1..]).arg(image.file()).succeed();
        image.mount_again(options);
        image
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("image")
    }

    /// Unmounts it, which forgets what the kernel has of it in memory, once no daemon has it any more.
    fn unmount(&self) {
        // What another test's thread forks has copies of this process's descriptors, until it becomes its program.
        while let Err(e) = umount2(&self.mountpoint, MntFlags::empty()) {
            assert_eq!(e, Errno::EBUSY, "unmount {}", self.mountpoint.display());
            std::thread::yield_now();
        }
    }

    fn mount_again(&self, options: &str) {
        let options = format!("loop,{options}");
        program("mount", "mount").args(["-o", &options]).arg(self.file()).arg(&self.mountpoint).succeed();
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A test that panicked may have left a daemon with a copy of the mount.
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
    }
}

/// `mkfs.ext4` with what makes small images quickly.
const EXT4: [&str; 5] = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
const BTRFS: [&str; 2] = ["mkfs.btrfs", "-q"];
