//! Mounts of the host that tests make and take away again.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;

use crate::program::program;

/// When it is dropped, detaches what is still mounted below this directory: a test that fails leaves nothing.
#[derive(Debug)]
pub struct MountsBelow<'a>(pub &'a Path);

impl Drop for MountsBelow<'_> {
    fn drop(&mut self) {
        let mounts = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
        // The names of these tests have nothing in them that would be escaped there.
        let mounts = String::from_utf8_lossy(&mounts).into_owned();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let below: Vec<_> = points.filter(|point| point.starts_with(self.0) && point != self.0).collect();
        for point in below.iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// A new ext4 on a loop device, which is taken down when this is dropped. It lies in memory: who takes the last hold of
/// it away waits until all is written, which on a busy disk would take seconds.
#[derive(Debug)]
pub struct Disk {
    device: String,
    _image: OwnedFd,
}

impl Default for Disk {
    fn default() -> Disk {
        Disk::new()
    }
}

impl Disk {
    /// Makes it.
    pub fn new() -> Disk {
        let image = memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).expect("memory for an image");
        ftruncate(&image, 8 << 20).expect("memory for an image");
        let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
        program("mkfs.ext4", "e2fsprogs").args(["-q", "-F"]).arg(&path).succeed();
        let device = program("losetup", "mount").args(["--find", "--show"]).arg(&path).succeed();
        Disk { device: device.trim().to_owned(), _image: image }
    }

    /// The path of the loop device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether nothing on the host uses it, as who formats it wants to know.
    pub fn is_free(&self) -> bool {
        let flags = OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        match open(self.device.as_str(), flags, Mode::empty()) {
            Ok(_) => true,
            Err(errno) => {
                assert_eq!(errno, Errno::EBUSY);
                false
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}
